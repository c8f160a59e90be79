"""The command line: `minicoca train`, `caption`, `classify`, `search`, `embed`, `info`, ..."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from . import __version__, config, params
from .command_line import RUNS, build_parser
from .run import Stopped, load_model, machine, new_folder, read_config, train

RESUME_FLAGS = ("learning_rate", "clip_norm", "device", "precision", "compile")
MOST_BEAMS = 64


class Usage(ValueError):
    """A wrong command line, though every flag in it exists."""


def do_train(arguments):
    say = (lambda text: print(text, file=sys.stderr)) if arguments.json else print
    if arguments.resume:
        fields = ("run", *config.Config.__dataclass_fields__)
        given = {
            n: getattr(arguments, n) for n in fields if getattr(arguments, n, None) is not None
        }
        if wrong := [n for n in given if n not in RESUME_FLAGS]:
            flags = ", ".join("--" + name.replace("_", "-") for name in wrong)
            raise Usage(f"--resume goes on as the run began; leave out {flags}")
        results = train(None, arguments.resume, taking_up=True, changes=given, say=say)
    else:
        try:
            if arguments.init and arguments.preset:
                raise ValueError("--init takes the settings of its run; leave out --preset")
            earlier = read_config(arguments.init) if arguments.init else None
            settings = config.from_flags(arguments, earlier)
        except ValueError as error:
            raise Usage(error) from error
        if settings.data not in config.BUILT_IN:  # to be found again from wherever it is resumed
            root = settings.image_root and os.path.abspath(settings.image_root)
            settings = replace(settings, data=os.path.abspath(settings.data), image_root=root)
        folder = arguments.run
        if folder is None:
            folder = new_folder(RUNS, Path(settings.data).resolve().stem or "run")
        elif folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty; choose another --run, or --resume {folder}")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            results = train(settings, folder, say=say)
        finally:
            if not any(folder.iterdir()):
                folder.rmdir()  # it failed before there was anything to keep
    if arguments.json:
        print(json.dumps(results))


def open_model(arguments):
    """(CoCa, Tokenizer) of --run, or of the newest trained run."""
    folder = arguments.run
    if folder is None:
        trained = sorted(Path(RUNS).glob("*/model.safetensors"), key=lambda p: p.stat().st_mtime)
        if not trained:
            raise ValueError(f"no trained run in {RUNS}/; start with: minicoca train")
        folder = trained[-1].parent
    return load_model(folder, arguments.backend, arguments.device)


def tell_unknown(tokenizer, texts):
    """Say which of the texts hold words that the run's captions did not: they tell it nothing."""
    unknown = [repr(text) for text in texts if tokenizer.unknown_share([text])]
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        print(
            f"minicoca: this model never saw a word of {', '.join(unknown[:5])}{more}",
            file=sys.stderr,
        )


def show(arguments, rows, line, skipped):
    """Print rows as lines or as JSON, and what was skipped to stderr."""
    if arguments.json:
        print(json.dumps({"results": rows, "skipped": skipped}, indent=1))
    elif rows:
        print("\n".join(map(line, rows)))
    if skipped:
        print(f"skipped {len(skipped)} of the files:", file=sys.stderr)
        print("\n".join(f"  {error}" for error in skipped), file=sys.stderr)
    if not rows:
        raise ValueError("none of the images could be read")


def do_caption(arguments):
    from .tasks.captioning import caption
    from .tasks.files import decoded, find_images

    how = decoding(arguments)
    paths = find_images(arguments.images)
    model, tokenizer = open_model(arguments)
    tell_unknown(tokenizer, [arguments.prompt])
    rows, skipped = [], []
    for kept, images in decoded(paths, model.config.image_size, skipped):
        if "seed" in how:  # every file draws from a stream of its own, whatever batch it is in
            how["first_stream"] = len(rows)
        texts = caption(model, tokenizer, images, arguments.prompt, **how)
        rows += [{"file": str(p), "caption": t} for p, t in zip(kept, texts, strict=True)]
    width = max((len(row["file"]) for row in rows), default=0)
    show(arguments, rows, lambda row: f"{row['file']:{width}}  {row['caption']}", skipped)


def decoding(arguments):
    """How to write captions, from the flags. Raises Usage."""
    a = arguments
    if not 0 <= a.beams <= MOST_BEAMS:
        raise Usage(f"--beams {a.beams} is not from 0 to {MOST_BEAMS}")
    if a.temperature is None:
        if a.top_k is not None or a.top_p is not None or a.seed is not None:
            raise Usage("--top-k, --top-p and --seed are for sampling: give --temperature too")
        return {"beams": a.beams} if a.beams else {}
    if a.beams:
        raise Usage("--beams and --temperature exclude each other")
    if not 1e-3 <= a.temperature <= 1e3:
        raise Usage(f"--temperature {a.temperature} is not from 0.001 to 1000")
    how = {"top_k": a.top_k or 0, "top_p": 1.0 if a.top_p is None else a.top_p, "seed": a.seed or 0}
    if not 0 < how["top_p"] <= 1:
        raise Usage(f"--top-p {a.top_p} is not over 0 and at most 1")
    if how["top_k"] < 0 or how["seed"] < 0:
        raise Usage("--top-k and --seed cannot be negative")
    return how | {"temperature": a.temperature}


def do_classify(arguments):
    from .tasks.files import embed, find_images
    from .tasks.zero_shot import class_scores, fill_templates, probabilities

    try:
        prompts = fill_templates(arguments.labels, arguments.template or ["{}"])
    except ValueError as error:
        raise Usage(error) from error
    paths = find_images(arguments.images)
    model, tokenizer = open_model(arguments)
    tell_unknown(tokenizer, [text for group in prompts for text in group])
    skipped = []
    kept, vectors = embed(model, paths, skipped)
    scores = class_scores(model, tokenizer, vectors, prompts)
    p = probabilities(scores, float(model.params["log_temperature"]))
    rows = []
    for path, cosines, chances in zip(kept, scores, p, strict=True):
        best = int(cosines.argmax())
        rows.append(
            {
                "file": str(path),
                "label": arguments.labels[best],
                "probability": round(float(chances[best]), 4),
                "scores": dict(zip(arguments.labels, map(float, cosines.round(4)), strict=True)),
            }
        )
    width = max(len(row["file"]) for row in rows)
    show(
        arguments,
        rows,
        lambda row: f"{row['file']:{width}}  {row['label']}  ({row['probability']:.0%})",
        skipped,
    )


def do_search(arguments):
    from .images import IMAGE_SUFFIXES, decode
    from .tasks import embed_texts
    from .tasks.files import embed, find_images
    from .tasks.retrieval import contact_sheet, nearest

    if arguments.k < 1:
        raise Usage(f"-k {arguments.k}: at least 1")
    is_image = os.path.isfile(arguments.query)
    if not is_image and Path(arguments.query).suffix.lower() in IMAGE_SUFFIXES:
        raise Usage(f"{arguments.query}: there is no such image")
    paths = find_images([arguments.folder])
    model, tokenizer = open_model(arguments)
    skipped = []
    kept, vectors = embed(model, paths, skipped)
    if is_image:
        query = embed(model, [Path(arguments.query)], [])[1]
    else:
        tell_unknown(tokenizer, [arguments.query])
        query = embed_texts(model, tokenizer, [arguments.query])
    found, cosines = nearest(query, vectors, min(arguments.k, len(kept)))
    rows = [
        {"file": str(kept[i]), "cosine": round(float(c), 4)}
        for i, c in zip(found[0], cosines[0], strict=True)
    ]
    if arguments.sheet:
        labels = [f"{row['cosine']:.3f} {Path(row['file']).name}" for row in rows]
        sheet = contact_sheet([decode(row["file"]) for row in rows], labels)
        sheet.save(arguments.sheet)
    show(arguments, rows, lambda row: f"{row['cosine']:.3f}  {row['file']}", skipped)


def do_embed(arguments):
    from .tasks import embed_texts
    from .tasks.files import embed, find_images

    if arguments.out.suffix != ".npz":
        raise Usage(f"--out {arguments.out}: the name must end in .npz")
    skipped = []
    if arguments.text:
        model, tokenizer = open_model(arguments)
        tell_unknown(tokenizer, arguments.inputs)
        names, vectors = arguments.inputs, embed_texts(model, tokenizer, arguments.inputs)
    else:
        paths = find_images(arguments.inputs)
        model, tokenizer = open_model(arguments)
        names, vectors = embed(model, paths, skipped)
    import io

    file = io.BytesIO()
    np.savez(file, vectors=vectors.astype(np.float32), names=np.array([str(n) for n in names]))
    params.write_atomically(arguments.out, file.getvalue())
    row = {"file": str(arguments.out), "vectors": len(vectors), "width": vectors.shape[1]}
    show(arguments, [row], lambda r: f"{r['vectors']} x {r['width']} -> {r['file']}", skipped)


def do_info(arguments):
    from importlib.metadata import PackageNotFoundError, version

    versions = {"minicoca": __version__, "python": sys.version.split()[0]}
    for name in ("numpy", "torch", "triton", "pillow", "sentencepiece", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    import torch

    from .engine.ops import complaint, implementations

    facts = {"versions": versions, "machine": machine(), "cuda": torch.cuda.is_available()}
    facts["operations"] = implementations()
    if complaint():
        facts["warning"] = complaint()
    chosen = None
    if arguments.run:
        chosen = read_config(arguments.run)
        results = arguments.run / "results.json"
        facts["run"] = json.loads(results.read_text()) if results.is_file() else "not finished"
    elif arguments.preset:
        chosen = config.preset(arguments.preset)
    if chosen:
        tree = params.specs(chosen)
        facts["parameters"] = {name: params.count(part) for name, part in tree.items()}
        facts["parameters"]["in all"] = params.count(tree)
        facts["settings"] = chosen.to_dict()
    if arguments.json:
        print(json.dumps(facts, indent=1))
        return
    for name, value in facts.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, inner in value.items():
                print(f"  {key:20} {inner:,}" if type(inner) is int else f"  {key:20} {inner}")
        else:
            print(f"{name + ':':22} {value}")


def do_data(arguments):
    from PIL import Image

    from . import data
    from .tasks.retrieval import contact_sheet

    arguments.patch_size = 1  # any size of image can be looked at
    settings = config.from_flags(arguments)
    try:
        dataset = data.load(settings)
    except ValueError:
        if settings.data == "emoji":
            from .data.emoji import describe

            print(describe(settings.image_size, settings.emoji_sources))
        raise
    splits = {"train": dataset.train, "validation": dataset.validation, **dataset.evaluations}
    print(f"{dataset.name}\n{dataset.notes}")
    for split, pairs in splits.items():
        if pairs is not None:
            print(f"{split + ':':16} {len(pairs):>8,} images")
            for own in pairs.captions[:3]:
                print(f"{'':27}{own[0]}")
    if dataset.name == "emoji":
        from .data.emoji import pixel_nearest_neighbour

        figures = pixel_nearest_neighbour(dataset)
        shown = ", ".join(f"{key} {value:.1%}" for key, value in figures.items())
        print(f"pixel nearest neighbour (the figure to beat): {shown}")
    if arguments.sheet:
        pairs = next(iter(dataset.evaluations.values()), dataset.train)
        count = min(36, len(pairs))
        images = [Image.fromarray(x) for x in pairs.batch(np.arange(count))]
        contact_sheet(images, [pairs.captions[i][0] for i in range(count)]).save(arguments.sheet)
        print(f"picture: {arguments.sheet}")


def do_bench(arguments):
    from . import bench

    for flag in ("repeats", "batch_size"):
        if getattr(arguments, flag) < 1:
            raise Usage(f"--{flag.replace('_', '-')} {getattr(arguments, flag)}: at least 1")
    if arguments.json and not arguments.json.resolve().parent.is_dir():
        raise Usage(f"--json {arguments.json}: there is no such folder")
    if arguments.what == "kernels":
        bench.kernels(
            ops=arguments.ops,
            quick=arguments.quick,
            json_path=arguments.json,
            pictures=arguments.pictures,
            tests=not arguments.no_tests,
        )
        return
    bench.step(
        against=arguments.against,
        batch=arguments.batch_size,
        repeats=arguments.repeats,
        device=arguments.device,
        preset_name=arguments.preset,
        json_path=arguments.json,
    )


COMMANDS = {
    "train": do_train,
    "caption": do_caption,
    "classify": do_classify,
    "search": do_search,
    "embed": do_embed,
    "info": do_info,
    "data": do_data,
    "bench": do_bench,
}


def main(argv=None):
    """Run a command; returns the exit code: 0, 1 for a failure, 2 for a wrong command line."""
    arguments = build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text at all
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        COMMANDS[arguments.command](arguments)
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("minicoca: interrupted", file=sys.stderr)
        return 1
    except (ValueError, Stopped, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("MINICOCA_TRACEBACK"):
            raise
        print(f"minicoca: {error or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, Usage) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
