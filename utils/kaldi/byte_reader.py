"""Reading plain and compressed archives front to back, in bounded memory."""

import functools
import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from utils.system.errors import one_line
from utils.system.reading import open_regular

COMPRESSED_SUFFIXES = (".xz", ".gz")
BLOCK_BYTES = 1 << 20
MAX_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB; a file that asks for more is not decompressed


def _xz_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress one or several xz streams. Raises LZMAError or EOFError on a damaged or truncated file."""
    decompressor, data = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY_BYTES), b""
    while True:
        if decompressor.eof:
            data = decompressor.unused_data
            while not (data := data.lstrip(b"\0")):  # padding behind a stream
                data = file.read(BLOCK_BYTES)
                if not data:
                    return
            decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, MAX_XZ_MEMORY_BYTES)
        elif decompressor.needs_input:
            data = file.read(BLOCK_BYTES)
            if not data:
                raise EOFError("the file ends before the compressed data does")
        yield decompressor.decompress(data, BLOCK_BYTES)
        data = b""


def _gz_blocks(file: BinaryIO) -> Iterator[bytes]:
    if not os.fstat(file.fileno()).st_size:
        raise EOFError("the file is empty")  # which GzipFile takes for an archive of nothing
    with gzip.GzipFile(fileobj=file) as stream:
        while block := stream.read1(BLOCK_BYTES):  # unlike read(), gives what precedes a damaged place
            yield block


def _plain_blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(functools.partial(file.read, BLOCK_BYTES), b"")


class ByteReader:
    """A file's bytes from front to back, decompressed where its name ends in .xz or .gz; for a `with` statement.

    A file that is damaged, truncated or unreadable at a place reads as if it ended there, with `damage` saying why: the
    caller knows which utterance that truncates.

    Attributes:
        offset: position of the next byte in the decompressed bytes.
        compressed: whether the file is.
        damage: what was wrong where reading ended, or None.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.compressed = self.path.suffix in COMPRESSED_SUFFIXES
        self.offset = 0
        self.damage: str | None = None
        self._file = open_regular(path)
        self.file_size = os.fstat(self._file.fileno()).st_size
        self._blocks = {".xz": _xz_blocks, ".gz": _gz_blocks}.get(self.path.suffix, _plain_blocks)(self._file)
        self._buffer = bytearray()
        self._reported = 0

    def __enter__(self) -> "ByteReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def progress(self) -> int:
        """Bytes of the file read since the last call, for a progress bar."""
        position = self._file.tell()
        moved, self._reported = position - self._reported, position
        return moved

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""
        while len(self._buffer) < size and self._fill():
            pass
        return bytes(memoryview(self._buffer)[:size])

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end, and move behind them."""
        taken = self.peek(size)
        self._move(len(taken))
        return taken

    def skip(self, size: int) -> bool:
        """Move `size` bytes on in a plain file. Returns whether the file has that many."""
        if self.offset + size > self.file_size:
            return False
        is_buffered = size <= len(self._buffer)
        self._move(size)
        if not is_buffered:
            self._file.seek(self.offset)
        return True

    def take_until(self, end: bytes, limit: int) -> bytes | None:
        """The bytes up to `end`, and move behind `end`; None if it does not come, within `limit` bytes."""
        searched = 0
        while (found := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end) + 1)
            if searched > limit or not self._fill():
                return None
        taken = self.peek(found)
        self._move(found + len(end))
        return taken

    def take_lines_until(self, last: bytes, limit: int) -> tuple[bytes, int] | None:
        """The lines up to one that is `last`, and their number, and move behind it; None if it does not come.

        Looking for newlines only is three times as fast as looking for newline, `last`, newline.
        """
        start, lines = 0, 0
        while True:
            end = self._buffer.find(b"\n", start)
            if end >= 0 and end - start == len(last) and self._buffer.startswith(last, start):
                break
            if end >= 0:
                start, lines = end + 1, lines + 1
            elif len(self._buffer) > limit or not self._fill():
                if self._buffer[start:] != last or self.damage:
                    return None
                break  # only the file's last newline is missing
        taken = self.peek(max(0, start - 1))
        self._move(start + len(last) + (end >= 0))
        return taken, lines

    def _move(self, size: int) -> None:
        del self._buffer[:size]
        self.offset += size

    def _fill(self) -> bool:
        """Add a block to the buffer; False at the end."""
        try:
            self._buffer += next(self._blocks)
        except StopIteration:
            return False
        except (lzma.LZMAError, zlib.error, OSError, EOFError) as error:
            self.damage = one_line(error, 200)
            return False
        return True
