"""How a script ends: a user's mistake is one line, a bug keeps its traceback."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_SIGNAL_BASE = 128  # a process that ends by signal n exits with 128 + n: what shells and schedulers expect
OUT_OF_MEMORY = re.compile("(can't allocate|not enough|out of) memory")  # what PyTorch's allocators say


class InputError(ValueError):
    """Something the user can mend: a bad file, option or size. Its text is one line that says what to do."""


class Stopped(Exception):
    """A signal asked the script to stop, and what was done so far is saved.

    Args:
        signum: the signal, for the exit code.
        message: how to continue, one line.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def one_line(text: object, limit: int = 400) -> str:
    """Text on one printable line of at most `limit` characters, whatever a hostile file put into it."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main() and exit: 0 done, 2 a user's mistake, 128 + n stopped by signal n.

    InputError, OSError (no such file, no permission, disk full) and too little memory become one line on stderr.
    Anything else is a bug and keeps its traceback.
    """
    name = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        _leave(f"{name}: error: {one_line(error)}", EXIT_USER_ERROR)
    except Stopped as stop:
        _leave(f"{name}: {one_line(stop)}", EXIT_SIGNAL_BASE + stop.signum)
    except KeyboardInterrupt:
        _leave(f"{name}: interrupted", EXIT_SIGNAL_BASE + 2)
    except OSError as error:
        if error.errno is None:  # not the system's word but a library's: keep its traceback
            raise
        about = f": {error.filename}" if error.filename else ""
        _leave(f"{name}: error: {one_line(error.strerror)}{about}", EXIT_USER_ERROR)
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        _leave(f"{name}: error: too little memory: choose smaller sizes or batches ({one_line(error, 200)})",
               EXIT_USER_ERROR)  # fmt: skip
    sys.exit(0)


def _leave(line: str, code: int) -> NoReturn:
    print(line, file=sys.stderr)
    sys.exit(code)
