"""`minicoca export`: a trained model as files for other programs."""

from functools import partial
from pathlib import Path

from .. import params
from ..config import demand_vit
from ..training.checkpoint import (
    RUNS,
    TRAINED,
    WEIGHTS,
    find_run,
    load_model,
    read_config,
    read_weights,
)
from .model import note
from .results import check_output

HELP = "write a trained model for other programs: ONNX, torch.export, open_clip"


def programs(form, run, folder):
    """Both towers and a cached decoding step."""
    from ..interop.export import demand, export

    demand(form)
    export(*load_model(run, "torch", "cpu", note), form, folder)


def open_clip(run, folder):
    """Weights, description and merges as open_clip reads them."""
    from ..interop.open_clip_files import write_folder

    config, path = read_config(run), run / WEIGHTS
    weights, tokenizer = read_weights(run, config, note)
    apart = params.said_in(path).get("open_clip_cls", "") if path.is_file() else ""
    write_folder(folder, weights, config, tokenizer, apart)
    if not config.legacy_cls_mask:
        note(
            "this model's CLS does not see padding, which the JSON says as correct_cls_mask: "
            "open_clip's model knows it, the configs of 3.3.0 do not, so take it out of text_cfg "
            "there and set it on model.text"
        )
    if config.answers:
        note("left out: the head that answers questions, which open_clip's model has not")
    print(f"{folder}: a folder for open_clip (its name for it: local-dir:{folder})")


# {what a person writes: (function of the run and of the path to write, that path in a run)}
FORMS = {
    "onnx": (partial(programs, "onnx"), "onnx"),
    "torch": (partial(programs, "torch"), "torch"),
    "open_clip": (open_clip, "open_clip"),
}


def add_flags(parser):
    parser.add_argument("form", choices=FORMS, help="what to write")
    parser.add_argument("run", type=Path, help=f"a trained run: its folder, or a name in {RUNS}/")
    parser.add_argument("--out", type=Path, help="folder to write (default: inside the run)")


def run(arguments):
    folder, (write, name) = find_run(arguments.run), FORMS[arguments.form]
    demand_vit(config := read_config(folder))
    if config.pictures > 1:
        raise ValueError(f"{folder} answers by its head alone, and no form of these has one")
    out = arguments.out or (
        Path(f"{folder.name}-{name}") if folder.parent == TRAINED else folder / name
    )
    check_output("--out", out)
    write(folder, out)
