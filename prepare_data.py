"""Turn Kaldi archives or audio into a prepared directory: one padded tensor an utterance, and lengths.pkl.

    python prepare_data.py --librispeech_from_kaldi dev-clean.blogmel --save_dir librispeech_data/preprocessed/dev-clean
    python prepare_data.py --librispeech_audio LibriSpeech/dev-clean --save_dir librispeech_data/preprocessed/dev-clean

Killed half way, the same command continues. Sources, formats and options: README.md.
"""

import argparse
import os
from pathlib import Path

from utils.command_line import HelpFormatter, positive
from utils.errors import InputError, run_script
from utils.log_mel import FRAMES_PER_SECOND
from utils.normalization import BY_FOLDER, BY_ID, LIBRISPEECH_ID, MODES, Speakers
from utils.preparing import Options, Summary, prepare
from utils.sources import ArchiveSource, AudioSource, Source

SECONDS_PER_HOUR = 3600
MAX_SEQ_LEN = 1 << 20  # frames: nearly three hours


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--librispeech_from_kaldi", nargs="+", type=Path, metavar="FILE",
        help="Read log-Mel frames from these archives: .blogmel, .ark (also .xz, .gz) or .scp.",
    )  # fmt: skip
    source.add_argument(
        "--librispeech_audio", type=Path, metavar="DIR",
        help="Compute log-Mel frames from every audio file below this directory (.flac, .wav, ...).",
    )  # fmt: skip
    parser.add_argument(
        "--save_dir", type=Path, required=True, metavar="DIR", help="Write the prepared directory here."
    )
    add = parser.add_argument
    add(
        "--max_seq_len", type=positive, default=1600, metavar="FRAMES", help="Cut or pad each utterance to this length."
    )
    add("--num_workers", type=int, default=os.cpu_count(), metavar="N",
        help="Use this many processes; 0 works in the main one.")  # fmt: skip
    add("--on_error", choices=("stop", "skip"), default="stop",
        help="Stop at the first bad utterance, or leave it out and list it in skipped.txt.")  # fmt: skip
    add("--overwrite", action="store_true", help="Start anew, whatever was prepared in the directory before.")
    add("--norm", choices=MODES,
        help="Scale frames to zero mean and unit variance over each of these "
        "(by default speaker for audio, none for archives).")  # fmt: skip
    add("--norm_from", type=Path, metavar="FILE",
        help="Scale frames by this normalization.json, or that of this prepared directory, instead.")  # fmt: skip
    maps = parser.add_mutually_exclusive_group()
    maps.add_argument("--utt2spk", type=Path, metavar="FILE", help="Take the speakers from this Kaldi utt2spk file.")
    maps.add_argument("--spk2utt", type=Path, metavar="FILE", help="Take the speakers from this Kaldi spk2utt file.")
    add("--channel", type=int, metavar="I", help="Take this channel of audio files with several, counted from 0.")
    add("--resample", action="store_true", help="Convert audio of another sample rate to 16 kHz instead of refusing.")
    args = parser.parse_args(arguments)
    if args.max_seq_len > MAX_SEQ_LEN or args.num_workers < 0 or (args.channel or 0) < 0:
        parser.error(f"--max_seq_len must be {MAX_SEQ_LEN} at most; --num_workers and --channel must not be negative")
    if args.norm and args.norm_from:
        parser.error("--norm and --norm_from exclude each other")
    if (args.utt2spk or args.spk2utt) and not (args.norm_from or _norm(args) == "speaker"):
        parser.error(f"a map of speakers is for --norm speaker, but --norm is {_norm(args)}")
    if args.librispeech_from_kaldi and (args.resample or args.channel is not None):
        parser.error("--channel and --resample are for --librispeech_audio")
    return args


def _norm(args: argparse.Namespace) -> str:
    """How frames are normalised: archives hold normalised frames already, as a rule."""
    return args.norm or ("speaker" if args.librispeech_audio else "none")


def choose_speakers(args: argparse.Namespace, source: Source) -> Speakers:
    """The rule that says who speaks: a Kaldi map, else LibriSpeech's ids, else the audio's directories."""
    if args.utt2spk or args.spk2utt:
        return Speakers.read(args.utt2spk or args.spk2utt, speaker_first=bool(args.spk2utt))
    if args.librispeech_audio:
        others = [u for u in source.utterances() if not LIBRISPEECH_ID.fullmatch(u.utterance)]
        if len(others) == source.total():
            return Speakers(BY_FOLDER)
        if others and _norm(args) == "speaker":
            raise InputError(f"{others[0].where} is not named as LibriSpeech's files are, but others are: "
                             "say who speaks by --utt2spk or --spk2utt, or move it away")  # fmt: skip
    return Speakers(BY_ID)


def report(summary: Summary, args: argparse.Namespace) -> None:
    """The closing lines."""
    hours = summary.frames / FRAMES_PER_SECOND / SECONDS_PER_HOUR
    if summary.normalization:
        print(f"normalised: {summary.normalization}")
    if args.resample:
        print("audio of other sample rates was resampled to 16 kHz (soxr, HQ)")
    if summary.skipped:
        print(f"left out {summary.skipped} utterances: {args.save_dir / 'skipped.txt'} says why")
    truncated = "was complete before" if summary.truncated is None else f"{summary.truncated} truncated"
    print(
        f"{args.save_dir}: {summary.utterances} utterances, {summary.frames} frames, {hours:.2f} hours, "
        f"{truncated}, {summary.skipped} skipped"
    )


def main(arguments: list[str] | None = None) -> None:
    """Prepare a directory."""
    args = parse_arguments(arguments)
    if args.librispeech_audio:
        source = AudioSource.find(args.librispeech_audio, args.channel, args.resample)
    else:
        source = ArchiveSource(args.librispeech_from_kaldi)
    options = Options(
        max_seq_len=args.max_seq_len,
        num_workers=args.num_workers,
        skip_errors=args.on_error == "skip",
        overwrite=args.overwrite,
        norm=_norm(args),
        norm_from=args.norm_from,
        speakers=choose_speakers(args, source),
    )
    report(prepare(source, args.save_dir, options), args)


if __name__ == "__main__":
    run_script(main)
