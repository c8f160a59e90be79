"""`minicoca COMMAND ...`: hands over to commands/, and says in a line what went wrong there."""

import os
import sys

from .commands import COMMANDS, build_parser
from .commands.flags import Usage
from .training.loop import Stopped


def main(argv=None):
    """Run a command; returns the exit code: 0, 1 for a failure, 2 for a wrong command line."""
    arguments = build_parser().parse_args(argv)
    if hasattr(sys.stdout, "reconfigure"):  # a file's name may be no text at all
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        COMMANDS[arguments.command].run(arguments)
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("minicoca: interrupted", file=sys.stderr)
        return 1
    except (ValueError, Stopped, OSError, ImportError, RuntimeError, MemoryError) as error:
        if os.environ.get("MINICOCA_TRACEBACK"):
            raise
        print(f"minicoca: {str(error) or type(error).__name__}", file=sys.stderr)
        return 2 if isinstance(error, Usage) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
