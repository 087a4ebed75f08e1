"""How a script ends: a user's mistake is one line, a bug keeps its traceback."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from signal import SIGINT
from typing import NoReturn

EXIT_USER_ERROR = 2
EXIT_SIGNAL_BASE = 128  # exit code of a process that ends by signal n: 128 + n, as shells and schedulers expect
HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # SHA-256
OUT_OF_MEMORY = re.compile("(can't allocate|not enough|out of) memory|STATUS_ALLOC_FAILED")  # as PyTorch words it


class InputError(ValueError):
    """A mistake that the user can fix: a bad file, option or size. Its text is one line that says what to do.

    The text is `location` (a file, or file:line) and `reason`; `details` are lines to print before it.
    """

    def __init__(self, reason: object, location: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(f"{location}: {reason}" if location else str(reason))
        self.reason, self.location, self.details = str(reason), location, details


class Stopped(Exception):
    """Signal `signum` stopped the script, and what was done so far is saved; `message` says how to continue."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the machine or of a GPU."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None  # PyTorch's
    )


def one_line(text: object, limit: int = 400) -> str:
    """Text on one printable line of at most `limit` characters, whatever a hostile file put into it."""
    line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 3] + "..."


def brief(value: object, limit: int = 60) -> str:
    """The value of a setting on one line, a hash by its first digits."""
    return one_line(HASH.sub(r"\1...", str(value)), limit)


def describe_changes(
    before: Mapping[str, object],
    after: Mapping[str, object],
    ignored: Collection[str] = (),
    template: str = "{key} was {before} and is now {after}",
) -> str:
    """Describe on one line the keys whose values differ; empty where none does. Of dictionaries, the keys in them."""
    changes = []
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if key in ignored or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changes.append(describe_changes(old, new, template=template.replace("{key}", f"{key}.{{key}}")))
        else:
            changes.append(template.format(key=key, before=brief(old), after=brief(new)))
    return "; ".join(changes)


def run_script(main: Callable[[], None]) -> NoReturn:
    """Run a script's main() and exit: 0 done, 2 a user's mistake, 128 + n stopped by signal n.

    InputError, OSError (no such file, no permission, disk full) and too little memory become one line on stderr.
    Anything else is a bug and keeps its traceback.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        sys.exit(_exit_code(main))
    # Threads of PyTorch's process group that still free a tensor when the interpreter has ended abort: skip its end
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
    code = EXIT_USER_ERROR
    try:
        main()
        return 0
    except InputError as error:
        for line in error.details:
            print(one_line(line, 1000), file=sys.stderr)
        message = f"error: {one_line(error)}"
    except Stopped as stop:
        message, code = one_line(stop), EXIT_SIGNAL_BASE + stop.signum
    except KeyboardInterrupt:
        message, code = "interrupted", EXIT_SIGNAL_BASE + SIGINT
    except OSError as error:
        if error.errno is None:  # raised by a library, not by the system: keep its traceback
            raise
        message = f"error: {one_line(error.strerror)}" + (f": {error.filename}" if error.filename else "")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = f"error: too little memory: choose smaller sizes or batches ({one_line(error, 200)})"
    print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
    return code
