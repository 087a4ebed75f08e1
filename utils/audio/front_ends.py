"""Front ends by name: the filterbank that turns a waveform into log-Mel frames, and how these are normalised."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from utils.audio.frames import INT16_SCALE, NUM_MEL_BINS
from utils.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class FrontEnd:
    """A log-Mel filterbank of Kaldi's, of 25 ms windows every 10 ms.

    Attributes:
        name: its name in FRONT_ENDS.
        window: Kaldi's window type, 'hamming' or 'povey'.
        low_freq, high_freq: the edges of the lowest and the highest bin, in Hz.
        dither: standard deviation of the noise that is added to the waveform, for samples in the range of int16.
        norm: how its frames are normalised unless something else is asked for, one of normalization.MODES.
        source: where these numbers come from, and what of it cannot be matched.
        num_mel_bins: the size of a frame.
        full_scale: what a sample of 1 counts as. Energies have a floor of 2^-23 in any case.
    """

    name: str
    window: str
    low_freq: float
    high_freq: float
    dither: float
    norm: str
    source: str
    num_mel_bins: int = NUM_MEL_BINS
    full_scale: float = INT16_SCALE

    def describe(self) -> dict[str, Any]:
        """What made_from.json records; the normalisation is recorded by itself."""
        return {"front_end": self.name, "dither": self.dither}


_TABLE = (
    FrontEnd(
        name="released",
        window="hamming",
        low_freq=20,
        high_freq=8000,
        dither=1,
        norm="speaker-mean",
        source="the author, in issues 4 and 8 of the released repository: steps/make_fbank.sh with "
        "--window-type=hamming --use-energy=false --dither=1 --num-mel-bins=80 --htk-compat=true, and Kaldi's defaults",
    ),
    FrontEnd(
        name="kaldi-hires",
        window="povey",
        low_freq=20,
        high_freq=7600,
        dither=0,
        norm="speaker",
        source="Kaldi's hires configurations (--low-freq=20 --high-freq=-400), of 80 bins",
    ),
    FrontEnd(
        name="s3prl",
        window="hamming",
        low_freq=20,
        high_freq=8000,
        dither=0,
        norm="utterance-unbiased",
        full_scale=1,
        source="s3prl's APC configuration, which reads samples in [-1, 1] and divides by the unbiased standard "
        "deviation",
    ),
)
FRONT_ENDS = {front_end.name: front_end for front_end in _TABLE}
DEFAULT_FRONT_END = "released"
UNRECORDED_FRONT_END = "kaldi-hires"  # of audio prepared before front ends had names


def find_front_end(name: str | None = None, dither: float | None = None) -> FrontEnd:
    """A front end by its name (by default DEFAULT_FRONT_END), perhaps with another dither.

    Raises:
        InputError: there is none of that name.
    """
    name = DEFAULT_FRONT_END if name is None else name
    if name not in FRONT_ENDS:
        raise InputError(f"no front end is named {name!r:.40}: there are {', '.join(FRONT_ENDS)}")
    front_end = FRONT_ENDS[name]
    return front_end if dither is None else dataclasses.replace(front_end, dither=dither)


def with_front_end(made_from: dict[str, Any]) -> dict[str, Any]:
    """The content of a made_from.json with the front end of its audio, where that was written before they had names."""
    if "audio" in made_from:
        return FRONT_ENDS[UNRECORDED_FRONT_END].describe() | made_from
    data = made_from.get("data")  # of a directory of features
    return made_from | {"data": with_front_end(data)} if isinstance(data, dict) else made_from
