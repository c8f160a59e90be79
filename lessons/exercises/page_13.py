"""Exercises of page 13: attention's backward, in Triton's interpreter."""

import numpy as np
import triton
import triton.language as tl

from minicoca.reference.attention import attention, attention_backward, causal_mask

from .. import source
from ..exercise import KERNEL_IMPORTS, Exercise
from ..launch import empty, launch, launch_piece, stored, tensor

LOG2E = np.log2(np.e)
BLOCK, K = 16, 64  # K is no tile's size: sums along the wrong axis do not fit


@triton.jit
def _probabilities_driver(q_ptr, k_ptr, lse2_ptr, p_ptr, first_s, T, end, scale,
                          BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, K: tl.constexpr,
                          CAUSAL: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    i, j, c = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_S), tl.arange(0, K)
    q = tl.load(q_ptr + i[:, None] * K + c[None, :])
    k = tl.load(k_ptr + j[:, None] * K + c[None, :])
    lse2 = tl.load(lse2_ptr + i)
    p = PIECE(q, k, lse2, i, first_s + j, T, end, scale, CAUSAL, WIDE, "ieee")  # noqa: F821
    tl.store(p_ptr + i[:, None] * BLOCK_S + j[None, :], p)


def _probabilities_launch(piece, q, k, lse2, first_s, T, end, scale):
    source.keeps_digits(piece)
    outputs = []
    for causal in (False, True):
        p = empty(len(q), len(k))
        sizes = {"BLOCK_T": len(q), "BLOCK_S": len(k), "K": K, "CAUSAL": causal}
        launch_piece(
            piece, _probabilities_driver, (1,), *map(tensor, (q, k, lse2)), p, first_s, T, end,
            scale, WIDE=tl.float32, **sizes,
        )  # fmt: skip
        outputs.append(p)
    return stored(*outputs)


def _probabilities_inputs(rng):
    """The second tile of keys of a head; padded queries have lse2 = +inf, as load_lse2 gives.

    What lies behind the last key would overflow exp2.
    """
    block_t, block_s = 32, 16
    q, k = (rng.standard_normal((n, K)).astype(np.float32) for n in (block_t, block_s))
    T, first_s, scale = int(rng.integers(24, 30)), 8, float(rng.uniform(0.2, 0.3))
    count = int(rng.integers(10, 15))  # of real keys
    q[:, 0] = rng.uniform(1, 2, block_t)
    lse2 = np.log2(np.exp(q @ k[:count].T * scale).sum(1)) + rng.random(block_t)  # first tile too
    k[count:, 0] = 3000
    lse2 = np.where(np.arange(block_t) < T, lse2, np.inf).astype(np.float32)
    return q, k, lse2, first_s, T, first_s + count, scale


def _probabilities(q, k, lse2, first_s, T, end, scale, factor=None, unit=LOG2E, base=2.0,
                   pad=False, past=None, times=False):  # fmt: skip
    t, s = np.arange(len(q))[:, None], first_s + np.arange(len(k))[None, :]
    scores = q.astype(float) @ k.T.astype(float) * (factor or scale) * unit
    with np.errstate(over="ignore", invalid="ignore"):
        p = (base ** (scores - lse2[:, None].astype(float))).astype(np.float32)
        real = (t < T) & (pad | (s < end))
        seen = real & ((s <= t) if past is None else past)
        return (p * real, p * seen) if times else (np.where(real, p, 0), np.where(seen, p, 0))


def _again(q, k, lse2, first_s, T, end, scale):
    """P of the tile, of all keys and causal."""
    t, s = np.arange(len(q))[:, None], first_s + np.arange(len(k))
    scores = q.astype(float) @ k.T.astype(float) * (scale * LOG2E)
    p = 2 ** (scores - lse2[:, None])
    inside = (t < T) & (s < end)
    return np.where(inside, p, 0), np.where(inside & (s <= t), p, 0)


def _probabilities_mistake(**change):
    return lambda *arguments: _probabilities(*arguments, **change)


def _own_softmax(q, k, lse2, first_s, T, end, scale):
    found = _probabilities(q, k, lse2, first_s, T, end, scale)
    return tuple(p / np.where(p.any(-1, keepdims=True), p.sum(-1, keepdims=True), 1) for p in found)


PROBABILITIES_FILE = '''@triton.jit
def probabilities(q, k, lse2, t, s, T, end, scale, CAUSAL: tl.constexpr, WIDE: tl.constexpr,
                  PRECISION: tl.constexpr):
    """P [BLOCK_T, BLOCK_S] again: what the forward's softmax was for these queries and keys.

    q: tile [BLOCK_T, K]; k: tile [BLOCK_S, K]; lse2 [BLOCK_T]: the rows' log-sum-exp in base 2.
    t, s, T, end, CAUSAL: as in score_mask. Masked scores, however large, have P = 0 exactly.
    Products: tl.dot(a, b, input_precision=PRECISION, out_dtype=WIDE). WIDE is the type to compute
    in (tl.float32 here), PRECISION how the factors are rounded ("ieee" here: not at all).
    """
    raise NotImplementedError
'''


def _backward_inputs(rng):
    H, T, S = 3, int(rng.integers(17, 31)), int(rng.integers(33, 47))
    q, do = (rng.standard_normal((H, T, K)).astype(np.float32) for _ in range(2))
    k, v = (rng.standard_normal((H, S, K)).astype(np.float32) for _ in range(2))
    return q, k, v, do, float(rng.uniform(0.2, 0.3))


def _forward(q, k, v, scale, causal):
    """(o, lse, P, the reference's cache); q makes up for a scale that is not 1 / sqrt(K)."""
    own = [x.astype(float).transpose(1, 0, 2)[None] for x in (q * (scale * K**0.5), k, v)]
    o, cache = attention(*own, mask=causal_mask(q.shape[1]) if causal else None)
    scores = q.astype(float) @ k.transpose(0, 2, 1).astype(float) * scale
    if causal:
        scores = np.where(causal_mask(q.shape[1]), scores, -np.inf)
    return o[0].transpose(1, 0, 2), np.log(np.exp(scores).sum(-1)), cache[3][0], cache


def _causal_too(backward):
    def both(q, k, v, do, scale):
        own = [x[:, : q.shape[1]] for x in (k, v)]
        return *backward(q, k, v, do, scale, False), *backward(q, *own, do, scale, True)

    return both


def _backward_of(q, k, v, do, scale, causal):
    *_, cache = _forward(q, k, v, scale, causal)
    grads = attention_backward(do.astype(float).transpose(1, 0, 2)[None], cache)
    dq, dk, dv = (x[0].transpose(1, 0, 2) for x in grads)
    return dq * (scale * K**0.5), dk, dv


def _backward_launch(kernel, q, k, v, do, scale):
    source.keeps_digits(kernel)
    source.masks_loads(kernel)

    def backward(q, k, v, do, scale, causal):
        (H, T, _), S = q.shape, k.shape[1]
        o, lse, _, _ = _forward(q, k, v, scale, causal)
        grads = empty(H, T, K), empty(H, S, K), empty(H, S, K)
        sizes = {"CAUSAL": causal, "BLOCK_T": 32, "BLOCK_S": BLOCK, "K": K}
        launch(kernel, (H,), *map(tensor, (q, k, v, o, lse, do)), *grads, T, S, scale, **sizes)
        return grads

    return stored(*_causal_too(backward)(q, k, v, do, scale))


def _backward_mistake(change):
    """The five products, of which `change(names) -> some of them` replaces some."""

    def backward(q, k, v, do, scale, causal):
        o, lse, p, _ = _forward(q, k, v, scale, causal)
        x = {"q": q, "k": k, "v": v, "do": do, "o": o, "lse": lse, "p": p, "scale": scale}
        x["delta"] = (do * o).sum(-1, keepdims=True)
        x |= {key: y for key, y in change(x).items() if key in ("k", "v", "p", "delta")}
        x["dp"] = do @ x["v"].transpose(0, 2, 1)
        x["ds"] = x["p"] * (x["dp"] - x["delta"]) * scale
        x |= {key: y for key, y in change(x).items() if key == "ds"}
        x["dq"], x["dk"] = x["ds"] @ x["k"], x["ds"].transpose(0, 2, 1) @ q
        x["dv"] = x["p"].transpose(0, 2, 1) @ do
        x |= {key: y for key, y in change(x).items() if key in ("dq", "dk", "dv")}
        return x["dq"], x["dk"], x["dv"]

    return _causal_too(backward)


def _no_mask(x):
    scores = x["q"] @ x["k"].transpose(0, 2, 1) * x["scale"]
    return {"p": np.exp(scores - x["lse"][..., None])}


def _lse_as_base_2(x):
    lse = x["lse"][..., None]
    return {"p": x["p"] * np.exp(lse) / 2**lse}


def _last_tile(x):
    if "ds" not in x:
        return {}
    start = (x["k"].shape[1] - 1) // BLOCK * BLOCK
    return {"dq": x["ds"][..., start:] @ x["k"][:, start:]}


def _first_lse(x):
    return {"p": x["p"] * np.exp(x["lse"] - x["lse"][:1])[..., None]}


def _delta_of_tiles(x):
    if "dp" not in x:
        return {}
    starts = np.arange(0, x["k"].shape[1], BLOCK)
    sums = np.add.reduceat(x["p"] * x["dp"], starts, axis=-1)
    delta = np.repeat(sums, BLOCK, axis=-1)[..., : x["k"].shape[1]]
    return {"ds": x["p"] * (x["dp"] - delta) * x["scale"]}


def _rows_by_t(x):
    """Where the rows of a head of k lie if its pointer moves by T rows, not by S."""
    return np.arange(len(x["q"]))[:, None] * x["q"].shape[1] + np.arange(x["k"].shape[1])


def _keys_moved_by_t(x):
    if "p" not in x or "dp" in x:
        return {}
    k, v = (x[name].reshape(-1, K)[_rows_by_t(x)] for name in ("k", "v"))
    scores = x["q"].astype(float) @ k.transpose(0, 2, 1) * x["scale"]
    return {"k": k, "v": v, "p": np.exp(scores - x["lse"][..., None]) * (x["p"] != 0)}


def _keys_and_grads_moved_by_t(x):
    if "ds" not in x:
        return _keys_moved_by_t(x)
    found = {}
    for name in ("dk", "dv") if "dk" in x else ():
        found[name] = np.full(x[name].shape, np.nan)
        for rows, head in zip(_rows_by_t(x), x[name], strict=True):
            found[name].reshape(-1, K)[rows] = head
    return found


def _heads(heads):
    """What stands in the places of the heads: the gradients of others, or nothing (None)."""

    def backward(*arguments):
        found = _backward_of(*arguments)
        at = lambda x: np.stack([x[0] * np.nan if h is None else x[h] for h in heads])  # noqa: E731
        return tuple(map(at, found))

    return _causal_too(backward)


def _plainly(q, k, v, do, scale):
    """What the kernel computes, without its tiles; the first T keys if causal."""
    found = []
    for causal in (False, True):
        T, S = q.shape[1], q.shape[1] if causal else k.shape[1]
        k, v = k[:, :S], v[:, :S]
        o, lse, _, _ = _forward(q, k, v, scale, causal)
        t, s = np.arange(T)[:, None], np.arange(S)
        p = np.exp(q.astype(float) @ k.swapaxes(1, 2) * scale - lse[..., None])
        p = np.where((s <= t) | (not causal), p, 0)
        delta = (o * do).sum(2)
        dv = p.swapaxes(1, 2) @ do
        dp = do @ v.swapaxes(1, 2)
        ds = p * (dp - delta[..., None]) * scale
        dk = ds.swapaxes(1, 2) @ q
        dq = ds @ k
        found += [dq, dk, dv]
    return tuple(found)


def _of_ds(find):
    return lambda x: find(x) if "ds" in x else {}


BACKWARD_FILE = '''@triton.jit
def attention_backward_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, lse_ptr, do_ptr, dq_ptr, dk_ptr, dv_ptr, T, S, scale,
    CAUSAL: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_S: tl.constexpr, K: tl.constexpr,
):
    """The gradients dq, dk, dv of attention, from its inputs, o, lse and the gradient do of o.

    q, o, do, dq [H, T, K], k, v, dk, dv [H, S, K], lse [H, T] (natural logarithm): contiguous
    float32; head h of q begins h * T * K numbers after q_ptr. CAUSAL: query t sees keys 0 to t.
    Program h has head h: all its queries at once (T <= BLOCK_T), its keys BLOCK_S at a time.
    """
    raise NotImplementedError
'''

PIECES = """

from minicoca.kernels.attention import load_lse2, probabilities  # noqa: F401
from minicoca.kernels.softmax import load_tile, store_tile  # noqa: F401"""

EXERCISES = (
    Exercise(
        "13a", 2, 20, "the probabilities again, from the log-sum-exp",
        "minicoca.kernels.attention:probabilities", ("p", "p causal"), _probabilities_inputs, "",
        (
            "p = exp(score - lse) needs no maximum and no sum: both are in lse. In base 2 the "
            "score is q k' * (scale * log2 e), and lse2 is given in base 2 already.",
            "tl.exp2(scores - lse2[:, None]), and 0 by tl.where outside of score_mask(t, s, T, "
            "end, CAUSAL): a product with the mask would make NaN of a masked inf.",
        ),
        {
            "The scores are not multiplied by scale.":
                _probabilities_mistake(factor=1.0),
            "exp2 wants scores in base 2: multiply them by log2 e.":
                _probabilities_mistake(unit=1.0),
            "exp instead of exp2: scores and lse2 are in base 2.":
                _probabilities_mistake(base=np.e),
            "Do not divide by the tile's own sum: the other tiles' keys are in lse2.": _own_softmax,
            "CAUSAL was not used.": _probabilities_mistake(past=True),
            "0 times infinity is NaN: choose with tl.where.": _probabilities_mistake(times=True),
            "Nothing is masked: P is 0 wherever score_mask is False.":
                _probabilities_mistake(pad=True, past=True),
            "Keys from `end` on are padding: their P is 0.":
                _probabilities_mistake(pad=True),
        },
        model=(_again,), launch=_probabilities_launch, file=PROBABILITIES_FILE,
        imports=KERNEL_IMPORTS + "\n\nfrom minicoca.kernels.softmax import LOG2E, score_mask  "
        "# noqa: F401", close=1e-5,
    ),
    Exercise(
        "13b", 3, 50, "a whole attention backward",
        "minicoca.kernels.attention:attention_bwd_short_kernel",
        ("dq", "dk", "dv", "dq causal", "dk causal", "dv causal"), _backward_inputs, "",
        (
            "Before the loop load q, do, o; delta = tl.sum(o * do, 1); lse2 = load_lse2(...); "
            "dq = 0. Each round loads k and v of one tile and finishes this tile's dk and dv.",
            "p = probabilities(q, k, lse2, t, s, T, S, scale, CAUSAL, tl.float32, \"ieee\"); "
            "dv = p' do; dp = do v'; ds = p * (dp - delta[:, None]) * scale.",
            "dk = ds' q is stored in the round; dq += ds k is stored after the last one. Pass "
            "input_precision=\"ieee\" to tl.dot.",
        ),
        {
            "delta is missing: ds = p (dp - delta), since a row of p adds up to 1.":
                _backward_mistake(lambda x: {"delta": 0.0}),
            "scale is missing from ds: the scores were multiplied by it, so is their gradient.":
                _backward_mistake(_of_ds(lambda x: {"ds": x["ds"] / x["scale"]})),
            "scale is in dq twice: ds has it already.":
                _backward_mistake(_of_ds(lambda x: {"dq": x["ds"] @ x["k"] * x["scale"]})),
            "scale is in dq and dk twice: once in ds is enough.":
                _backward_mistake(_of_ds(lambda x: {"ds": x["ds"] * x["scale"]})),
            "delta is the sum over the whole row: take do * o.":
                _backward_mistake(_delta_of_tiles),
            "lse_ptr is not moved by the head: lse is [H, T], so by h * T.":
                _backward_mistake(_first_lse),
            "Every head is computed as head 0: move the pointers that are read by the head.":
                _heads((0, 0, 0)),
            "Every program read and wrote head 0: move all pointers by the head.":
                _heads((0, None, None)),
            "The heads wrote over each other: move dq_ptr, dk_ptr and dv_ptr by the head.":
                _heads((2, None, None)),
            "A head of k and v has S rows: move their pointers by h * S * K.":
                _backward_mistake(_keys_moved_by_t),
            "A head of k, v, dk and dv has S rows: move their pointers by h * S * K.":
                _backward_mistake(_keys_and_grads_moved_by_t),
            "dq has only the last tile of keys: add up over the tiles.":
                _backward_mistake(_last_tile),
            "CAUSAL was not used.": _backward_mistake(_no_mask),
            "lse is a natural logarithm: divide it by ln 2 where exp2 is used.":
                _backward_mistake(_lse_as_base_2),
            "delta is added; it is taken off: ds = p (dp - delta).":
                _backward_mistake(lambda x: {"delta": -x["delta"]}),
            "p is missing in front: ds = p (dp - delta) * scale.":
                _backward_mistake(_of_ds(lambda x: {
                    "ds": (x["dp"] - x["delta"]) * x["scale"]})),
            "delta is the sum of o; it is that of do * o.":
                _backward_mistake(lambda x: {"delta": x["o"].sum(-1, keepdims=True)}),
            "dk takes p where ds should stand: dk = ds' q.":
                _backward_mistake(_of_ds(lambda x: {"dk": x["p"].transpose(0, 2, 1) @ x["q"]})),
            "dq takes p where ds should stand: dq = ds k.":
                _backward_mistake(_of_ds(lambda x: {"dq": x["p"] @ x["k"]})),
            "dv = p' do: the softmax's result, not the gradient ds of the scores.":
                _backward_mistake(_of_ds(
                    lambda x: {"dv": x["ds"].transpose(0, 2, 1) @ x["do"]})),
        },
        launch=_backward_launch, expected=_causal_too(_backward_of), file=BACKWARD_FILE,
        constants={"CAUSAL": True, "BLOCK_T": 32, "BLOCK_S": 16, "K": K},
        imports=KERNEL_IMPORTS + PIECES, close=1e-5, model=(_plainly,),
    ),
)  # fmt: skip
