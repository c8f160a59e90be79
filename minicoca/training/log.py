"""What a run says of itself: metrics.jsonl, and the machine it ran on."""

import json
import os
import platform
import sys
from pathlib import Path

from .. import params


class Log:
    """Appends to metrics.jsonl; a run taken up at `step` first drops what was logged after it."""

    def __init__(self, path, step):
        self.path = path
        kept = [r for r in self.read(path) if r["step"] <= step] if path.is_file() else []
        params.write_atomically(path, "".join(json.dumps(r) + "\n" for r in kept).encode())

    @staticmethod
    def read(path):
        """The records of a log, up to one that was cut off while it was written."""
        records = []
        for line in path.read_text().splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    @classmethod
    def first_command(cls, path):
        """The command that began the run."""
        return next((r["command"] for r in cls.read(path) if "command" in r), "")

    def write(self, record):
        params.append(self.path, (json.dumps(record) + "\n").encode())


def machine():
    """What this computer is, in a line."""
    names = [platform.processor() or platform.machine()]
    try:
        cpu = Path("/proc/cpuinfo").read_text()
        names = [line.split(":")[1].strip() for line in cpu.splitlines() if "model name" in line]
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{names[0] if names else platform.machine()}, {cores} cores"
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        text += f", {torch.cuda.get_device_name()}"
    return text
