"""CoCa with a convolutional image tower, ResNet-D. As reference/relatives/resnet.py."""

from functools import partial

import torch
import torch.nn.functional as F

from ..attention import multi_head_attention
from ..losses import contrastive_loss
from ..model import embed
from ..ops import linear
from ..pooling import pool
from ..towers import joint_loss
from .convolution import convolution, residual
from .layers import transformer


def stem(x, params, pools):
    """Three kernels, then `pools` mean pools."""
    for i in range(len(params)):
        x = F.relu(convolution(x, params[str(i)]))
    for _ in range(pools):
        x = F.avg_pool2d(x, 2)
    return x


def tower(images, params, config, settings):
    """Images -> tokens [B, S, M], row by row. Every stage but the first begins with a pool."""
    x = stem(images.permute(0, 3, 1, 2), params["stem"], settings.stem_pools)
    for i in range(len(params["residuals"])):
        x = residual(x, params["residuals"][str(i)], i > 0 and i % settings.depth == 0)
    x_BSM = x.flatten(2).transpose(1, 2)
    if settings.transformer:
        x_BSM = x_BSM + params["position"]
        x_BSM = transformer(x_BSM, params["blocks"], config.image_heads, config.gelu)
    return x_BSM


def attention_pool(tokens_BSM, params, heads):
    """CLIP's: of the mean token and all, each at its place, the mean one asks: [B, D]."""
    x = torch.cat([tokens_BSM.mean(1, keepdim=True), tokens_BSM], 1) + params["position"]
    pooled_B1M = multi_head_attention(x[:, :1], x, params["attention"], heads)
    return linear(pooled_B1M[:, 0], params["output"])


def image_features(params, config, settings, images):
    """As CoCa's: `encode` and the tower's tokens [B, S, M]."""
    tokens_BSM = tower(images, params["image"], config, settings)
    contrast_BD, memory = pool(tokens_BSM, params["pooler"], config)
    if settings.attention_pool:
        given = params["attention_pool"], config.image_heads
        contrast_BD = attention_pool(tokens_BSM, *given)
    return embed(contrast_BD, params, "image_projection"), memory, tokens_BSM


def encode(params, config, images, places, settings):
    """As CoCa's `encode_image`: -> (unit embedding [B, E], image tokens for the decoder)."""
    return image_features(params, config, settings, images)[:2]


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, image [B, E], text [B, E]}, weighed as CoCa's."""

    def contrast(image_BE, text_BE):
        return contrastive_loss(image_BE, text_BE, params["log_temperature"])

    return joint_loss(params, config, batch, contrast, partial(encode, settings=settings))
