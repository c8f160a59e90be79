"""What a call uses, in a process of its own: memory at its most, seconds of the processor."""

import contextlib
import ctypes
import os
import pickle
import resource
import time


def peak():
    """Bytes in memory at most since `forget`."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))


def forget():
    """Gives back to the system what is free, so that it is counted when it is used again."""
    with contextlib.suppress(AttributeError, OSError):  # where the library of C is another
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def used(function, cases, limit=300):
    """[(what `function(case)` returned or raised, bytes it took, its seconds)], in a process that
    the system ends after `limit` seconds of the processor. Fewer than `cases`: it died."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        with os.fdopen(write, "wb") as results:
            try:
                for case in cases:
                    pickle.dump(measured(function, case), results)
                    results.flush()
            finally:
                os._exit(0)
    os.close(write)
    found = []
    with os.fdopen(read, "rb") as results:
        while True:
            try:
                found.append(pickle.load(results))
            except EOFError:
                break
    os.waitpid(child, 0)
    return found


def measured(function, case):
    forget()
    before, begun = peak(), time.process_time()
    try:
        result = function(case)
    except Exception as error:
        result = (type(error).__name__, str(error))
    return result, peak() - before, time.process_time() - begun


def one_line(said, name):
    """Whether a message is what a person should read: short, of one line, about this file."""
    return 0 < len(said) <= 300 and "\n" not in said and name in said
