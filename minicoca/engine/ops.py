"""The seam: the one place that chooses how an operation is computed.

Everything above it (attention.py to model.py) is written in terms of these functions and never
knows what is behind them. Axis letters as in params.py; R is rows: samples and tokens as one axis.
"""

import torch
import torch.nn.functional as F

CAPTION_CHUNK = 1024  # rows of logits that exist at a time


def linear(x, params):
    """y = x W + b over the last axis; the bias may be absent."""
    weight = params["weight"]
    rows = x.reshape(-1, weight.shape[0])
    y = torch.addmm(params["bias"], rows, weight) if "bias" in params else rows @ weight
    return y.reshape(*x.shape[:-1], weight.shape[1])


def embedding(ids, table):
    """The row of the table for every id."""
    return F.embedding(ids, table)


def gelu(x, kind):
    """x Phi(x), exactly or by its usual approximation by tanh."""
    return F.gelu(x, approximate="tanh" if kind == "tanh" else "none")


def layer_norm(x, params, eps=1e-5):
    """scale * (x - mean) / std + bias over the last axis."""
    return F.layer_norm(x, x.shape[-1:], params["scale"], params["bias"], eps)


def l2_normalise(x, eps=1e-12):
    """x / |x| over the last axis, in float32 at least: cosines are divided by the temperature."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + eps)


def attention(q_BTHK, k_BSHK, v_BSHK, *, causal=False, mask=None):
    """softmax(q k' / sqrt(K)) v for each head; `mask` [B, T, S] is True where a query may look.

    Any of the inputs may be a view of any stride, q one set of queries expanded over the batch.
    """
    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSHK, v_BSHK))
    mask = None if mask is None else mask[:, None]
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    return o.transpose(1, 2)


def contrastive_loss(image_BE, text_BE, log_temperature):
    """Half of the paper's Eq. 2: mean over the batch and both directions; in float32 at least."""
    wide = torch.promote_types(image_BE.dtype, torch.float32)
    scale = torch.exp(-log_temperature.to(wide))
    logits_BB = scale * (image_BE.to(wide) @ text_BE.to(wide).T)
    labels_B = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, labels_B) + F.cross_entropy(logits_BB.T, labels_B)) / 2


def caption_loss(hidden_RD, head, targets_R):
    """Mean over the rows of -log softmax(hidden head)[target] (Eq. 3); 0 for no rows.

    The logits exist in chunks only; where gradients are wanted they are made while a chunk is
    there, so that nothing of size R x V is kept for the backward pass.
    """
    if not len(targets_R):
        return hidden_RD.sum() * 0
    return _CaptionLoss.apply(hidden_RD, head["weight"], targets_R)


def masked_caption_loss(hidden, head, targets, pad=0):
    """The same over all rows, those whose target is `pad` counting for nothing."""
    logits = linear(hidden, head).flatten(0, -2)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = targets.flatten()
    total = F.cross_entropy(logits, targets, ignore_index=pad, reduction="sum")
    return total / (targets != pad).sum().clamp(min=1)


class _CaptionLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_RD, weight_DV, targets_R):
        wide = torch.promote_types(hidden_RD.dtype, torch.float32)
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        total = torch.zeros((), dtype=wide, device=hidden_RD.device)
        dhidden_RD = torch.empty_like(hidden_RD) if wanted else None
        dweight_DV = torch.zeros_like(weight_DV, dtype=wide) if wanted else None
        for start in range(0, len(targets_R), CAPTION_CHUNK):
            rows = slice(start, start + CAPTION_CHUNK)
            x_RD, target_R1 = hidden_RD[rows], targets_R[rows, None]
            logits_RV = (x_RD @ weight_DV).to(wide)
            lse_R1 = torch.logsumexp(logits_RV, 1, keepdim=True)
            total += (lse_R1 - logits_RV.gather(1, target_R1)).sum()
            if wanted:
                g_RV = logits_RV.sub_(lse_R1).exp_()  # softmax, over the logits' own memory
                g_RV.scatter_add_(1, target_R1, torch.full_like(target_R1, -1, dtype=wide))
                g_RV = g_RV.to(weight_DV.dtype)
                torch.mm(g_RV, weight_DV.T, out=dhidden_RD[rows])
                if wide == weight_DV.dtype:
                    dweight_DV.addmm_(x_RD.T, g_RV)
                else:
                    dweight_DV += x_RD.T @ g_RV
        ctx.save_for_backward(dhidden_RD, dweight_DV)
        ctx.rows = len(targets_R)
        return total / ctx.rows

    @staticmethod
    def backward(ctx, dloss):
        dhidden_RD, dweight_DV = ctx.saved_tensors
        scale = dloss / ctx.rows
        return (
            dhidden_RD * scale.to(dhidden_RD.dtype),
            (dweight_DV * scale).to(dhidden_RD.dtype),
            None,
        )


def pick_device(name):
    """`auto`: cuda where there is one, else cpu. Raises ValueError for a device that is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}); try auto") from None
    return device


def pick_dtype(precision, device):
    """`auto`: bfloat16 on a cuda device that has it, float32 elsewhere."""
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bfloat16" if fast else "float32"
    return getattr(torch, precision)
