"""`minicoca COMMAND ...`: hands over to commands/, and says in a line what went wrong there."""

import os
import signal
import sys
import threading
from contextlib import contextmanager

from .training.distributed import end

INTERRUPTED = "minicoca: interrupted"


def main(argv=None):
    """Run a command; returns the exit code: 0, 1 for a failure, 2 for a wrong command line."""
    try:
        with interrupts():
            from . import commands  # NumPy and torch with them: most of a second

            code = _run(commands, argv)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        code = 1
    except SystemExit as ended:
        end(ended.code)
        raise
    end(code)
    return code


def _run(commands, argv):
    from .commands.flags import Usage, said
    from .commands.results import flush
    from .training.loop import Stopped

    arguments = commands.build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text at all
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        commands.COMMANDS[arguments.command].run(arguments)
        flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        return 1
    except (ValueError, Stopped, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("MINICOCA_TRACEBACK"):
            raise
        print(f"minicoca: {said(error)}", file=sys.stderr)
        return 2 if isinstance(error, Usage) else 1
    finally:
        drop_output(flush)
    return 0


def interrupt(number, frame):
    """A KeyboardInterrupt; but amid the imports there is nothing yet to lose, and a library makes
    of an exception whatever it makes of it (torch's C++ aborts): the process ends at once."""
    for name in ("torch", f"{__package__}.commands"):
        if getattr(getattr(sys.modules.get(name), "__spec__", None), "_initializing", False):
            os.write(2, f"{INTERRUPTED}\n".encode())
            os._exit(1)
    raise KeyboardInterrupt


@contextmanager
def interrupts():
    """Ctrl-C, a polite kill (SIGTERM) and a terminal that is closed (SIGHUP) `interrupt`, unless
    whoever runs us hears them."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        kinds = (getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n))
        usual = signal.SIG_DFL, signal.default_int_handler
        found = {kind: signal.getsignal(kind) for kind in kinds}
        before = {kind: handler for kind, handler in found.items() if handler in usual}
    try:
        for kind in before:
            signal.signal(kind, interrupt)
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


def drop_output(flush):
    """What could not be written to standard output, or error, is not to be tried again as Python
    ends, which then would end with 120."""
    flushes = [(sys.stdout, flush)]
    if sys.stderr is not None:  # it was closed before we came
        flushes.append((sys.stderr, sys.stderr.flush))
    for stream, tried in flushes:
        try:
            tried()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
