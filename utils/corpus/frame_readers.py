"""The frames of utterances from any source, normalised, whole or piece by piece."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from utils.corpus.normalization import Normalizer, Speakers, frame_sums, mean_and_std, scale
from utils.corpus.sources import Source, unique_utterances
from utils.kaldi.matrices import BadUtterance
from utils.system.errors import InputError
from utils.system.signals import StopRequest
from utils.system.workers import ordered_map


class NormalizedUtterance(NamedTuple):
    """An utterance of any source, and how its frames are scaled.

    Attributes:
        source: the utterance.
        statistics: mean and standard deviation, each (mel_dim,); or None.
        by_itself: scale by its own mean and standard deviation.
    """

    source: Any
    statistics: tuple[np.ndarray, np.ndarray] | None = None
    by_itself: bool = False

    @property
    def utterance(self) -> str:
        """The id."""
        return self.source.utterance

    @property
    def where(self) -> str:
        """The place it comes from, for errors."""
        return self.source.where

    @property
    def num_bytes(self) -> int:
        """Its size in the source."""
        return self.source.num_bytes

    def long_frames(self) -> int | None:
        """About how many frames it has, if they should be read piece by piece; else None."""
        return self.source.long_frames() if hasattr(self.source, "long_frames") else None

    def remark(self) -> str | None:
        """What people should know of it though it is read: that it is shorter than its header promises."""
        return self.source.remark()

    def load(self) -> np.ndarray:
        """All frames, (frames, mel_dim) float32. Raises InputError, naming the utterance."""
        frames = self.source.load()
        return self._scaled(frames, self._own(frame_sums(frames)) if self.by_itself else self.statistics)

    def blocks(self) -> Iterator[np.ndarray]:
        """The frames of `load`, a block after another. Where they are scaled by themselves, they are read twice."""
        statistics = self.statistics
        if self.by_itself:
            statistics = self._own(sum(frame_sums(block) for block in _blocks(self.source)))
        for block in _blocks(self.source):
            yield self._scaled(block, statistics)

    def _own(self, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            return mean_and_std(sums, "this utterance")
        except InputError as error:
            raise self._error(error) from error

    def _scaled(self, frames: np.ndarray, statistics: tuple[np.ndarray, np.ndarray] | None) -> np.ndarray:
        if statistics is None:
            return frames
        try:
            return scale(frames, *statistics)
        except InputError as error:
            raise self._error(error) from error

    def _error(self, error: InputError) -> InputError:
        return InputError(f"{self.where}: utterance {self.utterance}: {error}")


def _blocks(utterance: Any) -> Iterator[np.ndarray]:
    """An utterance's frames, (some frames, mel_dim) a block: a long recording's never all at once."""
    if hasattr(utterance, "blocks"):
        yield from utterance.blocks()
    else:
        yield utterance.load()


class FrameReader:
    """Gives frames a number at a time.

    Args:
        blocks: frames, (some frames, mel_dim) a block.
    """

    def __init__(self, blocks: Iterator[np.ndarray]) -> None:
        self._blocks = blocks
        self._rest: np.ndarray | None = None

    def read(self, frames: int) -> np.ndarray | None:
        """The next so many frames (frames, mel_dim), fewer at the end, None behind it."""
        pieces = [] if self._rest is None else [self._rest]
        while sum(map(len, pieces)) < frames and (block := next(self._blocks, None)) is not None:
            pieces.append(block)
        if not pieces:
            return None
        together = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        self._rest = together[frames:] if len(together) > frames else None
        return together[:frames] if len(together) else None


def normalized(source: Source, normalizer: Normalizer, speakers: Speakers) -> Iterator[NormalizedUtterance]:
    """Every utterance with the statistics that its frames are scaled by; one without any is a BadUtterance."""
    for found in unique_utterances(source):
        if normalizer.mode in ("none", "utterance") or isinstance(found, BadUtterance):
            yield NormalizedUtterance(found, by_itself=normalizer.mode == "utterance")
            continue
        try:
            yield NormalizedUtterance(found, normalizer.statistics_of(speakers.group(found, normalizer.mode)))
        except InputError as error:
            yield NormalizedUtterance(BadUtterance.instead_of(found, error))


def of_known_speakers(source: Source, speakers: Speakers, mode: str) -> Iterator[Any]:
    """The source's utterances; one of which it is not known whose statistics it is part of is a BadUtterance."""
    for found in unique_utterances(source):
        if not isinstance(found, BadUtterance):
            try:
                speakers.group(found, mode)
            except InputError as error:
                found = BadUtterance.instead_of(found, error)
        yield found


def gather_statistics(
    source: Source, mode: str, speakers: Speakers, num_workers: int, skip_errors: bool, stop: StopRequest
) -> Normalizer:
    """The mean and variance of each speaker, or of all, from a pass over the source.

    Args:
        source: what is read.
        mode: 'speaker' or 'global'.
        speakers: who speaks.
        num_workers: processes; 0 reads in this one.
        skip_errors: leave bad utterances out, and speakers whose frames never change.
        stop: looked at after each utterance.

    Raises:
        InputError: an utterance is bad.
        Stopped: a signal came.
    """
    sums: dict[str, np.ndarray] = {}
    bar = tqdm(desc="gathering statistics", total=source.total(), unit=source.unit, disable=None)
    shape = None  # of the first good utterance's sums
    results = ordered_map(_utterance_sums, of_known_speakers(source, speakers, mode), num_workers)
    with bar, contextlib.closing(results):
        for utterance, (of_utterance, error) in results:
            if error is None:
                shape = shape or of_utterance.shape
                if of_utterance.shape != shape:
                    sizes = f"frames of size {of_utterance.shape[1] - 1}, but those of the first have {shape[1] - 1}"
                    error = f"{utterance.where}: utterance {utterance.utterance}: {sizes}"
            if error is None:
                group = speakers.group(utterance, mode)
                sums[group] = sums.get(group, 0) + of_utterance
            elif not skip_errors:
                raise InputError(f"{error}; --on_error skip leaves such utterances out")
            bar.update(utterance.num_bytes if source.unit == "B" else 1)
            stop.check()
    return Normalizer.from_sums(mode, speakers, sums, skip_errors)


def _utterance_sums(utterance: Any) -> tuple[np.ndarray | None, str | None]:
    """An utterance's `frame_sums`, or what is wrong with it."""
    try:
        return sum(frame_sums(block) for block in _blocks(utterance)), None
    except InputError as error:
        return None, str(error)
