"""README.md of a run: honest, readable by the Hub, and never over a person's."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from runs import few_shapes, short, silent, untrained  # noqa: F401
from safetensors import safe_open

from minicoca.config import preset
from minicoca.training.card import card, is_ours, write_card
from minicoca.training.checkpoint import load_model, read_results

quiet = dict(say=lambda line: None)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card") / "a_run"
    with pytest.MonkeyPatch.context() as patch:
        from minicoca.data import shapes

        load = shapes.load
        patch.setattr(shapes, "load", lambda seed, side, *_: load(seed, side, 60, 20))
        silent(short(steps=2), folder)
    return folder


def front_matter(text):
    """The part of YAML that a card needs: mappings, lists, and scalars in JSON or plain."""
    lines = text.split("---\n")[1].splitlines()

    def scalar(word):
        try:
            return json.loads(word)
        except ValueError:
            assert re.fullmatch(r"[a-z][a-z0-9_-]*", word), word
            return word

    def block(depth):
        found = None
        while lines and (indent := len(lines[0]) - len(lines[0].lstrip(" "))) >= depth:
            line = lines[0].lstrip(" ")
            if (
                indent > depth
                or found is not None
                and line.startswith("- ") != (type(found) is list)
            ):
                break
            if line.startswith("- "):
                found = [] if found is None else found
                if re.match(r"- [\w-]+:( |$)", line):
                    lines[0] = " " * (depth + 2) + line[2:]
                    found.append(block(depth + 2))
                else:
                    found.append(scalar(lines.pop(0).strip()[2:]))
                continue
            found = {} if found is None else found
            key, _, rest = lines.pop(0).strip().partition(":")
            assert key not in found
            if rest:
                found[key] = scalar(rest.strip())
            else:
                inner = len(lines[0]) - len(lines[0].lstrip(" "))
                found[key] = block(inner)
        return found

    found = block(0)
    assert not lines, lines
    return found


def test_a_finished_run_is_a_repository_of_the_hub(run):
    text = (run / "README.md").read_text()
    found, results = front_matter(text), read_results(run)
    assert found["license"] == "mit" and found["library_name"] == "minicoca"
    assert found["pipeline_tag"] == "image-to-text" and "coca" in found["tags"]
    (index,) = found["model-index"]
    assert index["name"] == "a_run"
    told = {
        (part["dataset"]["split"], metric["name"]): metric["value"]
        for part in index["results"]
        for metric in part["metrics"]
    }
    for split in ("held_out", "compositional"):
        want = results[split]
        assert told[split, "captions exactly right"] == round(want["caption_exact"], 4)
        assert told[split, "text to image, R@1"] == round(want["text_to_image_r1"], 4)
        assert told[split, "zero-shot accuracy"] == round(want["zero_shot_top1"], 4)
    for words in ("minicoca caption photo.png --run .", "minicoca classify", "## Limits", "seed"):
        assert words in text
    for name in ("model.safetensors", "resume.safetensors"):
        with safe_open(run / name, "numpy") as file:
            assert file.metadata()["format"] == "pt"
    load_model(run)


@pytest.mark.extras
def test_the_hubs_own_package_reads_it(run):
    hub = pytest.importorskip("huggingface_hub")
    found = hub.ModelCard.load(run / "README.md").data
    assert found.license == "mit" and found.model_name == "a_run"
    assert {one.task_type for one in found.eval_results} == {
        "image-to-text", "image-text-retrieval", "zero-shot-image-classification",
    }  # fmt: skip


@given(
    name=st.text(min_size=1, max_size=30),
    data=st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=30),
    split=st.text(min_size=1, max_size=9),
)
def test_no_name_breaks_the_front_matter(name, data, split):
    config = preset("tiny", data=data)
    text = card(name, config, {split: {"images": 3, "caption_exact": 0.25}}, "")
    found = front_matter(text)
    assert found["license"] == {"shapes": "mit", "emoji": "other"}.get(data, "unknown")
    assert found["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25


def test_weights_from_elsewhere_have_no_licence_that_is_known(tmp_path):
    untrained(tmp_path)
    assert write_card(tmp_path, source="a/model", **quiet)
    text = (tmp_path / "README.md").read_text()
    assert front_matter(text)["license"] == "unknown" and "imported from a/model" in text
    assert "model-index" not in text and "## Training" not in text
    begun = preset("tiny", init="some/run")
    assert front_matter(card("x", begun, {}, ""))["license"] == "unknown"


def test_what_a_model_cannot_do_is_not_promised():
    for missing, words in (("caption", "minicoca caption"), ("contrastive", "minicoca classify")):
        config = preset("tiny", **{f"{missing}_weight": 0.0})
        text = card("x", config, {}, "")
        assert words not in text
        assert (front_matter(text)["pipeline_tag"] == "image-to-text") == (missing != "caption")


@pytest.mark.parametrize("how", ["edited", "added", "shortened", "own", "empty", "folder", "link"])
def test_a_persons_readme_stays(tmp_path, how):
    untrained(tmp_path)
    path, said = tmp_path / "README.md", []
    assert write_card(tmp_path, **quiet) and write_card(tmp_path, **quiet)  # ours is renewed
    text = path.read_text()
    path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "link":
        path.symlink_to("nowhere")
    else:
        path.write_text(
            {
                "edited": text.replace("## Use", "## How to use"),
                "added": text + "\nMine.\n",
                "shortened": text[: text.rindex("<!--")],
                "own": "# Mine\n",
                "empty": "",
            }[how]
        )
    before = path.read_text() if path.is_file() else None
    assert not is_ours(path)
    assert not write_card(tmp_path, say=said.append)
    assert said == [f"{path} is not ours, or was edited: it stays as it is"]
    assert before is None or path.read_text() == before


@pytest.mark.slow
def test_a_persons_readme_and_its_copies_outlast_a_run_that_goes_on(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    silent(short(steps=2), folder)
    kept = {"README.md": "mine", "README.md.original": "mine too", "README.md.0123abcd": "torn"}
    for name, text in kept.items():
        (folder / name).write_text(text)
    silent(None, folder, taking_up=True, changes={"steps": 3})
    assert (folder / "README.md").read_text() == "mine"
    assert (folder / "README.md.original").read_text() == "mine too"
    assert not (folder / "README.md.0123abcd").exists()  # what a killed save left
    assert read_results(folder)["steps"] == 3
    with pytest.raises(ValueError, match="is not empty"):
        silent(short(steps=2), folder)


def test_a_new_run_is_not_begun_over_a_readme(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="is not empty"):
        silent(short(steps=2), tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_imported_weights_have_a_card_that_says_where_they_are_from(tmp_path):
    from minicoca.commands.imports import write
    from minicoca.params import initialise

    config = untrained(tmp_path / "first")
    words = load_model(tmp_path / "first")[1]
    write(tmp_path / "run", initialise(config), config, words, source="their weights")
    text = (tmp_path / "run" / "README.md").read_text()
    assert "imported from their weights" in text and front_matter(text)["license"] == "unknown"
