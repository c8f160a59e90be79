"""Attention, the MLP, and the pre-norm block made of both. Line for line reference/attention.py,
but for what torch derives by itself and for packing: rows of padding are not computed."""

import torch

from .ops import attention, gelu, layer_norm, linear, widened

ABSORB_FROM = 1 << 24  # products per sample that keys must cost before they are avoided


class Packing:
    """The rows of a padded batch [B, S, ...] that are real, as one axis [R, ...].

    Only attention mixes rows, so only attention needs the padded form. slots_R: int64, where in
    [B x S] each real row stands; rows_B: how many each sample has.
    """

    def __init__(self, slots_R, batch, length):
        self.slots_R, self.batch, self.length = slots_R, batch, length
        self.rows_B = torch.bincount(slots_R // length, minlength=batch).tolist()

    def pad(self, x_RD):
        """[R, D] -> [B, S, D], zeros where nothing stands."""
        padded = x_RD.new_zeros(self.batch * self.length, x_RD.shape[-1])
        return padded.index_copy(0, self.slots_R, x_RD).view(self.batch, self.length, -1)

    def take(self, x_BSD):
        """[B, S, D] -> [R, D]."""
        return x_BSD.reshape(self.batch * self.length, -1).index_select(0, self.slots_R)


def multi_head_attention(
    x_BTD, memory_BSM, params, heads, *, causal=False, mask=None, packing=None
):
    """Queries from x, keys and values from memory (x itself for self-attention).

    With a packing, x is [R, D], and so is memory if it is x. One set of queries [1, T, D] serves
    any number of samples and is projected once.
    """
    if memory_BSM is x_BTD:
        y = linear(x_BTD, joint(params, "query", "key", "value"))
        q_BTD, k_BSD, v_BSD = (packing.pad(y) if packing else y).chunk(3, -1)
    else:
        q_BTD = linear(x_BTD, params["query"])
        q_BTD = packing.pad(q_BTD) if packing else q_BTD
        k_BSD, v_BSD = linear(memory_BSM, joint(params, "key", "value")).chunk(2, -1)
    split = [y.unflatten(-1, (heads, -1)) for y in (q_BTD, k_BSD, v_BSD)]
    o_BTD = attention(*split, causal=causal, mask=mask).flatten(-2)
    if packing:
        o_BTD = packing.take(o_BTD)
    return linear(o_BTD, params["output"])


def joint(params, *names):
    """Several linear maps of the same rows as one: fewer, larger products."""
    return {kind: torch.cat([params[n][kind] for n in names], -1) for kind in ("weight", "bias")}


def _absorbed_attention(x_RD, memory_BSM, params, heads, rows_B):
    """multi_head_attention, bracketed otherwise: for one head of the rows of one sample

        softmax(q (m W_key)') (m W_value)  =  (softmax((q W_key') m') m) W_value

    so that keys and values, the larger part of the work where memories are long and texts short,
    are never formed. The keys' bias adds the same to all scores of a row; softmax drops it.
    Scores are summed in float32 at least: 16 bits would round them before the softmax.
    """
    q_RHK = linear(x_RD, params["query"]).unflatten(-1, (heads, -1))
    key_MHK, value_MHK = (
        params[name]["weight"].unflatten(-1, (heads, -1)) for name in ("key", "value")
    )
    q_RHM = torch.einsum("rhk,mhk->rhm", q_RHK * q_RHK.shape[-1] ** -0.5, key_MHK)
    read, wide_BSM = [], widened(memory_BSM)
    for b, q_THM in enumerate(widened(q_RHM).split(rows_B)):
        p_CS = torch.softmax(q_THM.flatten(0, 1) @ wide_BSM[b].T, -1)  # C = T x H
        read.append(p_CS.to(memory_BSM.dtype) @ memory_BSM[b])
    read_RHM = torch.cat(read).view(q_RHM.shape)
    o_RD = torch.einsum("rhm,mhk->rhk", read_RHM, value_MHK).flatten(1) + params["value"]["bias"]
    o_RD = o_RD + 0 * params["key"]["bias"]  # its gradient is 0, not missing
    return linear(o_RD, params["output"])


def absorbing_pays(rows, memory_BSM, width, heads):
    """Whether _absorbed_attention multiplies less, by enough for its loop over samples."""
    B, S, M = memory_BSM.shape
    return S * M * width >= ABSORB_FROM and rows * (width + heads * S) < B * S * width


def mlp(x_BTD, params, kind):
    """down(gelu(up(x)))."""
    return linear(gelu(linear(x_BTD, params["up"]), kind), params["down"])


def self_attention_layer(x_BTD, norm, params, heads, **masking):
    """x + attention(norm(x))."""
    n_BTD = layer_norm(x_BTD, norm)
    return x_BTD + multi_head_attention(n_BTD, n_BTD, params, heads, **masking)


def cross_attention_layer(x_BTD, memory_BSM, norm, norm_memory, params, heads, packing=None):
    """x + attention(norm(x), norm(memory))."""
    n_BTD, m_BSM = layer_norm(x_BTD, norm), layer_norm(memory_BSM, norm_memory)
    if packing and absorbing_pays(len(x_BTD), memory_BSM, x_BTD.shape[-1], heads):
        return x_BTD + _absorbed_attention(n_BTD, m_BSM, params, heads, packing.rows_B)
    return x_BTD + multi_head_attention(n_BTD, m_BSM, params, heads, packing=packing)


def mlp_layer(x_BTD, norm, params, kind):
    """x + mlp(norm(x))."""
    return x_BTD + mlp(layer_norm(x_BTD, norm), params, kind)


def block(x_BTD, params, heads, kind, **masking):
    """Self-attention, then MLP: a layer of the image encoder and of the unimodal decoder."""
    x_BTD = self_attention_layer(
        x_BTD, params["norm_attention"], params["attention"], heads, **masking
    )
    return mlp_layer(x_BTD, params["norm_mlp"], params["mlp"], kind)


def causal_mask(length, device=None):
    """[T, T], True where query t may see key s: s <= t."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril()
