"""Every choice a run can make: one frozen dataclass, flags made from its fields."""

import dataclasses
import difflib
from dataclasses import dataclass
from functools import partial

from .fields import check_field, divides, option, shown
from .presets import PRESETS

PAD, START, END, UNKNOWN = range(4)  # the token ids that stand for no text
BUILT_IN = ("shapes", "emoji")  # data sets; any other is a person's own
OWN_VOCABULARY = 8000  # tokens, at most, of a person's own captions, where no number is given
HIDE = ("none", "image", "question")
TASKS = ("captions", "questions", "pairs", "entailment", "dialogue")
# {objective: what it teaches}, as far as the commands know how to use it: to compare images and
# texts by their vectors, to write captions, to tell whether a pair belongs together (match), how a
# caption goes on without its image (continue); image tokens for probes (tokens), and CoCa's ViT,
# which can be looked into (vit).
OBJECTIVES = {
    "coca": "compare write tokens vit", "siglip": "compare write tokens vit",
    "matching": "compare write match tokens vit", "resnet": "compare write tokens",
    "vlmo": "compare match tokens", "simvlm": "write tokens vit", "cappa": "write tokens vit",
    "simclr": "tokens vit", "mae": "tokens vit", "simmim": "tokens vit", "gpt": "continue",
}  # fmt: skip
MOST_SIDE, MOST_LAYERS, MOST_STEPS = 4097, 1001, 10**9 + 1

GROUPS = ("data", "model", "losses", "optimiser", "run")
_data, _model, _loss, _optimiser, _run = (partial(option, group) for group in GROUPS)


@dataclass(frozen=True)
class Config:
    """A CoCa and how it is trained. Raises ValueError for a combination that cannot be built."""

    preset: str = _run("tiny", "where the settings that are not given come from")
    init: str = _run("", "a finished run whose weights, tokenizer and settings to begin with")
    init_parts: str = _run(
        "", "of its weights those of these names, as --freeze has them, the others anew; else all"
    )
    task: str = _run(
        "captions",
        "captions and vectors; or answers to questions about a picture, about two (pairs), whether "
        "a sentence follows (entailment), or to what refers to the last answer (dialogue)",
        TASKS,
    )
    objective: str = _run(
        "coca", "what is learned: CoCa, or one of its relatives (minicoca family)", (*OBJECTIVES,)
    )
    settings: tuple = _run((), "of a relative: what it has of its own, (name, value) by name")
    # The image encoder (paper section 3.2; Table 1).
    image_size: int = _model(32, "side of the square input image, in pixels", high=MOST_SIDE)
    patch_size: int = _model(8, "side of a patch, in pixels", high=MOST_SIDE)
    image_width: int = _model(64, "width of the image encoder")
    image_layers: int = _model(3, "layers of the image encoder", high=MOST_LAYERS)
    image_heads: int = _model(4, "attention heads of the image encoder")
    image_hidden: int = _model(256, "hidden width of the image encoder's MLPs")
    stem: str = _model(
        "plain",
        "plain: patches and positions; clip: a class token, a norm, no patch bias",
        ("plain", "clip"),
    )
    # Attentional pooling (paper section 3.2; Table 8f).
    pooler: str = _model(
        "cascade",
        "which tokens the contrastive query and the decoder read",
        ("cascade", "parallel", "shared", "none"),
    )
    caption_queries: int = _model(256, "pooled image tokens for the decoder")
    pooler_heads: int = _model(4, "attention heads of the poolers")
    # The decoupled text decoder (paper section 3.2).
    vocabulary: int = _model(64, "token ids, special ones included", low=5)
    text_length: int = _model(24, "longest caption in tokens, start and end included", low=3)
    text_width: int = _model(64, "width of both halves of the text decoder")
    text_heads: int = _model(4, "attention heads of the text decoder")
    text_hidden: int = _model(256, "hidden width of the text decoder's MLPs")
    unimodal_layers: int = _model(1, "text-only layers", high=MOST_LAYERS)
    multimodal_layers: int = _model(1, "layers that also read the image", high=MOST_LAYERS)
    multimodal_mlps: int = _model(1, "MLPs in a multimodal layer: 1 (paper), 2 (open_clip)", (1, 2))
    legacy_cls_mask: bool = _model(False, "open_clip's shifted CLS mask, for its weights only")
    gelu: str = _model("tanh", "which GELU", ("tanh", "exact"))
    embed_width: int = _model(0, "width of the shared embedding; 0: no projection (paper)", low=0)
    # Losses (paper Eq. 2 to 4).
    contrastive_weight: float = _loss(1.0, "weight of the contrastive loss; 0 leaves it out")
    caption_weight: float = _loss(2.0, "weight of the captioning loss; 0 leaves it out")
    answer_weight: float = _loss(
        1.0, "questions: weight of the loss of the head, a classifier; 0 leaves the head out"
    )
    caption_loss: str = _loss(
        "all",
        "questions: the captioning loss is of question and answer (paper), or of the answer alone",
        ("all", "answer"),
    )
    # Data.
    data: str = _data("shapes", "shapes, emoji, or a file, folder or .tar shards of your own")
    image_root: str = _data("", "own data: where a list's image paths begin; else beside the list")
    image_column: str = _data("", "own data: the column or field of image paths; else by its name")
    caption_column: str = _data("", "own data: the column or field of captions; else by its name")
    question_column: str = _data("", "own data: the column or field of questions; else by its name")
    answer_column: str = _data("", "own data: the column or field of answers; else by its name")
    scenes: int = _data(60_000, "shapes: how many scenes are drawn to train on")
    per_picture: int = _data(4, "questions asked of each picture of a step, at most")
    hide: str = _data(
        "none", "questions: train and measure without the image, or without the question", HIDE
    )
    split_column: str = _data("", "own data: the column or field of splits; else one called split")
    class_template: str = _data("a photo of a {}", "class folders: the caption; {} is the class")
    validation_part: float = _data(0.05, "own data: part that is looked at in training", high=1)
    held_out_part: float = _data(0.05, "own data: part that is tested on at the end", high=1)
    keep_copies: bool = _data(False, "own data: byte-equal copies are split by their own names")
    noise: float = _data(
        0.0,
        "shapes: part of the training captions that gives way to other pictures', file names, "
        "boilerplate, repeated words",
        high=1,
    )
    held_out: str = _data("twemoji", "emoji: the vendor that is tested on and never trained on")
    exclude: str = _data("", "emoji: vendors to leave out altogether, separated by commas")
    emoji_source: str = _data("", "emoji: where drawings are, as vendor=PATH,vendor=PATH")
    unseen_names: bool = _data(False, "emoji: keep 5 % of the names from training, and test them")
    tokenizer: str = _data("word", "sentencepiece model type", ("word", "unigram", "bpe"))
    fold: bool = _data(
        False, "fold case and kinds of letters (sentencepiece's nfkc_cf); else captions as written"
    )
    distinct: bool = _data(False, "no step holds two pairs that share a caption")
    augment: float = _data(0.0, "strength of random changes to training images; 0: none")
    patch_keep: float = _data(
        1.0, "part of each training image's patches that is seen, drawn anew (FLIP)", part=True
    )
    pixel_mean: tuple = _data((0.5, 0.5, 0.5), "mean of red, green, blue; set by the data")
    pixel_std: tuple = _data((0.5, 0.5, 0.5), "their standard deviation; set by the data")
    answers: tuple = _data((), "the classes of the head; set by the data")
    # Optimisation.
    backend: str = _run(
        "auto",
        "what computes. auto: torch, with Triton's kernels on CUDA; numpy: the reference",
        ("auto", "torch", "triton", "numpy"),
    )
    device: str = _run("auto", "torch device; auto: cuda where there is one, else cpu")
    precision: str = _run(
        "auto",
        "compute type; weights stay float32. auto: bfloat16 on cuda, and on a CPU "
        "where it is faster for a large model; else float32",
        ("auto", "float32", "bfloat16"),
    )
    parallel: str = _run(
        "ddp",
        "under torchrun: every process has the whole model (ddp), or a part of weights, gradients "
        "and moments (fsdp)",
        ("ddp", "fsdp"),
    )
    compile: bool = _run(False, "compile the training step with torch.compile")
    recompute: bool = _run(
        False, "compute the image layers again in the backward pass: less memory, the same result"
    )
    steps: int = _optimiser(3100, "optimiser steps", high=MOST_STEPS)
    batch_size: int = _optimiser(64, "pairs per step")
    accumulate: int = _optimiser(1, "micro-batches per step: less memory, the same gradient")
    optimizer: str = _optimiser(
        "adamw", "muon: the matrices of the blocks by Muon, all else by AdamW", ("adamw", "muon")
    )
    learning_rate: float = _optimiser(3e-3, "peak learning rate")
    muon_rate: float = _optimiser(3.0, "Muon: factor of the rate for its matrices")
    momentum: float = _optimiser(0.95, "Muon: decay of the mean of gradients", high=1)
    warmup: int = _optimiser(100, "steps of linear warm-up", low=0, high=MOST_STEPS)
    schedule: str = _optimiser("cosine", "how the rate falls after warm-up", ("cosine", "linear"))
    final_rate: float = _optimiser(0.02, "last learning rate, as a part of the peak")
    weight_decay: float = _optimiser(0.05, "decoupled weight decay of matrices")
    init_decay: float = _optimiser(1.0, "factor of it for what --init-parts names; 0: none (LiT)")
    beta1: float = _optimiser(0.9, "AdamW: decay of the mean of gradients", high=1)
    beta2: float = _optimiser(0.98, "AdamW: decay of the mean of squared gradients", high=1)
    epsilon: float = _optimiser(1e-8, "AdamW: added to the root")
    clip_norm: float = _optimiser(1.0, "largest global norm of the gradient; 0: no clipping")
    ema: float = _optimiser(
        0.0, "decay of the averaged weights that are evaluated; 0: none", high=1
    )
    image_rate: float = _optimiser(1.0, "factor of the rate for the image encoder; 0: frozen")
    pooler_rate: float = _optimiser(1.0, "factor of the rate for the poolers; 0: frozen")
    text_rate: float = _optimiser(1.0, "factor of the rate for both halves of the text decoder")
    freeze: str = _optimiser(
        "", "what stays as it is, by names: image (LiT, with --init), image.blocks.0-5,text.token"
    )
    seed: int = _run(0, "seed of weights, data and order", low=0, high=2**40)
    evaluate_every: int = _run(
        1000, "steps between quick looks at validation data", low=0, high=MOST_STEPS
    )
    checkpoint_every: int = _run(
        600, "steps between checkpoints that --resume can use", high=MOST_STEPS
    )

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check_field(field, getattr(self, field.name))
        divides(self, "image_size", "patch_size")
        divides(self, "image_width", "image_heads")
        divides(self, "text_width", "text_heads")
        divides(self, "text_width", "pooler_heads")
        _ = self.emoji_sources
        if not self.data:
            raise ValueError("data is empty; give shapes, emoji, or a file or folder")
        if "{}" not in self.class_template:
            raise ValueError(
                f"class_template={shown(self.class_template)} has no {{}} for the class to stand in"
            )
        if (parts := self.validation_part + self.held_out_part) >= 1:
            raise ValueError(
                f"validation_part and held_out_part are {parts} together; keep them under 1"
            )
        if self.noise and (self.data, self.task) != ("shapes", "captions"):
            raise ValueError(f"noise={self.noise:g} is of the captions of shapes alone: make it 0")
        _check_task(self)
        _check_objective(self)

    @property
    def compares(self):
        """Whether images and texts have vectors to be compared."""
        return bool(self.contrastive_weight) and self._teaches("compare")

    @property
    def writes(self):
        """Whether it writes captions, or answers."""
        return bool(self.caption_weight) and self._teaches("write")

    @property
    def matches(self):
        """Whether it has a head that says if an image and a text belong together."""
        return self._teaches("match") and dict(self.settings).get("matching_weight", 1) > 0

    @property
    def continues(self):
        """Whether it is a language model of captions, which sees no image."""
        return self._teaches("continue")

    @property
    def sees(self):
        """Whether it makes image tokens, which a probe can learn from."""
        return self._teaches("tokens")

    @property
    def reads(self):
        """Whether it learns anything from texts."""
        return any(map(self._teaches, ("compare", "write", "match", "continue")))

    @property
    def has_vit(self):
        """Whether its image tower is CoCa's, to be looked into and written for other programs."""
        return self._teaches("vit")

    def _teaches(self, what):
        return what in OBJECTIVES[self.objective].split()

    @property
    def emoji_sources(self):
        """{vendor: path} of emoji_source; None for those that are found by themselves."""
        pairs = [part.partition("=") for part in filter(None, self.emoji_source.split(","))]
        if any(not vendor or not path for vendor, _, path in pairs):
            raise ValueError(
                f"emoji_source={shown(self.emoji_source)}: write vendor=PATH, joined by commas"
            )
        return {vendor: path for vendor, _, path in pairs} or None

    @property
    def patches(self):
        """N: image patches."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def kept_patches(self):
        """How many of them a training step reads: patch_keep of them, rounded, and at least 1."""
        return max(1, int(self.patches * self.patch_keep + 0.5))

    @property
    def pictures(self):
        """How many pictures a question is about."""
        return 2 if self.task == "pairs" else 1

    @property
    def memory_width(self):
        """M: width of the image tokens that the decoder's cross-attention reads."""
        return self.image_width if self.pooler == "none" else self.text_width

    def to_dict(self):
        """{field: value}, as it is saved: a relative's settings as a dict, and of CoCa none."""
        fields = dataclasses.asdict(self)
        if self.objective == "coca":
            del fields["objective"], fields["settings"]
            return fields
        return fields | {"settings": dict(self.settings)}


ONE_PICTURE = {"augment": 0, "patch_keep": 1, "caption_weight": 0}  # what pairs leave out


def _check_task(config):
    """Raise ValueError for losses and settings that a task does not have."""
    asks, weights = config.task != "captions", ["contrastive_weight", "caption_weight"]
    if asks:
        weights[0] = "answer_weight"
        if config.contrastive_weight:
            raise ValueError(
                f"contrastive_weight={config.contrastive_weight} is not of task={config.task}, "
                "which matches no texts: make it 0"
            )
        if config.accumulate > 1:
            raise ValueError(f"accumulate={config.accumulate} is of captions; here it is 1")
    if not any(getattr(config, name) > 0 for name in weights):
        raise ValueError(f"{' and '.join(weights)} are both 0: nothing to learn")
    for name, plain in ONE_PICTURE.items() if config.task == "pairs" else ():
        if getattr(config, name) != plain:
            raise ValueError(f"{name}={getattr(config, name)}: of pairs of pictures it is {plain}")


def _check_objective(config):
    """Raise ValueError for what a relative does not have; its own settings relatives.py checks."""
    if config.objective == "coca":
        if config.settings:
            raise ValueError(f"settings={shown(dict(config.settings))}: CoCa has none of its own")
        return
    of = f"objective={config.objective}"
    plain = {"task": "captions", "accumulate": 1, "patch_keep": 1.0}
    for name, value in plain.items():
        if getattr(config, name) != value:
            raise ValueError(f"{name}={getattr(config, name)}: with {of} it is {value}")
    if config.recompute and not config.has_vit:
        raise ValueError(f"recompute=True: {of} has none of the image layers that it is of")


def demand_vit(config):
    """Raise ValueError for a model whose image tower is not CoCa's, which alone can be looked into
    and written for other programs."""
    if not config.has_vit:
        raise ValueError(
            f"this model was trained with objective {config.objective}, and its image tower is not "
            "CoCa's: it cannot be explained, exported or put in a page"
        )


def preset(name, **overrides):
    """The named preset as a Config, with some fields replaced. Raises ValueError."""
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name)[:40], PRESETS, 1, 0)[0]
        raise ValueError(
            f"no preset {shown(name)}; did you mean {near!r}? (of {', '.join(PRESETS)})"
        )
    return from_dict({"preset": name, **PRESETS[name], **overrides})


# Set from the data and its tokenizer, not by a person.
DATA_FIELDS = ("pixel_mean", "pixel_std", "answers")
# What a task begins with instead of the settings of its run or preset; and of a run, which sees.
_ASKS = {"contrastive_weight": 0.0, "batch_size": 32}
TASK_SETTINGS = {
    "questions": _ASKS | {"steps": 5000},
    "pairs": _ASKS | {"caption_weight": 0.0, "steps": 2000},
    # Its sentences may be false: not to be learned as captions.
    "entailment": _ASKS | {"caption_loss": "answer", "steps": 8000},
    "dialogue": _ASKS | {"steps": 5000},
}
TUNED = {"image_rate": 0.1}


def from_dict(fields):
    """A Config from a dict of its fields, as saved with a run. Raises ValueError."""
    if not isinstance(fields, dict):
        raise ValueError("the settings are not a JSON object")
    known = [field.name for field in dataclasses.fields(Config)]
    if type(fields.get("freeze_image")) is bool:  # what `freeze` was, in earlier versions
        fields = dict(fields)
        fields |= {"freeze": "image"} if fields.pop("freeze_image") else {}
    if isinstance(own := fields.get("settings", ()), dict):
        fields = fields | {"settings": tuple(sorted(own.items()))}
    for name in fields:
        if name not in known:
            near = difflib.get_close_matches(str(name)[:40], known, 1, 0)[0]
            raise ValueError(f"unknown setting {shown(name)}; did you mean {near!r}?")
    return Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
