"""Matrices in archives: where they lie, and how they are read and checked, in any process."""

import io
import re
import struct
from typing import NamedTuple

import numpy as np

from utils.kaldi.text_rows import MAX_UTTERANCE_BYTES, as_float32, parse_rows
from utils.system.errors import InputError, one_line
from utils.system.reading import open_regular, read_span

MAX_MATRIX_VALUES = 1 << 25  # of a binary matrix: more than an hour of 80-dim frames
TEXT_BLOCK_BYTES = 1 << 20  # of a text matrix, at first: most are smaller
MATRIX_HEADER_BYTES = 32  # more than any header
RANGE_TOLERANCE = 3  # frames by which a range may pass the end, as in Kaldi, which segments' rounding needs
BINARY_MARK = b"\0B"
PLAIN, COMPRESSED = "<xixi", "<8xii"  # how rows and columns stand in the header behind the type's name
MATRIX_TYPES = {  # format of the header, bytes a value, bytes a column
    b"FM ": (PLAIN, 4, 0),
    b"DM ": (PLAIN, 8, 0),
    b"CM ": (COMPRESSED, 1, 8),
    b"CM2 ": (COMPRESSED, 2, 0),
    b"CM3 ": (COMPRESSED, 1, 0),
}
_ENDS = r" *(?:(\d{1,18}) *: *(\d{1,18}) *|: *)?"
_RANGES = re.compile(f"{_ENDS}(?:,{_ENDS})?")  # of rows, and of columns


class Unreadable(NamedTuple):
    """A matrix that is damaged or missing."""

    reason: str


class TextMatrix(NamedTuple):
    """Rows of numbers in a text archive; `data` holds them where it is compressed."""

    path: str
    offset: int
    size: int
    first_line: int
    data: bytes | None = None

    def read(self) -> np.ndarray:
        """(frames, mel_dim) float32. Raises InputError, with the line, where the text is not that."""
        text = read_span(self.path, self.offset, self.size) if self.data is None else self.data
        return parse_rows(text, self.path, self.first_line)


class BinaryMatrix(NamedTuple):
    """A matrix that starts at an offset of a file, or in `data` where the archive is compressed."""

    path: str
    offset: int
    range: str = ""
    data: bytes | None = None

    def read(self) -> np.ndarray:
        """(frames, mel_dim) float32, all finite. Raises InputError where there is no such matrix."""
        matrix = _in_range(self._read(), self.range)
        if 0 in matrix.shape:
            raise InputError("it is empty")
        frames, bad = as_float32(matrix)
        if bad:
            raise InputError(f"frame {bad[0] + 1}, number {bad[1] + 1} is NaN, infinite or too large")
        return frames

    def _read(self) -> np.ndarray:
        head = read_span(self.path, self.offset, MATRIX_HEADER_BYTES) if self.data is None else self.data
        if not head:
            raise InputError(f"{self.path} ends before byte {self.offset}")
        if not head.startswith(BINARY_MARK):
            return self._read_text()
        size, matrix = matrix_bytes(head[:MATRIX_HEADER_BYTES]), self.data
        if matrix is None:
            with open_regular(self.path) as file:
                whole = self.offset + size <= file.seek(0, io.SEEK_END)
            matrix = read_span(self.path, self.offset, size) if whole else b""
        if len(matrix) != size:
            raise InputError(f"truncated file: {self.path} ends within its matrix")
        from kaldiio.matio import read_matrix_or_vector

        return read_matrix_or_vector(io.BytesIO(matrix))

    def _read_text(self) -> np.ndarray:
        size = TEXT_BLOCK_BYTES
        while len(text := read_span(self.path, self.offset, size)) == size < MAX_UTTERANCE_BYTES and b"]" not in text:
            size *= 4
        found = re.match(rb"\s*\[([^\]]*)\]", text)
        if not found:
            raise InputError(f"no matrix at byte {self.offset} of {self.path}")
        rows = found[1].strip()
        line = 1 + text.count(b"\n", 0, found.start(1) + found[1].find(rows))
        try:
            return parse_rows(rows, f"{self.path} from byte {self.offset}", line)
        except InputError as error:
            raise InputError(error) from error  # about the line of the .scp, which leads here


def matrix_bytes(head: bytes) -> int:
    """The size of a binary matrix, from its first bytes, checked before anything of that size is read.

    Raises InputError if it is truncated, no matrix of floats, or larger than an utterance can be.
    """
    name = next((name for name in MATRIX_TYPES if head.startswith(BINARY_MARK + name)), b"")
    if not name and len(head) >= len(BINARY_MARK) + max(map(len, MATRIX_TYPES)):
        raise InputError(f"not a matrix of floats (it starts with {one_line(repr(head[:8]))})")
    layout, value_bytes, column_bytes = MATRIX_TYPES.get(name, (PLAIN, 0, 0))
    start = len(BINARY_MARK) + len(name)
    end = start + struct.calcsize(layout)
    if len(head) < end:
        raise InputError("truncated file: it ends within the header of the matrix")
    rows, columns = struct.unpack_from(layout, head, start)
    sizes_marked = layout == COMPRESSED or head[start] == head[start + 5] == 4
    if rows < 0 or columns < 0 or not sizes_marked:
        raise InputError("the header of its matrix is damaged")
    if rows * columns > MAX_MATRIX_VALUES:
        raise InputError(f"a matrix of {rows} x {columns} is not an utterance: the file is damaged")
    return end + columns * column_bytes + rows * columns * value_bytes


def _in_range(matrix: np.ndarray, ranges: str) -> np.ndarray:
    """Apply Kaldi's [first:last,first:last] on rows and columns, both ends included."""
    found = _RANGES.fullmatch(ranges)
    if not found:
        raise InputError(f"[{ranges}] is not a range like [0:99] or [0:99,0:39]")
    slices = []
    for size, first, last in zip(matrix.shape, found.group(1, 3), found.group(2, 4), strict=True):
        if first is None:
            slices.append(slice(None))
            continue
        first, last = int(first), int(last)
        if first > last or first >= size or last >= size + (RANGE_TOLERANCE if not slices else 0):
            raise InputError(f"the range [{ranges}] does not fit a matrix of {matrix.shape}")
        slices.append(slice(first, last + 1))
    return matrix[tuple(slices)]
