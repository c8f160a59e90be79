"""Exercises of page 05."""

from minicoca.reference.attention import multi_head_attention_backward, self_attention_layer
from minicoca.reference.ops import layer_norm_backward, linear_backward
from minicoca.reference.vision import patch_embedding, unpatchify

from ..exercise import Exercise, Told, distinct, locals_of


def random_norm(rng, D):
    """Scale and bias of a layer norm."""
    return {"scale": rng.standard_normal(D), "bias": rng.standard_normal(D)}


def random_attention(rng, D, M):
    """The four linear maps of attention of width D over tokens of width M."""
    reads = {"query": D, "key": M, "value": M, "output": D}
    return {
        name: {"weight": rng.standard_normal((m, D)) * m**-0.5, "bias": rng.standard_normal(D)}
        for name, m in reads.items()
    }


def _layer_inputs(rng):
    B, T, H, K = (int(n) for n in distinct(rng, 4, 2, 4))
    D = H * K
    x, params = rng.standard_normal((B, T, D)), random_attention(rng, D, D)
    _, cache = self_attention_layer(x, random_norm(rng, D), params, H)
    return rng.standard_normal((B, T, D)), cache


def _layer(dy, cache, query=1, memory=1, straight=1, **change):
    """self_attention_layer_backward with a route left out, or with something changed."""
    norm_cache, attention_cache = cache
    dq, dmemory, dparams = multi_head_attention_backward(dy, attention_cache)
    dn = query * dq + memory * dmemory + change.get("through_norm", 0) * dy
    dx, dnorm = layer_norm_backward(dn, norm_cache)
    if change.get("norm_of_query"):
        dnorm = layer_norm_backward(dq, norm_cache)[1]
    if change.get("memory_outside"):
        dx, dnorm = layer_norm_backward(dq, norm_cache)
        dx = dx + dmemory
    return straight * dy + (dn if change.get("no_norm") else dx), dnorm, dparams


def _patch_inputs(rng):
    B, p, side, D = (int(n) for n in distinct(rng, 4, 2, 4))
    params = {
        "patch": {"weight": rng.standard_normal((p * p * 3, D)) / p},
        "class": rng.standard_normal(D),
        "position": rng.standard_normal((side * side + 1, D)),
        "norm_pre": random_norm(rng, D),
    }
    x, cache = patch_embedding(rng.standard_normal((B, side * p, side * p, 3)), params, p)
    return rng.standard_normal(x.shape), cache


def _patch(dx, cache, take=slice(1, None), change=lambda dparams, dx: {}, **other):
    """patch_embedding_backward, with something changed."""
    linear_cache, norm_cache, p, _ = cache
    given = dx
    dx, dnorm = layer_norm_backward(dx, norm_cache)
    dx = given if other.get("no_norm") else dx
    dpatches, dpatch = linear_backward(dx[:, take], linear_cache)
    dparams = {"norm_pre": dnorm, "position": dx.sum(0), "class": dx[:, 0].sum(0), "patch": dpatch}
    images = unpatchify(dpatches, p)
    if other.get("pasted"):
        images = dpatches.reshape(images.shape)
    return images, dparams | change(given, dx)


def _told_of_the_class(function, dx, cache):
    try:
        return function(dx, cache)
    except ValueError as error:
        given = locals_of(error, "linear_backward")
        if given and given["dy"].shape[1] == given["x"].shape[1] + 1:
            raise Told("The linear map never saw the class token: drop token 0 first.") from None
        raise


EXERCISES = (
    Exercise(
        "5a", 2, 15, "the gradient of a residual attention layer",
        "minicoca.reference.attention:self_attention_layer_backward",
        ("dx_BTD", "dnorm", "dparams"), _layer_inputs,
        "norm_cache, attention_cache = cache\n"
        "# multi_head_attention_backward(da, cache) -> dx, dmemory, dparams\n"
        "# layer_norm_backward(dn, cache) -> dx, dparams\n"
        "# returns dx_BTD, dnorm (scale and bias), dparams (query, key, value, output)",
        (
            "Undo the sum first: dy goes to x directly, and to the attention's result as it is.",
            "The normed tokens were given to the attention twice, as x and as memory: add the two "
            "gradients that multi_head_attention_backward returns for them.",
            "layer_norm_backward of that sum, plus dy.",
        ),
        {
            "The straight path is missing: x was added to the result, so dy adds to dx.":
                lambda dy, c: _layer(dy, c, straight=0),
            "Only the gradient as query came back; the normed tokens were memory too.":
                lambda dy, c: _layer(dy, c, memory=0),
            "Only the gradient as memory came back; the normed tokens asked, too.":
                lambda dy, c: _layer(dy, c, query=0),
            "dy went through the norm as well; on the straight path there is none.":
                lambda dy, c: _layer(dy, c, straight=0, through_norm=1),
            "The norm's backward is missing: the attention read norm(x), not x.":
                lambda dy, c: _layer(dy, c, no_norm=True),
            "The gradient as memory was added outside the norm; the memory was the normed tokens.":
                lambda dy, c: _layer(dy, c, memory_outside=True),
            "dnorm counts one route only: give layer_norm_backward the sum of both.":
                lambda dy, c: _layer(dy, c, norm_of_query=True),
        },
        imports="import numpy as np  # noqa: F401\n\n"
        "from minicoca.reference.attention import multi_head_attention_backward\n"
        "from minicoca.reference.ops import layer_norm_backward",
    ),
    Exercise(
        "5b", 2, 15, "the gradient of the patch embedding",
        "minicoca.reference.vision:patch_embedding_backward",
        ("dimages_BII3", "dparams"), _patch_inputs,
        "linear_cache, norm_cache, patch_size, has_class = cache  # here: always norm and class\n"
        "# layer_norm_backward(dx, cache) -> de, dparams\n"
        "# linear_backward(dg, cache) -> dpatches, dparams\n"
        "# unpatchify(patches, patch_size) -> images\n"
        '# returns dimages, {"norm_pre": ..., "position": ..., "class": ..., "patch": ...}\n'
        "# position: [N + 1, D], the class token's included; class: [D]; the other two: dparams",
        (
            "Backwards: norm_pre, then the position, then the class token in front, then the "
            "linear map, then unpatchify.",
            "position and class are the same for every image of the batch: their gradients are "
            "sums over it. The class token is token 0.",
            "With de_BSD for what layer_norm_backward gave: linear_backward(de_BSD[:, 1:], "
            "linear_cache) gives dpatches and the map's; unpatchify makes dpatches an image.",
        ),
        {
            "The norm must be undone first: everything below it needs the gradient of its input.":
                lambda dx, c: _patch(dx, c, no_norm=True),
            "dposition was taken before the norm's backward.":
                lambda dx, c: _patch(dx, c, change=lambda dy, dx: {"position": dy.sum(0)}),
            "dposition is a mean over the batch; it should be the sum.":
                lambda dx, c: _patch(dx, c, change=lambda dy, dx: {"position": dx.mean(0)}),
            "dclass sums over all tokens; the class token is token 0 alone.":
                lambda dx, c: _patch(dx, c, change=lambda dy, dx: {"class": dx.sum((0, 1))}),
            "dclass takes the first image only; it should be the sum over the batch.":
                lambda dx, c: _patch(dx, c, change=lambda dy, dx: {"class": dx[0, 0]}),
            "dclass is the last token's; the class token stands first.":
                lambda dx, c: _patch(dx, c, change=lambda dy, dx: {"class": dx[:, -1].sum(0)}),
            "The last token was dropped for the linear map; the class token stands first.":
                lambda dx, c: _patch(dx, c, take=slice(None, -1)),
            "The class token was taken for the last token; it stands first.":
                lambda dx, c: _patch(dx, c, take=slice(None, -1),
                                     change=lambda dy, dx: {"class": dx[:, -1].sum(0)}),
            "The patches were reshaped to an image; unpatchify puts each in its place.":
                lambda dx, c: _patch(dx, c, pasted=True),
        },
        imports="import numpy as np  # noqa: F401\n\n"
        "from minicoca.reference.ops import layer_norm_backward, linear_backward\n"
        "from minicoca.reference.vision import unpatchify",
        launch=_told_of_the_class,
    ),
)  # fmt: skip
