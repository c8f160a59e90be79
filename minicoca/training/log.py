"""What a run says of itself: metrics.jsonl, and the machine it ran on."""

import json
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from ..files import append, canonical, digest, read_bytes, sync, write_atomically

CHECK = "check"  # the beginning of the digest of all else in a line


class Log:
    """Appends to metrics.jsonl; a run taken up at `step` first drops what was logged after it. What
    cannot be written now is held until it can be."""

    def __init__(self, path, step):
        self.path, self.also = path, None  # also: a function that is told each record
        lines = read_bytes(path).splitlines() if path.is_file() else []
        records = self.records(lines)
        self.lost = len(lines) - len(records)  # cut off by a kill, or damaged
        kept = [record for record in records if record["step"] <= step]
        text = b"".join(map(_line, kept))
        write_atomically(path, text)
        self._size, self._held = len(text), b""

    @staticmethod
    def records(lines):
        """What those of a log's lines say that are whole."""
        checked = any(f'"{CHECK}"'.encode() in line for line in lines)  # not in earlier versions
        return [record for line in lines if (record := _record(line, checked)) is not None]

    @classmethod
    def read(cls, path):
        """The records of a log; each damaged line costs itself."""
        return cls.records(read_bytes(path).splitlines())

    @classmethod
    def beginning(cls, path):
        """The record of what began the run; empty where there is none."""
        records = cls.read(path) if path.is_file() else []
        return next((record for record in records if "command" in record), {})

    def write(self, record):
        self._held += _line(record)
        with suppress(OSError):
            self._append()
        if self.also:
            self.also(record)

    def sync(self):
        """Before a checkpoint, which is to find what was logged until then. Raises OSError."""
        self._append()
        sync(self.path)

    def _append(self):
        append(self.path, self._held, self._size)
        self._size, self._held = self._size + len(self._held), b""


def _line(record):
    text = json.dumps(record | {CHECK: digest(canonical(record))[:8]})
    return (text + "\n").encode()


def _record(line, checked):
    """What a line says; None where it is damaged."""
    try:
        record = json.loads(line.decode("utf-8"))
        check = record.pop(CHECK, None)
        whole = check == digest(canonical(record))[:8] if checked else check is None
        good = whole and type(record["step"]) is int and record["step"] >= 0
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError):
        return None
    return record if good else None


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
