"""Frames scaled as a corpus is: whose mean and variance, from where, and the utterances that they are applied to."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.corpus.normalization import NORMALIZATION_FILE, Normalizer, frame_sums, mean_and_std, scale
from utils.corpus.passes import Pass
from utils.corpus.sources import Source
from utils.corpus.speakers import Speakers
from utils.corpus.utterance import BadUtterance, Utterance
from utils.system.errors import InputError
from utils.system.signals import StopRequest

Statistics = tuple[np.ndarray, np.ndarray]  # mean and standard deviation, each (mel_dim,)


class Scaling(NamedTuple):
    """How a job scales frames.

    Attributes:
        norm: 'speaker', 'utterance', 'global' or 'none'.
        norm_from: a normalization.json to use instead.
        speakers: who speaks, for the modes that need it.
    """

    norm: str = "none"
    norm_from: Path | None = None
    speakers: Speakers = Speakers()

    def given(self) -> Normalizer | None:
        """The normalisation that needs no pass over the source, if any."""
        if self.norm_from:
            return Normalizer.load(self.norm_from)
        return None if self.norm in ("speaker", "global") else Normalizer(self.norm)

    def describe(self, prefix: str = "") -> dict[str, str]:
        """A fingerprint of the normalisation (JSON types), its keys with a prefix."""
        given = Normalizer.load(self.norm_from) if self.norm_from else None
        described = {f"{prefix}norm": given.digest() if given else self.norm}
        if (given.mode if given else self.norm) == "speaker":
            described[f"{prefix}speakers"] = self.speakers.digest()
        return described


@dataclass(frozen=True, kw_only=True)
class ScaledUtterance(Utterance):
    """An utterance of any source, its frames scaled.

    Attributes:
        source: the utterance.
        statistics: to scale by; None to leave frames as they are, or to scale them by their own.
        by_itself: scale by the utterance's own mean and standard deviation.
    """

    source: Utterance
    statistics: Statistics | None = None
    by_itself: bool = False

    @classmethod
    def of(cls, source: Utterance, statistics: Statistics | None = None, by_itself: bool = False) -> "ScaledUtterance":
        """An utterance and how to scale it."""
        return cls(
            id=source.id, location=source.location, size=source.size, folder=source.folder, source=source,
            statistics=statistics, by_itself=by_itself,
        )  # fmt: skip

    def long_frames(self) -> int | None:
        return self.source.long_frames()

    def remark(self) -> str | None:
        return self.source.remark()

    def _read(self) -> np.ndarray:
        frames = self.source.load()
        return _scaled(
            frames, mean_and_std(frame_sums(frames), "this utterance") if self.by_itself else self.statistics
        )

    def _read_blocks(self) -> Iterator[np.ndarray]:
        statistics = self.statistics
        if self.by_itself:  # read twice
            statistics = mean_and_std(sum_of_frames(self.source), "this utterance")
        for block in self.source.blocks():
            yield _scaled(block, statistics)


def _scaled(frames: np.ndarray, statistics: Statistics | None) -> np.ndarray:
    return frames if statistics is None else scale(frames, *statistics)


def sum_of_frames(utterance: Utterance) -> np.ndarray:
    """The `frame_sums` of an utterance of any length."""
    return sum(frame_sums(block) for block in utterance.blocks())


def scaled(source: Source, normalizer: Normalizer, speakers: Speakers) -> Iterator[Utterance]:
    """Every utterance, its frames scaled; one whose speaker has no statistics is a BadUtterance."""
    for utterance in source.unique():
        if isinstance(utterance, BadUtterance):
            yield utterance
        elif normalizer.mode in ("none", "utterance"):
            yield ScaledUtterance.of(utterance, by_itself=normalizer.mode == "utterance")
        else:
            try:
                group = speakers.group(utterance, normalizer.mode)
                yield ScaledUtterance.of(utterance, normalizer.statistics_of(group))
            except InputError as error:
                yield utterance.rejected(error)


def find_normalizer(
    source: Source, scaling: Scaling, directory: Path, num_workers: int, skip_errors: bool, stop: StopRequest
) -> Normalizer:
    """The normalisation of a job, kept in normalization.json of its output directory.

    Statistics that are not there yet take a pass over the source, added up in the order of the utterances: the same
    for any number of workers. It is done again where it is interrupted.
    """
    path = directory / NORMALIZATION_FILE
    normalizer = scaling.given()
    if normalizer is None and path.exists():
        return Normalizer.load(path)
    normalizer = normalizer or gather_statistics(source, scaling, num_workers, skip_errors, stop)
    if normalizer.mode != "none":
        normalizer.save(path)
    return normalizer


def gather_statistics(
    source: Source, scaling: Scaling, num_workers: int, skip_errors: bool, stop: StopRequest
) -> Normalizer:
    """The mean and variance of each speaker, or of all, from a pass over the source.

    Raises:
        InputError: an utterance is bad, or its speaker unknown, and errors are not skipped.
        Stopped: a signal came.
    """
    mode, speakers = scaling.norm, scaling.speakers
    sums: dict[str, np.ndarray] = {}
    statistics_pass = Pass(source, "gathering statistics", num_workers, skip_errors, stop)
    for utterance, of_utterance in statistics_pass.map(sum_of_frames, _of_known_speakers(source, speakers, mode)):
        if statistics_pass.has_size(utterance, of_utterance.shape[1] - 1):
            group = speakers.group(utterance, mode)
            sums[group] = sums.get(group, 0) + of_utterance
    return Normalizer.from_sums(mode, speakers, sums, skip_errors)


def _of_known_speakers(source: Source, speakers: Speakers, mode: str) -> Iterator[Utterance]:
    """Every utterance; one whose speaker is unknown is a BadUtterance."""
    for utterance in source.unique():
        if not isinstance(utterance, BadUtterance):
            try:
                speakers.group(utterance, mode)
            except InputError as error:
                utterance = utterance.rejected(error)
        yield utterance
