"""What the kernels can serve, said to whoever calls them with something else."""

import torch

LARGEST_HEAD = 128
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
    (B, S, _, _), (_, T, H, K) = k.shape, q.shape
    if k.shape != (B, S, H, K) or v.shape != k.shape or len(q) not in (1, B):
        shapes = ", ".join(f"{n} {tuple(x.shape)}" for n, x in zip("qkv", (q, k, v), strict=True))
        raise ValueError(f"{shapes}; expected [B or 1, T, H, K] and twice [B, S, H, K]")
    if K > LARGEST_HEAD:
        raise ValueError(f"head size {K} is over the limit of {LARGEST_HEAD}")
    if causal and T != S:
        raise ValueError(f"causal needs as many keys as queries; got T={T}, S={S}")
    if key_lengths is not None:
        if key_lengths.shape != (B,) or key_lengths.is_floating_point():
            raise ValueError(
                f"key_lengths is {key_lengths.dtype} {tuple(key_lengths.shape)}, not int {(B,)}"
            )
        if key_lengths.device != q.device:
            raise ValueError(f"key_lengths is on {key_lengths.device}, q on {q.device}")
        # On a GPU reading the values would stall it.
        if (
            key_lengths.device.type == "cpu"
            and B
            and not (0 <= int(key_lengths.min()) and int(key_lengths.max()) <= S)
        ):
            raise ValueError(f"key_lengths {key_lengths.tolist()[:8]} are not in 0 to S={S}")
