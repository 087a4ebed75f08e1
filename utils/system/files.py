"""Files that appear whole or not at all, names that stay in their directory, and one owner a directory."""

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from utils.system.errors import InputError, one_line

try:
    import fcntl
except ImportError:  # Windows has no fcntl: there, a directory is not locked
    fcntl = None

TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".writing-", ".tmp"
LOCK_FILE = ".lock"
MAX_JSON_BYTES = 64 << 20
MAX_NAME_BYTES = 200  # file systems allow 255: leaves room for an ending and a temporary name


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` only when the block ends without an error.

    Written beside, flushed to the disk, then renamed: a reader, a full disk or a killed process never sees half a
    file. A symbolic link at `path` is replaced, not followed.

    Yields:
        A binary file.

    Raises:
        OSError: the disk is full or the directory cannot be written; nothing is left behind.
    """
    path = Path(path)
    descriptor, temporary = tempfile.mkstemp(TEMPORARY_SUFFIX, TEMPORARY_PREFIX, path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = str(path)
        raise


def make_way_for(path: Path, reads: Path | None = None) -> None:
    """See to it before the work that its result can be written: make the directory of a file to come.

    Args:
        path: the file to come.
        reads: a file that the work reads.

    Raises:
        InputError: the path is a directory itself, or the file that is read.
    """
    if path.is_dir():
        raise InputError(f"{path} is a directory: give a file to write")
    if reads and path.exists() and path.samefile(reads):
        raise InputError(f"{path} is the file to read: give another one to write")
    path.parent.mkdir(parents=True, exist_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


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
    for leftover in directory.glob(f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"):
        leftover.unlink(missing_ok=True)


def remove_made(directory: Path, names: Iterable[str]) -> None:
    """Remove what was made in a directory, in this order. The names that are not there are ignored."""
    for name in names:
        path = directory / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def other_files(directory: Path) -> set[str]:
    """The names in a directory, other than the lock and temporary files."""
    names = {path.name for path in directory.iterdir()} if directory.exists() else set()
    is_temporary = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}.*{re.escape(TEMPORARY_SUFFIX)}", re.DOTALL).fullmatch
    return {name for name in names if name != LOCK_FILE and not is_temporary(name)}


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
    """Own a directory for the length of the block. The system frees the lock when the process dies, however it does.

    Args:
        directory: made if missing.
        what: what the other process would be doing, for the error: "another run of this experiment".
        check: raises InputError where the directory is not to be used. Nothing is written there before.

    Raises:
        InputError: another process owns it.
    """
    lock = directory / LOCK_FILE
    refuse_special_file(lock)
    if not lock.exists():
        check()
    directory.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # by process, so that no forked worker keeps it
            except (BlockingIOError, PermissionError) as error:
                raise InputError(f"{directory} is in use by {what}; wait for it to end") from error
        check()
        yield


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented and whole."""
    with atomic_write(path) as file:
        file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict:
    """Read a JSON object of at most 64 MiB.

    Raises:
        InputError: the file is missing, too large, damaged, or holds something other than an object.
    """
    if not path.is_file():
        raise InputError(f"{path} is missing or no file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not a file of this project")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it should hold a JSON object, not a {type(content).__name__}")
    return content


def check_utterance_id(utterance: str, where: str) -> str:
    """An utterance id that is safe as a file name and in an archive, or an InputError that says where it stands.

    Args:
        utterance: the id.
        where: file and line, for the error.
    """
    if " " in utterance:  # other white space cannot be printed
        raise InputError(f"{where}: refused: the utterance id {one_line(repr(utterance), 80)} holds a space")
    return check_name(utterance, where, "utterance id")


def check_name(name: str, where: str, what: str) -> str:
    """A name that is safe as a file name, or an InputError.

    Args:
        name: the name.
        where: file and line, or option, for the error.
        what: what the name is of, for the error.
    """
    reason = None
    if not name or name.startswith("."):
        reason = "is empty or starts with a dot"
    elif any(c in name for c in "/\\\0") or ".." in name:
        reason = "holds a path separator, '..' or a NUL"
    elif not name.isprintable():
        reason = "holds a character that cannot be printed"
    elif len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        reason = f"is longer than {MAX_NAME_BYTES} bytes"
    if reason:
        raise InputError(f"{where}: refused: the {what} {one_line(repr(name), 80)} {reason}")
    return name
