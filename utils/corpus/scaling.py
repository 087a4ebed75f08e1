"""Frames scaled as a corpus is: whose mean and variance, from where, and the utterances that they are applied to."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.corpus.audio_source import AudioSource
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.normalization import (
    FEW_FRAMES,
    MEAN_ONLY,
    NORMALIZATION_FILE,
    Normalizer,
    Statistics,
    frame_sums,
    is_constant,
    mean_and_std,
    scale,
    scope,
)
from utils.corpus.passes import Pass
from utils.corpus.sources import Source
from utils.corpus.speakers import Speakers
from utils.corpus.utterance import BadUtterance, Utterance
from utils.system.errors import InputError


class Scaling(NamedTuple):
    """How a job scales frames.

    Attributes:
        norm: one of normalization.MODES.
        given: the statistics to scale by, in that mode; None where they are gathered from the frames.
        speakers: who speaks, for the modes that need it.
    """

    norm: str = "none"
    given: Normalizer | None = None
    speakers: Speakers = Speakers()

    @classmethod
    def by(cls, normalizer: Normalizer) -> "Scaling":
        """Scale by these statistics."""
        return cls(normalizer.mode, normalizer)

    @classmethod
    def of_model(cls, spec: FrameSpec, source: Source) -> "Scaling":
        """Scale audio as a model's frames were, or where that is unknown as its front end does; never frames again."""
        if not isinstance(source, AudioSource):
            return cls()
        return cls.by(spec.normalizer) if spec.normalization else cls(spec.norm or source.front_end.norm)

    def describe(self, prefix: str = "") -> dict[str, str]:
        """What identifies the normalisation (JSON types), its keys with a prefix."""
        described = {f"{prefix}norm": self.given.digest() if self.given else self.norm}
        if scope(self.norm) == "speaker":
            described[f"{prefix}speakers"] = self.speakers.digest()
        return described

    def frame_spec(self, source: Source) -> FrameSpec:
        """How a source's frames are made when they are scaled."""
        if self.given:
            return source.frame_spec.scaled_by(self.given)
        return source.frame_spec if self.norm == "none" else replace(source.frame_spec, norm=self.norm)


@dataclass(frozen=True, kw_only=True)
class ScaledUtterance(Utterance):
    """An utterance of any source, its frames scaled in a mode by statistics, or where they are None by its own."""

    source: Utterance
    mode: str
    statistics: Statistics | None
    constant_bins: list[int] = field(default_factory=list)  # how many, of its own statistics; known when it is read

    def long_frames(self) -> int | None:
        return self.source.long_frames()

    def remark(self) -> str | None:
        constant = f"{self.location}: zero variance in {self.constant_bins[0]} bins" if self.constant_bins else None
        return self.source.remark() or constant

    def _read(self) -> np.ndarray:
        frames = self.source.load()
        return scale(frames, *(self.statistics or self._own_statistics(frame_sums(frames))))

    def _read_blocks(self) -> Iterator[np.ndarray]:
        statistics = self.statistics or self._own_statistics(sum_of_frames(self.source))  # a first reading
        for block in self.source.blocks():
            yield scale(block, *statistics)

    def _own_statistics(self, sums: np.ndarray) -> Statistics:
        constant = int(is_constant(sums).sum())
        self.constant_bins[:] = [constant] if constant and not self.mode.endswith(MEAN_ONLY) else []
        return mean_and_std(sums, self.mode)


def sum_of_frames(utterance: Utterance) -> np.ndarray:
    """The `frame_sums` of an utterance of any length."""
    return sum(frame_sums(block) for block in utterance.blocks())


def scaled(source: Source, normalizer: Normalizer, speakers: Speakers) -> Iterator[Utterance]:
    """Every utterance, its frames scaled; one whose speaker has no statistics is a BadUtterance."""
    mode = normalizer.mode

    def scale_one(utterance: Utterance) -> Utterance:
        if mode == "none":
            return utterance
        over = scope(mode)
        statistics = None if over == "utterance" else normalizer.statistics_of(speakers.group(utterance, over))
        place = {"id": utterance.id, "location": utterance.location, "size": utterance.size}
        return ScaledUtterance(**place, source=utterance, mode=mode, statistics=statistics)

    return _change_each(source, scale_one)


def _change_each(source: Source, change: Callable[[Utterance], Utterance]) -> Iterator[Utterance]:
    """Every utterance, changed; one for which that raises InputError is a BadUtterance."""
    for utterance in source.unique():
        if not isinstance(utterance, BadUtterance):
            try:
                utterance = change(utterance)
            except InputError as error:
                utterance = utterance.rejected(error, is_read=True)
        yield utterance


def find_normalizer(reading: Pass, scaling: Scaling, directory: Path) -> Normalizer:
    """The normalisation of a job, kept in normalization.json of its output directory.

    Statistics that are not there yet take a pass over the source, added up in the order of the utterances: the same
    for any number of workers. It is done again where it is interrupted.
    """
    path = directory / NORMALIZATION_FILE
    if scaling.given:
        normalizer = scaling.given
    elif scope(scaling.norm) in ("utterance", "none"):
        normalizer = Normalizer(scaling.norm)
    elif path.exists():
        return Normalizer.load(path)
    else:
        normalizer = _gather_statistics(reading, scaling)
    if normalizer.mode != "none":
        normalizer.save(path)
    return normalizer


def _gather_statistics(reading: Pass, scaling: Scaling) -> Normalizer:
    """The mean and variance of each speaker, or of all, from a pass over the source.

    Raises:
        InputError: an utterance is bad or its speaker unknown, and errors are not skipped.
        Stopped: a signal came.
    """
    mode, over, speakers = scaling.norm, scope(scaling.norm), scaling.speakers

    def check_speaker(utterance: Utterance) -> Utterance:
        speakers.group(utterance, over)
        return utterance

    sums: dict[str, np.ndarray] = {}
    utterances = _change_each(reading.source, check_speaker)
    for utterance, of_utterance in reading.map("gathering statistics", sum_of_frames, utterances):
        if reading.keep_if_same_size(utterance, of_utterance.shape[1] - 1):
            group = speakers.group(utterance, over)
            sums[group] = sums.get(group, 0) + of_utterance
    statistics = {name: mean_and_std(of_speaker, mode) for name, of_speaker in sums.items()}
    few = {name: int(of_speaker[0, -1]) for name, of_speaker in sums.items() if of_speaker[0, -1] < FEW_FRAMES}
    constant = {name: int(count) for name in sums if (count := is_constant(sums[name]).sum())}
    constant = {} if mode.endswith(MEAN_ONLY) else constant
    return Normalizer(mode, speakers.describe() if over == "speaker" else "", statistics, few, constant)
