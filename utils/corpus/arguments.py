"""The options of scripts that read a corpus: where its utterances come from, and how their frames are scaled."""

import argparse
from pathlib import Path

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd, find_front_end
from utils.corpus.audio_source import UTTERANCE_IDS, AudioOptions, AudioSource
from utils.corpus.cmvn import load_normalizer
from utils.corpus.frame_spec import UNKNOWN, FrameSpec
from utils.corpus.normalization import MODES, scope
from utils.corpus.scaling import Scaling
from utils.corpus.sources import PreparedSource, Source
from utils.corpus.speakers import Speakers
from utils.system.arguments import natural, nonnegative_float
from utils.system.errors import InputError


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for bad utterances, for reading audio and for normalising frames."""
    add = parser.add_argument
    on_error = "Stop at the first bad utterance, or skip it and list it in skipped.txt."
    add("--on_error", choices=("stop", "skip"), default="stop", help=on_error)
    norm = (
        "Scale frames to zero mean and unit variance over each of these, or remove the mean only "
        "(by default audio as the model's training data, or as its front end does; archives not at all)."
    )
    add("--norm", choices=MODES, help=norm)
    norm_from = (
        "Scale frames by this instead: a normalization.json, Kaldi's cmvn.scp (with --norm speaker also by its "
        "variance), or a directory that holds one."
    )
    add("--norm_from", type=Path, metavar="PATH", help=norm_from)
    maps = parser.add_mutually_exclusive_group()
    maps.add_argument("--utt2spk", type=Path, metavar="FILE", help="Take the speakers from this Kaldi utt2spk file.")
    maps.add_argument("--spk2utt", type=Path, metavar="FILE", help="Take the speakers from this Kaldi spk2utt file.")
    add("--channel", type=natural, metavar="I", help="Take this channel of audio files with several, counted from 0.")
    add("--resample", action="store_true", help="Convert audio of another sample rate to 16 kHz instead of refusing.")
    utterance_id = (
        "Name utterances by their files, or by their paths with dashes for slashes (by default name, unless two files "
        "have the same name)."
    )
    add("--utterance_id", choices=UTTERANCE_IDS, help=utterance_id)
    add_front_end_options(parser)


def add_front_end_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how audio becomes log-Mel frames."""
    add = parser.add_argument
    front_end = (
        f"Compute frames from audio as these do (by default as the model's training data, or {DEFAULT_FRONT_END}); "
        "of archives: what they hold, where it is known."
    )
    add("--front_end", choices=FRONT_ENDS, help=front_end)
    any_frames = "Use frames made or scaled otherwise than the model's training data, or scale frames once more."
    add("--any_frames", action="store_true", help=any_frames)
    dither = "Add noise of this standard deviation to samples in the range of int16 (by default as the front end does)."
    add("--dither", type=nonnegative_float, metavar="X", help=dither)


def front_end_of(args: argparse.Namespace, spec: FrameSpec = UNKNOWN) -> FrontEnd:
    """The front end that the options of `add_front_end_options` say, or else a model's, or else the default one."""
    front_end = find_front_end(args.front_end or spec.front_end)
    dither = spec.dither if args.dither is None and front_end.name == spec.front_end else args.dither
    return find_front_end(front_end.name, dither)


def archives_of(args: argparse.Namespace) -> FrontEnd | None:
    """The front end of archives, where --front_end gives it."""
    return find_front_end(args.front_end) if args.front_end else None


def audio_options(args: argparse.Namespace, spec: FrameSpec = UNKNOWN) -> AudioOptions:
    """How the options of `add_source_options` read audio: by default as a model's training data were."""
    reading = args.channel, args.resample, args.on_error == "skip", front_end_of(args, spec)
    return AudioOptions(*reading, args.utterance_id, archives_of(args))


def choose_scaling(args: argparse.Namespace, source: Source, spec: FrameSpec = UNKNOWN) -> Scaling:
    """How the options scale a source's frames: by default audio as a model's, or as its front end does.

    Raises:
        InputError: options that exclude each other, frames that are scaled already, or the speakers cannot be known.
    """
    if args.norm == "none" and args.norm_from:
        raise InputError("--norm none and --norm_from exclude each other")
    for_audio = args.resample or (args.channel, args.dither) != (None, None)
    check_frames(args, source, for_audio, scales=args.norm_from or args.norm not in (None, "none"))
    scaling = _choose_norm(args, source, spec)
    if (args.utt2spk or args.spk2utt) and scope(scaling.norm) != "speaker":
        raise InputError(f"a map of speakers is for --norm speaker, but --norm is {scaling.norm}")
    return scaling._replace(speakers=_choose_speakers(args, source, scaling.norm))


def check_frames(args: argparse.Namespace, source: Source, for_audio: bool, scales: bool) -> None:
    """Raise InputError where options are for audio and the source is not, or they scale what is scaled already."""
    is_misplaced = isinstance(source, PreparedSource) and args.front_end
    if is_misplaced or (for_audio and not isinstance(source, AudioSource)):
        raise InputError("--channel, --resample and --dither are for audio, --front_end also for archives")
    if scales and (before := source.frame_spec.norm) not in (None, "none") and not args.any_frames:
        reason = f"frames of {source} are normalised already (norm {before})"
        raise InputError(f"{reason}: not by --norm again; --any_frames scales them once more")


def _choose_norm(args: argparse.Namespace, source: Source, spec: FrameSpec) -> Scaling:
    """The normalisation, without its speakers."""
    if args.norm_from:
        return Scaling.by(load_normalizer(args.norm_from, args.norm))
    return Scaling(args.norm) if args.norm else Scaling.of_model(spec, source)


def _choose_speakers(args: argparse.Namespace, source: Source, mode: str) -> Speakers:
    """The rule that says who speaks: a Kaldi map, else what the source says."""
    if args.utt2spk or args.spk2utt:
        return Speakers.read(args.utt2spk or args.spk2utt, speaker_first=bool(args.spk2utt))
    if source.speakers.problem and scope(mode) == "speaker":
        raise InputError(f"{source.speakers.problem}: {source.speakers.advice}")
    return source.speakers
