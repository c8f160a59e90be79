"""CoCa's relatives: who they are, and what each changes about CoCa."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Member:
    """One of the family: its year, its paper (arXiv, or words), what it changes."""

    year: int
    paper: str
    changes: str


FAMILY = {
    "coca": Member(2022, "2205.01917", "one model, two losses: contrastive and captioning"),
    "siglip": Member(2023, "2303.15343", "yes or no for every pair of a batch, not a softmax"),
    "matching": Member(2022, "2201.12086", "BLIP's head: do this picture and text belong together"),
    "vlmo": Member(2021, "2111.02358", "one transformer, an MLP for each modality, or a router"),
    "simvlm": Member(2021, "2108.10904", "no contrast; the beginning of a caption is given"),
    "cappa": Member(2023, "2306.07915", "no contrast; most captions are written all at once"),
    "gpt": Member(2018, "Radford et al.", "no image: a language model of the captions"),
    "simclr": Member(2020, "2002.05709", "no text: an image knows its other view among others"),
    "mae": Member(2021, "2111.06377", "no text: a quarter of the patches draws the rest"),
    "simmim": Member(2021, "2111.09886", "no text: all patches, many masked, and a linear map"),
    "resnet": Member(2018, "1812.01187", "a convolutional image tower, ResNet-D"),
}
# What is a setting of one of these: whose files it has, its flags, and whether a config is one.
SETTINGS = {
    "LiT": (Member(2021, "2111.07991", "a tower that knows is locked; texts learn to meet it"),
            "coca", "--init RUN --freeze image",
            lambda c: c.init and "image" in c.freeze.split(",")),
    "CLIP": (Member(2021, "2103.00020", "two towers and the contrastive loss alone"),
             "coca", "--caption-weight 0", lambda c: not c.caption_weight),
    "Switch": (Member(2021, "2101.03961", "a router chooses the MLP of every token"),
               "vlmo", "--objective vlmo --experts 4", lambda c: dict(c.settings).get("experts")),
}  # fmt: skip


def name_of(config):
    """Which of FAMILY or SETTINGS a config trains: of several settings the first."""
    own = (name for name, (_, of, _, is_one) in SETTINGS.items()
           if of == config.objective and is_one(config))  # fmt: skip
    return next(own, config.objective)


# What is not built yet, by its paper.
LATER = {
    "ClipCap": Member(2021, "2111.09734", "a mapper writes a prefix for a frozen language model"),
    "Frozen": Member(2021, "2106.13884", "the image tower learns what a frozen one can read"),
    "Flamingo": Member(2022, "2204.14198", "gated cross-attention within a frozen one; few shots"),
    "BLIP-2": Member(2023, "2301.12597", "queries between a frozen tower and a frozen model"),
    "FROMAGe": Member(2023, "2301.13823", "a frozen model that retrieves and shows images"),
    "Kosmos-1": Member(2023, "2302.14045", "a language model of interleaved images and texts"),
    "LoRA": Member(2021, "2106.09685", "matrices of low rank beside frozen ones"),
    "PGN": Member(2022, "2210.06466", "a small net writes prompts for a frozen tower"),
    "TeachText": Member(2021, "2104.08271", "several frozen text encoders teach one"),
    "Socratic models": Member(2022, "2204.00598", "frozen models that talk to each other in words"),
    "GPICL": Member(2022, "2212.04458", "learns to learn from the examples in its context"),
    "LocCa": Member(2024, "2403.19596", "captions that say where things are"),
    "BEiT-3": Member(2022, "2208.10442", "masked images, texts and pairs, as one language"),
}
