"""The options of scripts that read audio and normalise frames, and what follows from them."""

import argparse
from pathlib import Path

from utils.corpus.normalization import BY_FOLDER, BY_ID, LIBRISPEECH_ID, MODES, Normalizer, Speakers
from utils.corpus.sources import AudioSource, Source
from utils.system.arguments import natural
from utils.system.errors import InputError


def add_source_options(parser: argparse.ArgumentParser) -> None:
    """How audio is read, and how frames are normalised."""
    add = parser.add_argument
    add("--norm", choices=MODES,
        help="Scale frames to zero mean and unit variance over each of these "
        "(by default speaker for audio, none for archives).")  # fmt: skip
    add("--norm_from", type=Path, metavar="FILE",
        help="Scale frames by this normalization.json, or that of this prepared directory, instead.")  # fmt: skip
    maps = parser.add_mutually_exclusive_group()
    maps.add_argument("--utt2spk", type=Path, metavar="FILE", help="Take the speakers from this Kaldi utt2spk file.")
    maps.add_argument("--spk2utt", type=Path, metavar="FILE", help="Take the speakers from this Kaldi spk2utt file.")
    add("--channel", type=natural, metavar="I", help="Take this channel of audio files with several, counted from 0.")
    add("--resample", action="store_true", help="Convert audio of another sample rate to 16 kHz instead of refusing.")


def choose_norm(args: argparse.Namespace, is_audio: bool) -> str:
    """How frames are normalised where --norm_from does not say: archives hold normalised frames already, as a rule.

    Raises:
        InputError: options that exclude each other.
    """
    norm = args.norm or ("speaker" if is_audio else "none")
    if args.norm and args.norm_from:
        raise InputError("--norm and --norm_from exclude each other")
    if (args.utt2spk or args.spk2utt) and not (args.norm_from or norm == "speaker"):
        raise InputError(f"a map of speakers is for --norm speaker, but --norm is {norm}")
    if not is_audio and (args.resample or args.channel is not None):
        raise InputError("--channel and --resample are for audio")
    return norm


def choose_speakers(args: argparse.Namespace, source: Source, norm: str) -> Speakers:
    """The rule that says who speaks: a Kaldi map, else LibriSpeech's ids, else the audio's directories.

    Raises:
        InputError: it has to be known who speaks, and only some audio files are named as LibriSpeech's are.
    """
    if args.utt2spk or args.spk2utt:
        return Speakers.read(args.utt2spk or args.spk2utt, speaker_first=bool(args.spk2utt))
    if isinstance(source, AudioSource):
        others = [u for u in source.utterances() if not LIBRISPEECH_ID.fullmatch(u.utterance)]
        if len(others) == source.total():
            return Speakers(BY_FOLDER)
        if others and (Normalizer.load(args.norm_from).mode if args.norm_from else norm) == "speaker":
            raise InputError(f"{others[0].where} is not named as LibriSpeech's files are, but others are: "
                             "say who speaks by --utt2spk or --spk2utt, or move it away")  # fmt: skip
    return Speakers(BY_ID)
