"""The house keeps its shape: who may import whom, how long files may be, what README promises."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from lessons import pages

ROOT = Path(__file__).parent.parent
OURS = {
    "reference": {
        "numpy", "minicoca.config", "minicoca.masks", "minicoca.params", "minicoca.reference",
        "minicoca.relatives", "minicoca.tuning",
    },
    "engine": {
        "numpy", "torch", "minicoca.config", "minicoca.masks", "minicoca.params",
        "minicoca.engine", "minicoca.kernels", "minicoca.ranks", "minicoca.relatives",
        "minicoca.tuning",
    },
    "data": {
        "numpy", "PIL", "tqdm", "emoji", "pyarrow", "minicoca.config", "minicoca.params",
        "minicoca.bounds", "minicoca.data", "minicoca.files", "minicoca.images",
        "minicoca.metrics", "minicoca.words",
    },
    "family": {
        "numpy", "torch", "minicoca.config", "minicoca.data", "minicoca.engine",
        "minicoca.evaluate", "minicoca.family", "minicoca.files", "minicoca.params",
        "minicoca.relatives", "minicoca.tasks", "minicoca.tokenizer", "minicoca.training",
        "minicoca.tuning",
    },
    "config.py": {"minicoca.fields", "minicoca.presets"},
    "fields.py": set(),
    "presets.py": set(),
    "masks.py": set(),
    "relatives.py": {
        "numpy", "minicoca.config", "minicoca.fields", "minicoca.params", "minicoca.views",
    },
    "views.py": {"numpy"},
    "ranks.py": {"torch"},
    "files.py": set(),
    "params.py": {"numpy", "safetensors", "minicoca.files"},
    "tuning.py": {
        "numpy", "minicoca.config", "minicoca.fields", "minicoca.params", "minicoca.relatives",
    },
    "memory.py": {
        "torch", "minicoca.config", "minicoca.params", "minicoca.relatives", "minicoca.tuning",
    },
    "scale.py": {
        "minicoca.bench", "minicoca.config", "minicoca.kernels", "minicoca.memory",
        "minicoca.params", "minicoca.relatives", "minicoca.tuning",
    },
    "index.py": {"numpy", "minicoca.files"},
    "tokenizer.py": {
        "numpy", "sentencepiece", "minicoca.config", "minicoca.files", "minicoca.words",
    },
    "clip_tokenizer.py": {
        "numpy", "minicoca.config", "minicoca.files", "minicoca.tokenizer", "minicoca.words",
    },
    "interop": {
        "numpy", "torch", "safetensors", "minicoca.config", "minicoca.params", "minicoca.files",
        "minicoca.clip_tokenizer", "minicoca.engine", "minicoca.images", "minicoca.interop",
        "minicoca.model", "minicoca.presets", "minicoca.tasks", "minicoca.tokenizer",
        "onnxruntime", "PIL",
    },
    "pages": {
        "numpy", "PIL", "minicoca.config", "minicoca.data", "minicoca.pages", "minicoca.params",
        "minicoca.tokenizer",
    },
    "mistakes.py": {
        "numpy", "tqdm", "minicoca.data.vqa", "minicoca.evaluate", "minicoca.metrics",
        "minicoca.tasks",
    },
    "bounds.py": {"PIL"},
    "colours.py": {"numpy", "PIL"},
    "squares.py": {"numpy", "PIL"},
    "images.py": {
        "numpy", "PIL", "minicoca.bounds", "minicoca.colours", "minicoca.squares", "minicoca.words",
    },
    "survey.py": {
        "numpy", "minicoca.data", "minicoca.images", "minicoca.tokenizer", "minicoca.words",
    },
    "metrics.py": {"numpy", "minicoca.words"},
    "intervals.py": {"numpy"},
    "evaluate.py": {
        "numpy", "tqdm", "minicoca.intervals", "minicoca.metrics", "minicoca.tasks",
        "minicoca.words",
    },
    "words.py": set(),
    "__init__.py": {"minicoca.model"},
    "model.py": {
        "numpy", "PIL", "minicoca.config", "minicoca.data", "minicoca.squares", "minicoca.tasks",
        "minicoca.tokenizer", "minicoca.training", "minicoca.words",
    },
    "tasks": {
        "numpy", "PIL", "tqdm", "minicoca.config", "minicoca.tasks", "minicoca.data",
        "minicoca.engine", "minicoca.files", "minicoca.images", "minicoca.index",
        "minicoca.intervals", "minicoca.params", "minicoca.reference", "minicoca.words",
    },
    "training": {
        "numpy", "tqdm", "minicoca.config", "minicoca.params", "minicoca.data", "minicoca.images",
        "minicoca.clip_tokenizer", "minicoca.tokenizer", "minicoca.words", "minicoca.evaluate",
        "minicoca.report", "minicoca.engine", "minicoca.files", "minicoca.memory",
        "minicoca.ranks", "minicoca.reference", "minicoca.relatives", "minicoca.tasks",
        "minicoca.training", "minicoca.tuning", "torch", "trackio", "wandb",
    },
}  # fmt: skip


ADDED = (
    "answers",
    "probe",
    "towers",
    "weigh",
)  # files of the reference that CoCa itself does without


def files(pattern="*.py"):
    listed = subprocess.run(
        ["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


def _is_module(name):
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imports(path):
    """Every module that a file imports, in full."""
    import sys

    package = ".".join(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, base] if base else parts)
            inner = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            names = [full if _is_module(full) else base for full in inner.values()]
        for name in names:
            if name.split(".")[0] not in sys.stdlib_module_names:
                yield name


@pytest.mark.parametrize("part", OURS)
def test_imports_point_the_right_way(part):
    target = ROOT / "minicoca" / part
    paths = [target] if target.suffix == ".py" else sorted(target.rglob("*.py"))
    assert paths
    for path in paths:
        for name in imports(path):
            ok = any(name == allowed or name.startswith(allowed + ".") for allowed in OURS[part])
            assert ok, f"{path.relative_to(ROOT)} imports {name}"


def test_nothing_imports_the_commands():
    for path in files():
        if path.is_relative_to(ROOT / "minicoca") and "commands" not in path.parts:
            for name in imports(path):
                handed = path.name == "__main__.py"
                assert handed or not name.startswith("minicoca.commands"), f"{path} imports {name}"


def test_no_circle_of_imports():
    """Not at the top of a file and not inside a function: what needs each other is one thing."""
    modules = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in files()}
    modules = {name.removesuffix(".__init__"): path for name, path in modules.items()}
    edges = {}
    for name, path in modules.items():
        found = {target.replace("minicoca.kernels", "kernels") for target in imports(path)}
        edges[name] = sorted(found & modules.keys() - {name})
    done = set()

    def visit(name, trail):
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in edges[name]:
                visit(target, [*trail, name])
            done.add(name)

    for name in modules:
        visit(name, [])


def test_budgets():
    """A person can hold a file in the head: 200 lines in the reference (1,300 in all, without what
    other objectives add, 150 each, on either side), else 400."""
    lines = {path: len(path.read_text().splitlines()) for path in files()}
    reference = {
        p: n for p, n in lines.items() if "reference" in p.parts and "tests" not in p.parts
    }
    added = {p: reference.pop(p) for p in [*reference] if p.stem in ADDED}
    assert len(added) == len(ADDED)
    added |= {p: reference.pop(p) for p in [*reference] if p.parent.name == "relatives"}
    added |= {p: n for p, n in lines.items() if p.parts[-3:-1] == ("engine", "relatives")}
    assert sum(reference.values()) <= 1300, sum(reference.values())
    for path, n in lines.items():
        limit = 150 if path in added else 200 if path in reference else 400
        assert n <= limit, f"{path.relative_to(ROOT)} has {n} lines, more than {limit}"


def test_the_pages_javascript_fits_in_a_head():
    """600 lines in all, none wider than a line of Python, functions named as the reference's."""
    scripts = {p.name: p.read_text().splitlines() for p in (ROOT / "minicoca/pages").glob("*.js")}
    assert sum(map(len, scripts.values())) <= 600
    assert max(len(line) for lines in scripts.values() for line in lines) <= 100


def test_reference_functions_are_short():
    """The median is about ten lines; none is longer than forty, docstring included."""
    lengths = []
    for path in sorted((ROOT / "minicoca" / "reference").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                lengths.append(node.end_lineno - node.lineno + 1)
                assert lengths[-1] <= 42, f"{path.name}: {node.name} has {lengths[-1]} lines"
    assert sorted(lengths)[len(lengths) // 2] <= 12


def test_every_op_stands_above_its_backward():
    for path in sorted((ROOT / "minicoca" / "reference").rglob("*.py")):
        names = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.FunctionDef)]
        for name in names:
            if name.endswith("_backward"):
                above = names[names.index(name) - 1]
                assert above == name.removesuffix("_backward"), f"{path.name}: {name}"


def test_public_functions_of_the_reference_say_what_they_do():
    for path in sorted((ROOT / "minicoca" / "reference").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                if not node.name.endswith("_backward"):
                    assert ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


def test_links_in_markdown_resolve():
    for page in files("*.md"):
        for target in pages.links(page):
            if not target.startswith("https://"):
                place = Path(os.path.normpath(page.resolve().parent / target))
                assert place.exists(), f"{page.name}: {target} is not there"
                assert place.resolve() == place, f"{target}: GitHub follows no symbolic link"


def test_the_guide_names_every_part():
    """Its file tree lists what there is, and nothing else."""
    text = (ROOT / "minicoca" / "README.md").read_text()
    tree = text[text.index("minicoca/\n") :]
    listed = set(re.findall(r"^\s+([a-z_]+(?:\.py|/))", tree[: tree.index("```")], re.M))
    inside = (ROOT / "minicoca").iterdir()
    there = {p.name + "/" if p.is_dir() else p.name for p in inside if not p.name.startswith("__")}
    there = {name for name in there if name.endswith((".py", "/"))}
    assert there == listed


def test_the_readme_is_read_in_five_minutes():
    """Beside commands, what they print, code, tables; and the definition it shows is the code's."""
    text = (ROOT / "README.md").read_text()
    prose = re.sub(r"```.*?```|^\|.*?$", "", text, flags=re.M | re.S)
    assert len(prose.split()) <= 5 * 200
    (layer,) = re.findall(r"```python\n(def attention\(.*?)```", text, re.S)
    code = (ROOT / "minicoca" / "reference" / "attention.py").read_text()
    assert layer in re.sub(r'\n    """.*?"""', "", code, flags=re.S)


def test_repository_is_small_and_plain():
    for path in files("*"):
        most = 8_000_000 if "trained" in path.parts else 2_000_000
        assert path.stat().st_size < most, f"{path.name} is too large for the repository"
