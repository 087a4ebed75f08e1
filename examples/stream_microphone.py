"""Compute APC features of live speech, frame by frame.

    arecord -q -t raw -f S16_LE -c 1 -r 16000 | python examples/stream_microphone.py --checkpoint CHECKPOINT
    python examples/stream_microphone.py --checkpoint CHECKPOINT --wav speech.wav
    python examples/stream_microphone.py --checkpoint CHECKPOINT --norm_from PATH --speaker ann --wav speech.wav

The first listens to a microphone (any program that writes 16 kHz mono 16-bit samples will do; Ctrl-C ends it), the
others play a file in real time. A model that was trained on frames of `prepare_data.py --norm global` or `global-mean`
brings its normalisation along. For the other modes of models, PATH holds the normalization.json of recordings of the
speaker, prepared in the same mode.
"""

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from apc_model import APCModel
from load_pretrained_model import describe, load_pretrained
from utils.audio.frames import NUM_MEL_BINS, SAMPLE_RATE
from utils.audio.front_ends import FrontEnd
from utils.audio.log_mel import OnlineLogMel
from utils.audio.waveforms import waveform_blocks
from utils.corpus.arguments import add_front_end_options, front_end_of
from utils.corpus.cmvn import load_normalizer
from utils.corpus.frame_spec import FrameSpec, check_fit
from utils.corpus.normalization import UNBIASED, Normalizer, scope
from utils.system.arguments import HelpFormatter, add_residual_option, natural, positive
from utils.system.errors import InputError, run_script
from utils.system.files import atomic_write, prepare_to_write
from utils.system.signals import StopRequest

SAMPLE_BYTES = 2  # of the samples on stdin
SAMPLES_PER_MS = SAMPLE_RATE // 1000
LATENCIES = 1 << 20  # that are kept: of three hours, a frame at a time


def file_pieces(
    path: Path, channel: int | None, resample: bool, piece_samples: int, realtime: bool
) -> Iterator[np.ndarray]:
    """A file's samples (samples,) in small pieces, with `realtime` no earlier than from a microphone."""
    start, played = time.perf_counter(), 0
    for block in waveform_blocks(path, channel, resample):
        for piece in np.split(block, range(piece_samples, len(block), piece_samples)):
            played += len(piece)
            if realtime:
                time.sleep(max(0.0, start + played / SAMPLE_RATE - time.perf_counter()))
            yield piece


def stdin_pieces(piece_samples: int) -> Iterator[np.ndarray]:
    """Samples (samples,) int16 from stdin, as they arrive."""
    while piece := sys.stdin.buffer.read(piece_samples * SAMPLE_BYTES):
        yield np.frombuffer(piece[: len(piece) // SAMPLE_BYTES * SAMPLE_BYTES], "<i2")


class Listener:
    """Computes features from samples by a model in eval mode, normalised as for a speaker.

    `seed` is that of the dither: with a file's utterance id its frames are those of extraction.
    """

    def __init__(
        self, model: APCModel, normalizer: Normalizer, front_end: FrontEnd, speaker: str = "", seed: str = ""
    ) -> None:
        self._model, self._normalizer, self._speaker = model, normalizer, speaker
        self._log_mel, self._state = OnlineLogMel(front_end, seed), None

    def accept(self, samples: np.ndarray) -> torch.Tensor | None:
        """The features (num_layers, frames, hidden_size) of the frames that these samples complete, or None."""
        frames = self._log_mel.accept(samples)  # (frames, 80)
        if len(frames) == 0:
            return None
        frames = self._normalizer.apply(frames, self._speaker)
        feats, self._state = self._model.stream(torch.from_numpy(frames)[None], self._state)
        return feats[:, 0]


class Stream(NamedTuple):
    """Features and latencies of a stream.

    Attributes:
        frames: their number.
        work_ms: the time that they took.
        latencies: in ms, of the last LATENCIES pieces with features.
        features: if they are kept, the last layer's, each (frames, hidden_size).
    """

    frames: int
    work_ms: float
    latencies: np.ndarray
    features: list[np.ndarray]


def follow(listener: Listener, pieces: Iterator[np.ndarray], keep: bool) -> Stream:
    """Listen until the pieces end or a signal comes."""
    frames, work_ms, features, latencies = 0, 0.0, [], deque(maxlen=LATENCIES)
    with StopRequest() as stop:
        for samples in pieces:
            start = time.perf_counter()
            feats = listener.accept(samples)
            if feats is not None:
                latencies.append((time.perf_counter() - start) * 1000)
                frames, work_ms = frames + feats.size(1), work_ms + latencies[-1]
                if keep:
                    features.append(feats[-1].numpy().copy())  # of a view, the other layers would stay
            if stop.signum is not None:
                break
    return Stream(frames, work_ms, np.array(latencies), features)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--checkpoint", required=True, help="Any that load_pretrained reads.")
    add("--wav", type=Path, metavar="FILE", help="Play this audio file instead of reading stdin.")
    add("--channel", type=natural, metavar="I", help="Take this channel of a file with several, counted from 0.")
    add("--resample", action="store_true", help="Convert a file of another sample rate to 16 kHz.")
    help = "Scale frames by this: a normalization.json, or a directory that holds one."
    add("--norm_from", type=Path, metavar="PATH", help=help)
    add("--speaker", default="", help="Scale by the mean and variance of this speaker, where it has several.")
    add("--piece_ms", type=positive, default=10, metavar="MS", help="Length of a piece of samples.")
    help = "Play a file in real time, or as fast as possible."
    add("--realtime", action=argparse.BooleanOptionalAction, default=True, help=help)
    add("--threads", type=positive, default=1, help="Number of CPU threads.")
    add("--save", type=Path, metavar="FILE", help="Write the last layer's features, (frames, size), to this .npy file.")
    add_residual_option(parser)
    add_front_end_options(parser)
    args = parser.parse_args(arguments)
    if args.wav is None and (args.channel is not None or args.resample):
        parser.error("--channel and --resample are for --wav: stdin is read as 16 kHz mono")
    return args


def choose_normalizer(args: argparse.Namespace, spec: FrameSpec) -> Normalizer:
    """What scales frames: --norm_from, or the model's own. Raises InputError where frames must come first."""
    if args.norm_from or (args.any_frames and not spec.normalization):
        return load_normalizer(args.norm_from) if args.norm_from else Normalizer("none")
    if spec.norm is None:
        return Normalizer("none")
    if spec.normalizer is None:
        reason = f"the model reads frames of norm {spec.norm}, and the mean of a new speaker is not known"
        advice = "prepare recordings of the speaker (--norm_from, --speaker), or --any_frames scales nothing"
        raise InputError(f"{reason}: {advice}", args.checkpoint)
    return spec.normalizer


def make_listener(args: argparse.Namespace, model: APCModel) -> Listener:
    """A listener that is warmed up. Raises InputError where the model or the normalisation does not fit live audio."""
    if model.mel_dim != NUM_MEL_BINS:
        raise InputError(f"the model reads frames of {model.mel_dim}, but log-Mel frames have {NUM_MEL_BINS}")
    normalizer, front_end = choose_normalizer(args, model.frame_spec), front_end_of(args, model.frame_spec)
    if scope(normalizer.mode) == "utterance":
        norm = normalizer.mode.replace("utterance", "global").removesuffix(UNBIASED)
        reason = f"an utterance's own mean and variance are not known before it ends; train on --norm {norm}"
        raise InputError(reason, args.norm_from or args.checkpoint)
    if scope(normalizer.mode) == "speaker":
        if not args.speaker and len(normalizer.statistics) == 1:
            args.speaker = next(iter(normalizer.statistics))
        try:
            normalizer.statistics_of(args.speaker)
        except InputError as error:
            raise InputError(f"{error}: choose one with --speaker, or prepare with --norm global") from error
    frame_spec = replace(FrameSpec.of_front_end(front_end), norm="none").scaled_by(normalizer)
    for line in check_fit(frame_spec, args.wav or "the microphone", model.frame_spec, args.any_frames):
        print(line)
    if front_end.dither:
        print(f"dither {front_end.dither:g}: noise by the file's utterance id, or for a microphone the same every time")
    Listener(model, Normalizer("none"), front_end).accept(np.zeros(SAMPLE_RATE // 10, np.int16))
    return Listener(model, normalizer, front_end, args.speaker, args.wav.stem if args.wav else "")


def main(arguments: list[str] | None = None) -> None:
    """Listen, and print the latency."""
    args = parse_arguments(arguments)
    if args.save:
        prepare_to_write(args.save, args.wav)
    torch.set_num_threads(args.threads)
    model = load_pretrained(args.checkpoint, residual=args.residual)
    print(f"{args.checkpoint}: {describe(model)}")
    listener, piece_samples = make_listener(args, model), args.piece_ms * SAMPLES_PER_MS
    pieces = stdin_pieces(piece_samples)
    if args.wav:
        pieces = file_pieces(args.wav, args.channel, args.resample, piece_samples, args.realtime)
    stream = follow(listener, pieces, keep=args.save is not None)
    if not stream.frames:
        raise InputError("less than 25 ms of audio, which is one frame")
    if args.save:
        with atomic_write(args.save) as file:
            np.save(file, np.concatenate(stream.features))
    median, late = np.percentile(stream.latencies, [50, 99])
    latency = f"latency {median:.2f} ms (median), {late:.2f} ms (99th percentile)"
    work = f"{stream.work_ms / stream.frames:.2f} ms of work per frame"
    print(f"{stream.frames} frames, {args.piece_ms} ms at a time: {latency}; {work}")


if __name__ == "__main__":
    run_script(main)
