"""Files that appear whole or not at all, names that stay in their directory, and one owner a directory."""

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO

from utils.system.errors import InputError, one_line
from utils.system.reading import read_bytes

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, a directory is not locked
    fcntl = None

TEMPORARY_FILES = ".writing-*.tmp"
LOCK_FILE = ".lock"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # what file systems without them say
MAX_JSON_BYTES = 64 << 20
MAX_NAME_BYTES = 200  # file systems allow 255: leaves room for an ending and a temporary name


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` only when the block ends without an error.

    Written beside it, flushed to the disk, then renamed: a reader, a full disk or a killed process never sees half a
    file. A symbolic link at `path` is replaced, not followed. Where an OSError is raised, nothing is left behind.
    """
    path = Path(path)
    temporary = path.parent / TEMPORARY_FILES.replace("*", secrets.token_hex(8))
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def prepare_to_write(path: Path, reads: Path | None = None) -> None:
    """Make the directory of a file to come. Raises InputError if it is a directory, or the file that the work reads."""
    if path.is_dir():
        raise InputError(f"{path} is a directory: give a file to write")
    if reads and path.exists() and path.samefile(reads):
        raise InputError(f"{path} is the file to read: give another one to write")
    path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Let an OSError of the block name a file, where it names none: a full disk is known by what did not fit."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def remove_leftovers(directory: Path) -> None:
    """Remove the temporary files of processes that were killed while writing. Call it with the directory locked."""
    for leftover in directory.glob(TEMPORARY_FILES):
        leftover.unlink(missing_ok=True)


def remove_made(directory: Path, names: Iterable[str]) -> None:
    """Remove files and directories that were made in a directory, in this order; missing ones are ignored."""
    for name in names:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def other_files(directory: Path) -> set[str]:
    """The names in a directory, other than the lock and temporary files."""
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    return {name for name in names if name != LOCK_FILE and not fnmatchcase(name, TEMPORARY_FILES)}


def refuse_other_files(directory: Path, made: Iterable[str] = ()) -> None:
    """Raise InputError where a directory holds more than the files that were made there."""
    if others := other_files(directory).difference(made):
        raise InputError(f"{directory} already holds other files ({one_line(min(others), 80)}); give a new directory")


def refuse_to_remove(directory: str | Path, reads: Iterable[str | Path | None]) -> None:
    """Raise InputError where a path that is to be read lies in a directory that --overwrite empties."""
    emptied = Path(directory).resolve()
    for path in filter(None, reads):
        if emptied in (resolved := Path(path).resolve(), *resolved.parents):
            raise InputError(f"{path} is to be read, and --overwrite empties {directory}; give another directory")


def refuse_special_file(path: Path) -> None:
    """Raise InputError for a link, which may lead outside the directory, and for a pipe, which may hang."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InputError(f"{path} is a link, pipe or device, which is not written to; remove it")


@contextlib.contextmanager
def lock_directory(directory: Path, what: str, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Own a directory, made if missing, for the block. The system frees the lock however the process ends.

    Where the block raises InputError and has left nothing there, the lock is removed, and the directory if it is new.

    Args:
        directory: the directory; InputError is raised where another process owns it.
        what: what the other process would be doing, for the error: "another run of this experiment".
        check: raises InputError where the directory is not to be used. Nothing is written there before.
    """
    lock = directory / LOCK_FILE
    refuse_special_file(lock)
    if not lock.exists():
        check()
    is_new = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # by process, so that no forked worker keeps it
            except (BlockingIOError, PermissionError) as error:
                raise InputError(f"{directory} is in use by {what}; wait for it to end") from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                print(f"{directory}: this file system has no locks; let no other process write there", file=sys.stderr)
        if not lock.exists() or not os.path.samestat(lock.stat(), os.fstat(file.fileno())):
            # its owner has removed it since it was opened here
            raise InputError(f"{directory} was in use by {what} just now; run the same command again")
        try:
            check()
            yield
        except InputError:
            if not any(path.name != LOCK_FILE for path in directory.iterdir()):
                lock.unlink()
                if is_new:
                    directory.rmdir()
            raise


def write_json(path: Path, content: Any, indent: int | None = 2) -> None:
    """Write JSON, whole."""
    with atomic_write(path) as file:
        text = json.dumps(content, indent=indent, ensure_ascii=False) + "\n"
        file.write(text.encode("utf-8", "surrogatepass"))  # names of files may not be UTF-8; read_json reads them back


def read_json(path: Path, most: int = MAX_JSON_BYTES) -> dict:
    """Read a JSON object. Raises InputError if the file is missing, too large, damaged, or holds something else."""
    try:
        content = json.loads(read_bytes(path, most))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object, not a {type(content).__name__}")
    return content


def check_utterance_id(utterance: str, location: str) -> str:
    """An utterance id that is safe as a file name and in an archive, or an InputError at `location`."""
    if " " in utterance:  # other white space cannot be printed
        raise InputError(f"refused: the utterance id {one_line(repr(utterance), 80)} holds a space", location)
    return check_name(utterance, location, "utterance id")


def check_name(name: str, location: str, what: str) -> str:
    """A name of `what` that is safe as a file name, or an InputError at `location` (a file and line, or an option)."""
    wrong = {
        "is empty or starts with a dot": not name or name.startswith("."),
        "holds a path separator, '..' or a NUL": any(part in name for part in ("/", "\\", "\0", "..")),
        "holds a character that cannot be printed": not name.isprintable(),
        f"is longer than {MAX_NAME_BYTES} bytes": len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES,
    }
    for reason, is_wrong in wrong.items():
        if is_wrong:
            raise InputError(f"refused: the {what} {one_line(repr(name), 80)} {reason}", location)
    return name
