"""Rows of numbers in text -> a float32 matrix: by a fast parser where the text is plain, else line by line."""

import array
import contextlib
import io
from collections.abc import Iterator

import numpy as np
import simdjson

from utils.system.errors import InputError, one_line

MAX_ROW_BYTES = 1 << 20  # longer lines are no frames
MAX_UTTERANCE_BYTES = 64 << 20  # of text: about a quarter of an hour of 80-dim frames
_SPACE_TO_COMMA = np.uint8(ord(",") - ord(" "))  # a bit pattern that a space does not have
_parser = simdjson.Parser()  # keeps its buffers from one utterance to the next


def parse_rows(text: bytes, path: str, first_line: int) -> np.ndarray:
    """Parse text to (frames, mel_dim) float32, all finite, each value exactly float32(float(token)).

    Args:
        text: a line per frame, numbers separated by spaces, no newline at the end.
        path, first_line: the file, and the line of it that the text starts on, from 1.

    Raises:
        InputError: empty, ragged, not numbers, not finite in float32; names file and line.
    """
    if not text.strip():
        raise InputError("it is empty", f"{path}:{first_line}")
    values = _parse_plain(text)
    if values is None:  # doubled or trailing spaces: make them plain and try again
        lines = _lines(text, path, first_line)
        values = _parse_plain(b"\n".join(b" ".join(line.split()) for _, line in lines))
    if values is None:
        values = _parse_by_line(text, path, first_line)
    frames, bad = as_float32(values)
    if bad:
        reason = f"number {bad[1] + 1} of the frame is NaN, infinite or too large"
        raise InputError(reason, f"{path}:{first_line + bad[0]}")
    return frames


def as_float32(values: np.ndarray) -> tuple[np.ndarray, tuple[int, int] | None]:
    """A matrix as float32, and the (row, column) of its first number that is not finite there; None if all are."""
    with np.errstate(over="ignore"):
        frames = values.astype(np.float32)
    finite = np.isfinite(frames)
    return frames, None if finite.all() else tuple(np.argwhere(~finite)[0])


def _parse_plain(text: bytes) -> np.ndarray | None:
    """Parse rows of plain numbers, (frames, mel_dim) float64. None where the text is anything else, or ragged."""
    if b"," in text or b"[" in text:  # which JSON would take for more numbers
        return None
    codes = np.frombuffer(text, np.uint8)
    commas = (codes | (codes == ord(" ")) * _SPACE_TO_COMMA).tobytes()  # several times as fast as bytes.replace
    try:
        rows = _parser.parse(b"".join((b"[[", commas.replace(b"\n", b"],["), b"]]")))
        mel_dim = len(rows[0])
        if mel_dim == 0 or set(map(len, rows)) != {mel_dim}:
            return None
        values = np.frombuffer(rows.as_buffer(of_type="d")).reshape(-1, mel_dim)
    except (ValueError, RuntimeError, TypeError):  # no JSON, an integer of more than 64 bits, or no number
        return None
    if not values.all() and b"-0" in text:
        return None  # JSON has no integer -0, so its sign may be lost
    return values


def _parse_by_line(text: bytes, path: str, first_line: int) -> np.ndarray:
    """Parse with float() what _parse_plain could not, or raise an InputError that says why."""
    values, mel_dim = array.array("d"), 0
    for number, line in _lines(text, path, first_line):
        location, tokens = f"{path}:{number}", line.split()
        if not tokens:
            raise InputError("an empty line where a frame should be", location)
        values.extend(_parse_number(token, location) for token in tokens)
        mel_dim = mel_dim or len(tokens)
        if len(tokens) != mel_dim:
            raise InputError(f"a frame of {len(tokens)} numbers after frames of {mel_dim}", location)
    return np.frombuffer(values).reshape(-1, mel_dim)


def _parse_number(token: bytes, location: str) -> float:
    with contextlib.suppress(ValueError):
        if b"_" not in token:  # which float() takes for a thousands separator
            return float(token)
    raise InputError(f"{one_line(repr(token.decode(errors='replace')), 60)} is not a number", location)


def _lines(text: bytes, path: str, first_line: int) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(io.BytesIO(text), first_line):
        if len(line) > MAX_ROW_BYTES:
            raise InputError(f"a line longer than {MAX_ROW_BYTES >> 20} MiB is not a frame", f"{path}:{number}")
        yield number, line
    if text.endswith(b"\n"):
        yield first_line + text.count(b"\n"), b""
