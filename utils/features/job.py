"""A directory of features: what it is made from, and the job that fills it."""

import argparse
import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.audio.frames import NUM_MEL_BINS, frames_to_hours
from utils.corpus.arguments import audio_options, choose_scaling
from utils.corpus.audio_source import AudioSource
from utils.corpus.find_source import find_source
from utils.corpus.frame_spec import check_fit
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.passes import Pass
from utils.corpus.scaling import Scaling, find_normalizer, scaled
from utils.corpus.sources import Source, closing_lines
from utils.features.extraction import ALL_LAYERS, Extraction, pick_layers
from utils.features.feature_files import ARK_FACTS, FACTS, check_archive, extra_files, open_features
from utils.kaldi.read_archives import archive_path
from utils.rnn.precision import describe_precision
from utils.system.errors import InputError
from utils.system.files import refuse_to_remove
from utils.system.signals import StopRequest

if TYPE_CHECKING:
    from apc_model import APCModel


def extract(model: "APCModel", args: argparse.Namespace) -> None:
    """Write the features of every utterance of --data into --save_dir, or continue to, and report.

    Raises:
        InputError: bad input, or a directory of something else.
        Stopped: a signal came; the same command continues.
    """
    save_dir = Path(args.save_dir)
    if save_dir.resolve() in [path.resolve() for path in args.data]:
        raise InputError(f"--save_dir is --data, {save_dir}: give another directory")
    if args.overwrite:
        read = [archive_path(path)[0] for path in args.data]
        refuse_to_remove(save_dir, (*read, args.checkpoint, args.norm_from, args.utt2spk, args.spk2utt))
    pick_layers(args.layer, model.num_feats)  # before --save_dir is touched
    source = find_source(args.data, audio_options(args, model.frame_spec))
    check_frame_size(source, model.mel_dim)
    scaling = choose_scaling(args, source, model.frame_spec)
    for line in check_fit(scaling.frame_spec(source), source, model.frame_spec, args.any_frames):
        print(line)
    if args.precision != "fp32":
        print(f"computes in {describe_precision(args.precision, next(model.parameters()).device)}")
    made_from = describe_job(args, model, source, scaling)
    facts = FACTS | ARK_FACTS if args.format == "ark" else FACTS
    with (
        StopRequest("run the same command again to continue") as stop,
        OutputDirectory(save_dir, made_from, args.overwrite, extra_files, facts) as out,
    ):
        speed = "was complete before"
        if not out.complete:
            reading = Pass(source, args.load_data_workers, args.on_error == "skip", stop)
            speed = f"real-time factor {_fill(out, model, reading, scaling, args):.4f}"
        elif args.format == "ark":
            check_archive(save_dir)
        lengths = out.lengths()
    for line in closing_lines(source, save_dir):
        print(line)
    frames = sum(lengths.values())
    hours = frames_to_hours(frames)
    print(f"{save_dir}: features of {len(lengths)} utterances, {frames} frames, {hours:.2f} hours, {speed}")


def _fill(out: OutputDirectory, model: "APCModel", reading: Pass, scaling: Scaling, args: argparse.Namespace) -> float:
    """Complete a directory; returns the real-time factor."""
    normalizer = find_normalizer(reading, scaling, out.path)
    if normalizer.mode != "none":
        print(f"frames normalised {normalizer.describe()}")
    with contextlib.closing(open_features(out, args.format, args.layer == ALL_LAYERS, args.half)) as files:
        extraction = Extraction(model, reading, out, files, args)
        extraction.run(scaled(reading.source, normalizer, scaling.speakers))
    return extraction.real_time_factor()


def check_frame_size(source: Source, mel_dim: int) -> None:
    """Refuse data of another feature size than a model's before anything is written."""
    if isinstance(source, AudioSource):
        location, size = source.files[0].location, NUM_MEL_BINS
    else:
        if (first := next(source.utterances(), None)) is None:
            raise InputError("the data hold no utterance")
        try:
            location, size = first.location, first.load().shape[1]
        except InputError:
            return  # extraction stops there, or skips it
    if size != mel_dim:
        raise InputError(f"{location} has frames of {size} but the model reads {mel_dim}")


def describe_job(args: argparse.Namespace, model: "APCModel", source: Source, scaling: Scaling) -> dict[str, Any]:
    """What identifies the features: a directory is only ever continued by the same job."""
    return {
        "checkpoint": hashlib.sha256(Path(args.checkpoint).read_bytes()).hexdigest(),
        "residual": model.rnn_config.residual,
        "data": source.describe(),
        **scaling.describe("data_"),
        "layer": args.layer,
        "format": args.format,
        "half": args.half,
        **({} if args.precision == "fp32" else {"precision": args.precision}),
    }
