"""The page's scripts run by node, and by a browser."""

import json
import shutil
import subprocess

import pytest

from minicoca.pages import MODEL_SCRIPTS, contents, source

NODE = shutil.which("node")
needs_node = pytest.mark.skipif(not NODE, reason="node is not installed")
READ = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
const { config, pieces } = given.model ?? {};
const main = async () => {
  const params = given.model && unflatten(
    floats(await unpacked(given.model.numbers)), given.model.shapes);
  const answer = (() => { BODY })();
  const plain = (_, x) => (ArrayBuffer.isView(x) ? [...x] : x);
  process.stdout.write(JSON.stringify(answer, plain));
};
main();
"""


def scripts():
    return {name: source(name) for name in MODEL_SCRIPTS}


def in_node(body, model=None, parts=None, **given):
    """What JavaScript returns that may use the page's functions, `given` and, of a `model` (params,
    config, tokenizer), params, config and pieces. Raises RuntimeError with node's message."""
    if model:
        given["model"] = contents(*model)
    code = "\n".join([*(parts or scripts()).values(), READ.replace("BODY", body)])
    done = subprocess.run(
        [NODE, "--input-type=commonjs", "-e", code],
        input=json.dumps(given), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout)
