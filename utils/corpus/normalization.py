"""Mean and variance normalisation of log-Mel frames, per speaker, utterance or corpus."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.kaldi.byte_reader import ByteReader
from utils.system.errors import InputError, one_line
from utils.system.files import read_json, write_json

MODES = ("speaker", "utterance", "global", "none")
NORMALIZATION_FILE = "normalization.json"
EVERYBODY = "all speakers"  # whose statistics the global mode uses
MIN_RELATIVE_VARIANCE = 1e-10  # below it a bin is constant but for rounding
MAX_MAP_LINE_BYTES = 16 << 20  # a line of spk2utt holds every utterance of a speaker
LIBRISPEECH_ID = re.compile(r"(?P<speaker>[A-Za-z0-9_]+)-[A-Za-z0-9_]+-[A-Za-z0-9_]+")
BY_ID, BY_FOLDER, BY_MAP = "the utterance id's first field", "the parent directory", "a map of speakers"


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
        cls, mode: str, speakers: "Speakers", sums: Mapping[str, np.ndarray], skip_errors: bool
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
            return f"per speaker ({len(self.statistics)} speakers, told by {self.speakers_from})"
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


class Speakers:
    """Who speaks in an utterance.

    Args:
        rule: BY_ID, BY_FOLDER or BY_MAP.
        of_utterance: for BY_MAP, the speaker of each utterance.
        source: for BY_MAP, the file, for errors.
    """

    def __init__(self, rule: str = BY_ID, of_utterance: Mapping[str, str] | None = None, source: str = "") -> None:
        self.rule = rule
        self.source = source
        self._of_utterance = of_utterance or {}

    @classmethod
    def read(cls, path: str | Path, speaker_first: bool) -> "Speakers":
        """Read Kaldi's utt2spk (`utterance speaker` a line) or, with `speaker_first`, spk2utt.

        Raises:
            InputError: a line of another form, or an utterance of two speakers; names the line.
        """
        speakers: dict[str, str] = {}
        with ByteReader(path) as reader:
            number = 0
            while reader.peek(1):
                number += 1
                raw = reader.take_until(b"\n", MAX_MAP_LINE_BYTES)
                raw = reader.take(MAX_MAP_LINE_BYTES) if raw is None else raw
                fields = raw.decode(errors="replace").split()
                if len(fields) < 2 or (len(fields) > 2 and not speaker_first):
                    form = "speaker utterance..." if speaker_first else "utterance speaker"
                    raise InputError(f"{path}:{number}: a line should be `{form}`")
                speaker, utterances = (fields[0], fields[1:]) if speaker_first else (fields[1], fields[:1])
                for utterance in utterances:
                    if speakers.setdefault(utterance, speaker) != speaker:
                        raise InputError(f"{path}:{number}: utterance {one_line(utterance, 80)} has two speakers")
            if reader.damage:
                raise InputError(f"{path}:{number}: the rest cannot be read: {reader.damage}")
        return cls(BY_MAP, speakers, str(path))

    def of(self, utterance: str, folder: str | None = None) -> str:
        """The speaker of an utterance.

        Args:
            utterance: its id.
            folder: the directory that its audio file lies in.

        Raises:
            InputError: the rule does not say.
        """
        if self.rule == BY_MAP:
            if utterance not in self._of_utterance:
                raise InputError(f"{self.source} has no speaker for utterance {utterance}")
            return self._of_utterance[utterance]
        if self.rule == BY_FOLDER and folder is not None:
            return folder
        found = LIBRISPEECH_ID.fullmatch(utterance)
        if not found:
            raise InputError(
                f"utterance {utterance}: no speaker can be told from its id; give --utt2spk, or another --norm"
            )
        return found["speaker"]

    def group(self, utterance: Any, mode: str) -> str:
        """Whose statistics an utterance (of any source) is part of in a mode: its speaker's, or EVERYBODY's."""
        if mode == "global":
            return EVERYBODY
        return self.of(utterance.utterance, getattr(utterance, "folder", None))

    def describe(self) -> str:
        """The rule in words, for people and for normalization.json."""
        return f"{self.rule} ({Path(self.source).name})" if self.source else self.rule

    def digest(self) -> str:
        """What tells this rule from others."""
        of_utterance = json.dumps(dict(self._of_utterance), sort_keys=True)
        return (
            f"{self.rule}, sha256 {hashlib.sha256(of_utterance.encode()).hexdigest()}"
            if self._of_utterance
            else self.rule
        )
