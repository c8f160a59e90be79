"""A page is Markdown; its `python` blocks run in order, a `text` block after one is their print."""

import contextlib
import io
import re
from pathlib import Path

FOLDER = Path(__file__).parent
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```\n", re.M | re.S)


class Differs(Exception):
    """A block printed something else than the page says."""


def all_pages():
    """The pages in order."""
    return sorted(FOLDER.glob("[0-9][0-9]*_*.md"))


def label(path):
    """What stands before a page's name: "04", "11b"."""
    return path.stem.partition("_")[0]


def find(number):
    """The page of a number ("4", "04", "11b"). Raises ValueError naming those there are."""
    found = {label(path).lstrip("0"): path for path in all_pages()}
    wanted = str(number).lower().lstrip("0")
    if wanted not in found:
        raise ValueError(f"no page {number!r}; there are {', '.join(found)}")
    return found[wanted]


def exercises(path):
    """The names of a page's exercises, as its table has them."""
    return re.findall(r"^\| (\d+[a-z]) \|", path.read_text(encoding="utf-8"), re.M)


def title(path):
    """What a page is called."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").split("·")[-1].strip()


def blocks(path):
    """[(section, first line, code, what it must print or None)] of a page."""
    text = path.read_text(encoding="utf-8")
    found = []
    matches = list(BLOCK.finditer(text))
    for match, after in zip(matches, [*matches[1:], None], strict=True):
        if match[1] != "python":
            continue
        printed = None
        if after and after[1] == "text" and not text[match.end() : after.start()].strip():
            printed = after[2]
        before = text[: match.start()]
        headings = re.findall(r"^##+ (.*)$", before, re.M)
        found.append((headings[-1] if headings else "", before.count("\n") + 1, match[2], printed))
    return found


def run(path, section=None, show=lambda text: None):
    """Run a page in one namespace, up to the end of `section`. Raises Differs, or what a block
    raises, with the page's own line numbers."""
    namespace = {"__name__": "__lesson__"}
    chosen = blocks(path)
    if section:
        wanted = [i for i, b in enumerate(chosen) if b[0].lower().startswith(section.lower())]
        if not wanted:
            titles = ", ".join(dict.fromkeys(b[0] for b in chosen if b[0]))
            raise Differs(f"no section {section!r} with code; there are {titles}")
        chosen = chosen[: wanted[-1] + 1]
    for _, line, code, printed in chosen:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile("\n" * line + code, str(path), "exec"), namespace)
        show(out.getvalue().rstrip("\n"))
        if printed is not None and out.getvalue() != printed:
            raise Differs(
                f"{path.name}, line {line}: printed\n{out.getvalue()}\nthe page says\n{printed}"
            )
    return namespace


def outside_code(text, change):
    """The text with `change` made to what stands outside its fenced blocks."""
    parts = re.split(r"(^```.*?^```$)", text, flags=re.M | re.S)
    return "".join(change(part) if i % 2 == 0 else part for i, part in enumerate(parts))


def links(path):
    """Everything that a page points to."""
    prose = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"\]\(([^)#\s]+)", prose)


def for_notebook(path):
    """A page for Jupyter: links from lessons/work, maths in dollars, kernels interpreted."""
    first = (
        f"import os\nimport sys\n\nsys.path.insert(0, {str(FOLDER.parent)!r})\n"
        'os.environ["TRITON_INTERPRET"] = "1"  # kernels run on any CPU'
    )
    text = outside_code(
        path.read_text(encoding="utf-8"), lambda prose: re.sub(r"\]\((?!https?:|#)", "](../", prose)
    )
    text = re.sub(r"^```math\n(.*?)^```\n", r"$$\n\1$$\n", text, flags=re.M | re.S)
    return f"```python\n{first}\n```\n\n{text}"
