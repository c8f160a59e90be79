"""What Hypothesis draws: small configs with every option, sizes that do not coincide, batches."""

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from minicoca.config import preset
from minicoca.params import initialise, tree_map

OPTIONS = {
    "pooler": ("cascade", "parallel", "shared", "none"),
    "stem": ("plain", "clip"),
    "multimodal_mlps": (1, 2),
    "gelu": ("tanh", "exact"),
    "embed_width": (0, 22),
    "legacy_cls_mask": (False, True),
    "contrastive_weight": (1.0, 0.7),
    "caption_weight": (2.0, 0.3),
}


def small_config(**changes):
    """A model whose sizes differ: N 9, image D 10, Q 5, D 12, V 17, hidden 14 and 16."""
    sizes = dict(
        image_size=6, patch_size=2, image_width=10, image_layers=2, image_heads=2, image_hidden=14,
        caption_queries=5, pooler_heads=3, vocabulary=17, text_length=8, text_width=12,
        text_heads=4, text_hidden=16, unimodal_layers=2, multimodal_layers=2,
    )  # fmt: skip
    return preset("tiny", **{**sizes, "pooler": "cascade", **changes})


@st.composite
def configs(draw, **fixed):
    """A small config with any combination of options, its widths, vocabulary and hidden sizes all
    different."""
    image_heads, per_head = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([5, 7, 8]))
    text_heads, pooler_heads = draw(st.permutations([1, 2, 3]))[:2]
    sizes = {
        "patch_size": (patch := draw(st.integers(1, 3))),
        "image_size": patch * draw(st.integers(2, 3)),
        "image_heads": image_heads,
        "image_width": image_heads * per_head,
        "text_heads": text_heads,
        "pooler_heads": pooler_heads,
        "text_width": draw(st.sampled_from([6, 12, 18])),
        "caption_queries": draw(st.sampled_from([4, 8, 11])),
        "image_hidden": draw(st.sampled_from([13, 16])),
        "text_hidden": draw(st.sampled_from([17, 20])),
        "vocabulary": draw(st.sampled_from([19, 23])),
        "text_length": draw(st.integers(8, 10)),
    }
    widths = [sizes[n] for n in ("image_width", "text_width", "image_hidden", "text_hidden")]
    assume(len({*widths, sizes["vocabulary"]}) == 5)
    options = {name: draw(st.sampled_from(values)) for name, values in OPTIONS.items()}
    layers = {
        "image_layers": draw(st.integers(1, 2)),
        "unimodal_layers": draw(st.integers(1, 2)),
        "multimodal_layers": draw(st.integers(1, 2)),
    }
    return small_config(**{**sizes, **options, **layers, **fixed})


def model_and_batch(config, seed, batch=3, tokens=7, fewest=2):
    """float64 (params, images, tokens): parameters away from their first zeros and ones."""
    rng = np.random.default_rng(seed)
    params = initialise(config, seed, np.float64)
    params = tree_map(lambda a: a + 0.2 * rng.standard_normal(a.shape), params)
    images = rng.standard_normal((batch, config.image_size, config.image_size, 3))
    ids = rng.integers(4, config.vocabulary, (batch, tokens))
    lengths = rng.integers(fewest, tokens + 1, batch)
    lengths[0] = tokens  # at least one row without padding
    ids[:, 0] = 1
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1] = 2
        row[length:] = 0
    return params, images, ids


seeds = st.integers(0, 10_000)


def tree_of(rng, spec_tree):
    """Random values for a tree of Specs, scales near 1."""
    filled = tree_map(lambda spec: spec.draw(rng), spec_tree)
    return tree_map(lambda a: a + 0.2 * rng.standard_normal(a.shape), filled)
