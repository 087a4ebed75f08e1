"""Kaldi's archives, read without ever running a command or trusting a size: .blogmel, .ark and .scp.

Reading is in two steps, so that several processes can share the work: `scan_archive` finds where each utterance lies,
and its matrix's `read()` reads and checks its frames.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from utils.kaldi.byte_reader import COMPRESSED_SUFFIXES, ByteReader
from utils.kaldi.lists import listed_file
from utils.kaldi.matrices import BINARY_MARK, MATRIX_HEADER_BYTES, BinaryMatrix, TextMatrix, Unreadable, matrix_bytes
from utils.kaldi.text_rows import MAX_UTTERANCE_BYTES
from utils.system.errors import InputError, one_line
from utils.system.files import check_utterance_id
from utils.system.reading import exists

MAX_ID_BYTES = 4096
MAX_SCP_LINE_BYTES = 1 << 16
TRUNCATED = "truncated file: it ends in the middle of this utterance, and what followed is missing"
_PREFIXED = re.compile(r"(?P<form>ark|scp)(?:,\w+)*:(?P<path>.+)")  # Kaldi's rspecifier
_SCP_PLACE = re.compile(r"(?P<path>.+?)(?::(?P<offset>\d{1,18}))?\s*(?:\[(?P<range>[\d:, ]*)\])?")

Matrix = TextMatrix | BinaryMatrix | Unreadable
Found = Iterator[tuple[str, str, Matrix]]  # of each utterance its id, location and matrix


class Entry(NamedTuple):
    """An utterance of an archive; `num_bytes` of the archive are its share of the progress."""

    id: str
    location: str
    num_bytes: int
    matrix: Matrix


def check_no_command(name: str, location: str) -> None:
    """Refuse what Kaldi's tools would run as a shell command, or read from a pipe."""
    if "|" in name or name.strip() in ("", "-"):
        raise InputError(f"refused: {one_line(repr(name), 120)} is a command or a pipe, not a file", location)


def archive_path(name: str | Path) -> tuple[Path, str]:
    """An archive's file and its form, 'ark', 'scp' or 'blogmel': by Kaldi's prefix, as in ark:FILE, or its suffix."""
    path = Path(name)
    if (prefixed := _PREFIXED.fullmatch(str(name))) and not exists(path):
        return Path(prefixed["path"]), prefixed["form"]
    stem = path.with_suffix("") if path.suffix in COMPRESSED_SUFFIXES else path
    return path, "scp" if path.suffix == ".scp" else "ark" if stem.suffix == ".ark" else "blogmel"


def scan_archive(name: str | Path) -> Iterator[Entry]:
    """Find the utterances of a .blogmel, .ark or .scp, the first two also as .gz and .xz, in the order of the archive.

    Also of a file of any name with Kaldi's prefix, as in ark:FILE.

    Raises:
        InputError: an id that would leave the output directory, an entry that would run a command, or no archive.
    """
    path, form = archive_path(name)
    check_no_command(str(path), "input")
    scan = {"scp": _scan_scp, "ark": _scan_ark, "blogmel": _scan_blogmel}[form]
    with ByteReader(path) as reader:
        for utterance, location, matrix in scan(reader):
            yield Entry(utterance, location, reader.progress(), matrix)


def _read_id(raw: bytes, location: str) -> str:
    try:
        return check_utterance_id(raw.decode(), location)
    except UnicodeDecodeError as error:
        raise InputError(f"refused: the utterance id {one_line(raw, 80)} is not UTF-8", location) from error


def _truncated(reader: ByteReader, name: str, location: str) -> Unreadable:
    """The matrix in the middle of which a file ends, or its compressed data is damaged."""
    if len(reader.peek(MAX_UTTERANCE_BYTES + 1)) > MAX_UTTERANCE_BYTES:
        raise InputError(
            f"utterance {one_line(name, 80)} has more than {MAX_UTTERANCE_BYTES >> 20} MiB of text", location
        )
    reader.take(MAX_UTTERANCE_BYTES)
    return Unreadable(f"{TRUNCATED} ({reader.damage})" if reader.damage else TRUNCATED)


def _damaged_end(reader: ByteReader, location: str) -> Found:
    """The utterances that a file which ends between two of them has lost."""
    if reader.damage:
        yield f"(the end of {reader.path.name})", location, Unreadable(f"missing: {reader.damage}")


def _scan_blogmel(reader: ByteReader) -> Found:
    path, line = str(reader.path), 1
    while reader.peek(1):
        location = f"{path}:{line}"
        raw_id = reader.take_until(b"\n", MAX_ID_BYTES)
        rest = reader.peek(MAX_ID_BYTES + 1)
        if raw_id is None:
            if len(rest) > MAX_ID_BYTES:
                raise InputError("no utterance id: is this a .blogmel file?", location)
            name = f"(the end of {reader.path.name})"
            yield name, location, _truncated(reader, name, location)
            return
        if not raw_id.strip() and not rest.strip() and len(rest) <= MAX_ID_BYTES:
            break  # blank lines at the end
        if raw_id.endswith(b"\r"):
            raise InputError("lines end as on Windows; convert the file with dos2unix", location)
        is_id = b" " not in raw_id
        utterance = _read_id(raw_id, location) if is_id else one_line(raw_id.decode(errors="replace"), 80)
        offset = reader.offset
        found = reader.take_lines_until(b".", MAX_UTTERANCE_BYTES)
        if found is None:
            yield utterance, location, _truncated(reader, utterance, location)
            return
        text, lines = found
        matrix = TextMatrix(path, offset, len(text), line + 1, text if reader.compressed else None)
        no_id = Unreadable("its id holds a space: perhaps a frame without an id above it")
        yield utterance, location, matrix if is_id else no_id
        line += lines + 2
    yield from _damaged_end(reader, f"{path}:{line}")


def _scan_ark(reader: ByteReader) -> Found:
    path, line = reader.path, 1
    while reader.peek(1):
        location = f"{path}:{line}" if line > 1 else f"{path} at byte {reader.offset}"
        raw_id = reader.take_until(b" ", MAX_ID_BYTES)
        if raw_id is None:
            if len(reader.peek(MAX_ID_BYTES + 1)) > MAX_ID_BYTES:
                raise InputError("no utterance id: is this a Kaldi archive?", location)
            if reader.take(MAX_ID_BYTES).strip():
                yield f"(the end of {path.name})", location, Unreadable("truncated file")
            break
        utterance = _read_id(raw_id, location)
        if reader.peek(2) == BINARY_MARK:
            matrix = _take_binary(reader)
        else:
            location = f"{path}:{line}"
            matrix, lines = _take_text(reader, utterance, line)
            line += lines
        if isinstance(matrix, Unreadable):
            yield utterance, location, Unreadable(f"{matrix.reason}; what follows it in the archive cannot be found")
            return
        yield utterance, location, matrix
    yield from _damaged_end(reader, f"{path} at byte {reader.offset}")


def _take_binary(reader: ByteReader) -> BinaryMatrix | Unreadable:
    """The binary matrix that follows."""
    offset = reader.offset
    try:
        size = matrix_bytes(reader.peek(MATRIX_HEADER_BYTES))
    except InputError as error:
        return Unreadable(str(error))
    data = reader.take(size) if reader.compressed else None
    is_whole = len(data) == size if reader.compressed else reader.skip(size)
    return BinaryMatrix(str(reader.path), offset, "", data) if is_whole else Unreadable(TRUNCATED)


def _take_text(reader: ByteReader, utterance: str, line: int) -> tuple[TextMatrix | Unreadable, int]:
    """The matrix in text that follows on a line, and the number of lines it takes."""
    offset = reader.offset
    text = reader.take_until(b"]", MAX_UTTERANCE_BYTES)
    if text is None:
        return _truncated(reader, utterance, f"{reader.path}:{line}"), 0
    opening = re.match(rb"\s*\[\s*", text)
    if not opening or reader.take(1) not in (b"\n", b""):
        return Unreadable("not a matrix in [ ]"), 0
    rows = text[opening.end() :].rstrip()
    first_line = line + text.count(b"\n", 0, opening.end())
    data = rows if reader.compressed else None
    matrix = TextMatrix(str(reader.path), offset + opening.end(), len(rows), first_line, data)
    return matrix, text.count(b"\n") + 1


def _scan_scp(reader: ByteReader) -> Found:
    line = 0
    while reader.peek(1):
        line += 1
        location = f"{reader.path}:{line}"
        entry = reader.take_until(b"\n", MAX_SCP_LINE_BYTES)
        if entry is None:
            entry = reader.take(MAX_SCP_LINE_BYTES)
            if reader.peek(1):
                raise InputError("the line is too long: is this an .scp file?", location)
        if entry.strip():
            raw_id, place = (*entry.split(None, 1), b"")[:2]
            utterance = _read_id(raw_id, location)
            yield utterance, location, _find_matrix(place, reader.path, f"{location}: utterance {utterance}")
    yield from _damaged_end(reader, f"{reader.path}:{line}")


def _find_matrix(place: bytes, scp: Path, location: str) -> BinaryMatrix | Unreadable:
    """The matrix that an entry of an .scp names."""
    try:
        name = place.decode().strip()
    except UnicodeDecodeError as error:
        raise InputError("refused: the file name is not UTF-8", location) from error
    check_no_command(name, location)
    parts = _SCP_PLACE.fullmatch(name)
    if not parts or "\0" in name:
        raise InputError(f"{one_line(repr(name), 120)} is not file:offset[range]", location)
    ark = listed_file(parts["path"], scp)
    if ark.suffix in COMPRESSED_SUFFIXES:
        return Unreadable(f"in a compressed file: give {ark} itself as input")
    return BinaryMatrix(str(ark), int(parts["offset"] or 0), parts["range"] or "")
