"""What a worker process of prepare_data.py does with an utterance."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from utils.corpus.normalization import frame_sums
from utils.corpus.prepared import TENSOR_SUFFIX, save_tensor
from utils.system.errors import InputError
from utils.system.files import atomic_write

MAX_MEL_DIM = 1 << 14  # a frame of more numbers is a file of something else
RAW_SUFFIX = ".npy"


class Outcome(NamedTuple):
    """What came of an utterance: `error`, or the other fields. `frames` counts them after truncation."""

    frames: int = 0
    mel_dim: int = 0
    truncated: bool = False
    sums: np.ndarray | None = None
    error: str | None = None
    remark: str | None = None


class RawUtterance(NamedTuple):
    """An utterance whose raw frames are read from where a first pass left them, else from the source again."""

    utterance: str
    where: str
    num_bytes: int
    source: Any
    folder: Path

    def load(self) -> np.ndarray:
        """(frames, mel_dim) float32; at least one frame more than is kept, if there are more."""
        raw = read_raw(raw_path(self.folder, self.utterance))
        return self.source.load() if raw is None else raw[1]

    def remark(self) -> str | None:
        """What people should know of it."""
        return self.source.remark()

    def remove(self) -> None:
        """Remove the raw frames."""
        raw_path(self.folder, self.utterance).unlink(missing_ok=True)


class ToTensors(NamedTuple):
    """Write each utterance's tensor (max_seq_len, mel_dim)."""

    directory: Path
    max_seq_len: int

    def __call__(self, utterances: list[Any]) -> list[Outcome]:
        """One outcome an utterance."""
        return [_outcome(self._write, utterance) for utterance in utterances]

    def _write(self, utterance: Any) -> Outcome:
        frames = _load(utterance)
        length, mel_dim = min(len(frames), self.max_seq_len), frames.shape[1]
        padded = torch.zeros(self.max_seq_len, mel_dim)
        padded[:length] = torch.from_numpy(frames[:length])
        save_tensor(self.directory / f"{utterance.utterance}{TENSOR_SUFFIX}", padded)
        return Outcome(length, mel_dim, len(frames) > self.max_seq_len, remark=utterance.remark())


class ToRawFrames(NamedTuple):
    """Keep each utterance's raw frames in a folder, and return its sums. What is there already is not done again."""

    folder: Path
    max_seq_len: int

    def __call__(self, utterances: list[Any]) -> list[Outcome]:
        """One outcome an utterance."""
        return [_outcome(self._write, utterance) for utterance in utterances]

    def _write(self, utterance: Any) -> Outcome:
        path = raw_path(self.folder, utterance.utterance)
        raw = read_raw(path)
        if raw is None:
            frames = _load(utterance)
            raw = frame_sums(frames), frames
            content = io.BytesIO()  # what np.save cannot write to a file is an error without a reason
            np.save(content, raw[0])
            np.save(content, frames[: self.max_seq_len + 1])  # one more, to tell that it is truncated
            with atomic_write(path) as file:
                file.write(content.getbuffer())
        return Outcome(len(raw[1]), raw[1].shape[1], sums=raw[0])


def raw_path(folder: Path, utterance: str) -> Path:
    """Where an utterance's raw frames go."""
    return folder / f"{utterance}{RAW_SUFFIX}"


def read_raw(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """The sums and raw frames that a first pass left; None where it did not, or they are damaged."""
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            sums, frames = (np.lib.format.read_array(file, allow_pickle=False) for _ in range(2))
    except Exception:  # a damaged file raises nearly anything; MemoryError where it claims more than there is
        return None
    fits = frames.ndim == 2 and frames.dtype == np.float32 and sums.shape == (2, frames.shape[1] + 1)
    return (sums, frames) if fits else None


def _load(utterance: Any) -> np.ndarray:
    """(frames, mel_dim) float32 of a size that can be padded."""
    frames = utterance.load()
    if frames.shape[1] > MAX_MEL_DIM:
        raise InputError(
            f"{utterance.where}: utterance {utterance.utterance}: {frames.shape[1]} numbers are not a frame "
            f"(at most {MAX_MEL_DIM})"
        )
    return frames


def _outcome(work: Callable[[Any], Outcome], utterance: Any) -> Outcome:
    try:
        return work(utterance)
    except InputError as error:
        return Outcome(error=str(error))
