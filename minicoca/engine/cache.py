"""One step of the decoder, from what it has read before. An image's keys and values are projected
once, for all its beams."""

import torch

from ..params import demand_finite
from .attention import absorbing_pays, joint, mlp_layer
from .ops import attention, embedding, layer_norm, linear
from .relatives import decoder


class Cache:
    """Keys and values of everything read so far, of B images whose beams grow token by token.

    They stand where they were written: first the prompt's, then at each step those of all beams,
    side by side. When beams are chosen, nothing moves; what each of them may look at does. `past`:
    {layer: keys and values [B, H, S, K]}, which are read faster than [B, S, H, K].
    """

    def __init__(self, params, config, memory_BSM, slots):
        """slots: how many tokens will be read of one image, over all its beams."""
        self.config, self.params = config, params | {"decoder": decoder(params, config)}
        self.position = self.used = 0
        self.layers, self.past = {}, {}
        head = config.text_width // config.text_heads
        shape = (len(memory_BSM), config.text_heads, slots, head)
        for name, layer in self._self_attentions():
            self.layers[name] = joint(layer["attention"], "query", "key", "value")
            self.past[name] = [memory_BSM.new_empty(shape) for _ in range(2)]
        rows, on_cpu = len(memory_BSM) * slots, memory_BSM.device.type == "cpu"
        pays = absorbing_pays(rows, memory_BSM, config.text_width, config.text_heads)
        self.absorbs = pays and on_cpu
        if self.absorbs:
            self.past["memory"] = [layer_norm(memory_BSM, {"scale": None, "bias": None})]
        for i in range(len(self.params["decoder"]["blocks"])):
            layer = params["decoder"]["blocks"][str(i)]
            if self.absorbs:
                self.layers["cross", i] = absorbed(layer["cross"], layer["norm_memory"], head)
            else:
                m_BSM = layer_norm(memory_BSM, layer["norm_memory"])
                pair = (linear(m_BSM, layer["cross"][kind]) for kind in ("key", "value"))
                heads_first = (x.unflatten(-1, (-1, head)).transpose(1, 2) for x in pair)
                self.past["cross", i] = [x.contiguous() for x in heads_first]

    def _self_attentions(self):
        for i in range(len(self.params["text"]["blocks"])):
            yield ("unimodal", i), self.params["text"]["blocks"][str(i)]
        for i in range(len(self.params["decoder"]["blocks"])):
            yield ("multimodal", i), self.params["decoder"]["blocks"][str(i)]

    def keep(self, images):
        """Go on with these images (places, in order) alone."""
        for name, tensors in self.past.items():
            grows = name in dict(self._self_attentions())
            self.past[name] = [_rows(x, images, self.used if grows else None) for x in tensors]

    def _self_attention(self, x_BTD, layer, name, seen_BTS):
        n_BTD = layer_norm(x_BTD, layer["norm_attention"])
        joined = linear(n_BTD, self.layers[name]).chunk(3, -1)
        q, *new = (x.unflatten(-1, (self.config.text_heads, -1)) for x in joined)
        end = self.used + x_BTD.shape[1]
        past = [x.transpose(1, 2)[:, :end] for x in self.past[name]]
        for all_, now in zip(past, new, strict=True):
            all_[:, self.used :] = now
        causal = not self.used and x_BTD.shape[1] > 1
        o_BTHK = attention(q, *past, causal=causal, mask=seen_BTS, finite=True)
        return x_BTD + linear(o_BTHK.flatten(-2), layer["attention"]["output"])

    def _cross_attention(self, x_BTD, layer, i):
        n_BTD = layer_norm(x_BTD, layer["norm_cross"])
        q_BTD = linear(n_BTD, layer["cross"]["query"])
        q_BTHK = q_BTD.unflatten(-1, (self.config.text_heads, -1))
        if self.absorbs:
            o_BTHK = absorbed_attention(q_BTHK, self.past["memory"][0], *self.layers["cross", i])
        else:
            o_BTHK = attention(q_BTHK, *(x.transpose(1, 2) for x in self.past["cross", i]))
        return x_BTD + linear(o_BTHK.flatten(-2), layer["cross"]["output"])

    def next_logits(self, tokens_BT, seen_BTS=None):
        """Read the prompt, at first, and then one token of each beam: logits of the token after
        the prompt [B, 1, V] or after each beam [B, T, V], in float32 at least.

        seen: which of all that was read, these tokens included, each beam may look at; None: all.
        """
        config, params, first = self.config, self.params, not self.used
        start, self.position = self.position, self.position + (tokens_BT.shape[1] if first else 1)
        x_BTD = embedding(tokens_BT, params["text"]["token"])
        x_BTD = x_BTD + params["text"]["position"][start : self.position]
        for name, layer in self._self_attentions():
            x_BTD = self._self_attention(x_BTD, layer, name, seen_BTS)
            if name[0] == "multimodal":
                if config.multimodal_mlps == 2:
                    x_BTD = mlp_layer(x_BTD, layer["norm_inner"], layer["inner_mlp"], config.gelu)
                x_BTD = self._cross_attention(x_BTD, layer, name[1])
            x_BTD = mlp_layer(x_BTD, layer["norm_mlp"], layer["mlp"], config.gelu)
        self.used += tokens_BT.shape[1]
        n_BTD = layer_norm(x_BTD[:, -1:] if first else x_BTD, params["decoder"]["norm"])
        logits_BTV = linear(n_BTD, params["decoder"]["head"])
        logits_BTV = logits_BTV.to(torch.promote_types(logits_BTV.dtype, torch.float32))
        demand_finite(logits_BTV.amax(-1).isfinite().all(), "probabilities")
        return logits_BTV


def _rows(x, rows, used):
    """These rows of x [B, H, S, K], of which `used` slots hold something: the others are left as
    memory that nobody has touched."""
    kept = x.new_empty(len(rows), *x.shape[1:])
    kept[..., :used, :] = x[..., :used, :].index_select(0, rows)
    return kept


def absorbed(params, norm, head):
    """A cross-attention's maps to keys and values, with the norm before them, for
    absorbed_attention. What is the same for every key of a query, the softmax drops: two biases."""
    scale_M, bias_M = norm["scale"], norm["bias"]
    key_HKM = params["key"]["weight"].unflatten(1, (-1, head)).permute(1, 2, 0) * scale_M
    value_HMK = params["value"]["weight"].unflatten(1, (-1, head)).transpose(0, 1)
    bias_D = bias_M @ params["value"]["weight"] + params["value"]["bias"]
    # `attention` will divide by the root of M, and not of a head's size.
    key_HKM = key_HKM * (len(scale_M) / head) ** 0.5
    return key_HKM.contiguous(), scale_M[:, None] * value_HMK, bias_D.unflatten(0, (-1, head))


def absorbed_attention(q_BTHK, m_BSM, key_HKM, value_HMK, bias_HK):
    """Attention whose keys and values are never formed (attention.py says why it is the same): the
    image's tokens are both, of one head, to as many queries as there are heads."""
    B, T, H, _ = q_BTHK.shape
    q_HBTM = (q_BTHK.flatten(0, 1).transpose(0, 1) @ key_HKM).unflatten(1, (B, T))
    q_BC1M = q_HBTM.transpose(0, 1).flatten(1, 2)[:, :, None]  # C = H x T
    m_BS1M = m_BSM[:, :, None]
    read_HBTM = attention(q_BC1M, m_BS1M, m_BS1M).unflatten(1, (H, T)).transpose(0, 1)
    o_HRK = read_HBTM.reshape(H, B * T, -1) @ value_HMK
    return o_HRK.transpose(0, 1).unflatten(0, (B, T)) + bias_HK
