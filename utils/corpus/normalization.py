"""Normalisation of log-Mel frames by mean and variance, or by the mean alone, per speaker, utterance or corpus."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio.frames import FRAMES_PER_SECOND
from utils.corpus.speakers import EVERYBODY
from utils.system.errors import InputError, one_line
from utils.system.files import read_json, write_json

MEAN_ONLY = "-mean"  # at the end of a mode: the mean is removed, and the variance left as it is
UNBIASED = "-unbiased"  # at the end of a mode: the variance is divided by the number of frames less one
_MODES_OF_UTTERANCES = ("utterance", "utterance-mean", f"utterance{UNBIASED}")
MODES = ("speaker", "speaker-mean", *_MODES_OF_UTTERANCES, "global", "global-mean", "none")
NORMALIZATION_FILE = "normalization.json"
MAX_BYTES = 1 << 31  # of it: some 3 KB a speaker
MIN_RELATIVE_VARIANCE = 1e-10  # below it a bin is constant but for rounding
FEW_FRAMES = FRAMES_PER_SECOND  # a mean over fewer is the mean of a sound more than of a speaker

Statistics = tuple[np.ndarray, np.ndarray]  # mean and standard deviation, each (mel_dim,) float64


def frame_sums(frames: np.ndarray) -> np.ndarray:
    """What a mean and a variance of frames (frames, mel_dim) need, in Kaldi's CMVN layout.

    Returns:
        (2, mel_dim + 1) float64: [sums, number of frames] and [sums of squares, 0].
    """
    frames = frames.astype(np.float64)
    sums = np.zeros((2, frames.shape[1] + 1))
    sums[0, :-1], sums[0, -1] = frames.sum(axis=0), len(frames)
    sums[1, :-1] = np.square(frames).sum(axis=0)
    return sums


def scope(mode: str) -> str:
    """Over what a mode normalises: 'speaker', 'utterance', 'global' or 'none'."""
    return mode.partition("-")[0]


def mean_and_std(sums: np.ndarray, mode: str) -> Statistics:
    """Mean and standard deviation from `frame_sums`, each (mel_dim,) float64.

    The standard deviation is that of the population unless the mode says unbiased. 1 stands for it in a mode that
    removes the mean only, and where a bin never changes, as in digital silence or a single frame: it becomes 0.
    """
    frames = sums[0, -1]
    mean, mean_square = sums[:, :-1] / frames
    if mode.endswith(MEAN_ONLY):
        return mean, np.ones_like(mean)
    variance = mean_square - np.square(mean)
    if mode.endswith(UNBIASED):
        variance *= frames / max(1, frames - 1)
    return mean, np.sqrt(np.where(is_constant(sums), 1, variance))


def is_constant(sums: np.ndarray) -> np.ndarray:
    """Which bins never change, but for rounding: (mel_dim,) bool, from `frame_sums`."""
    mean, mean_square = sums[:, :-1] / sums[0, -1]
    return mean_square - np.square(mean) <= MIN_RELATIVE_VARIANCE * mean_square


def scale(log_mel: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """(frames, mel_dim) float32 with the mean taken off and divided by the standard deviation.

    Raises:
        InputError: the sizes disagree, or a frame becomes infinite.
    """
    if log_mel.shape[1] != len(mean):
        raise InputError(f"frames of size {log_mel.shape[1]}, but the normalisation is for size {len(mean)}")
    with np.errstate(over="ignore"):
        scaled = ((log_mel - mean) / std).astype(np.float32)
    if not np.isfinite(scaled).all():
        raise InputError("the normalisation makes its frames infinite: it is damaged, or of other data")
    return scaled


@dataclass(frozen=True)
class Normalizer:
    """Scales frames to zero mean and unit variance, or removes their mean.

    Attributes:
        mode: one of MODES.
        speakers_from: how an utterance's speaker was found, in words.
        statistics: of each speaker (or EVERYBODY).
        few_frames: the number of frames of each speaker that has less than a second of them.
        constant_bins: the number of bins of each speaker that never change, and are not scaled to unit variance.
    """

    mode: str
    speakers_from: str = ""
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    few_frames: Mapping[str, int] = field(default_factory=dict)
    constant_bins: Mapping[str, int] = field(default_factory=dict)

    def apply(self, log_mel: np.ndarray, speaker: str = "") -> np.ndarray:
        """An utterance (frames, mel_dim) normalised as the corpus was; `speaker` is for the modes of speakers only.

        Raises:
            InputError: a speaker without statistics, or another mel_dim.
        """
        if self.mode == "none":
            return log_mel
        if scope(self.mode) == "utterance":
            return scale(log_mel, *mean_and_std(frame_sums(log_mel), self.mode))
        return scale(log_mel, *self.statistics_of(EVERYBODY if scope(self.mode) == "global" else speaker))

    def statistics_of(self, speaker: str) -> Statistics:
        """The statistics of a speaker (or EVERYBODY). Raises InputError where there are none."""
        if speaker not in self.statistics:
            held = f"{NORMALIZATION_FILE} has a mean and variance for each of {len(self.statistics)} speakers"
            other = f", not for {one_line(speaker, 80)}" if speaker else ""
            raise InputError(f"{held}{other}")
        return self.statistics[speaker]

    def describe(self) -> str:
        """How frames are normalised, in words."""
        per_speaker = f"per speaker ({len(self.statistics)} speakers, by {self.speakers_from})"
        others = {"global": "over the whole corpus", "utterance": "per utterance", "none": "not at all"}
        text = others.get(scope(self.mode), per_speaker) + (", the mean only" if self.mode.endswith(MEAN_ONLY) else "")
        remarks = {
            "with less than a second of sound, so of little use": self.few_frames,
            "with bins of zero variance, which become 0": self.constant_bins,
        }
        for remark, speakers in remarks.items():
            if speakers:
                first = one_line(next(iter(speakers)), 80) + (", ..." if len(speakers) > 1 else "")
                text += f"; {len(speakers)} {remark}: {first}"
        return text

    def digest(self) -> str:
        """Hash that identifies this normalisation."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The content of normalization.json."""
        lists = {name: {"mean": mean.tolist(), "std": std.tolist()} for name, (mean, std) in self.statistics.items()}
        content = {"mode": self.mode, "speakers_from": self.speakers_from, "statistics": lists}
        remarks = {"few_frames": dict(self.few_frames), "constant_bins": dict(self.constant_bins)}
        return content | {name: remark for name, remark in remarks.items() if remark}

    def save(self, path: Path) -> None:
        """Write normalization.json."""
        write_json(path, self.to_json(), indent=None)

    @classmethod
    def load(cls, path: str | Path) -> "Normalizer":
        """Read normalization.json, or that of a prepared directory. Raises InputError: it is missing or damaged."""
        path = Path(path)
        path = path / NORMALIZATION_FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path} does not exist")
        return cls.from_json(read_json(path, MAX_BYTES), path)

    @classmethod
    def from_json(cls, content: Any, location: str | Path) -> "Normalizer":
        """What `to_json` gave. Raises InputError where it is damaged."""
        try:
            statistics = {
                name: (np.array(entry["mean"], np.float64), np.array(entry["std"], np.float64))
                for name, entry in content["statistics"].items()
            }
            mode, speakers_from = content["mode"], str(content["speakers_from"])
            counts = (content.get(key, {}) for key in ("few_frames", "constant_bins"))
            remarks = [{name: int(count) for name, count in of_speakers.items()} for of_speakers in counts]
            is_sound = mode in MODES and all(map(_is_sound, statistics.values()))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{location} is damaged: {one_line(repr(error), 120)}") from error
        if not is_sound:
            raise InputError(f"{location} is damaged: it does not hold a mode, and a mean and std for each speaker")
        return cls(mode, speakers_from, statistics, *remarks)


def _is_sound(statistics: Statistics) -> bool:
    """Whether these are finite numbers, as many of each, to scale a frame by."""
    mean, std = statistics
    return mean.ndim == 1 and mean.shape == std.shape and bool(np.isfinite(statistics).all() and (std > 0).all())
