"""Do a model and data fit? The model's error on a part of the data, beside those of trivial predictions.

The error of frames that are made as a model's training data were is well below that of repeating the present frame;
with another front end or normalisation that ratio is higher. Errors are means of the absolute difference (L1).
"""

import argparse
import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from utils.audio.front_ends import FRONT_ENDS
from utils.configs import RELEASED_NAME
from utils.corpus.arguments import audio_options, choose_scaling, front_end_of
from utils.corpus.audio_source import AudioSource
from utils.corpus.find_source import find_source
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.normalization import scope
from utils.corpus.passes import Pass
from utils.corpus.preparation import MAX_SEQ_LEN, first_frames
from utils.corpus.scaling import Scaling, find_normalizer, scaled
from utils.corpus.sources import Source
from utils.corpus.speakers import FROM_IDS, Speakers
from utils.corpus.utterance import Utterance
from utils.features.job import check_frame_size
from utils.system.errors import InputError
from utils.system.signals import StopRequest

if TYPE_CHECKING:
    from apc_model import APCModel

RUNS, RUN_LENGTH = 8, 5  # of utterances that follow each other: of one speaker, mostly, for his mean
MAX_LISTED = 20000  # utterances to choose from
BATCH = 8
# The author's (issues 1 and 3 of the released repository), padding counted: training on train-clean-360, and dev-clean
AUTHORS_LOSSES = {
    1: (0.53, 0.29454),
    2: (0.73, 0.41830),
    3: (0.87, 0.51855),
    5: (1.09, 0.66831),
    10: (1.38, 0.90817),
    20: (1.59, 1.08558),
}


class Errors(NamedTuple):
    """Mean absolute errors of predicting the frame n steps ahead.

    Attributes:
        model: the model's, over true frames.
        padded: the model's as the released code has it: over padding up to 1600 frames, too.
        persistence: of repeating the present frame.
        mean: of predicting the mean of all frames.
        share: the true frames among the 1600.
    """

    model: float
    padded: float
    persistence: float
    mean: float
    share: float

    @property
    def ratio(self) -> float:
        """The model's error in that of repeating the present frame."""
        return self.model / self.persistence if self.persistence else math.inf  # of frames that never change


@torch.no_grad()
def prediction_errors(model: "APCModel", utterances: list[np.ndarray]) -> Errors:
    """The errors of a model on utterances (frames, mel_dim), each of which is cut to 1600 frames.

    Raises:
        InputError: the model has no time shift or no prediction layer, or no utterance is long enough.
    """
    if model.time_shift is None or model.postnet is None:
        raise InputError("the model's time shift is not known (--time_shift), or it has no prediction layer")
    shift, device = model.time_shift, next(model.parameters()).device
    kept = sorted((torch.from_numpy(x[:MAX_SEQ_LEN]) for x in utterances if len(x) > shift), key=len)
    if not kept:
        raise InputError(f"no utterance has more than {shift} frames")
    mean = torch.cat(kept).mean(0)
    sums, frames = torch.zeros(3, dtype=torch.float64), sum(len(x) - shift for x in kept)
    for start in range(0, len(kept), BATCH):
        batch = kept[start : start + BATCH]
        lengths = [len(x) for x in batch]
        predicted = model(pad_sequence(batch, batch_first=True).to(device), lengths)[0].cpu()
        for x, prediction in zip(batch, predicted, strict=True):
            guesses = prediction[: len(x) - shift], x[:-shift], mean
            sums += torch.stack([(guess - x[shift:]).abs().sum(dtype=torch.float64) for guess in guesses])
    padding = len(kept) * (MAX_SEQ_LEN - shift) - frames  # where the prediction is the bias, and the target 0
    bias = float(model.postnet.layer.bias.abs().sum())
    padded = (float(sums[0]) + padding * bias) / ((frames + padding) * model.mel_dim)
    of_model, persistence, of_mean = (sums / (frames * model.mel_dim)).tolist()
    return Errors(of_model, padded, persistence, of_mean, sum(map(len, kept)) / (len(kept) * MAX_SEQ_LEN))


@dataclass(frozen=True)
class Part(Source):
    """Runs of utterances from all over a source."""

    chosen: list[Utterance]
    speakers: Speakers = FROM_IDS

    @classmethod
    def of(cls, source: Source) -> "Part":
        """Choose up to RUNS x RUN_LENGTH utterances."""
        utterances = list(islice(source.unique(), MAX_LISTED))
        if len(utterances) > RUNS * RUN_LENGTH:
            starts = np.linspace(0, len(utterances) - RUN_LENGTH, RUNS).astype(int)
            utterances = [utterances[start + i] for start in starts for i in range(RUN_LENGTH)]
        return cls(utterances, source.speakers)

    def utterances(self) -> Iterator[Utterance]:
        return iter(self.chosen)

    def total(self) -> int:
        return sum(utterance.size for utterance in self.chosen)

    def describe(self) -> dict[str, Any]:
        return {"part": len(self.chosen)}


def check(model: "APCModel", args: argparse.Namespace) -> None:
    """Print the model's error on a part of --check, from audio with the frames of each front end.

    Raises:
        InputError: bad input, or a model that predicts nothing.
    """
    found, own = {}, model.frame_spec
    data = find_source(args.check, audio_options(args, own))
    candidates = _candidates(own, args, data)
    for spec in candidates:
        source = data.made_by(front_end_of(args, spec)) if isinstance(data, AudioSource) else data
        check_frame_size(source, model.mel_dim)
        takes_map = len(candidates) == 1 or scope(spec.norm or source.front_end.norm) == "speaker"
        scaling = choose_scaling(args if takes_map else _without_map(args), source, spec)
        made = scaling.frame_spec(source)
        is_own = made.is_known and own.is_known and not made.differences(own)
        errors = prediction_errors(model, _read(source, scaling, args.on_error == "skip"))
        found[made.describe() + (", as the model's" if is_own else "")] = errors
    _print(found, model.time_shift)
    released = RELEASED_NAME.search(Path(args.checkpoint).name)
    if released and released["residual"] and (losses := AUTHORS_LOSSES.get(model.time_shift)):
        print(f"the author's, with padding: {losses[0]} in training on train-clean-360, {losses[1]} on dev-clean")


def _candidates(own: FrameSpec, args: argparse.Namespace, data: Source) -> list[FrameSpec]:
    """How frames may have been made: in one way where the options say it or the data are no audio."""
    is_told = (args.front_end, args.dither, args.norm, args.norm_from) != (None, None, None, None)
    if is_told or not isinstance(data, AudioSource):
        return [own]
    named = [FrameSpec.of_front_end(front_end) for front_end in FRONT_ENDS.values()]
    is_other = own.is_known and all(own.differences(spec) for spec in named)
    return [own, *named] if is_other else named


def _without_map(args: argparse.Namespace) -> argparse.Namespace:
    """The options without a map of speakers, for frames that are not scaled by speaker."""
    return argparse.Namespace(**vars(args) | {"utt2spk": None, "spk2utt": None})


def _read(source: Source, scaling: Scaling, skip_errors: bool) -> list[np.ndarray]:
    """The first frames of utterances of a source, scaled; by statistics of these, where they are to be gathered."""
    part = Part.of(source)
    with StopRequest("nothing was written") as stop, tempfile.TemporaryDirectory() as directory:
        reading = Pass(part, 0, skip_errors, stop)
        normalizer = find_normalizer(reading, scaling, Path(directory))
        utterances = scaled(part, normalizer, scaling.speakers)
        read = reading.map("reading", partial(first_frames, most=MAX_SEQ_LEN), utterances)
        return [frames for _, (frames, _) in read]


def _print(found: dict[str, Errors], time_shift: int) -> None:
    """Print a row for each kind of frames, and what they tell."""
    width = max(map(len, found))
    print(f"mean absolute error of the frame {time_shift} ahead, on up to {RUNS * RUN_LENGTH} utterances")
    print(f"{'':{width}}  {'model':>7} {'padded':>7} {'repeat':>7} {'mean':>7} {'model/repeat':>13}")
    for name, errors in found.items():
        numbers = " ".join(f"{error:7.3f}" for error in errors[:4])
        print(f"{name:{width}}  {numbers} {errors.ratio:13.3f}")
    print(f"padded: also over padding to {MAX_SEQ_LEN} frames, as in the released code ", end="")
    print(f"({next(iter(found.values())).share:.0%} of the frames are true); repeat: of the present frame")
    best = min(found, key=lambda name: found[name].ratio)
    if found[best].ratio >= 1:
        print("the model predicts no better than the present frame does: these frames are not the model's")
    elif len(found) > 1:
        print(f"lowest model/repeat: {best}")
