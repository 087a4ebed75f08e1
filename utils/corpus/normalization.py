"""Mean and variance normalisation of log-Mel frames, per speaker, utterance or corpus."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.corpus.speakers import EVERYBODY, Speakers
from utils.system.errors import InputError, one_line
from utils.system.files import read_json, write_json

MODES = ("speaker", "utterance", "global", "none")
NORMALIZATION_FILE = "normalization.json"
MIN_RELATIVE_VARIANCE = 1e-10  # below it a bin is constant but for rounding


def frame_sums(frames: np.ndarray) -> np.ndarray:
    """What a mean and a variance need, in Kaldi's CMVN layout.

    Args:
        frames: (frames, mel_dim) float32.

    Returns:
        (2, mel_dim + 1) float64: [sums, number of frames] and [sums of squares, 0].
    """
    frames = frames.astype(np.float64)
    sums = np.zeros((2, frames.shape[1] + 1))
    sums[0, :-1], sums[0, -1] = frames.sum(axis=0), len(frames)
    sums[1, :-1] = np.square(frames).sum(axis=0)
    return sums


def mean_and_std(sums: np.ndarray, whose: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and (population) standard deviation from `frame_sums`, each (mel_dim,) float64.

    Raises:
        InputError: a bin never changes, so it cannot be scaled to unit variance.
    """
    frames = sums[0, -1]
    mean, mean_square = sums[0, :-1] / frames, sums[1, :-1] / frames
    variance = mean_square - np.square(mean)
    constant = variance <= MIN_RELATIVE_VARIANCE * mean_square
    if constant.any():
        raise InputError(
            f"{whose}: bin {int(np.argmax(constant)) + 1} of {len(mean)} has zero variance over {int(frames)} frames"
        )
    return mean, np.sqrt(variance)


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


class Normalizer:
    """Scales frames to zero mean and unit variance.

    Args:
        mode: 'speaker', 'utterance', 'global' or 'none'.
        speakers_from: how an utterance's speaker was found, in words.
        statistics: mean and standard deviation, each (mel_dim,) float64, for each speaker (or EVERYBODY).
    """

    def __init__(
        self,
        mode: str,
        speakers_from: str = "",
        statistics: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    ) -> None:
        self.mode = mode
        self.speakers_from = speakers_from
        self.statistics = dict(statistics or {})

    @classmethod
    def from_sums(
        cls, mode: str, speakers: Speakers, sums: Mapping[str, np.ndarray], skip_errors: bool
    ) -> "Normalizer":
        """The normalisation by statistics that were gathered.

        Args:
            mode: 'speaker' or 'global'.
            speakers: who speaks.
            sums: `frame_sums` of all frames of each speaker (or EVERYBODY), (2, mel_dim + 1) float64.
            skip_errors: leave out speakers with a bin that never changes, instead of raising InputError.
        """
        statistics = {}
        for speaker, of_speaker in sums.items():
            try:
                statistics[speaker] = mean_and_std(of_speaker, f"speaker {one_line(speaker, 80)}")
            except InputError:
                if not skip_errors:
                    raise
        return cls(mode, speakers.describe() if mode == "speaker" else "", statistics)

    def apply(self, log_mel: np.ndarray, speaker: str = "") -> np.ndarray:
        """Normalise an utterance as the corpus was.

        Args:
            log_mel: (frames, mel_dim) float32.
            speaker: needed in the mode 'speaker' only.

        Returns:
            (frames, mel_dim) float32.

        Raises:
            InputError: a speaker without statistics, another mel_dim, or a bin without variance.
        """
        if self.mode == "none":
            return log_mel
        if self.mode == "utterance":
            mean, std = mean_and_std(frame_sums(log_mel), "this utterance")
        else:
            mean, std = self.statistics_of(EVERYBODY if self.mode == "global" else speaker)
        return scale(log_mel, mean, std)

    def statistics_of(self, speaker: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of a speaker (or EVERYBODY). Raises InputError where there are none."""
        if speaker not in self.statistics:
            raise InputError(f"speaker {one_line(speaker, 80)} has no mean and variance to normalise by "
                             "(one per speaker is for its speakers only; --norm global makes one for any)")  # fmt: skip
        return self.statistics[speaker]

    def describe(self) -> str:
        """How frames are normalised, in words."""
        if self.mode == "speaker":
            return f"per speaker ({len(self.statistics)} speakers, by {self.speakers_from})"
        return {"global": "over the whole corpus", "utterance": "per utterance", "none": "not at all"}[self.mode]

    def digest(self) -> str:
        """What tells this normalisation from others."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def _content(self) -> dict[str, Any]:
        statistics = {
            name: {"mean": mean.tolist(), "std": std.tolist()} for name, (mean, std) in self.statistics.items()
        }
        return {"mode": self.mode, "speakers_from": self.speakers_from, "statistics": statistics}

    def save(self, path: Path) -> None:
        """Write normalization.json."""
        write_json(path, self._content())

    @classmethod
    def load(cls, path: str | Path) -> "Normalizer":
        """Read normalization.json (or the one in a prepared directory).

        Raises:
            InputError: the file is missing or damaged.
        """
        path = Path(path)
        path = path / NORMALIZATION_FILE if path.is_dir() else path
        if not path.is_file():
            raise InputError(f"{path} does not exist")
        content = read_json(path)
        try:
            statistics = {
                name: (np.array(entry["mean"], np.float64), np.array(entry["std"], np.float64))
                for name, entry in content["statistics"].items()
            }
            mode, speakers_from = content["mode"], str(content["speakers_from"])
            sound = mode in MODES and all(
                mean.ndim == 1 and mean.shape == std.shape and np.isfinite(mean).all()
                and np.isfinite(std).all() and (std > 0).all() for mean, std in statistics.values()
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise InputError(f"{path} is damaged: {one_line(repr(error), 120)}") from error
        if not sound:
            raise InputError(f"{path} is damaged: it does not hold a mode, and a mean and std for each speaker")
        return cls(mode, speakers_from, statistics)
