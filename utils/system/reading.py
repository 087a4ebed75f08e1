"""Reading files whose bytes, names and kinds nobody has checked: what cannot be read is an InputError that names it."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.system.errors import InputError, one_line

MAX_FILE_BYTES = 2 << 30  # larger than any utterance


def exists(path: Path) -> bool:
    """Whether there is a file or directory; False for an invalid name, such as one that is too long."""
    try:
        return path.exists()
    except OSError:
        return False


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the block, which reads a file, into an InputError that names the file."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{one_line(path, 300)} does not exist") from error
    except OSError as error:
        raise_unless_of_file(error)
        raise InputError(f"{one_line(path, 300)} cannot be read: {error.strerror or error}") from error


def raise_unless_of_file(error: OSError) -> None:
    """Raise an error again that is no fault of the file: this process has too many files open, or too little memory."""
    if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
        raise error


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        InputError: it is missing, cannot be read, or is a directory, pipe or device (which could block for ever).
    """
    path = Path(path)
    try:
        with reading(path):
            if stat.S_ISREG(path.stat().st_mode):
                return path.open("rb")
    except InputError:
        raise
    except ValueError as error:  # a NUL, or a character that no file name can hold
        raise InputError(f"{one_line(repr(str(path)), 120)} is not a file name") from error
    raise InputError(f"{path} is not a file")


def read_span(path: str | Path, offset: int, size: int) -> bytes:
    """Up to `size` bytes of a file from `offset` on; fewer where the file ends."""
    with reading(path), open_regular(path) as file:
        return os.pread(file.fileno(), size, offset)


def read_bytes(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """A whole file. Raises InputError as `open_regular` does, and if it is larger than `max_bytes`."""
    with reading(path), open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= max_bytes:
            return file.read(size)
    raise InputError(f"{path} is larger than {max_bytes >> 20} MiB: not a file of this project")
