"""Kaldi's archives, written whole or not at all: .blogmel, and .ark with its .scp."""

import gzip
import lzma
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from utils.kaldi.matrices import BINARY_MARK
from utils.system.errors import InputError
from utils.system.files import atomic_write, check_utterance_id

CM2_STEPS = 65535  # between the lowest and the highest number of a matrix of 16 bits per number

Features = Iterable[tuple[str, np.ndarray]]  # utterance ids, and (frames, mel_dim) float32


def write_blogmel(path: str | Path, features: Features, decimals: int | None = None) -> int:
    """Write a .blogmel archive, compressed where the path ends in .xz or .gz. Returns the number of utterances.

    Args:
        path: replaced when the whole archive is written.
        features: utterances and their frames.
        decimals: digits after the point; by default as many as give back the same float32.
    """
    path, count = Path(path), 0
    with atomic_write(path) as file, _compressor(file, path.suffix) as stream:
        for utterance, frames in features:
            count += 1
            check_utterance_id(utterance, str(path))
            rows = "\n".join(_format_row(row, decimals) for row in np.asarray(frames, np.float32))
            stream.write(f"{utterance}\n{rows}\n.\n".encode())
    return count


def _compressor(file: BinaryIO, suffix: str) -> BinaryIO:
    """A file that compresses into another, the same bytes for the same content."""
    if suffix == ".xz":
        return lzma.LZMAFile(file, "wb", preset=9 | lzma.PRESET_EXTREME)
    if suffix == ".gz":
        return gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0)
    return open(file.fileno(), "wb", closefd=False)


def _format_row(row: np.ndarray, decimals: int | None) -> str:
    """A frame's numbers; without `decimals` each the shortest that reads back as the same float32."""
    return " ".join(row.astype(str).tolist() if decimals is None else [f"{n:.{decimals}f}" for n in row.tolist()])


def write_ark(path: str | Path, features: Features) -> int:
    """Write a binary Kaldi archive of float matrices, and beside it an .scp. Returns the number of utterances.

    Args:
        path: ends in .ark; the .scp repeats it as it is given here, as Kaldi's tools do.
        features: utterances and their frames.

    Raises:
        InputError: an .scp cannot name the path.
    """
    path, offsets = Path(path), []
    check_scp_can_name(path)
    with atomic_write(path) as file:
        for utterance, frames in features:
            offsets.append((utterance, append_matrix(file, utterance, frames.shape, [frames])))
        path.with_suffix(".scp").unlink(missing_ok=True)  # an old one would point to the wrong bytes of the new .ark
    write_scp(path, offsets)
    return len(offsets)


def check_scp_can_name(path: Path) -> None:
    """Refuse an archive's path that an .scp would misread."""
    if any(c in str(path) for c in "|[]:\n") or str(path) != str(path).strip():
        raise InputError("an .scp cannot name this file; choose another name", str(path))


def append_matrix(
    file: BinaryIO,
    utterance: str,
    shape: tuple[int, int],
    blocks: Iterable[np.ndarray],
    span: tuple[float, float] | None = None,
) -> int:
    """Append an utterance to a binary archive. Returns the offset of its matrix, for the .scp.

    Args:
        file: the archive, at its end.
        utterance: its id.
        shape: (frames, size).
        blocks: its frames, (some frames, size) each, one after another.
        span: their lowest and highest number, to store 16 bits per number in equal steps between these (Kaldi's CM2);
            None for float32.
    """
    check_utterance_id(utterance, "archive")
    file.write(f"{utterance} ".encode())
    offset = file.tell()
    if span is None:
        file.write(BINARY_MARK + b"FM " + struct.pack("<bibi", 4, shape[0], 4, shape[1]))
    else:
        lowest, step = span[0], max(span[1] - span[0], np.finfo(np.float32).tiny) / CM2_STEPS
        file.write(BINARY_MARK + b"CM2 " + struct.pack("<ffii", lowest, step * CM2_STEPS, *shape))
    for block in blocks:
        block = np.ascontiguousarray(block, "<f4")
        file.write(block if span is None else np.rint((block - lowest) / step).clip(0, CM2_STEPS).astype("<u2"))
    return offset


def write_scp(ark: Path, offsets: Iterable[tuple[str, int]]) -> None:
    """Write the .scp beside an archive: each utterance, and where its matrix stands."""
    with atomic_write(ark.with_suffix(".scp")) as file:
        file.write("".join(f"{utterance} {ark}:{offset}\n" for utterance, offset in offsets).encode())
