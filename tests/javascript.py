"""The page's scripts, run by node and by a browser."""

import base64
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from minicoca.pages.page import MODEL_SCRIPTS, as_json, contents, source

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
READ = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const opened = async ({ numbers, shapes }) => unflatten(floats(await unpacked(numbers)), shapes);
const main = async () => {
  for (const one of given.cases ?? []) one.params = await opened(one.model);
  const answer = (() => { BODY })();
  const plain = (_, x) => (ArrayBuffer.isView(x) ? [...x] : x);
  process.stdout.write(JSON.stringify(answer, plain));
};
main();
"""
QUIET = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")


def scripts():
    """{name: source} of the scripts that are the model."""
    return {name: source(name) for name in MODEL_SCRIPTS}


def in_node(body, parts=None, **given):
    """What JavaScript returns that may use the page's functions and `given`. Of its `cases`, those
    with a `model` (params, config, tokenizer) have it as the page does, and `params`. Raises
    RuntimeError with node's message."""
    for case in given.get("cases", ()):
        case["model"] = contents(*case["model"])
    code = "\n".join([*(parts or scripts()).values(), READ.replace("BODY", body)])
    done = subprocess.run(
        [NODE, "--input-type=commonjs", "-e", code],
        input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)


def in_browser(page, body, **given):
    """What an async JavaScript function returns, run on a page (bytes) once it has started, with
    the page's functions, `params`, `config`, `pieces` and `given`; `until(test)` waits for a thing
    to be so and `drawn()` for the page to show what has changed."""
    script = f"""<script>
    {{ const given = {as_json(given)};
    const until = async (test) => {{
      while (!test()) await new Promise((done) => setTimeout(done, 20)); }};
    const drawn = () => until(() => update.waiting === null);
    const ask = async () => {{ await until(() => window.ready);
      {body} }};
    ask().catch((error) => ({{ error: `${{error.stack}}` }})).then((answer) => {{
      const plain = (_, x) => (ArrayBuffer.isView(x) ? [...x] : x);
      document.documentElement.innerHTML = `<pre>${{btoa(JSON.stringify(answer, plain))}}</pre>`;
    }}); }}
    </script></body>"""
    html = page.decode().replace(
        "start().catch(", "start().then(() => (window.ready = true)).catch("
    )
    # Nothing shows frames here; said before the page's own script, which may start at once.
    timers = "<head><script>window.requestAnimationFrame = (act) => setTimeout(act);</script>"
    html = html.replace("<head>", timers, 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(html.replace("</body>", script))
        flags = [
            "--headless",
            "--no-sandbox",
            "--no-first-run",
            f"--user-data-dir={folder}/profile",
        ]
        flags += [f"--disable-{name}" for name in QUIET]
        done = subprocess.run(
            [CHROMIUM, *flags, "--virtual-time-budget=600000", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
    found = re.search("<pre>([A-Za-z0-9+/=]+)</pre>", done.stdout)
    assert found, f"the page gave no answer: {done.stderr[-1000:]}"
    answer = json.loads(base64.b64decode(found[1]))
    assert not isinstance(answer, dict) or "error" not in answer, answer["error"]
    return answer
