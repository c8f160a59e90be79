"""Every flag of every command, two ways to give it, and what must differ then."""

MODEL = [
    ("--run", ["--run", "HERE/first"], ["--run", "HERE/second"], "model"),
    ("--backend", ["--backend", "torch"], ["--backend", "numpy"], "who"),
    ("--backend", ["--backend", "torch"], ["--backend", "triton"], "kernels"),
    ("--device", ["--device", "cpu"], ["--device", "cpu:0"], "device"),
    ("--json", [], ["--json"], "out"),
]
OVER = ["--write-txt", "--overwrite-txt"]
LABELS, FILE, TO = ["--labels", "a", "the"], ["--labels-file", "HERE/b"], ["--template"]
NPZ, HTML, PNG = ["--out", "v.npz"], ["--out", "p.html"], ["--out", "p.png"]
T = [["--templates-file", f"HERE/{name}"] for name in ("t", "u")]
D = [["--descriptions", f"HERE/{name}.json"] for name in ("d", "e")]
FILES = {"a": "a\nthe\n", "b": "a\nred\n", "t": "{} red\n", "u": "{} blue\n"}
FILES |= {"d.json": '{"a": ["a", "red"], "b": ["the"]}', "e.json": '{"a": ["a blue"]}'}
FILES["kinds.csv"] = "image,label,other\n" + "".join(
    f"red/{i}.png,{'red blue'.split()[i % 2]},{'red blue a'.split()[i % 3]}\n" for i in range(12)
)
SEED = ["--seed", "4"]
KINDS, CLIPS = ["--data", "HERE/kinds.csv"], ["--data", "HERE/clips"]
INDICES = [["--index", f"HERE/{tint} index"] for tint in ("red", "blue")]
FIT = [
    ("--fit", ["HERE/wide.jpg"], ["HERE/wide.jpg", "--fit", "pad"], "asked"),
    ("--max-pixels", ["HERE/wide.jpg"], ["HERE/wide.jpg", "--max-pixels", "300"], "asked"),
]
SAMPLED, BEAMS = ["--temperature", "1"], ["--beams", "4"]
CONTROLS = (
    ("--min-length", [], "2"),
    ("--max-length", [], "2"),
    ("--repetition-penalty", [], "2"),
    ("--no-repeat-ngram", [], "2"),
    ("--length-penalty", BEAMS, "0.5"),
    ("--beam-groups", BEAMS, "2"),
    ("--diversity", [*BEAMS, "--beam-groups", "2"], "0.3"),
)
THEIRS = ["HERE/first_clip"]
ASKS, TELLS = ["--run", "HERE/asks"], ["--run", "HERE/tells"]
IS = ["is it red", *ASKS]
NAMED = ["HERE/red", "HERE/red/1.png"]

NOISE = {
    "red/0.png": "one two three four five six", "red/1.png": "red red red blue", "wide.jpg": "wall",
    "red/2.png": "the same", "red/3.png": "the same", "red/4.png": "a dog", "red/5.png": "no 1 2 3",
}  # fmt: skip
FILES["noise.csv"] = "image,caption\n" + "".join(f"{n},{text}\n" for n, text in NOISE.items())
RULES = "min-words max-words min-characters min-letters max-repeated max-shared min-side max-ratio"
FILTER = ["--held-out-part", "0", "--validation-part", "0"]
FILTER += [word for rule in RULES.split() for word in (f"--{rule}", "0")]
FILTER = ["HERE/noise.csv", *FILTER]
PUT = ["--out", "k.jsonl"]
BY = [*FILTER, *PUT, "--by", "HERE/first"]
JUDGE = [*BY, "--keep", "0.7"]
SHARDS = ["HERE/red", "--out", "own/s"]

# {command: (what is always given, lines of (flag, one way, another, what must differ))}.
FLAGS = {
    "caption": (
        [],
        [
            ("images", ["HERE/red/0.png"], ["HERE/red/1.png"], "out"),
            ("--out", ["HERE/red", "--out", "a"], ["HERE/red", "--out", "b"], "files"),
            ("--write-txt", ["own"], ["own", "--write-txt"], "texts"),
            ("--overwrite-txt", ["own", "--write-txt"], ["own", *OVER], "texts"),
            ("--skip-done", ["own", *OVER], ["own", *OVER, "--skip-done"], "out"),
            ("--prompt", ["HERE/red"], ["HERE/red", "--prompt", "a"], "asked"),
            ("--beams", ["HERE/red", "--beams", "2"], ["HERE/red", "--beams", "3"], "asked"),
            ("--temperature", ["HERE/red", *SAMPLED], ["HERE/red", "--temperature", "2"], "asked"),
            ("--top-k", ["HERE/red", *SAMPLED], ["HERE/red", *SAMPLED, "--top-k", "3"], "asked"),
            ("--top-p", ["HERE/red", *SAMPLED], ["HERE/red", *SAMPLED, "--top-p", "0.5"], "asked"),
            ("--seed", ["HERE/red", *SAMPLED], ["HERE/red", *SAMPLED, "--seed", "3"], "asked"),
            *FIT,
            *[
                (flag, ["HERE/red", *given], ["HERE/red", *given, flag, value], "asked")
                for flag, given, value in CONTROLS
            ],
            ("--best", ["HERE/red", *BEAMS], ["HERE/red", *BEAMS, "--best", "2"], "out"),
            ("--rerank", ["HERE/red", *BEAMS], ["HERE/red", *BEAMS, "--rerank"], "out"),
            *[(flag, ["HERE/red", *a], ["HERE/red", *b], what) for flag, a, b, what in MODEL],
        ],
    ),
    "write": (
        [],
        [
            ("--count", [*TELLS, *SAMPLED], [*TELLS, *SAMPLED, "--count", "2"], "out"),
            ("--prompt", TELLS, [*TELLS, "--prompt", "a"], "asked"),
            ("--best", [*TELLS, *BEAMS], [*TELLS, *BEAMS, "--best", "2"], "out"),
            ("--beams", [*TELLS, "--beams", "2"], [*TELLS, "--beams", "3"], "asked"),
            ("--temperature", [*TELLS, *SAMPLED], [*TELLS, "--temperature", "2"], "asked"),
            *[
                (flag, [*TELLS, *given], [*TELLS, *given, flag, value], "asked")
                for flag, given, value in (
                    ("--top-k", SAMPLED, "3"),
                    ("--top-p", SAMPLED, "0.5"),
                    ("--seed", SAMPLED, "3"),
                    *CONTROLS,
                )
            ],
            ("--run", TELLS, ["--run", "HERE/tells more"], "model"),
            *[(f, [*TELLS, *a], [*TELLS, *b], what) for f, a, b, what in MODEL[1:]],
        ],
    ),
    "ask": (
        [],
        [
            ("images", ["HERE/red/0.png", *IS], ["HERE/blue/1.png", *IS], "asked"),
            ("question", ["HERE/red", "is it red", *ASKS], ["HERE/red", "what", *ASKS], "asked"),
            ("--by", ["HERE/red", *IS], ["HERE/red", *IS, "--by", "generation"], "asked"),
            ("--best", ["HERE/red", *IS], ["HERE/red", *IS, "--best", "2"], "out"),
            *[(flag, [*a, *IS], [*b, *IS], what) for flag, a, b, what in FIT],
            ("--run", ["HERE/red", *IS], ["HERE/red", IS[0], "--run", "HERE/asks more"], "model"),
            *[(f, ["HERE/red", *IS, *a], ["HERE/red", *IS, *b], w) for f, a, b, w in MODEL[1:]],
        ],
    ),
    "classify": (
        [],
        [
            ("images", ["HERE/red", *LABELS], ["HERE/blue", *LABELS], "out"),
            *[(flag, [*a, *LABELS], [*b, *LABELS], what) for flag, a, b, what in FIT],
            ("--index", [*INDICES[0], *LABELS], [*INDICES[1], *LABELS], "out"),
            *[
                (flag, ["HERE/blue/3.png", *a], ["HERE/blue/3.png", *b], what)
                for flag, a, b, what in [
                    ("--labels", LABELS, ["--labels", "a", "red"], "out"),
                    ("--labels-file", ["--labels-file", "HERE/a"], FILE, "asked"),
                    ("--template", [*LABELS, *TO, "{} red"], [*LABELS, *TO, "{} blue"], "asked"),
                    ("--templates-file", [*LABELS, *T[0]], [*LABELS, *T[1]], "asked"),
                    ("--descriptions", D[0], D[1], "asked"),
                    (
                        "--probe",
                        ["--probe", "HERE/1.safetensors", "--json"],
                        ["--probe", "HERE/2.safetensors", "--json"],
                        "out",
                    ),
                    ("--by", [*LABELS, "--by", "pmi"], [*LABELS, "--by", "both"], "out"),
                    ("--rule", [*D[0], "--rule", "best"], [*D[0], "--rule", "mean"], "asked"),
                    *[(f, [*a, *LABELS], [*b, *LABELS], what) for f, a, b, what in MODEL],
                ]
            ],
        ],
    ),
    "search": (
        [],
        [
            ("folder", ["HERE/red", "a"], ["HERE/blue", "a"], "out"),
            *[(f, ["HERE/red", *a], ["HERE/red", *b], what) for f, a, b, what in FIT],
            ("--index", [*INDICES[0], "a"], [*INDICES[1], "a"], "out"),
            ("query", ["HERE/red", "a"], ["HERE/red", "the red"], "asked"),
            ("query", ["HERE/red", "HERE/red/1.png"], ["HERE/red", "HERE/red/2.png"], "out"),
            ("--text", [*NAMED, "--image"], [*NAMED, "--text"], "out"),
            ("--image", [*NAMED, "--text"], [*NAMED, "--image"], "out"),
            ("-k", ["HERE/red", "a", "-k", "2"], ["HERE/red", "a", "-k", "3"], "out"),
            ("--rerank", ["HERE/red", "a"], ["HERE/red", "a", "--rerank", "9"], "out"),
            ("--sheet", ["HERE/red", "a"], ["HERE/red", "a", "--sheet", "sheet.png"], "files"),
            ("--video", ["HERE/red", "a"], ["HERE/red", "a", "--video"], "out"),
            *[
                (flag, ["HERE/red", "a", *a], ["HERE/red", "a", *b], what)
                for flag, a, b, what in MODEL
            ],
        ],
    ),
    "embed": (
        [],
        [
            ("inputs", ["HERE/red", *NPZ], ["HERE/blue", *NPZ], "files"),
            ("--text", ["HERE/red/0.png", *NPZ], ["HERE/red/0.png", "--text", *NPZ], "files"),
            ("--out", ["HERE/red", *NPZ], ["HERE/red", "--out", "w.npz"], "files"),
            *[(flag, [*a, *NPZ], [*b, *NPZ], what) for flag, a, b, what in FIT],
            ("--index", ["own", "--index", "own/a"], ["own", "--index", "own/b"], "out"),
            ("--video", ["HERE/red", *NPZ], ["HERE/red", "--video", *NPZ], "files"),
            *[(f, ["HERE/red", *NPZ, *a], ["HERE/red", *NPZ, *b], what) for f, a, b, what in MODEL],
        ],
    ),
    "evaluate": (
        [],
        [
            ("run", ["HERE/first"], ["HERE/second"], "model"),
            ("--data", ["--data", "HERE/red"], ["--data", "HERE/blue"], "out"),
            ("--split", ["--split", "validation"], ["--split", "held_out"], "out"),
            ("--gallery", ["--gallery", "2"], ["--gallery", "3"], "out"),
            ("--by", ["--by", "pmi"], ["--by", "both"], "out"),
            ("--rule", ["--rule", "best"], ["--rule", "mean"], "asked"),
            ("--limit", ["--limit", "3"], ["--limit", "5"], "out"),
            ("--word-order", [], ["--word-order"], "out"),
            ("--out", ["--out", "a.json"], ["--out", "b.json"], "files"),
            *MODEL[1:],
        ],
    ),
    "probe": (
        [*KINDS, "--by", "linear", "--shots", "1", "all", "--held-out-part", "0.5"],
        [
            ("--data", [], ["--data", "HERE/classes"], "out"),
            ("--label-column", [], ["--label-column", "other"], "out"),
            ("--video", CLIPS, [*CLIPS, "--video"], "asked"),
            ("--by", ["--by", "linear"], ["--by", "knn"], "out"),
            ("--shots", ["--shots", "1"], ["--shots", "2"], "out"),
            ("--seeds", ["--seeds", "2", "--json"], ["--seeds", "3", "--json"], "out"),
            ("--template", [], ["--template", "a {} thing"], "asked"),
            ("--out", [], ["--out", "curve.png"], "files"),
            ("--save", [], ["--save", "p.safetensors"], "files"),
            ("--held-out-part", ["--held-out-part", "0.3"], ["--held-out-part", "0.6"], "out"),
            (
                "--seed",
                ["--held-out-part", "0.6"],
                ["--held-out-part", "0.6", "--seed", "4"],
                "out",
            ),
            *MODEL,
        ],
    ),
    "explain": (
        [],
        [
            ("image", ["HERE/red/0.png"], ["HERE/red/1.png"], "out"),
            ("--caption", ["HERE/red/0.png"], ["HERE/red/0.png", "--caption", "a red"], "asked"),
            ("--out", ["HERE/red/0.png"], ["HERE/red/0.png", "--out", "words.png"], "files"),
            ("--layer", ["HERE/red/0.png"], ["HERE/red/0.png", "--layer", "0"], "asked"),
            ("--head", ["HERE/red/0.png"], ["HERE/red/0.png", "--head", "1"], "asked"),
            *FIT,
            *[(f, ["HERE/red/0.png", *a], ["HERE/red/0.png", *b], what) for f, a, b, what in MODEL],
        ],
    ),
    "page": (
        [],
        [
            ("run", ["HERE/first", *HTML], ["HERE/second", *HTML], "files"),
            ("--out", ["HERE/first", *HTML], ["HERE/first", "--out", "q.html"], "files"),
        ],
    ),
    "plot": (
        [],
        [
            ("runs", ["HERE/logged", *PNG], ["HERE/other", *PNG], "files"),
            ("--out", ["HERE/logged", *PNG], ["HERE/logged", "--out", "q.png"], "files"),
            ("--by", ["HERE/logged", *PNG], ["HERE/logged", *PNG, "--by", "seconds"], "files"),
        ],
    ),
    "report": (
        [],
        [
            ("runs", ["HERE/first", *HTML], ["HERE/first", "HERE/second", *HTML], "files"),
            ("--out", ["HERE/first", *HTML], ["HERE/first", "--out", "q.html"], "files"),
            ("--limit", ["HERE/first", *HTML], ["HERE/first", *HTML, "--limit", "2"], "files"),
            *[
                (f, ["HERE/first", *HTML, *a], ["HERE/first", *HTML, *b], w)
                for f, a, b, w in MODEL[1:]
            ],
        ],
    ),
    "export": (
        [],
        [
            ("form", ["onnx", "HERE/first"], ["torch", "HERE/first"], "trained"),
            ("run", ["onnx", "HERE/first"], ["onnx", "HERE/second"], "trained"),
            ("--out", ["onnx", "HERE/first"], ["onnx", "HERE/first", "--out", "o"], "trained"),
        ],
    ),
    "import": (
        ["open_clip"],
        [
            ("source", [*THEIRS, "--run", "r"], ["HERE/second_clip", "--run", "r"], "trained"),
            ("--run", [*THEIRS, "--run", "r"], [*THEIRS, "--run", "q"], "trained"),
            (
                "--merges",
                [*THEIRS, "--run", "r"],
                [*THEIRS, "--run", "r", "--merges", "HERE/merges"],
                "trained",
            ),
        ],
    ),
    "family": (
        [],
        [
            ("--runs", ["--runs", "HERE"], ["--runs", "HERE/first"], "out"),
            ("--json", [], ["--json"], "out"),
            ("--run", ["--run", "coca"], ["--run", "mae"], "timed"),
            *[
                (flag, ["--run", "coca"], ["--run", "coca", flag, value], "timed")
                for flag, value in (
                    ("--seconds", "7"),
                    ("--seeds", "4"),
                    ("--data", "emoji"),
                    ("--folder", "own"),
                )
            ],
            ("--out", ["--run", "coca"], ["--run", "coca", "--out", "f.md"], "files"),
        ],
    ),
    "info": (
        [],
        [
            ("--run", ["--run", "HERE/first"], ["--run", "HERE/second"], "out"),
            ("--preset", ["--preset", "tiny"], ["--preset", "base"], "out"),
            ("--scale", ["--preset", "tiny"], ["--preset", "tiny", "--scale", "4096"], "out"),
            ("--json", [], ["--json"], "out"),
        ],
    ),
    "data": (
        [],
        [
            ("data", ["HERE/red"], ["HERE/blue"], "out"),
            ("--sheet", ["HERE/red"], ["HERE/red", "--sheet", "sheet.png"], "files"),
            ("--json", ["HERE/red"], ["HERE/red", "--json"], "out"),
        ],
    ),
    "filter": (
        [],
        [
            ("data", [*FILTER, *PUT], ["HERE/red", *FILTER[1:], *PUT], "files"),
            ("--out", [*FILTER, *PUT], [*FILTER, "--out", "l.jsonl"], "files"),
            *[
                (f"--{rule}", [*FILTER, *PUT], [*FILTER, *PUT, f"--{rule}", value], "out")
                for rule, value in zip(
                    RULES.split(), ("3", "5", "6", "0.5", "0.4", "1", "17", "1.5"), strict=True
                )
            ],
            ("--by", JUDGE, [*JUDGE, "--by", "HERE/second"], "model"),
            ("--min-cosine", JUDGE, [*BY, "--min-cosine", "-2"], "out"),
            ("--keep", JUDGE, [*BY, "--keep", "0.4"], "out"),
            ("--passing", [*BY, "--passing", "0.6"], [*BY, "--passing", "1"], "out"),
            ("--replace", JUDGE, [*JUDGE, "--replace"], "asked"),
            ("--sheet", JUDGE, [*JUDGE, "--sheet", "sheet.png"], "files"),
            *[(f, [*JUDGE, *a], [*JUDGE, *b], what) for f, a, b, what in MODEL[1:]],
        ],
    ),
    "shards": (
        [],
        [
            ("data", SHARDS, ["HERE/blue", *SHARDS[1:]], "shards"),
            ("--out", SHARDS, ["HERE/red", "--out", "own/t"], "shards"),
            ("--shard-size", SHARDS, [*SHARDS, "--shard-size", "3"], "shards"),
            ("--size", SHARDS, [*SHARDS, "--size", "8"], "shards"),
            ("--workers", SHARDS, [*SHARDS, "--workers", "1"], "asked"),
        ],
    ),
    "train": (
        [],
        [
            ("--run", ["--run", "one"], ["--run", "two"], "trained"),
            ("--resume", ["--resume", "one"], ["--resume", "two"], "trained"),
            ("--report-to", ["--run", "r"], ["--run", "r", "--report-to", "wandb"], "trained"),
            ("--profile", ["--run", "r"], ["--run", "r", "--profile"], "trained"),
            (
                "--image-encoder",
                ["--run", "r"],
                ["--run", "r", "--image-encoder", "resnet"],
                "trained",
            ),
            ("--json", [], ["--json"], "out"),
        ],
    ),
    "bench": (
        [],
        [
            ("what", ["step"], ["kernels"], "timed"),
            ("--against", ["step"], ["step", "--against", "open_clip"], "timed"),
            ("--repeats", ["step", "--repeats", "2"], ["step", "--repeats", "3"], "timed"),
            ("--batch-size", ["step", "--batch-size", "2"], ["step", "--batch-size", "3"], "timed"),
            ("--preset", ["step", "--preset", "tiny"], ["step", "--preset", "small"], "timed"),
            ("--device", ["step", "--device", "cpu"], ["step", "--device", "cuda"], "timed"),
            ("--precision", ["step"], ["step", "--precision", "bfloat16"], "timed"),
            ("--json", ["step", "--json", "a.json"], ["step", "--json", "b.json"], "timed"),
            ("what", ["step"], ["generate"], "timed"),
            ("--tokens", ["generate"], ["generate", "--tokens", "9"], "timed"),
            ("--beams", ["generate"], ["generate", "--beams", "9"], "timed"),
            ("--batch-size", ["generate"], ["generate", "--batch-size", "3"], "timed"),
            ("--repeats", ["generate"], ["generate", "--repeats", "9"], "timed"),
            ("--preset", ["generate"], ["generate", "--preset", "small"], "timed"),
            ("--against", ["generate"], ["generate", "--against", "open_clip"], "timed"),
            ("what", ["data"], ["generate"], "timed"),
            ("--workers", ["data"], ["data", "--workers", "3"], "timed"),
            ("--batch-size", ["data"], ["data", "--batch-size", "3"], "timed"),
            ("--repeats", ["data"], ["data", "--repeats", "9"], "timed"),
            ("--json", ["data"], ["data", "--json", "a.json"], "timed"),
            ("--json", ["kernels", "--json", "a.json"], ["kernels", "--json", "b.json"], "timed"),
            ("--ops", ["kernels", "--ops", "info_nce"], ["kernels", "--ops", "attention"], "timed"),
            ("--quick", ["kernels"], ["kernels", "--quick"], "timed"),
            ("--no-tests", ["kernels"], ["kernels", "--no-tests"], "timed"),
            ("--pictures", ["kernels"], ["kernels", "--pictures", "pictures"], "timed"),
        ],
    ),
}
