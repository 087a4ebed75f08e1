"""The options of scripts that read a corpus: where its utterances come from, and how their frames are scaled."""

import argparse
from pathlib import Path

from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd, find_front_end
from utils.corpus.audio_tree import AUDIO_SUFFIXES, CONVERT, CONVERTIBLE_SUFFIXES, AudioSource
from utils.corpus.normalization import MODES, NORMALIZATION_FILE, Normalizer, scope
from utils.corpus.output_directory import MADE_FROM_FILE
from utils.corpus.prepared import LENGTHS_FILE
from utils.corpus.scaling import Scaling
from utils.corpus.sources import ArchiveSource, PreparedSource, Source
from utils.corpus.speakers import BY_FOLDER, BY_ID, LIBRISPEECH_ID, Speakers
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


def find_source(
    paths: list[Path],
    channel: int | None = None,
    resample: bool = False,
    skip_errors: bool = False,
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END],
) -> Source:
    """The source that paths name: a prepared directory (it has a lengths.pkl), a directory of audio, or archives.

    Raises:
        InputError: there is nothing of the kind.
    """
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist")
        if path.is_file() and path.suffix.lower() in AUDIO_SUFFIXES:
            raise InputError(f"{path} is an audio file: give the directory that holds it")
        if path.is_file() and path.suffix.lower() in CONVERTIBLE_SUFFIXES:
            raise InputError(f"{path} cannot be read: convert it ({CONVERT}), and give the directory that holds it")
    if not any(path.is_dir() for path in paths):
        return ArchiveSource(paths)
    if len(paths) > 1:
        raise InputError(f"{', '.join(map(str, paths))}: give one directory, or archives only")
    if (paths[0] / LENGTHS_FILE).exists():
        return PreparedSource.find(paths[0])
    if (paths[0] / MADE_FROM_FILE).exists():
        raise InputError(f"{paths[0]} has no {LENGTHS_FILE}: prepare_data.py was not done with it")
    return AudioSource.find(paths[0], channel, resample, skip_errors, front_end)


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
    """The rule that says who speaks: a Kaldi map, else LibriSpeech's ids, else the audio's directories."""
    if args.utt2spk or args.spk2utt:
        return Speakers.read(args.utt2spk or args.spk2utt, speaker_first=bool(args.spk2utt))
    if isinstance(source, AudioSource):
        others = [file for file in source.files if not LIBRISPEECH_ID.fullmatch(file.id)]
        if len(others) == len(source.files):
            return Speakers(BY_FOLDER)
        if others and scope(mode) == "speaker":
            raise InputError(
                f"{others[0].location} is not named as LibriSpeech's files are, but others are: "
                "give the speakers by --utt2spk or --spk2utt, or move it away"
            )
    return Speakers(BY_ID)
