"""Reading plain and compressed archives front to back, in bounded memory."""

import gzip
import lzma
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from utils.system.errors import one_line
from utils.system.reading import open_regular

COMPRESSED_SUFFIXES = (".xz", ".gz")
BLOCK_BYTES = 1 << 20
MAX_XZ_MEMORY_BYTES = 256 << 20  # xz -9 needs 65 MiB; a file that asks for more is not decompressed


def _xz_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress one or several xz streams. Raises LZMAError or EOFError on a damaged or cut-off file."""
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
    while block := file.read(BLOCK_BYTES):
        yield block


class ByteReader:
    """A file's (decompressed) bytes from front to back; use as a context.

    A file that is damaged, truncated or unreadable at a place reads as if it ended there, with `damage` saying why: the
    caller knows which utterance that cuts.

    Args:
        path: a file; .xz and .gz are decompressed.

    Attributes:
        offset: where the next byte stands in the decompressed bytes.
        compressed: whether the file is.
        damage: what was wrong there, or None.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_regular(path)
        self.file_size = os.fstat(self._file.fileno()).st_size
        self.compressed = self.path.suffix in COMPRESSED_SUFFIXES
        blocks = {".xz": _xz_blocks, ".gz": _gz_blocks}.get(self.path.suffix, _plain_blocks)
        self._blocks = blocks(self._file)
        self._buffer = bytearray()
        self._reported = 0
        self.offset = 0
        self.damage: str | None = None

    def __enter__(self) -> "ByteReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        return bytes(self._buffer[:size])

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end, and move behind them."""
        taken = self.peek(size)
        del self._buffer[: len(taken)]
        self.offset += len(taken)
        return taken

    def skip(self, size: int) -> bool:
        """Move `size` bytes on in a plain file. Returns whether the file has that many."""
        if self.offset + size > self.file_size:
            return False
        self.offset += size
        if size <= len(self._buffer):
            del self._buffer[:size]
        else:
            self._buffer.clear()
            self._file.seek(self.offset)
        return True

    def take_until(self, end: bytes, limit: int) -> bytes | None:
        """The bytes up to `end`, and move behind `end`; None if it does not come, within `limit` bytes."""
        searched = 0
        while (found := self._buffer.find(end, searched)) < 0:
            searched = max(0, len(self._buffer) - len(end) + 1)
            if searched > limit or not self._fill():
                return None
        taken = bytes(memoryview(self._buffer)[:found])
        del self._buffer[: found + len(end)]
        self.offset += found + len(end)
        return taken

    def take_lines_until(self, last: bytes, limit: int) -> tuple[bytes, int] | None:
        """The lines up to one that is `last`, and how many, and move behind it.

        None if it does not come, within `limit` bytes: then nothing is taken. Looking for newlines only is three
        times as fast as looking for newline, `last`, newline, and the lines are counted on the way.
        """
        start, lines = 0, 0
        while True:
            end = self._buffer.find(b"\n", start)
            if end < 0:
                if len(self._buffer) > limit or not self._fill():
                    break
            elif end - start == len(last) and self._buffer.startswith(last, start):
                return self._take_line_end(max(0, start - 1), end + 1), lines
            else:
                start, lines = end + 1, lines + 1
        if self._buffer[start:] == last and not self.damage:  # the file's last newline is missing
            return self._take_line_end(max(0, start - 1), len(self._buffer)), lines
        return None

    def _take_line_end(self, size: int, move: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:move]
        self.offset += move
        return taken

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
