"""Settings of every test: one thread (results repeat, and jobs beside each other do not starve)."""

import importlib.util
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shell starts jobs in the background deaf to Ctrl-C, and some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

if importlib.util.find_spec("triton") is None:  # it is made for Linux
    collect_ignore = [
        "test_backends_agree.py",
        "test_info_nce.py",
        "test_kernel_bugs.py",
        "test_kernel_edges.py",
        "test_kernel_promises.py",
        "test_kernels.py",
        "test_lessons.py",
        "test_lessons_check.py",
        "test_lessons_names.py",
        "test_sigmoid.py",
    ]

import pytest  # noqa: E402
import torch  # noqa: E402

if not torch.cuda.is_available():  # before any kernel is imported: Triton reads it then
    os.environ["TRITON_INTERPRET"] = "1"
from hypothesis import HealthCheck, settings  # noqa: E402

torch.set_num_threads(1)
settings.register_profile(
    "minicoca",
    deadline=None,
    max_examples=8,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.filter_too_much,
        HealthCheck.function_scoped_fixture,
    ],
)
settings.load_profile("minicoca")


@pytest.fixture(autouse=True)
def no_patience(monkeypatch):
    """For a drive that is away: whoever tests that waits for it."""
    from minicoca.training import patience

    monkeypatch.setattr(patience, "AWAY", 0)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """A run's pictures take longer than its steps here: whoever looks at them draws them."""
    from minicoca.training import run

    def picture(folder, model, tokenizer, name, *given):
        path = folder / f"{name}.png"
        path.write_bytes(b"no picture: a test")
        return str(path)

    monkeypatch.setattr(run, "make_picture", picture)


def pytest_addoption(parser):
    help = "a test that is skipped for want of anything but a card fails the session"
    parser.addoption("--no-skips", action="store_true", help=help)


def pytest_sessionfinish(session, exitstatus):
    """Sees the reports of all workers: it acts where they come together."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.getoption("--no-skips") or hasattr(session.config, "workerinput"):
        return
    reasons = {str(report.longrepr[-1]) for report in reporter.stats.get("skipped", [])}
    if wrong := sorted(reason for reason in reasons if "needs a card" not in reason):
        reporter.write_line("\nskipped, with --no-skips: " + "; ".join(wrong))
        session.exitstatus = 1
