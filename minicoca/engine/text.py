"""The decoupled text decoder: unimodal layers, then multimodal ones. As reference/text.py, with two
differences that change no result.

CLS stands right after a row's last token, not after its padding: then the causal mask alone gives
it the valid tokens and itself, and no other mask is needed (its position is its own anyway). And
where padding is a large part of a batch, the rows are packed (attention.Packing).
"""

import torch

from ..config import PAD
from .attention import (
    Packing,
    block,
    causal_mask,
    cross_attention_layer,
    mlp_layer,
    self_attention_layer,
)
from .ops import embedding, layer_norm

PACK_BELOW = 0.8  # pack when fewer than this part of the rows are real


def lengths_of(tokens_BT):
    """How many tokens each row has before its padding."""
    return (tokens_BT != PAD).sum(1)


def text_mask(lengths_B, tokens, legacy=False):
    """[B, S, S] for S = `tokens` tokens and CLS last; see reference/attention.py."""
    mask_BSS = causal_mask(tokens + 1, lengths_B.device).repeat(len(lengths_B), 1, 1)
    key_S = torch.arange(tokens + 1, device=lengths_B.device)
    if legacy:
        mask_BSS[:, -1] = key_S <= lengths_B[:, None]
    else:
        mask_BSS[:, -1] = (key_S < lengths_B[:, None]) | (key_S == tokens)
    return mask_BSS


def text_embedding(tokens_BT, params, cls_slots_B):
    """Token + position, and CLS at the given slot of each row: [B, T + 1, D].

    Raises ValueError if T is too long.
    """
    B, T = tokens_BT.shape
    if T > len(params["position"]):
        raise ValueError(f"{T} tokens, but the model has {len(params['position'])} positions")
    x_BTD = embedding(tokens_BT, params["token"]).to(params["position"].dtype)
    x_BTD = x_BTD + params["position"][:T]
    cls_B1D = params["cls"].expand(B, 1, -1)
    x_BSD = torch.cat([x_BTD, x_BTD.new_zeros(cls_B1D.shape)], 1)
    slots_B1D = cls_slots_B[:, None, None].expand_as(cls_B1D)
    return x_BSD.scatter(1, slots_B1D, cls_B1D.to(x_BSD.dtype))


class TextRows:
    """Which rows of [B, S] are computed: S slots, tokens first, then CLS, then nothing."""

    def __init__(self, tokens_BT, config):
        B, T = tokens_BT.shape
        self.lengths_B = lengths_of(tokens_BT)
        self.legacy = config.legacy_cls_mask
        self.cls_slots_B = torch.full_like(self.lengths_B, T) if self.legacy else self.lengths_B
        self.packing = self.decoder_packing = None
        if not self.legacy and self._worth_packing(tokens_BT):
            slot_1S = torch.arange(T + 1)[None]
            self.packing = self._pack(slot_1S <= self.lengths_B[:, None])
            # The rows that predict: all but the last token and CLS. Shorter by one slot each.
            predicts_BS = slot_1S < self.lengths_B[:, None] - 1
            self.kept_R = predicts_BS.flatten()[self.packing.slots_R].nonzero()[:, 0]
            self.decoder_packing = self._pack(predicts_BS[:, : max(1, T - 1)])
            self.cls_rows_B = torch.cumsum(self.lengths_B + 1, 0) - 1

    def _worth_packing(self, tokens_BT):
        # On a GPU the sizes would have to be waited for, and a compiled graph wants fixed ones.
        if tokens_BT.device.type != "cpu" or torch.compiler.is_compiling():
            return False
        B, T = tokens_BT.shape
        return T > 1 and int(self.lengths_B.sum()) + B < PACK_BELOW * B * (T + 1)

    @staticmethod
    def _pack(real_BS):
        return Packing(real_BS.flatten().nonzero()[:, 0], *real_BS.shape)


def unimodal_decoder(tokens_BT, params, config, rows):
    """Token ids -> (x for the multimodal layers, [B, T - 1, D] or [R, D]; normed CLS [B, D]).

    The last token predicts nothing and is not handed on.
    """
    x_BSD = text_embedding(tokens_BT, params, rows.cls_slots_B)
    masking = {"causal": True, "packing": rows.packing}
    if rows.legacy:
        masking = {"mask": text_mask(rows.lengths_B, tokens_BT.shape[1], legacy=True)}
    if rows.packing:
        x_BSD = rows.packing.take(x_BSD)
    for i in range(config.unimodal_layers):
        layer = params["blocks"][str(i)]
        x_BSD = block(x_BSD, layer, config.text_heads, config.gelu, **masking)
    if rows.packing:
        cls_BD, x_BTD = x_BSD[rows.cls_rows_B], x_BSD[rows.kept_R]
    else:
        cls_BD = x_BSD[torch.arange(len(x_BSD), device=x_BSD.device), rows.cls_slots_B]
        x_BTD = x_BSD[:, : tokens_BT.shape[1] - 1]
    return x_BTD, layer_norm(cls_BD, params["norm"])


def multimodal_block(x_BTD, memory_BSM, params, config, packing=None, mask=None):
    """Causal self-attention, cross-attention to the image, one MLP (or two, as open_clip)."""
    heads, masking = config.text_heads, {"causal": mask is None, "mask": mask, "packing": packing}
    x_BTD = self_attention_layer(
        x_BTD, params["norm_attention"], params["attention"], heads, **masking
    )
    if config.multimodal_mlps == 2:
        x_BTD = mlp_layer(x_BTD, params["norm_inner"], params["inner_mlp"], config.gelu)
    x_BTD = cross_attention_layer(
        x_BTD,
        memory_BSM,
        params["norm_cross"],
        params["norm_memory"],
        params["cross"],
        heads,
        packing,
    )
    return mlp_layer(x_BTD, params["norm_mlp"], params["mlp"], config.gelu)


def multimodal_decoder(x_BTD, memory_BSM, params, config, packing=None, mask=None):
    """Unimodal token outputs and image tokens -> what the head reads, [B, T, D] or packed. No mask:
    causal."""
    for i in range(len(params["blocks"])):
        layer = params["blocks"][str(i)]
        x_BTD = multimodal_block(x_BTD, memory_BSM, layer, config, packing, mask)
    return layer_norm(x_BTD, params["norm"])
