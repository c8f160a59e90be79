"""Image-text matching as BLIP's, added to CoCa. As reference/relatives/matching.py."""

import torch

from ..answers import answer_head, answer_loss
from ..losses import caption_loss, contrastive_loss
from ..model import encode_image, encode_text
from ..ops import widened
from ..text import TextRows, lengths_of, multimodal_decoder
from .coca import text_features
from .layers import same_captions


def drawn(scores_BB, allowed_BB, noise_B):
    """A column for each row by softmax over those that are allowed, where noise from 0 to 1 stands
    in what comes before; B where none is allowed."""
    scores_BB = scores_BB.masked_fill(~allowed_BB, -torch.inf)
    p_BB = torch.softmax(scores_BB, 1).masked_fill(~allowed_BB, 0)  # a row of nothing is all NaN
    before_BB = p_BB.cumsum(1)
    return (before_BB <= noise_B[:, None] * before_BB[:, -1:]).sum(1)


def rows_asked(scores_BB, tokens_BT, noise_2B):
    """(image of each row [R], its text [R]); the first B rows are the pairs themselves. Where all
    captions are equal there are no others."""
    own_B = torch.arange(len(tokens_BT), device=tokens_BT.device)
    allowed_BB = ~same_captions(tokens_BT)
    text_B = drawn(scores_BB, allowed_BB, noise_2B[0])
    image_B = drawn(scores_BB.T, allowed_BB, noise_2B[1])
    image_R, text_R = torch.cat([own_B, own_B, image_B]), torch.cat([own_B, text_B, own_B])
    there_R = (image_R < len(own_B)) & (text_R < len(own_B))
    return image_R[there_R], text_R[there_R]


def matcher(params, config, settings, images, tokens_RT):
    """-> a function of P pairs, of which image and text each is: logits [P, 2] of no and yes."""
    memory, lengths_R = encode_image(params, config, images)[1], lengths_of(tokens_RT) - 1
    _, x_RTD = text_features(params, config, settings, tokens_RT)

    def matches(image_P, text_P):
        read, inputs = memory.index_select(0, image_P), x_RTD.index_select(0, text_P)
        n = multimodal_decoder(inputs, read, params["decoder"], config)
        return answer_head(n, params["matching"], lengths_R[text_P], config)

    return matches


def right_answers(asked, pairs, device):
    """[R, 2]: of the rows asked about the first ones are pairs. Columns: no, yes."""
    pair_R = torch.arange(asked, device=device) < pairs
    return torch.stack([~pair_R, pair_R], 1)


def loss(params, config, settings, batch):
    """-> {loss, contrastive, caption, matching, image [B, E], text [B, E]}."""
    tokens_BT = batch["tokens"]
    rows = TextRows(tokens_BT, config)
    image_BE, memory = encode_image(params, config, batch["images"])
    text_BE, x_BTD = encode_text(params, config, tokens_BT, rows)
    x_BTD = rows.decoder_packing.pad(x_BTD) if rows.decoder_packing else x_BTD
    given = image_BE, text_BE, params["log_temperature"]
    outputs = {"image": image_BE, "text": text_BE, "contrastive": contrastive_loss(*given)}
    with torch.no_grad():
        image_BE, text_BE, log_temperature = map(widened, given)
        scores_BB = torch.exp(-log_temperature) * (image_BE @ text_BE.T)
        image_R, text_R = rows_asked(scores_BB, tokens_BT, batch["noise"])
    read, inputs = memory.index_select(0, image_R), x_BTD.index_select(0, text_R)
    n = multimodal_decoder(inputs, read, params["decoder"], config)
    pairs, head = n[: len(tokens_BT)], params["decoder"]["head"]
    outputs["caption"] = caption_loss(pairs, head, tokens_BT[:, 1:])
    asked = answer_head(n, params["matching"], rows.lengths_B[text_R] - 1, config)
    right_R2 = right_answers(len(asked), len(tokens_BT), asked.device)
    outputs["matching"] = answer_loss(asked, right_R2)
    weights = {"contrastive": config.contrastive_weight, "caption": config.caption_weight}
    weights |= {"matching": settings.matching_weight}
    return outputs | {"loss": sum(weight * outputs[name] for name, weight in weights.items())}
