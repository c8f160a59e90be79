"""The relatives of CoCa: the settings, the parameters and the draws that each has of its own.

Each is an objective: `loss(params, config, settings, batch)` in the file of its name, in
reference/relatives/ (which has `loss_backward` too) and in engine/relatives/. A batch is a dict of
arrays. All that is random in a step is in it, put there by `draw`: a loss is a function.
"""

import dataclasses
import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import params
from .config import END, PAD
from .fields import check_field, divides, option, shown
from .params import Spec
from .views import view

_own = partial(option, "objective")
LOSSES = ("contrastive", "caption", "answer", "matching", "words", "balance")  # beside "loss"


class Constant(Spec):
    """A parameter that begins as a number."""

    def draw(self, rng):
        return np.full(self.shape, self.fill)


@dataclass(frozen=True)
class Relative:
    """The settings of one, and what follows from them; here CoCa's parameters, and no draws."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))

    def specs(self, config):
        """The tree of Specs. What CoCa has too has CoCa's names, and begins as CoCa's would."""
        return params.specs(config)

    def draw(self, rng, config, batch):
        """The batch with what is random in a step, drawn by a NumPy generator."""
        return batch


@dataclass(frozen=True)
class CoCa(Relative):
    """CoCa itself. Batch: images [B, I, I, 3], tokens [B, T] and, where not all patches are read,
    places [B, L]: which image tokens are."""


@dataclass(frozen=True)
class GPT(Relative):
    """A language model of captions alone (Radford et al. 2018). Batch: tokens [B, T]."""

    tied: bool = _own(False, "the head is the table of tokens, turned")

    def specs(self, config):
        c, depth = config, config.unimodal_layers + config.multimodal_layers
        D = c.text_width
        text = {
            "token": Spec((c.vocabulary, D), D**-0.5 if self.tied else 0.5),
            "position": Spec((c.text_length, D), 0.5),
            "blocks": params.blocks(depth, depth, D, c.text_hidden),
        }
        head = {} if self.tied else {"head": {"weight": params.matrix(D, c.vocabulary)}}
        return {"text": text, "decoder": {"norm": params.norm(D)} | head}


@dataclass(frozen=True)
class SimVLM(Relative):
    """Of a caption the beginning is given and the rest is written (Wang et al. 2021). Batch: images
    [B, I, I, 3], tokens [B, T], prefix [B]: how many tokens are given."""

    def draw(self, rng, config, batch):
        lengths_B = (batch["tokens"] != PAD).sum(1)
        return batch | {"prefix": rng.integers(0, lengths_B)}  # the end, at least, is to be written


@dataclass(frozen=True)
class CapPa(Relative):
    """Most captions are to be written blindly, all words at once (Tschannen et al. 2023). Batch:
    images [B, I, I, 3], tokens [B, T], parallel [B]: which captions."""

    parallel_part: float = _own(0.75, "part of the captions that is written all at once", part=True)

    def specs(self, config):
        return params.specs(config) | {"word_mask": Spec((config.text_width,), 0.5)}

    def draw(self, rng, config, batch):
        return batch | {"parallel": rng.random(len(batch["tokens"])) < self.parallel_part}


@dataclass(frozen=True)
class SigLIP(Relative):
    """CoCa with a yes or no for every pair of a batch in place of a softmax (Zhai et al. 2023).
    Batch: images [B, I, I, 3], tokens [B, T]."""

    def specs(self, config):
        """The first bias makes a batch's first loss small: of B answers to an image 1 is yes."""
        tree = params.specs(config) | {"log_temperature": Constant((), -math.log(10))}
        return tree | {"sigmoid_bias": Constant((), -math.log(max(1, config.batch_size - 1)))}


@dataclass(frozen=True)
class Matching(Relative):
    """CoCa with a head that says whether a picture and a caption belong together (Li et al. 2022,
    BLIP). Batch: images [B, I, I, 3], tokens [B, T], noise [2, B] from 0 to 1: which of the texts,
    and of the images, that are alike to a pair are taken for what is not one."""

    matching_weight: float = _own(1.0, "weight of the matching loss")

    def specs(self, config):
        D = config.text_width
        head = {"pooler": params.pooler(1, D, D), "classifier": params.linear(D, 2)}
        return params.specs(config) | {"matching": head}

    def draw(self, rng, config, batch):
        return batch | {"noise": rng.random((2, len(batch["tokens"])))}


@dataclass(frozen=True)
class SimCLR(Relative):
    """An image tower that knows two views of one image among the views of others (Chen et al.
    2020). Batch: views [2, B, I, I, 3], two random changes of every image."""

    temperature: float = _own(0.1, "what cosines are divided by", low=1e-3)
    width: int = _own(128, "width of the vectors that are compared, and thrown away")
    crop: float = _own(0.3, "least part of an image's area that a view shows", part=True)
    colours: float = _own(0.5, "strength of a view's other colours; 0: its own", high=2.0)

    def specs(self, config):
        D = config.image_width
        projector = {"norm": params.norm(D), "up": params.linear(D, D)}
        projector["down"] = params.linear(D, self.width)
        return {"image": params.specs(config)["image"], "projector": projector}

    def draw(self, rng, config, batch):
        images = batch["images"]
        both = [view(images, rng, self.crop, self.colours) for _ in range(2)]
        return batch | {"views": np.stack(both)}


@dataclass(frozen=True)
class MAE(Relative):
    """An image tower that sees some patches, and a small decoder that draws the others (He et al.
    2021). Batch: images [B, I, I, 3], seen [B, L]: the places of the patches that are seen."""

    masked: float = _own(0.75, "part of the patches that is not seen", part=True)
    decoder_width: int = _own(32, "width of the decoder that draws")
    decoder_layers: int = _own(2, "its layers")
    decoder_heads: int = _own(2, "its attention heads")
    normalise_patches: bool = _own(False, "a patch is drawn less its mean, by its spread")
    mask_tokens: bool = _own(False, "the tower too reads one vector for each patch not seen")

    def __post_init__(self):
        super().__post_init__()
        divides(self, "decoder_width", "decoder_heads")

    def specs(self, config):
        D, layers = self.decoder_width, self.decoder_layers
        decoder = {
            "norm": params.norm(config.image_width),
            "enter": params.linear(config.image_width, D),
            "mask": Spec((D,), 0.02),
            "position": Spec((config.patches, D), "sincos"),
            "blocks": params.blocks(layers, layers, D, 4 * D),
            "norm_output": params.norm(D),
            "pixels": params.linear(D, 3 * config.patch_size**2),
        }
        if self.mask_tokens:
            decoder["mask_read"] = Spec((config.image_width,), 0.02)
        return {"image": _plain(config, "mae"), "drawing": decoder}

    def draw(self, rng, config, batch):
        masked_BN = _masked(rng, len(batch["images"]), config.patches, self.masked)
        return batch | {"seen": np.nonzero(~masked_BN)[1].reshape(len(masked_BN), -1)}


@dataclass(frozen=True)
class SimMIM(Relative):
    """An image tower that reads every patch, many replaced by one vector, and a linear map that
    draws those (Xie et al. 2021). Batch: images [B, I, I, 3], masked [B, N]: which patches."""

    masked: float = _own(0.6, "part of the patches that is replaced", part=True)

    def specs(self, config):
        D = config.image_width
        own = {"mask": Spec((D,), 0.02), "norm": params.norm(D)}
        own["pixels"] = params.linear(D, 3 * config.patch_size**2)
        return {"image": _plain(config, "simmim"), "drawing": own}

    def draw(self, rng, config, batch):
        shape = len(batch["images"]), config.patches
        return batch | {"masked": _masked(rng, *shape, self.masked)}


@dataclass(frozen=True)
class ResNet(Relative):
    """CoCa with a convolutional image tower (He et al. 2015, 2018). Of image_width its last stage
    is wide, each before it half as wide as the next; patches there are none. Batch: images
    [B, I, I, 3], tokens [B, T]."""

    stages: int = _own(3, "stages; each but the first has half the rows and columns", high=9)
    depth: int = _own(1, "residual blocks of a stage")
    stem_pools: int = _own(0, "times the stem halves rows and columns", low=0, high=9)
    transformer: bool = _own(False, "a ViT's blocks of image_layers follow")
    attention_pool: bool = _own(False, "the image's vector is pooled as CLIP's")

    def specs(self, config):
        M, D, halves = config.image_width, config.text_width, self.stages - 1
        pools = halves + self.stem_pools
        for name, parts in (("image_width", 2**halves), ("image_size", 2**pools)):
            if (size := getattr(config, name)) % parts:
                why = f"stages={self.stages} and stem_pools={self.stem_pools}"
                raise ValueError(f"{name}={size} is not a multiple of {parts}, as {why} want it")
        widths = [M >> halves - i // self.depth for i in range(self.stages * self.depth)]
        first, places = widths[0], (config.image_size >> pools) ** 2
        read = [first, *widths]
        image = {
            "stem": {str(i): _kernel(9 * c, first) for i, c in enumerate((3, first, first))},
            "residuals": {str(i): _residual(read[i], c) for i, c in enumerate(widths)},
        }
        if self.transformer:
            layers = config.image_layers
            image["position"] = Spec((places, M), "sincos")
            image["blocks"] = params.blocks(layers, layers, M, config.image_hidden)
        tree = params.specs(config) | {"image": image}
        if self.attention_pool:
            own = {"position": Spec((1 + places, M), M**-0.5), "output": params.linear(M, D)}
            tree["attention_pool"] = own | {"attention": params.attention(M, M, 1.0)}
        return tree


def _kernel(rows, columns, scale="ones"):
    """A kernel of a map that ReLU has halved (He et al. 2015), and its norm."""
    norm = {"scale": Spec((columns,), scale), "bias": Spec((columns,), "zeros")}
    return {"weight": Spec((rows, columns), (2 / rows) ** 0.5), "norm": norm}


def _residual(read, written):
    """Two kernels of 3 x 3, of which the second is 0 at first; one of 1 x 1 where widths differ."""
    shortcut = {"shortcut": _kernel(read, written)} if read != written else {}
    second = _kernel(9 * written, written, "zeros")
    return {"first": _kernel(9 * read, written), "second": second} | shortcut


@dataclass(frozen=True)
class VLMo(Relative):
    """One transformer for images, texts and pairs, with an MLP for each kind (Bao et al. 2021), or
    with MLPs that a router chooses from (Fedus et al. 2021). Batch: images [B, I, I, 3],
    tokens [B, T], masked [B, T]: which words are to be found; noise [2, B], as matching's."""

    matching_weight: float = _own(1.0, "weight of the matching loss")
    words_weight: float = _own(0.25, "weight of the loss of masked words")
    masked: float = _own(0.15, "part of the words that is masked", part=True)
    experts: int = _own(0, "MLPs that a router chooses from; 0: an MLP for each kind", low=0)
    capacity: float = _own(1.25, "tokens an MLP takes, times its even share; 0: all that want it")
    balance_weight: float = _own(0.01, "weight of the router's balance, of each layer and pass")

    def specs(self, config):
        c, D = config, config.text_width
        if c.image_width != D:
            widths = f"image_width={c.image_width} and text_width={D}"
            raise ValueError(f"{widths}: vlmo has one width for both")
        if c.embed_width:
            raise ValueError(
                f"embed_width={c.embed_width}: vlmo compares at its own width; make it 0"
            )
        depth = c.unimodal_layers + c.multimodal_layers
        block = params.blocks(1, depth, D, c.text_hidden)["0"]
        expert = {"norm": block.pop("norm_mlp"), "mlp": block.pop("mlp")}
        lower = {"experts": {"image": expert, "text": expert}}
        upper = {"experts": lower["experts"] | {"both": expert}}
        if self.experts:
            mlps = {str(g): expert["mlp"] for g in range(self.experts)}
            router = {"weight": params.matrix(D, self.experts, 0.1)}
            lower = upper = {"routed": {"norm": expert["norm"], "router": router, "experts": mlps}}
        layers = [lower] * c.unimodal_layers + [upper] * c.multimodal_layers
        image = {"patch": params.linear(3 * c.patch_size**2, D), "class": Spec((D,), 0.5)}
        cocas = params.specs(c)
        return {
            "image": image | {"position": Spec((c.patches, D), "sincos")},
            "text": {name: cocas["text"][name] for name in ("token", "position", "cls")},
            "blocks": {str(i): block | own for i, own in enumerate(layers)},
            "norm": params.norm(D),
            "matching": params.linear(D, 2),
            "words": {"weight": params.matrix(D, c.vocabulary)},
            "log_temperature": cocas["log_temperature"],
            "word_mask": Spec((D,), 0.5),
        }

    def draw(self, rng, config, batch):
        tokens = batch["tokens"]
        masked = (rng.random(tokens.shape) < self.masked) & (tokens > END)
        return batch | {"masked": masked, "noise": rng.random((2, len(tokens)))}


def _plain(config, name):
    if config.stem != "plain":
        raise ValueError(
            f"stem={config.stem} has a class token, which is no patch: {name} wants plain"
        )
    if config.patches < 2:
        raise ValueError(
            f"image_size={config.image_size}, patch_size={config.patch_size}: one patch, of which "
            f"{name} can hide nothing; it wants two at least"
        )
    return params.specs(config)["image"]


def _masked(rng, images, patches, part):
    """[B, N], True where a patch is masked: in every image as many, but never all nor none."""
    count = min(max(1, int(part * patches + 0.5)), patches - 1)
    return rng.random((images, patches)).argsort(1).argsort(1) < count


RELATIVES = {
    "coca": CoCa, "gpt": GPT, "simvlm": SimVLM, "cappa": CapPa, "siglip": SigLIP,
    "matching": Matching, "simclr": SimCLR, "mae": MAE, "simmim": SimMIM, "resnet": ResNet,
    "vlmo": VLMo,
}  # fmt: skip


def settings_of(config):
    """The settings of the config's objective. Raises ValueError for what it has not."""
    kind, given = RELATIVES[config.objective], dict(config.settings)
    known = [field.name for field in dataclasses.fields(kind)]
    for name in given:
        if name not in known:
            own = f"it has {', '.join(known)}" if known else "it has none of its own"
            raise ValueError(f"{config.objective} has no setting {shown(name)}; {own}")
    return kind(**given)


def specs_of(config):
    """The tree of Specs of the config's objective."""
    return settings_of(config).specs(config)


def drawn(config, step, images, tokens):
    """What is random in a step of the config's objective, as its batch has it: {name: array}, by
    seed and step alone. step None: to look at, not to learn from, as in the step after the last."""
    rng = params.stream("objective", config.seed, config.steps if step is None else step)
    batch = {"images": images, "tokens": tokens}
    made = settings_of(config).draw(rng, config, batch)
    return {name: made[name] for name in sorted(made.keys() - batch.keys())}
