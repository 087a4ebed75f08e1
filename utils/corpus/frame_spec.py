"""How frames were made: a record that travels from prepared data to the models that are trained on them."""

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from utils.audio.frames import SAMPLE_RATE
from utils.audio.front_ends import FRONT_ENDS, FrontEnd, find_front_end, with_front_end
from utils.corpus.normalization import (
    MODES,
    NORMALIZATION_FILE,
    Normalizer,
    frame_sums,
    mean_and_std,
    scale,
    scope,
)
from utils.corpus.output_directory import MADE_FROM_FILE
from utils.system.errors import InputError, one_line
from utils.system.files import read_json

RECORDED = "front_end", "dither", "norm", "normalization"
ARCHIVES_OF = "frames_of"  # in a made_from.json: the front end of archives, as the user gave it
AUTHORS_NAME = re.compile(r"(train|dev|test)-(clean|other)(-\d+)?-hires-norm[.-]blogmel(\.xz|\.gz)?")


@dataclass(frozen=True, kw_only=True)
class FrameSpec:
    """How log-Mel frames are made from a waveform. None stands for what is unknown, as of an archive.

    Attributes:
        front_end: its name in FRONT_ENDS.
        dither: standard deviation of the noise, for samples in the range of int16.
        norm: how frames are normalised, one of normalization.MODES.
        normalization: in a global mode, the mean and variance that frames are scaled by, as in normalization.json.
        is_assumed: whether nothing was recorded, so that these are the settings used before recording began.
    """

    front_end: str | None = None
    dither: float | None = None
    norm: str | None = None
    normalization: dict[str, Any] | None = None
    is_assumed: bool = False

    @classmethod
    def of_front_end(cls, front_end: FrontEnd, is_assumed: bool = False) -> "FrameSpec":
        """Frames of a front end, normalised as it does."""
        spec = {"front_end": front_end.name, "dither": front_end.dither, "norm": front_end.norm}
        return cls(**spec, is_assumed=is_assumed)

    @classmethod
    def of_archives(cls, names: Sequence[str]) -> "FrameSpec":
        """Frames of archives, or of released prepared directories: known where all are named as the authors'."""
        is_authors = bool(names) and all(AUTHORS_NAME.fullmatch(name) for name in names)
        return cls.of_front_end(FRONT_ENDS["released"]) if is_authors else cls()

    @classmethod
    def of_directory(cls, directory: Path) -> "FrameSpec":
        """Frames of a prepared directory, by its made_from.json and normalization.json. InputError: damaged."""
        path = directory / MADE_FROM_FILE
        written = read_json(path) if path.exists() else {"archives": [{"name": directory.name}]}
        made_from = with_front_end(written)
        if "front_end" in made_from:
            spec = cls.from_json({key: made_from.get(key) for key in ("front_end", "dither")} | {"norm": "none"}, path)
        elif ARCHIVES_OF in made_from:
            spec = cls.of_front_end(find_front_end(str(made_from[ARCHIVES_OF])))
        else:
            archives = made_from.get("archives")
            names = [str(archive.get("name")) for archive in archives or () if isinstance(archive, dict)]
            spec = cls.of_archives(names)
        spec = replace(spec, is_assumed="front_end" in made_from.keys() - written.keys())
        path = directory / NORMALIZATION_FILE
        return spec.scaled_by(Normalizer.load(path)) if path.exists() else spec

    @classmethod
    def from_json(cls, content: Any, location: str | Path) -> "FrameSpec":
        """What `to_json` gave. Raises InputError where it is damaged, or of a front end that is unknown here."""
        if not isinstance(content, dict):
            raise InputError(f"{location} is damaged: how frames were made is a {type(content).__name__}")
        front_end, dither, norm, normalization = map(content.get, RECORDED)
        if front_end is not None and front_end not in FRONT_ENDS:
            name = one_line(repr(front_end), 40)
            raise InputError(f"{location}: the front end {name} is unknown: there are {', '.join(FRONT_ENDS)}")
        if norm not in (None, *MODES) or not isinstance(dither, int | float | None):
            found = f"norm {one_line(repr(norm), 40)} and dither {one_line(repr(dither), 40)}"
            raise InputError(f"{location} is damaged: {found} are not valid settings")
        if normalization is not None:
            Normalizer.from_json(normalization, location)
        return cls(front_end=front_end, dither=dither, norm=norm, normalization=normalization)

    def to_json(self) -> dict[str, Any]:
        """What is known, as JSON types."""
        return {key: value for key in RECORDED if (value := getattr(self, key)) is not None}

    @property
    def normalizer(self) -> Normalizer | None:
        """What scales unheard audio; None where statistics are to be gathered first, or the mode is unknown."""
        if self.normalization:
            return Normalizer.from_json(self.normalization, "the model's normalisation")
        return Normalizer(self.norm) if self.norm and scope(self.norm) in ("utterance", "none") else None

    def make_frames(self, waveform: np.ndarray, sample_rate: int, seed: str = "") -> np.ndarray:
        """The frames of a waveform, float32 (frames, 80); a norm by speaker takes the waveform's statistics.

        What is unknown is taken from the default front end, with a warning.

        Args:
            waveform: (samples,) or (1, samples), either floating point in [-1, 1] or int16.
            sample_rate: in Hz; above 16000 the waveform is resampled, below it is an InputError.
            seed: of the dither, if the front end has one: an utterance's id.
        """
        from utils.audio.log_mel import log_mel

        front_end = find_front_end(self.front_end, self.dither)
        norm = self.norm or front_end.norm
        if not self.is_known:
            said = f"whether the model reads frames of front end {front_end.name}, norm {norm}, is not known"
            warnings.warn(said, stacklevel=3)
        waveform = waveform[0] if waveform.ndim == 2 and len(waveform) == 1 else waveform
        frames = log_mel(_resample(waveform, sample_rate), front_end=front_end, seed=seed)
        if self.normalizer:
            return self.normalizer.apply(frames)
        if scope(norm) == "global":
            warnings.warn(
                "frames are scaled by this waveform's mean and variance: the model has no others", stacklevel=3
            )
        return frames if norm == "none" else scale(frames, *mean_and_std(frame_sums(frames), norm))

    def changed(
        self, front_end: str | None = None, dither: float | None = None, norm: str | None = None
    ) -> "FrameSpec":
        """A copy with what is given replaced. Another front end brings its own dither and norm.

        Raises:
            InputError: there is no front end or no norm of that name.
        """
        if norm not in (None, *MODES):
            raise InputError(f"no norm is named {norm!r:.40}: there are {', '.join(MODES)}")
        is_same = front_end in (None, self.front_end)
        spec = self if is_same else FrameSpec.of_front_end(find_front_end(front_end))
        spec = spec if dither is None else replace(spec, dither=dither)
        return spec if norm in (None, spec.norm) else replace(spec, norm=norm, normalization=None)

    def scaled_by(self, normalizer: Normalizer) -> "FrameSpec":
        """These frames, normalised; the statistics are kept where they are those of all speakers."""
        is_global = scope(normalizer.mode) == "global"
        return replace(self, norm=normalizer.mode, normalization=normalizer.to_json() if is_global else None)

    @property
    def is_known(self) -> bool:
        """Whether front end and normalisation are known."""
        return None not in (self.front_end, self.norm)

    def describe(self) -> str:
        """These settings in a few words."""
        front_end = f"front end {self.front_end}" if self.front_end else "unknown front end"
        if self.front_end and self.dither not in (None, FRONT_ENDS[self.front_end].dither):
            front_end += f" with dither {self.dither:g}"
        text = f"{front_end}, {f'norm {self.norm}' if self.norm else 'unknown norm'}"
        return f"{text} (assumed: it was not recorded)" if self.is_assumed else text

    def differences(self, other: "FrameSpec") -> list[str]:
        """What is known of both and differs."""
        found = []
        if None not in (self.front_end, other.front_end) and self.front_end != other.front_end:
            found.append(f"front end {self.front_end}, not {other.front_end}")
        elif None not in (self.dither, other.dither) and self.dither != other.dither:
            found.append(f"dither {self.dither:g}, not {other.dither:g}")
        if None not in (self.norm, other.norm) and self.norm != other.norm:
            found.append(f"norm {self.norm}, not {other.norm}")
        elif self.norm == other.norm and self.normalization != other.normalization:
            found.append(f"norm {self.norm} by another mean and variance (--norm_from takes those of other data)")
        return found


def _resample(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """A waveform (samples,) at 16 kHz. Raises InputError for a lower rate, whose upper bins would be empty."""
    if sample_rate == SAMPLE_RATE:
        return waveform
    if sample_rate < SAMPLE_RATE:
        raise InputError(f"the sample rate is {sample_rate} Hz: the bins above {sample_rate / 2:g} Hz would be empty")
    import soxr

    from utils.audio.log_mel import check_type

    waveform = np.asarray(waveform)
    check_type(waveform)
    if waveform.dtype not in (np.int16, np.float64):
        waveform = waveform.astype(np.float32)  # soxr takes no half precision
    return soxr.resample(waveform, sample_rate, SAMPLE_RATE)


UNKNOWN = FrameSpec()


def common(specs: Iterable[FrameSpec]) -> FrameSpec:
    """The settings that all of these share; the others are None."""
    first, *others = specs
    names = [name for name in vars(first) if all(getattr(other, name) == getattr(first, name) for other in others)]
    return FrameSpec(**{name: getattr(first, name) for name in names})


def refuse_mixture(specs: Mapping[str | Path, FrameSpec], advice: str) -> None:
    """Raise InputError where frames of two places were made or scaled in different ways; with advice."""
    for (one, first), (other, second) in combinations(specs.items(), 2):
        if differences := second.differences(first):
            raise InputError(f"{other} differs from {one}: {'; '.join(differences)}; prepare both alike, or {advice}")


def check_fit(data: FrameSpec, place: object, model: FrameSpec, any_frames: bool) -> list[str]:
    """Warnings where it is not certain that frames are like those that a model was trained on.

    Raises:
        InputError: they are not, and `any_frames` does not allow it; names both.
    """
    if differences := data.differences(model):
        line = f"frames of {place} differ from those that the model was trained on: {'; '.join(differences)}"
        if any_frames or model.is_assumed:
            return [line]
        raise InputError(f"{line}; --any_frames uses them nevertheless")
    if not (data.is_known and model.is_known):
        said = f"frames of {place}: {data.describe()}; the model's: {model.describe()}"
        return [f"{said}: whether they fit is not known"]
    return []
