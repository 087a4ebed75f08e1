"""Kaldi's archives, read without ever running a command or trusting a size: .blogmel, .ark and .scp.

Reading is in two steps, so that several processes can share the work: `scan_archive` finds where each utterance lies,
and its matrix's `read()` reads and checks its frames.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from utils.kaldi.byte_reader import COMPRESSED_SUFFIXES, ByteReader
from utils.kaldi.matrices import (
    BINARY_MARK,
    MATRIX_HEADER_BYTES,
    BinaryMatrix,
    Entry,
    TextMatrix,
    Unreadable,
    matrix_bytes,
)
from utils.kaldi.text_rows import MAX_UTTERANCE_BYTES
from utils.system.errors import InputError, one_line
from utils.system.files import check_utterance_id
from utils.system.reading import exists

MAX_ID_BYTES = 4096
TRUNCATED = "truncated file: it ends in the middle of this utterance, and what followed is missing"
MAX_SCP_LINE_BYTES = 1 << 16
_SCP_PLACE = re.compile(r"(?P<path>.+?)(?::(?P<offset>\d{1,18}))?\s*(?:\[(?P<range>[\d:, ]*)\])?")


def check_no_command(name: str, location: str) -> None:
    """Refuse what Kaldi's tools would run as a shell command, or read from a pipe."""
    if "|" in name or name.strip() in ("", "-"):
        raise InputError(f"{location}: refused: {one_line(repr(name), 120)} is a command or a pipe, not a file")


def scan_archive(path: str | Path) -> Iterator[Entry]:
    """Find the utterances of a .blogmel, .ark or .scp, the first two also as .gz and .xz.

    Yields:
        Each utterance in the order of the archive. The matrix of one that is damaged is Unreadable.

    Raises:
        InputError: an id that would leave the output directory, an entry that would run a command, or a file that
            is not an archive.
    """
    check_no_command(str(path), "input")
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    if path.suffix == ".scp":
        return _scan_scp(path)
    return _scan_ark(path) if stem.suffix == ".ark" else _scan_blogmel(path)


def _read_id(raw: bytes, location: str) -> str:
    try:
        return check_utterance_id(raw.decode(), location)
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: refused: the utterance id {one_line(raw, 80)} is not UTF-8") from error


def _truncated(reader: ByteReader, name: str, location: str) -> Entry:
    """The utterance in the middle of which a file ends, or its compressed data is damaged."""
    if len(reader.peek(MAX_UTTERANCE_BYTES + 1)) > MAX_UTTERANCE_BYTES:
        raise InputError(
            f"{location}: utterance {one_line(name, 80)} has more than {MAX_UTTERANCE_BYTES >> 20} MiB of text"
        )
    reader.take(MAX_UTTERANCE_BYTES)
    reason = f"{TRUNCATED} ({reader.damage})" if reader.damage else TRUNCATED
    return Entry(name, location, reader.progress(), Unreadable(reason))


def _damaged_end(reader: ByteReader, path: Path, location: str) -> Iterator[Entry]:
    """The utterances that a file which ends between two of them has lost."""
    if reader.damage:
        yield Entry(f"(the end of {path.name})", location, reader.progress(), Unreadable(f"missing: {reader.damage}"))


def _scan_blogmel(path: Path) -> Iterator[Entry]:
    line = 1
    with ByteReader(path) as reader:
        while reader.peek(1):
            location = f"{path}:{line}"
            raw_id = reader.take_until(b"\n", MAX_ID_BYTES)
            if raw_id is None:
                if len(reader.peek(MAX_ID_BYTES + 1)) > MAX_ID_BYTES:
                    raise InputError(f"{location}: no utterance id: is this a .blogmel file?")
                yield _truncated(reader, f"(the end of {path.name})", location)
                return
            rest = reader.peek(MAX_ID_BYTES + 1)
            if not raw_id.strip() and not rest.strip() and len(rest) <= MAX_ID_BYTES:
                break  # blank lines at the end
            if raw_id.endswith(b"\r"):
                raise InputError(f"{location}: lines end as on Windows; convert the file with dos2unix")
            is_id = b" " not in raw_id
            utterance = _read_id(raw_id, location) if is_id else one_line(raw_id.decode(errors="replace"), 80)
            offset = reader.offset
            found = reader.take_lines_until(b".", MAX_UTTERANCE_BYTES)
            if found is None:
                yield _truncated(reader, utterance, location)
                return
            text, lines = found
            matrix = Unreadable("its id holds a space: perhaps a frame without an id above it")
            if is_id:
                matrix = TextMatrix(str(path), offset, len(text), line + 1, text if reader.compressed else None)
            yield Entry(utterance, location, reader.progress(), matrix)
            line += lines + 2
        yield from _damaged_end(reader, path, f"{path}:{line}")


def _scan_ark(path: Path) -> Iterator[Entry]:
    line = 1
    with ByteReader(path) as reader:
        while reader.peek(1):
            place = f"{path}:{line}" if line > 1 else f"{path} at byte {reader.offset}"
            raw_id = reader.take_until(b" ", MAX_ID_BYTES)
            if raw_id is None:
                if len(reader.peek(MAX_ID_BYTES + 1)) > MAX_ID_BYTES:
                    raise InputError(f"{place}: no utterance id: is this a Kaldi archive?")
                if reader.take(MAX_ID_BYTES).strip():
                    yield Entry(f"(the end of {path.name})", place, reader.progress(), Unreadable("truncated file"))
                break
            utterance = _read_id(raw_id, place)
            if reader.peek(2) == BINARY_MARK:
                found = _take_matrix(reader, utterance, place)
            else:
                found, lines = _take_text_matrix(reader, utterance, line)
                line += lines
            if isinstance(found.matrix, Unreadable):
                reason = f"{found.matrix.reason}; what follows it in the archive cannot be found"
                yield found._replace(matrix=Unreadable(reason))
                return
            yield found
        yield from _damaged_end(reader, path, f"{path} at byte {reader.offset}")


def _take_matrix(reader: ByteReader, utterance: str, location: str) -> Entry:
    """The binary matrix that follows."""
    offset, path = reader.offset, str(reader.path)
    try:
        size = matrix_bytes(reader.peek(MATRIX_HEADER_BYTES))
    except InputError as error:
        return Entry(utterance, location, reader.progress(), Unreadable(str(error)))
    data = reader.take(size) if reader.compressed else None
    is_whole = len(data) == size if reader.compressed else reader.skip(size)
    matrix = BinaryMatrix(path, offset, "", data) if is_whole else Unreadable(TRUNCATED)
    return Entry(utterance, location, reader.progress(), matrix)


def _take_text_matrix(reader: ByteReader, utterance: str, line: int) -> tuple[Entry, int]:
    """The matrix in text that follows, and the number of lines it moves on by."""
    location, offset = f"{reader.path}:{line}", reader.offset
    text = reader.take_until(b"]", MAX_UTTERANCE_BYTES)
    if text is None:
        return _truncated(reader, utterance, location), 0
    opening = re.match(rb"\s*\[\s*", text)
    if not opening or reader.take(1) not in (b"\n", b""):
        return Entry(utterance, location, reader.progress(), Unreadable("not a matrix in [ ]")), 0
    rows = text[opening.end() :].rstrip()
    first_line = line + text.count(b"\n", 0, opening.end())
    data = rows if reader.compressed else None
    matrix = TextMatrix(str(reader.path), offset + opening.end(), len(rows), first_line, data)
    return Entry(utterance, location, reader.progress(), matrix), text.count(b"\n") + 1


def _scan_scp(path: Path) -> Iterator[Entry]:
    with ByteReader(path) as reader:
        line = 0
        while reader.peek(1):
            line += 1
            location = f"{path}:{line}"
            entry = reader.take_until(b"\n", MAX_SCP_LINE_BYTES)
            if entry is None:
                entry = reader.take(MAX_SCP_LINE_BYTES)
                if reader.peek(1):
                    raise InputError(f"{location}: the line is too long: is this an .scp file?")
            if entry.strip():
                yield _read_scp_entry(entry, path, location, reader.progress())
        yield from _damaged_end(reader, path, f"{path}:{line}")


def _read_scp_entry(entry: bytes, scp: Path, location: str, num_bytes: int) -> Entry:
    raw_id, place = (*entry.split(None, 1), b"")[:2]
    utterance = _read_id(raw_id, location)
    try:
        name = place.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError(f"{location}: refused: the file name of utterance {utterance} is not UTF-8") from error
    check_no_command(name, f"{location}: utterance {utterance}")
    parts = _SCP_PLACE.fullmatch(name)
    if not parts or "\0" in name:
        raise InputError(f"{location}: utterance {utterance}: {one_line(repr(name), 120)} is not file:offset[range]")
    ark = Path(parts["path"])
    if not exists(ark) and exists(scp.parent / ark):
        ark = scp.parent / ark
    if ark.suffix in COMPRESSED_SUFFIXES:
        matrix = Unreadable(f"in a compressed file: give {ark} itself as input")
    else:
        matrix = BinaryMatrix(str(ark), int(parts["offset"] or 0), parts["range"] or "")
    return Entry(utterance, location, num_bytes, matrix)
