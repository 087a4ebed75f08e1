"""The options of scripts that read a corpus: where its utterances come from, and how their frames are scaled."""

import argparse
from pathlib import Path

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd, find_front_end
from utils.corpus.audio_source import UTTERANCE_IDS, AudioOptions, AudioSource
from utils.corpus.normalization import MODES, NORMALIZATION_FILE, Normalizer, scope
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
        "(by default as the front end does for audio, none for archives)."
    )
    add("--norm", choices=MODES, help=norm)
    norm_from = "Scale frames by this instead: a normalization.json, or a directory that holds one."
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
    front_end = f"Compute frames from audio as these do (by default {DEFAULT_FRONT_END})."
    add("--front_end", choices=FRONT_ENDS, help=front_end)
    dither = "Add noise of this standard deviation to samples in the range of int16 (by default as the front end does)."
    add("--dither", type=nonnegative_float, metavar="X", help=dither)


def front_end_of(args: argparse.Namespace) -> FrontEnd:
    """The front end that the options of `add_front_end_options` say."""
    return find_front_end(args.front_end, args.dither)


def audio_options(args: argparse.Namespace) -> AudioOptions:
    """How the options of `add_source_options` read audio."""
    return AudioOptions(args.channel, args.resample, args.on_error == "skip", front_end_of(args), args.utterance_id)


def choose_scaling(args: argparse.Namespace, source: Source) -> Scaling:
    """How the options scale a source's frames: by default audio as its front end says, archives not at all.

    Raises:
        InputError: options that exclude each other, or the speakers cannot be known.
    """
    is_audio = isinstance(source, AudioSource)
    norm = args.norm or (source.front_end.norm if is_audio else "none")
    if args.norm and args.norm_from:
        raise InputError("--norm and --norm_from exclude each other")
    if (args.utt2spk or args.spk2utt) and not (args.norm_from or scope(norm) == "speaker"):
        raise InputError(f"a map of speakers is for --norm speaker, but --norm is {norm}")
    if not is_audio and (args.resample or (args.channel, args.front_end, args.dither) != (None, None, None)):
        raise InputError("--channel, --resample, --front_end and --dither are for audio")
    normalized = isinstance(source, PreparedSource) and source.directory / NORMALIZATION_FILE
    if normalized and normalized.exists() and (args.norm_from or norm != "none"):
        raise InputError(f"frames of {source.directory} are normalised already ({normalized}): not by --norm again")
    mode = Normalizer.load(args.norm_from).mode if args.norm_from else norm
    return Scaling(norm, args.norm_from, _choose_speakers(args, source, mode))


def _choose_speakers(args: argparse.Namespace, source: Source, mode: str) -> Speakers:
    """The rule that says who speaks: a Kaldi map, else what the source says."""
    if args.utt2spk or args.spk2utt:
        return Speakers.read(args.utt2spk or args.spk2utt, speaker_first=bool(args.spk2utt))
    if source.speakers.problem and scope(mode) == "speaker":
        raise InputError(source.speakers.problem)
    return source.speakers
