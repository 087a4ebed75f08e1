"""Features in a file without a name, which ends with the process: rows are read as a probe asks for them.

Memory is bounded whatever the size of the file. Its beginning is mapped into memory; the other rows are read one by
one, which takes about 3 microseconds each.
"""

import errno
import os
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view

from utils.system.files import naming_file

MAX_MAPPED_BYTES = 256 << 20  # of the features of a set


class FrameFile:
    """A matrix, float32 (rows, size), to be written first and then read.

    Args:
        directory: the directory of the file. On Linux the file has no name there: a killed process leaves nothing.
        size: the length of a row.
    """

    def __init__(self, directory: Path, size: int) -> None:
        self.directory, self.size = directory, size
        self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115  # closed with this object

    def write(self, first: int, frames: torch.Tensor) -> None:
        """Write rows from number `first` on: (rows, size)."""
        content = memoryview(frames.float().contiguous().numpy()).cast("B")
        with naming_file(self.directory):
            self._file.seek(first * self.size * 4)
            while content:  # a nearly full disk takes a part
                content = content[self._file.write(content) :]

    def read(self, first: int, count: int) -> torch.Tensor:
        """Rows that follow each other: (count, size)."""
        rows = np.empty((count, self.size), np.float32)
        _read(self._file, first * self.size * 4, rows)
        return torch.from_numpy(rows)

    def windows(self, count: int, width: int) -> "Windows":
        """The windows of `width` rows that start at each of the first `count`."""
        with naming_file(self.directory):
            end = self._file.seek(0, os.SEEK_END)
            self._file.truncate(max(end, (count + width) * self.size * 4))  # zeros follow the last row
        return Windows(self._file, count, width, self.size)


class Windows:
    """Each of the rows of a file with those that follow it: a matrix, float32 (count, width * size)."""

    def __init__(self, file: BinaryIO, count: int, width: int, size: int) -> None:
        self._file, self._row_bytes, self._length = file, size * 4, width * size
        mapped = min(count, MAX_MAPPED_BYTES // self._row_bytes)
        flat = np.memmap(file, np.float32, "r", shape=(mapped + width) * size)
        self._mapped = sliding_window_view(flat, self._length)[::size][:mapped]  # (mapped, width * size)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Some of them: int64 (n,) -> (n, width * size)."""
        is_mapped = rows < len(self._mapped)
        if is_mapped.all():
            return self._mapped[rows]
        taken = np.empty((len(rows), self._length), np.float32)
        taken[is_mapped] = self._mapped[rows[is_mapped]]
        for number in np.flatnonzero(~is_mapped):
            _read(self._file, int(rows[number]) * self._row_bytes, taken[number])
        return taken


def _read(file: BinaryIO, start: int, content: np.ndarray) -> None:
    """Fill an array with what is in the file from a byte on. Forked processes share the file's position."""
    if sys.platform == "linux":
        count = os.preadv(file.fileno(), [content], start)
    else:
        file.seek(start)
        count = file.readinto(content)
    if count != content.nbytes:
        raise OSError(errno.EIO, "features could not be read whole")
