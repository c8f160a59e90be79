"""Probes of frozen features: as reference/probe.py, and how they are trained."""

import numpy as np
import torch
import torch.nn.functional as F

from ..config import Config
from ..params import flatten, probe_specs, stream, tree_map
from .ops import linear
from .optim import clip_by_global_norm, learning_rate, optimizers
from .pooling import absorbed_pooler

RECIPE = Config(
    steps=300, batch_size=128, learning_rate=5e-3, warmup=30, final_rate=0.0, weight_decay=0.01
)  # fmt: skip
STRENGTH = 0.1  # of the L2 penalty of all labelled images together


def probe(tokens_BJNM, params, heads):
    """Tokens of each frame -> scores of the classes [B, C]."""
    if "frame" in params:
        tokens_BJNM = tokens_BJNM + params["frame"][:, None]
    pooled_B1M = absorbed_pooler(tokens_BJNM.flatten(1, 2), params["pooler"], heads)
    return linear(pooled_B1M[:, 0], params["classifier"])


def probe_loss(logits_BC, labels_B):
    """Mean of -log softmax at the label."""
    return F.cross_entropy(logits_BC, labels_B)


def fit_pooler(tokens_RJNM, labels_R, classes, heads, frames, seed, device):
    """A trained `probe` of frozen tokens, as a tree of NumPy arrays; its first values and its order
    are functions of the seed.

    By AdamW as RECIPE says, each step on images drawn anew. frames: that are told apart, 0: none.
    (The paper, Table 9: Adafactor for up to 200,000 steps, pooler rate 5e-4, cosine to 0.)
    """
    rng = np.random.default_rng(seed)
    tree = tree_map(
        lambda spec: torch.tensor(spec.draw(rng), dtype=torch.float32, device=device),
        probe_specs(tokens_RJNM.shape[-1], classes, frames),
    )
    leaves = [leaf.requires_grad_() for leaf in flatten(tree).values()]
    (optimizer,) = optimizers(tree, RECIPE)
    for step in range(RECIPE.steps):
        rows = stream("order", seed, step).permutation(len(labels_R))[: RECIPE.batch_size]
        tokens = torch.from_numpy(tokens_RJNM[rows]).to(device)
        labels = torch.from_numpy(labels_R[rows]).to(device)
        optimizer.zero_grad()
        probe_loss(probe(tokens, tree, heads), labels).backward()
        clip_by_global_norm(leaves, RECIPE.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, RECIPE)
        optimizer.step()
    return tree_map(lambda leaf: leaf.detach().cpu().numpy(), tree)


def fit_linear(x_RE, labels_R, classes, mean_E, std_E):
    """Multinomial logistic regression on (x - mean) / std, as a tree of NumPy arrays that takes x
    as it is.

    The minimum of the mean cross-entropy plus STRENGTH / (2 R) |W|^2, which is convex: by L-BFGS in
    float64, so that nothing is drawn.
    """
    x_RE = torch.from_numpy((x_RE - mean_E) / std_E).double()
    labels_R = torch.from_numpy(labels_R)
    weight_EC = torch.zeros(x_RE.shape[1], classes, dtype=torch.float64, requires_grad=True)
    bias_C = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight_EC, bias_C], max_iter=300, tolerance_grad=1e-5, tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x_RE @ weight_EC + bias_C, labels_R)
        loss = loss + STRENGTH / (2 * len(x_RE)) * (weight_EC**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight_EC, bias_C = (leaf.detach().numpy() for leaf in (weight_EC, bias_C))
    weight_EC = weight_EC / std_E[:, None]
    tree = {"weight": weight_EC, "bias": bias_C - mean_E @ weight_EC}
    return {"classifier": tree_map(lambda leaf: leaf.astype(np.float32), tree)}


@torch.inference_mode()
def scores(tokens_RJNM, params, heads, device):
    """`probe` of NumPy arrays, a batch at a time: [R, C]."""
    tree = tree_map(lambda leaf: torch.as_tensor(leaf, device=device), params)
    parts = torch.from_numpy(tokens_RJNM).split(RECIPE.batch_size)
    return torch.cat([probe(part.to(device), tree, heads).cpu() for part in parts]).numpy()
