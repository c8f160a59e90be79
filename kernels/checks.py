"""What the kernels can serve, said to whoever calls them with something else."""

import torch

LARGEST_HEAD = 128
# {op: size} up to which torch was measured faster than the kernel, and is taken. Sizes are scores
# of attention (samples x heads x queries x keys), tokens of attention_pool and caption_loss, pairs
# of info_nce. From `bench kernels`, which names such rows; empty, since none is measured yet.
EAGER_UP_TO: dict[str, int] = {}
LARGEST_GRID = 65_535  # of a grid's second and third axes
LARGEST_SAMPLE = 2**31  # elements: within a sample the kernels count in 32 bits
LARGEST_POOL = 64  # heads
LARGEST_TILE = 128  # rows of pairs
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_attention(q, k, v, causal, key_lengths):
    """Raise ValueError for a call that the kernels cannot serve."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has {x.ndim} axes; expected [B, T, H, K]")
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(f"{name}'s last axis has stride {x.stride(-1)}; it must be 1")
        if x.dtype not in DTYPES or x.dtype != q.dtype:
            raise ValueError(f"{name} is {x.dtype}; q, k, v must share one of {DTYPES}")
        if x.device != q.device:
            raise ValueError(f"{name} is on {x.device}, q on {q.device}")
        span = sum((n - 1) * s for n, s in zip(x.shape[1:], x.stride()[1:], strict=True))
        if span >= LARGEST_SAMPLE:
            raise ValueError(f"{name}'s samples span {span} elements; under 2^31: .contiguous()")
    (B, S, _, _), (_, T, H, K) = k.shape, q.shape
    if k.shape != (B, S, H, K) or v.shape != k.shape or len(q) not in (1, B):
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in zip("qkv", (q, k, v), strict=True))
        raise ValueError(f"{shapes}; expected [B or 1, T, H, K] and twice [B, S, H, K]")
    if K > LARGEST_HEAD:
        raise ValueError(f"head size {K} is over the limit of {LARGEST_HEAD}")
    if B * H > LARGEST_GRID:
        raise ValueError(f"B x H is {B * H}; a GPU's grid holds {LARGEST_GRID}")
    if causal and T != S:
        raise ValueError(f"causal needs as many keys as queries; got T={T}, S={S}")
    if key_lengths is not None:
        _check_lengths(key_lengths, B, S, q.device)


def _check_lengths(key_lengths, B, S, device):
    if key_lengths.shape != (B,) or key_lengths.is_floating_point():
        raise ValueError(
            f"key_lengths is {key_lengths.dtype} {tuple(key_lengths.shape)}, not int {(B,)}"
        )
    if key_lengths.device != device:
        raise ValueError(f"key_lengths is on {key_lengths.device}, the rest on {device}")
    # On a GPU reading the values would stall it; the kernels take the S keys there are for more.
    if (
        device.type == "cpu"
        and B
        and not (0 <= int(key_lengths.min()) and int(key_lengths.max()) <= S)
    ):
        raise ValueError(f"key_lengths {key_lengths.tolist()[:8]} are not in 0 to {S}")


def check_pool(x, g, key_lengths):
    """Raise ValueError for a call that attention_pool cannot serve."""
    if x.ndim != 3 or x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError(
            f"x is {tuple(x.shape)} with strides {x.stride()}; expected [B, N, M], last 1"
        )
    B, N, M = x.shape
    if g.ndim != 2 or g.shape[1] != M or not 0 < g.shape[0] <= LARGEST_POOL:
        raise ValueError(f"g is {tuple(g.shape)}; expected [H, {M}] with H at most {LARGEST_POOL}")
    if x.dtype not in DTYPES or g.dtype not in DTYPES:
        raise ValueError(f"x is {x.dtype}, g {g.dtype}; not one of {DTYPES}")
    if B > LARGEST_GRID:
        raise ValueError(f"x has {B} samples; a GPU's grid holds {LARGEST_GRID}")
    if (N - 1) * x.stride(1) + M >= LARGEST_SAMPLE:
        raise ValueError(
            f"x has rows of stride {x.stride(1)}: a sample spans 2^31 or more elements"
        )
    if g.device != x.device:
        raise ValueError(f"g is on {g.device}, x on {x.device}")
    if key_lengths is not None:
        _check_lengths(key_lengths, B, N, x.device)


def check_pairs(image, text, scale, workspace):
    """Raise ValueError for pairs that info_nce and sigmoid_loss cannot serve."""
    for name, x in {"image": image, "text": text}.items():
        if x.ndim != 2 or x.shape != image.shape or not len(x):
            raise ValueError(f"{name} is {tuple(x.shape)}; image and text must both be [B, E]")
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(f"{name}'s last axis has stride {x.stride(-1)}; it must be 1")
        if x.dtype not in DTYPES or x.dtype != image.dtype:
            raise ValueError(f"{name} is {x.dtype}; image and text must share one of {DTYPES}")
        if x.device != image.device:
            raise ValueError(f"{name} is on {x.device}, image on {image.device}")
        if LARGEST_TILE * max(x.stride(0), len(x)) >= LARGEST_SAMPLE:
            raise ValueError(
                f"{name} is {tuple(x.shape)}, rows {x.stride(0)} apart; under 2^24 of both"
            )
    _check_number("scale", scale, image.device)
    if workspace < 1:
        raise ValueError(f"workspace={workspace}; it must be at least 1 byte")


def _check_number(name, x, device):
    if x.ndim or not x.is_floating_point() or x.device != device:
        raise ValueError(
            f"{name} is {x.dtype} {tuple(x.shape)} on {x.device}; expected a float without axes on "
            f"{device}"
        )


def check_sigmoid(image, text, scale, bias, captions, workspace):
    """Raise ValueError for a call that sigmoid_loss cannot serve."""
    check_pairs(image, text, scale, workspace)
    _check_number("bias", bias, image.device)
    if captions is None:
        return
    if captions.shape != (len(image),) or captions.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"captions is {captions.dtype} {tuple(captions.shape)}, not int {(len(image),)}"
        )
    if captions.device != image.device:
        raise ValueError(f"captions is on {captions.device}, image on {image.device}")


def check_caption(hidden, weight, targets, chunk):
    """Raise ValueError for a call that caption_loss cannot serve."""
    if weight.ndim != 2 or hidden.shape[-1:] != weight.shape[:1]:
        raise ValueError(
            f"hidden is {tuple(hidden.shape)} and head_weight {tuple(weight.shape)}; "
            "expected [..., D] and [D, V]"
        )
    if targets.shape != hidden.shape[:-1] or targets.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"targets is {targets.dtype} {tuple(targets.shape)}, not int {tuple(hidden.shape[:-1])}"
        )
    if hidden.dtype not in DTYPES or weight.dtype != hidden.dtype:
        raise ValueError(
            f"hidden is {hidden.dtype}, head_weight {weight.dtype}; not one of {DTYPES}"
        )
    if weight.device != hidden.device or targets.device != hidden.device:
        raise ValueError(
            f"hidden is on {hidden.device}, head_weight on {weight.device}, targets on "
            f"{targets.device}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk={chunk}; it must be at least 1 row")
