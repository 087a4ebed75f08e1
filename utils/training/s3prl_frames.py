"""The frames of s3prl's APC, as `data.audio` of its configuration describes them: by torchaudio's kaldi.fbank."""

from collections.abc import Mapping
from typing import Any

from utils.audio.frames import INT16_SCALE, NUM_MEL_BINS, SHIFT_MS, WINDOW_MS
from utils.audio.front_ends import FRONT_ENDS
from utils.corpus.frame_spec import FrameSpec

FRONT_END = "s3prl"
NORMS = {  # how frames are normalised, and the options that do so
    "utterance-unbiased": {"cmvn": True, "subtract_mean": False},
    "utterance-mean": {"cmvn": False, "subtract_mean": True},
    "none": {"cmvn": False, "subtract_mean": False},
}
_FORM = {"feat_type": "fbank", "feat_dim": NUM_MEL_BINS, "frame_length": WINDOW_MS, "frame_shift": SHIFT_MS}


def options_of(spec: FrameSpec) -> dict[str, Any]:
    """The options that make such frames, which are of this front end and one of NORMS."""
    dither = FRONT_ENDS[FRONT_END].dither if spec.dither is None else spec.dither
    return {**_FORM, **NORMS[spec.norm], "dither": dither / INT16_SCALE, "decode_wav": False}


def spec_of(options: Mapping[str, Any]) -> FrameSpec:
    """How options make frames; unknown where they are none of those that `options_of` gives."""
    given = {**_FORM, **NORMS["utterance-unbiased"], "dither": 0.0, **options}
    given.pop("decode_wav", None)
    dither = given.pop("dither")
    if all(isinstance(value, bool | int | float | str) for value in (dither, *given.values())):
        norm = next((norm for norm, settings in NORMS.items() if given == _FORM | settings), None)
        if norm and not isinstance(dither, str) and 0 <= dither < 1:
            return FrameSpec(front_end=FRONT_END, dither=dither * INT16_SCALE, norm=norm)
    return FrameSpec()
