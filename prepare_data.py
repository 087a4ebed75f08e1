"""Turn Kaldi archives or audio into a prepared directory: one padded tensor per utterance, and lengths.pkl.

    python prepare_data.py --librispeech_from_kaldi dev-clean.blogmel --save_dir librispeech_data/preprocessed/dev-clean
    python prepare_data.py --librispeech_audio LibriSpeech/dev-clean --save_dir librispeech_data/preprocessed/dev-clean
    python prepare_data.py --data data/train --save_dir librispeech_data/preprocessed/train

If interrupted, run the same command again to continue. Sources, formats and options: docs/data.md.
"""

import argparse
import os
from pathlib import Path

from utils.audio.frames import frames_to_hours
from utils.corpus.arguments import add_source_options, archives_of, audio_options, choose_scaling
from utils.corpus.audio_tree import find_audio
from utils.corpus.find_source import find_archives, find_source
from utils.corpus.preparation import MAX_SEQ_LEN, Summary, prepare
from utils.corpus.sources import PreparedSource, Source, closing_lines
from utils.kaldi.read_archives import archive_path
from utils.system.arguments import HelpFormatter, count, positive
from utils.system.errors import InputError, run_script
from utils.system.files import refuse_to_remove
from utils.system.memory import reuse_freed_memory

LARGEST_SEQ_LEN = 1 << 20  # frames: nearly three hours


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    data = (
        "Read any of these: a directory of audio, audio files, a Kaldi data directory, a manifest (.tsv), archives; or "
        "- for an audio file on standard input."
    )
    source.add_argument("--data", nargs="+", type=Path, metavar="PATH", help=data)
    archives = "Read log-Mel frames from these archives: .blogmel, .ark (also .xz, .gz) or .scp."
    source.add_argument("--librispeech_from_kaldi", nargs="+", type=Path, metavar="FILE", help=archives)
    audio = "Compute log-Mel frames from every audio file below this directory (.flac, .wav, ...)."
    source.add_argument("--librispeech_audio", type=Path, metavar="DIR", help=audio)
    add = parser.add_argument
    add("--save_dir", type=Path, required=True, metavar="DIR", help="Write the prepared directory here.")
    text = "Cut or pad utterances to this length."
    add("--max_seq_len", type=positive, default=MAX_SEQ_LEN, metavar="FRAMES", help=text)
    num_workers = "Use this many processes; 0: no extra processes."
    add("--num_workers", type=count, default=os.cpu_count(), metavar="N", help=num_workers)
    add("--overwrite", action="store_true", help="Remove what was prepared in the directory before, and start over.")
    add_source_options(parser)
    args = parser.parse_args(arguments)
    if args.max_seq_len > LARGEST_SEQ_LEN:
        parser.error(f"--max_seq_len must be {LARGEST_SEQ_LEN} at most")
    return args


def open_source(args: argparse.Namespace) -> Source:
    """The utterances to prepare. Raises InputError where there are none, or they are prepared already."""
    if args.librispeech_from_kaldi:
        return find_archives(args.librispeech_from_kaldi, archives_of(args))
    if args.librispeech_audio:
        if not args.librispeech_audio.is_dir():
            raise InputError(f"{args.librispeech_audio} is not a directory")
        return find_audio([args.librispeech_audio], audio_options(args))
    source = find_source(args.data, audio_options(args))
    if isinstance(source, PreparedSource):
        raise InputError(f"{source.directory} is prepared already")
    return source


def report(summary: Summary, source: Source, args: argparse.Namespace) -> None:
    """The closing lines."""
    if summary.normalization:
        print(f"normalised: {summary.normalization}")
    if args.resample:
        print("audio of other sample rates was resampled to 16 kHz (soxr, HQ)")
    if summary.skipped:
        print(f"skipped {summary.skipped} utterances: {args.save_dir / 'skipped.txt'} says why")
    for line in closing_lines(source, args.save_dir):
        print(line)
    truncated = "was complete before" if summary.truncated is None else f"{summary.truncated} truncated"
    size = f"{summary.utterances} utterances, {summary.frames} frames, {frames_to_hours(summary.frames):.2f} hours"
    print(f"{args.save_dir}: {size}, {truncated}, {summary.skipped} skipped")


def main(arguments: list[str] | None = None) -> None:
    """Prepare a directory."""
    args = parse_arguments(arguments)
    reuse_freed_memory()
    if args.overwrite:
        paths = args.data or args.librispeech_from_kaldi or [args.librispeech_audio]
        read = [archive_path(path)[0] for path in paths]
        refuse_to_remove(args.save_dir, (*read, args.norm_from, args.utt2spk, args.spk2utt))
    source = open_source(args)
    scaling = choose_scaling(args, source)
    settings = args.max_seq_len, args.num_workers, args.on_error == "skip", args.overwrite
    report(prepare(source, args.save_dir, scaling, *settings), source, args)


if __name__ == "__main__":
    run_script(main)
