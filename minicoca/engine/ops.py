"""The seam: the one place that chooses how an operation is computed.

Everything above it (attention.py to model.py) is written in terms of these functions and never
knows what is behind them. Axis letters as in params.py; R is rows: samples and tokens as one axis.
"""

import functools
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..config import PAD
from ..kernels.checks import EAGER_UP_TO, LARGEST_GRID, LARGEST_HEAD

BACKENDS = ("auto", "torch", "triton")
ONEDNN = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
ONEDNN_FROM = 1 << 25  # multiplications; smaller products cost more to call than they gain
ONEDNN_ROWS = range(4, 65)  # without gradients: of more or fewer MKL's products are faster
SHARED_MEMORY = 166_912  # bytes of a program, sm_80's limit
PAIRS_IN_CHUNKS = 2048  # from so many on, no B x B logits on a CPU either


class _Chosen(threading.local):
    backend = "auto"


# Of each thread its own. No ContextVar: torch.compile reads one from torch 2.14 on only. The
# backward, which may run in another thread, asks nothing: the forward's operations bring theirs.
_chosen = _Chosen()


def use(backend: str) -> AbstractContextManager[None]:
    """For a `with`: what serves operations that have a kernel, in this thread, until its end.

    `auto` is Triton on CUDA cards that it fits, else torch. Raises ValueError, at once, for a
    backend that there is not, or not here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is not one of {BACKENDS}")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if backend == "triton" and not (torch.cuda.is_available() or interpreted):
        raise ValueError("backend triton needs a CUDA device (or TRITON_INTERPRET=1, very slow)")
    return _using(backend)


@contextmanager
def _using(backend):
    before, _chosen.backend = _chosen.backend, backend
    try:
        yield
    finally:
        _chosen.backend = before


def with_own_backend(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method that computes with the backend of its object's `config`, whatever others use."""

    @functools.wraps(method)
    def computed(self, *given, **how):
        with use(self.config.backend):
            return method(self, *given, **how)

    return computed


def has_kernels(x, op="", size=0):
    """Whether Triton's kernels serve this tensor, by the backend in `use`; by itself (`auto`) an op
    of a size at which torch was measured faster (checks.EAGER_UP_TO) takes torch."""
    chosen = _chosen.backend
    if chosen == "triton":
        return True
    fits = chosen == "auto" and x.is_cuda and _fits(x.device)
    return fits and not (op in EAGER_UP_TO and size <= EAGER_UP_TO[op])


@functools.cache
def _fits(device):
    """Whether a card has the shared memory that the kernels' tiles are chosen for: A100 and later
    data-centre cards do, RTX cards, A10 and L40 do not."""
    if torch.version.hip is not None:
        return False
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin >= SHARED_MEMORY


def implementations():
    """Which operation is served by what, and why: {operation: sentence}, by the backend in use."""
    chosen = _chosen.backend
    cuda = torch.cuda.is_available()
    fits = cuda and _fits(torch.device("cuda", torch.cuda.current_device()))
    fused = chosen == "triton" or (chosen == "auto" and fits)
    found = "found" if fits else "too little shared memory" if cuda else "not found"
    why = f"backend {chosen}, CUDA {found}"
    kernel = "Triton" if fused else "torch"
    eager = EAGER_UP_TO if fused and chosen == "auto" else {}
    small = {op: f"; torch up to a size of {size:,}" for op, size in eager.items()}
    return {
        "attention": f"{kernel} ({why})"
        + (f"; torch for heads over {LARGEST_HEAD}" if fused else "")
        + small.get("attention", ""),
        "attention_pool": f"{kernel} ({why})" + small.get("attention_pool", ""),
        "contrastive_loss": f"{kernel} ({why})"
        + ("" if fused else f"; from {PAIRS_IN_CHUNKS:,} pairs in chunks of rows")
        + small.get("info_nce", ""),
        "sigmoid_loss": "torch, in chunks of rows",
        "caption_loss": f"{kernel} ({why}), in chunks: no logits are kept"
        + small.get("caption_loss", ""),
        "everything else": "torch",
    }


def complaint():
    """What speaks against the kernels on this machine, in a sentence; "" for nothing."""
    if not (torch.cuda.is_available() and has_kernels(torch.empty(0, device="cuda"))):
        return ""
    from ..kernels.toolchain import complaint as of_toolchain

    return of_toolchain()


def linear(x, params):
    """y = x W + b over the last axis; the bias may be absent."""
    weight, bias = params["weight"], params.get("bias")
    rows = x.reshape(-1, weight.shape[0])
    if _has_onednn(rows, weight):
        product = _Linear.apply if torch.is_grad_enabled() else _product
        y = product(rows, weight, bias)
    else:
        y = rows @ weight if bias is None else torch.addmm(bias, rows, weight)
    return y.reshape(*x.shape[:-1], weight.shape[1])


def recomputed(function, *given):
    """function(*given), whose own tensors are not kept but computed once more in the backward pass
    (Chen et al. 2016), by the same operations: the same gradient, to the last bit on a CPU."""
    chosen = _chosen.backend

    def as_now(*given):  # the backward pass, which may run in another thread, knows no backend
        with _using(chosen):
            return function(*given)

    again = function if torch.compiler.is_compiling() else as_now
    return checkpoint(again, *given, use_reentrant=False, preserve_rng_state=False)


def _has_onednn(x, weight):
    """Whether oneDNN multiplies: torch by itself takes MKL, 8% slower in training on AMD, but the
    faster for many rows where nothing is trained (DECISIONS.md)."""
    if torch.compiler.is_compiling():  # asked first: an export for any batch has no size to tell
        return False
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    if not torch.is_grad_enabled():
        return plain and ONEDNN and len(x) in ONEDNN_ROWS and 128 * weight.numel() >= ONEDNN_FROM
    return plain and ONEDNN and len(x) * weight.numel() >= ONEDNN_FROM


def _product(x_RD, weight_DE, bias_E=None):
    """x weight + bias."""
    return torch.ops.mkldnn._linear_pointwise(x_RD, weight_DE.T, bias_E, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_RD, weight_DE, bias_E):
        ctx.save_for_backward(x_RD, weight_DE)
        return _product(x_RD, weight_DE, bias_E)

    @staticmethod
    def backward(ctx, dy_RE):
        x_RD, weight_DE = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            _Linear.apply(dy_RE, weight_DE.T, None) if for_x else None,  # it has a derivative too
            x_RD.T @ dy_RE if for_weight else None,
            dy_RE.sum(0) if for_bias else None,
        )


def embedding(ids, table):
    """The row of the table for every id."""
    return F.embedding(ids, table)


def gelu(x, kind):
    """x Phi(x), exactly or by its usual approximation by tanh."""
    return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")


def layer_norm(x, params, eps=1e-5):
    """scale * (x - mean) / std + bias over the last axis, in float32 at least."""
    scale, bias = params["scale"], params["bias"]
    if x.is_cuda:  # whose operator sums in float32 too, but wants one type
        scale, bias = scale.to(x.dtype), bias.to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], scale, bias, eps)


def l2_normalise(x, eps=1e-12):
    """x / |x| over the last axis, in float32 at least: cosines are divided by the temperature."""
    x = widened(x)
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


def attention(q_BTHK, k_BSHK, v_BSHK, *, causal=False, mask=None, finite=False):
    """softmax(q k' / sqrt(K)) v for each head; `mask` [B, T, S] is True where a query may look.

    Any of the inputs may be a view of any stride; q of one sample serves the whole batch. A
    key that no query may look at is not read: it may be NaN, unless all are said to be finite.
    """
    scores = k_BSHK.shape[0] * q_BTHK.shape[2] * q_BTHK.shape[1] * k_BSHK.shape[1]
    if mask is None and has_kernels(q_BTHK, "attention", scores) and _fits_grid(k_BSHK):
        from ..kernels.attention import attention as fused

        return fused(q_BTHK, k_BSHK, v_BSHK, causal=causal)
    q_BTHK = q_BTHK.expand(len(k_BSHK), -1, -1, -1)
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    if mask is not None:
        if not finite:
            unseen_B1S1 = ~mask.any(1)[:, None, :, None]
            k, v = k.masked_fill(unseen_B1S1, 0), v.masked_fill(unseen_B1S1, 0)
        mask = mask[:, None]
    if q.device.type == "cpu":  # where torch's backward in 16 bits takes three times as long
        q, k, v = map(widened, (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return o.transpose(1, 2).to(q_BTHK.dtype)


def _fits_grid(k_BSHK):
    """Whether the kernels serve these sizes. Asked last: an export for any batch has no answer."""
    B, _, H, K = k_BSHK.shape
    return K <= LARGEST_HEAD and B * H <= LARGEST_GRID


def attention_pool(x_BSM, g_HM):
    """Per head, the mean of the normed tokens weighted by softmax(g . xhat): [B, H, M]."""
    if has_kernels(x_BSM, "attention_pool", x_BSM.shape[0] * x_BSM.shape[1]):
        from ..kernels.attention_pool import attention_pool as fused

        return fused(x_BSM, g_HM).to(x_BSM.dtype)
    xhat_BSM = F.layer_norm(widened(x_BSM), x_BSM.shape[-1:])
    p_BHS = torch.softmax(widened(g_HM) @ xhat_BSM.transpose(1, 2), -1)
    return (p_BHS @ xhat_BSM).to(x_BSM.dtype)


def contrastive_loss(image_BE, text_BE, log_temperature, ranks=None, counts=None):
    """Half of the paper's Eq. 2: mean over the batch and both directions; in float32 at least."""
    wide = torch.promote_types(image_BE.dtype, torch.float32)
    scale = torch.exp(-log_temperature.to(wide))
    fused = has_kernels(image_BE, "info_nce", image_BE.shape[0])
    if ranks and ranks.world > 1:
        from ..kernels.info_nce_ranks import info_nce_over_ranks

        image_BE, text_BE = image_BE.to(wide), text_BE.to(wide)
        return info_nce_over_ranks(image_BE, text_BE, scale, ranks, counts, fused=fused)
    if fused or len(image_BE) >= PAIRS_IN_CHUNKS:
        from ..kernels.info_nce import info_nce

        return info_nce(image_BE, text_BE, scale, fused=fused)
    logits_BB = scale * (image_BE.to(wide) @ text_BE.to(wide).T)
    labels_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, labels_B) + F.cross_entropy(logits_BB.T, labels_B)) / 2


def sigmoid_loss(image_BE, text_BE, log_temperature, bias, captions_B):
    """SigLIP's loss, in chunks of rows at any size; captions: equal where texts are one caption."""
    from ..kernels.sigmoid import sigmoid_loss as of_chunks

    image_BE, text_BE = widened(image_BE), widened(text_BE)
    scale = torch.exp(-widened(log_temperature))
    return of_chunks(image_BE, text_BE, scale, bias, captions_B)


def caption_loss(hidden, head, targets):
    """Mean of -log softmax(hidden head)[target] over targets that are not padding (Eq. 3); 0 for
    none. Padding never reaches the head, and the logits exist in chunks only."""
    from ..kernels import caption_loss as kernel

    fused = has_kernels(hidden, "caption_loss", targets.numel())
    return kernel.caption_loss(hidden, head["weight"], targets, pad_id=PAD, fused=fused)


def widened(x):
    """x, in float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pick_device(name):
    """`auto`: cuda where there is one, else cpu. Raises ValueError for a device that is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        if device.index:
            torch.cuda.set_device(device)  # where Triton launches
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try auto") from None
    return device


def pick_dtype(precision, device):
    """`auto`: bfloat16 on a cuda device that has it, else float32 (a run: precision.settled)."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if fast else "float32"
    return getattr(torch, precision)
