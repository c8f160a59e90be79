"""The table of what was tried, whichever process tried it."""

from collections import Counter

import pytest
from trials import COUNTED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    COUNTED.clear()
    try:
        return (yield)
    finally:
        item.user_properties.append(("trials", dict(COUNTED)))


def pytest_terminal_summary(terminalreporter):
    total, failed = Counter(), Counter()
    for outcome, into in (("passed", total), ("failed", failed)):
        for report in terminalreporter.stats.get(outcome, []):
            for name, counted in report.user_properties if report.when == "call" else ():
                into.update(counted if name == "trials" else {})
    if total or failed:
        terminalreporter.section("tried, and ended as it should")
    for kind in sorted(total | failed):
        bad = f" (and {failed[kind]:,} in tests that failed)" if failed[kind] else ""
        terminalreporter.write_line(f"{total[kind]:8,}  {kind}{bad}")
