"""`make mutants`: random slips on lines that tests run, each against the tests that run it.

Everything happens in a worktree of its own, in one process a slip, forked from one that has torch
already. The quickest tests come first, and a test that never ends counts as a failure. Results are
lines of JSON: started again, it goes on. slips.py says what a slip is.
"""

import argparse
import importlib
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path

from slips import Source

ROOT = Path(__file__).parent.parent
SPOILT = ("minicoca", "kernels")
BROKEN = 99  # the exit code of a process of ours that went wrong by itself
WATCHERS = ("test_planted_bugs.py", "test_kernel_bugs.py")  # of the source's text: no proof


class Watch:
    """A pytest plugin: which lines of SPOILT each test runs, how long it takes, whether it passes.

    What a shared fixture runs counts for every test that asks for it.
    """

    def __init__(self, path):
        from coverage import Coverage

        self.path, self.seconds, self.bad, self.users = path, Counter(), set(), defaultdict(set)
        self.coverage = Coverage(data_file=None, source=[str(Path(s).resolve()) for s in SPOILT])
        self.coverage.start()

    def pytest_collection_finish(self, session):
        for item in session.items:
            for name in item.fixturenames:
                self.users["fixture " + name].add(item.nodeid)

    def pytest_runtest_logstart(self, nodeid):
        self.test = nodeid
        self.coverage.switch_context(nodeid)

    def pytest_runtest_logfinish(self):
        self.coverage.switch_context("")

    def pytest_fixture_setup(self, fixturedef):
        if fixturedef.scope != "function":
            self.coverage.switch_context("fixture " + fixturedef.argname)

    def pytest_fixture_post_finalizer(self):
        self.coverage.switch_context(self.test)

    def pytest_runtest_call(self):
        self.coverage.switch_context(self.test)

    def pytest_runtest_logreport(self, report):
        self.seconds[report.nodeid] += report.duration
        if report.outcome != "passed":
            self.bad.add(report.nodeid)

    def pytest_sessionfinish(self):
        self.coverage.stop()
        data, runs = self.coverage.get_data(), defaultdict(dict)
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                tests = set().union(*(self.users.get(c, {c}) for c in contexts)) - {""} - self.bad
                if tests:
                    runs[str(Path(file).relative_to(Path.cwd()))][line] = sorted(tests)
        found = {"commit": git("rev-parse", "HEAD"), "seconds": self.seconds, "runs": runs}
        Path(self.path).write_text(json.dumps(found))


class Only:
    """A pytest plugin: these tests (or whole files), in this order; remembers what fails first."""

    def __init__(self, tests):
        self.order, self.by = {name: i for i, name in enumerate(tests)}, ""

    def place(self, item):
        return self.order.get(item.nodeid, self.order.get(item.nodeid.split("::")[0]))

    def pytest_collection_modifyitems(self, items):
        items[:] = sorted((i for i in items if self.place(i) is not None), key=self.place)

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.by = self.by or report.nodeid


def git(*arguments, **options):
    """What git says."""
    quiet = dict(text=True, stderr=subprocess.DEVNULL)
    return subprocess.check_output(["git", *arguments], **quiet, **options).rstrip()


def apart(function, limit, log):
    """The exit code of `function()` in a forked process that may compute for `limit` seconds, or
    wait twenty times as long; negative where it was ended."""
    child = os.fork()
    if not child:
        os.setsid()
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        limits = {"CPU": math.ceil(limit), "FSIZE": 2**31, "DATA": 2**33}
        for what, most in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{what}"), (most, most))
        code = BROKEN
        try:
            code = function()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    try:
        end = time.monotonic() + 20 * limit
        while time.monotonic() < end:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
    finally:
        if child:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return -signal.SIGKILL


def run_tests(plugin, *arguments):
    """pytest's exit code, with this tree's modules and no compiled ones: a slip may be as long as
    what it replaces, and as new."""
    import minicoca

    assert Path(minicoca.__file__).is_relative_to(Path.cwd()), "another tree is tested"
    import pytest

    ignored = [f"--ignore=tests/{name}" for name in WATCHERS]
    options = ["-q", "-p", "no:cacheprovider", "--tb=line", *ignored]
    return int(pytest.main([*options, *arguments], plugins=[plugin]))


def draw(runs, count, seed):
    """`count` slips, each on another line, every line that tests run as likely as any other."""
    sources = {path: Source(path) for path in sorted(runs)}
    places = []
    for path, source in sources.items():
        for line, slips in sorted(source.slips.items()):
            first = runs[path].get(str(line)) or runs[path].get(str(next(iter(slips.values()))))
            if first:
                places.append((path, line, first))
    rng = random.Random(seed)
    rng.shuffle(places)
    for path, line, tests in places:
        slips = sorted(sources[path].slips[line])
        rng.shuffle(slips)
        for slip in slips:
            if count and (patch := sources[path].diff(path, slip)):
                count -= 1
                yield f"{path}:{line}", patch, tests
                break


def quickest_first(tests, seconds):
    """By file, so that what its tests share is made once: the quickest file, in it the quickest."""
    files = Counter()
    for test in tests:
        files[test.split("::")[0]] += seconds[test]
    return sorted(tests, key=lambda t: (files[t.split("::")[0]], t.split("::")[0], seconds[t]))


def trial(patch, tests, limit):
    """What becomes of a slip: (outcome, the test that saw it)."""
    path = patch.split("b/", 1)[1].split("\n")[0]
    try:
        git("apply", "-C1", "--recount", "-", input=patch)
    except subprocess.CalledProcessError:
        return "gone", ""

    def child():
        files, code = list(dict.fromkeys(test.split("::")[0] for test in tests)), 0
        for part in files[:1], files[1:]:  # most slips never need the rest to be collected
            if part and not code:
                only = Only([test for test in tests if test.split("::")[0] in part])
                code = run_tests(only, "-x", *part)
                Path(".by").write_text(only.by)
        return code

    Path(".by").unlink(missing_ok=True)
    try:
        code = apart(child, limit, ".log")
    finally:
        git("checkout", "--", path)
    by = Path(".by").read_text() if Path(".by").is_file() else ""
    if code in (4, 5, BROKEN) and not by:  # pytest's: a wrong command line, nothing collected
        raise SystemExit(f"no test was run:\n{Path('.log').read_text()[-2000:]}")
    return "survived" if code == 0 else "killed", by or f"exit {code}"


@contextmanager
def tree_of_its_own(commit):
    """A worktree that can be spoilt, as the working directory, and temporary files beside it: what
    other tests leave elsewhere is not to end these."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        git("worktree", "add", "--detach", f"{folder}/tree", commit, cwd=ROOT)
        os.chdir(f"{folder}/tree")
        sys.path[0] = os.environ["PYTHONPATH"] = os.getcwd()
        try:
            yield
        finally:
            os.chdir(ROOT)
            git("worktree", "remove", "--force", f"{folder}/tree")


def summary(results):
    """Say how many slips came to what, and show those that lived. A line can be corrected by a
    later one of the same patch, by hand too: "outcome": "equivalent", "by": why."""
    last = {record["patch"]: record for record in map(json.loads, results.open())}
    for record in last.values():
        if record["outcome"] == "survived":
            print(f"\n{record['place']} lived through {record['tests']} tests\n{record['patch']}")
    print(f"{len(last)} slips:", dict(Counter(record["outcome"] for record in last.values())))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=ROOT / "mutants.jsonl")
    parser.add_argument("--tests", nargs="+", default=["tests"], help="files of tests that count")
    parser.add_argument("--again", action="store_true", help="all --tests, on those that lived")
    parser.add_argument(
        "--least-seconds", type=float, default=60, help="of computing a slip may take"
    )
    asked = parser.parse_args()
    results, map_file = asked.results.resolve(), asked.results.resolve().with_suffix(".map.json")
    results.touch()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    now = git("stash", "create", cwd=ROOT) or git("rev-parse", "HEAD", cwd=ROOT)
    known = json.loads(map_file.read_text()) if map_file.is_file() else None
    with tree_of_its_own(known["commit"] if known and not asked.again else now):
        if not known:
            print("which test runs which line: one run of all tests, some 15 minutes", flush=True)
            apart(lambda: run_tests(Watch(map_file), *asked.tests), 4 * 3600, ".log")
            known = json.loads(map_file.read_text())
        for module in ("torch", "pytest", "matplotlib.figure", "sentencepiece"):
            importlib.import_module(module)  # once, not for every slip; nothing of ours
        records = [json.loads(line) for line in results.open()]
        if asked.again:
            last = {record["patch"]: record for record in records}
            lived = [r for r in last.values() if r["outcome"] == "survived"]
            todo = [(r["place"], r["patch"], asked.tests) for r in lived]
        else:
            done = {record["patch"] for record in records}
            drawn = draw(known["runs"], asked.count, asked.seed)
            todo = [slip for slip in drawn if slip[1] not in done]
        for place, patch, tests in todo:
            tests = quickest_first(tests, Counter(known["seconds"]))
            limit = asked.least_seconds + 10 * sum(known["seconds"].get(test, 10) for test in tests)
            outcome, by = trial(patch, tests, limit)
            record = {"place": place, "outcome": outcome, "by": by, "tests": len(tests)}
            with results.open("a") as file:
                file.write(json.dumps(record | {"patch": patch}) + "\n")
            print(f"{outcome:9} {place}  {by}", flush=True)
    summary(results)


if __name__ == "__main__":
    main()
