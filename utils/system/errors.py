"""How a script ends: a user's mistake is one line, a bug keeps its traceback."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_SIGNAL_BASE = 128  # a process that ends by signal n exits with 128 + n: what shells and schedulers expect
OUT_OF_MEMORY = re.compile("(can't allocate|not enough|out of) memory")  # what PyTorch's allocators say


class InputError(ValueError):
    """A mistake that the user can fix: a bad file, option or size. Its text is one line that says what to do.

    Args:
        reason: what is wrong.
        location: the file, or file:line, that it is about; the text begins with it.
        details: lines to print before it, such as every clash where the reason names the first.
    """

    def __init__(self, reason: object, location: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(f"{location}: {reason}" if location else str(reason))
        self.reason, self.location, self.details = str(reason), location, details


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
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(_exit_code(main))
    # Threads of PyTorch's process group may still want to free a tensor, and abort when the interpreter has ended
    try:
        code = _exit_code(main)
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)


def _exit_code(main: Callable[[], None]) -> int:
    """Run main(), and print why it ended early."""
    name = Path(sys.argv[0]).name
    try:
        main()
    except InputError as error:
        for line in error.details:
            print(one_line(line, 1000), file=sys.stderr)
        return _tell(f"{name}: error: {one_line(error)}", EXIT_USER_ERROR)
    except Stopped as stop:
        return _tell(f"{name}: {one_line(stop)}", EXIT_SIGNAL_BASE + stop.signum)
    except KeyboardInterrupt:
        return _tell(f"{name}: interrupted", EXIT_SIGNAL_BASE + 2)
    except OSError as error:
        if error.errno is None:  # not the system's word but a library's: keep its traceback
            raise
        about = f": {error.filename}" if error.filename else ""
        return _tell(f"{name}: error: {one_line(error.strerror)}{about}", EXIT_USER_ERROR)
    except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(str(error)):
            raise
        advice = f"too little memory: choose smaller sizes or batches ({one_line(error, 200)})"
        return _tell(f"{name}: error: {advice}", EXIT_USER_ERROR)
    return 0


def _tell(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code
