"""How fast captions are written, alone or against open_clip's own `generate`.

Both sides have the same weights (open_clip's, at random, converted) and the same images, and write
the same number of tokens; greedily (open_clip: top_k of one token) and by beams. They are timed in
turn, so that a change in the machine's pace meets both; memory is measured in a fresh process for
each. That they write the same tokens is looked at, not taken for granted.
"""

import json
import statistics
import time

import torch

from .bench import in_fresh_process, peak_mb
from .bench_sides import OpenClip, import_open_clip
from .config import END, PAD, START, UNKNOWN, preset
from .engine import generate as engine
from .engine.ops import pick_device, use
from .files import write_output
from .interop.open_clip import from_open_clip
from .params import initialise, tree_map
from .training.log import machine

WAYS = ("greedy", "beams")
TRANSFORMERS = "4.56"  # the first without what open_clip's beam search is made of


class Ours:
    def __init__(self, config, tree=None, device="cpu"):
        self.config = config
        self.params = tree_map(
            lambda a: torch.as_tensor(a, device=device), tree or initialise(config)
        )

    def write(self, images_BII3, tokens, beams):
        """Ids [B, tokens] of captions of so many tokens; beams 0: greedily."""
        how = dict(min_length=tokens, max_length=tokens)
        prompt = torch.full((1,), START, device=images_BII3.device)
        given = self.params, self.config, images_BII3
        with use("auto"):
            if not beams:
                prompts = prompt.expand(len(images_BII3), -1)
                return engine.generate(*given, prompts, **how)[:, 1:].cpu()
            found = engine.beam_search(*given, prompt, beams=beams, best=1, **how)
        return torch.stack([own[0][0][1:] for own in found])


class Theirs:
    """open_clip's model with its head initialised, which it leaves out, and without the words that
    ours never writes: zero is below the likeliest of a whole vocabulary."""

    def __init__(self, config, device="cpu"):
        import_open_clip_generate()
        self.model = OpenClip(config, device).model.eval()
        with torch.no_grad():
            self.model.text_decoder.text_projection[:, [PAD, START, UNKNOWN]] = 0

    def write(self, images_BII3, tokens, beams):
        how = dict(generation_type="beam_search", num_beams=beams, num_beam_groups=1)
        rows = self.model.generate(
            images_BII3.permute(0, 3, 1, 2), seq_len=1 + tokens, min_seq_len=tokens,
            sot_token_id=START, eos_token_id=END, pad_token_id=PAD,
            **(how if beams else dict(generation_type="top_k", top_k=1)),
        )  # fmt: skip
        return rows[:, 1 : 1 + tokens].cpu()


def import_open_clip_generate():
    """open_clip; raises ValueError, with the remedy, where it or what it writes with is missing."""
    open_clip = import_open_clip()
    from open_clip import coca_model

    if not coca_model._has_transformers:
        remedy = f"pip install 'transformers<{TRANSFORMERS}'"
        raise ValueError(f"open_clip's generate needs transformers under {TRANSFORMERS}: {remedy}")
    return open_clip


def adding_log_probabilities(model):
    """open_clip's beams add up logits as they are, so that a sure word counts no more than an
    unsure one: its model as it would have to be, with log probabilities for logits."""
    forward = model.forward

    def normed(*given, **how):
        outputs = forward(*given, **how)
        outputs["logits"][..., [PAD, START, UNKNOWN]] = -torch.inf
        return outputs | {"logits": outputs["logits"].log_softmax(-1)}

    model.forward = normed
    return lambda: setattr(model, "forward", forward)


def _memory(side, config, images, tokens, beams):
    """Megabytes that weights and writing add to a fresh process."""
    if side is Theirs:
        import_open_clip_generate()  # its libraries are no part of it
    before, model = peak_mb(), side(config)
    model.write(_images(config, images), tokens, beams)
    return peak_mb() - before


def _images(config, images):
    side = config.image_size
    return torch.randn(images, side, side, 3, generator=torch.Generator().manual_seed(0))


def _seconds(model, *given):
    wait = torch.cuda.synchronize if given[0].is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    rows = model.write(*given)
    wait()
    return time.perf_counter() - start, rows


def _equal(ours, theirs):
    """The part of captions that are the same, but for the last token: open_clip, greedy, puts the
    end there, whatever the model says."""
    return (ours[:, :-1] == theirs[:, :-1]).all(1).double().mean().item()


def generate(
    against=None, images=32, tokens=20, beams=6, repeats=3, json_path=None, memory=True,
    device="auto", preset_name="open_clip_b32",
):  # fmt: skip
    """Time the writing of `tokens` tokens for each of `images` random images at a preset's shapes.

    against: None or "open_clip". Prints a table; returns what it writes to `json_path`. Raises
    ValueError where open_clip is not here, or a preset is not of its kind.
    """
    if against and not preset_name.startswith(against):
        raise ValueError(f"--against {against} needs a --preset {against}_..., not {preset_name}")
    if tokens < 2:
        raise ValueError(f"--tokens {tokens}: at least 2")
    config, device = preset(preset_name), pick_device(device).type
    if tokens >= config.text_length:
        raise ValueError(
            f"--tokens {tokens}: {preset_name} writes at most {config.text_length - 1}"
        )
    report = {
        "preset": preset_name, "images": images, "tokens": tokens, "number_of_beams": beams,
        "repeats": repeats, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "machine": torch.cuda.get_device_name() if device == "cuda" else machine(),
        "device": device,
    }  # fmt: skip
    models = {}
    if against:
        report["open_clip"] = import_open_clip_generate().__version__
        models["theirs"] = theirs = Theirs(config, device)
        models["ours"] = Ours(config, from_open_clip(theirs.model.state_dict(), config), device)
    else:
        models["ours"] = Ours(config, None, device)
    pixels = _images(config, images).to(device)
    for way, width in zip(WAYS, (0, beams), strict=True):
        row, times = report.setdefault(way, {}), {name: [] for name in models}
        for model in models.values():  # warm
            model.write(pixels[:2], 3, width)
        for _ in range(repeats):
            rows = {}
            for name, model in models.items():
                spent, rows[name] = _seconds(model, pixels, tokens, width)
                times[name].append(spent)
        for name in models:
            row[f"{name}_s"] = round(statistics.median(times[name]), 4)
            row[f"{name}_all_s"] = [round(t, 4) for t in times[name]]
        if against:
            ratios = [b / a for a, b in zip(times["ours"], times["theirs"], strict=True)]
            row["ratio"] = round(statistics.median(ratios), 3)
            row["ratio_range"] = [round(min(ratios), 3), round(max(ratios), 3)]
            row["equal"] = _equal(rows["ours"], rows["theirs"])
    if against:
        undo = adding_log_probabilities(theirs.model)
        few = pixels[:4], min(tokens, 8), beams
        report["beams"]["equal_normed"] = _equal(models["ours"].write(*few), theirs.write(*few))
        undo()
    if memory and device == "cpu":
        for way, width in zip(WAYS, (0, beams), strict=True):
            for name, model in models.items():
                given = _memory, type(model), config, images, tokens, width
                report[way][f"{name}_peak_mb"] = round(in_fresh_process(*given))
    _print_table(report)
    if json_path:
        write_output(json_path, (json.dumps(report, indent=2) + "\n").encode())
    return report


def _print_table(report):
    names = [name for name in ("ours", "theirs") if f"{name}_s" in report["greedy"]]
    columns = [f"{name}_{unit}" for name in names for unit in ("s", "peak_mb")]
    columns = [column for column in columns if column in report["greedy"]]
    print(f"{'way':>10}" + "".join(f"{column:>16}" for column in columns))
    for way in WAYS:
        cells = (f"{report[way][c]:>16,.{0 if c.endswith('mb') else 3}f}" for c in columns)
        print(f"{way:>10}" + "".join(cells))
    for way in WAYS:
        row = report[way]
        if "ratio" in row:
            low, high = row["ratio_range"]
            same = f"{row['equal']:.0%} of the captions are token for token the same"
            print(f"{way}: {row['ratio']:.2f} times as fast ({low:.2f} to {high:.2f}); {same}")
    if "equal_normed" in report["beams"]:
        part = report["beams"]["equal_normed"]
        print(
            f"open_clip's beams add up logits; with log probabilities in their place {part:.0%} are"
        )
    print(
        f"{report['images']} images, {report['tokens']} tokens, {report['number_of_beams']} beams, "
        f"{report['preset']}, median of {report['repeats']}, in turn, {report['device']}, "
        f"{report['threads']} threads, torch {report['torch']}"
    )
