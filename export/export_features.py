"""Convert a prepared directory, or extracted features, into a .blogmel or a Kaldi archive.

python export/export_features.py --data librispeech_data/preprocessed/dev-clean --save dev-clean.ark
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import argparse
from collections.abc import Iterator

import numpy as np
from tqdm import tqdm

from utils.corpus.output_directory import suffix_of
from utils.corpus.prepared import load_lengths, load_utterance
from utils.features.feature_files import ARK
from utils.kaldi.write_archives import write_ark, write_blogmel
from utils.system.arguments import HelpFormatter
from utils.system.errors import InputError, run_script
from utils.system.files import prepare_to_write

BLOGMEL_SUFFIXES = (".blogmel", ".blogmel.xz", ".blogmel.gz")
MAX_DECIMALS = 149  # of a float32: the smallest is 2 ** -149


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    help = "Read this directory of .pt or .npy files and lengths.pkl."
    add("--data", type=Path, required=True, metavar="DIR", help=help)
    help = "Write or replace this file: .blogmel (also .xz, .gz), or .ark with an .scp."
    add("--save", type=Path, required=True, metavar="FILE", help=help)
    help = "Round the numbers of a .blogmel to this many decimals; by default they are exact."
    add("--decimals", type=int, metavar="N", help=help)
    args = parser.parse_args(arguments)
    if args.save.name.startswith(".") or not args.save.name.endswith((*BLOGMEL_SUFFIXES, ".ark")):
        parser.error(f"--save must be a name that ends in .ark or one of {', '.join(BLOGMEL_SUFFIXES)}")
    if args.decimals is not None and not (0 <= args.decimals <= MAX_DECIMALS and args.save.suffix != ".ark"):
        parser.error(f"--decimals is for .blogmel files, and from 0 to {MAX_DECIMALS}")
    return args


def read_features(directory: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Each utterance's id and true frames, (frames, size) float32, in the order of lengths.pkl."""
    lengths, suffix = load_lengths(directory), suffix_of(directory)
    for utterance, length in tqdm(lengths.items(), unit=" utterances", disable=None):
        frames = load_utterance(directory / f"{utterance}{suffix}", length, may_be_half=True)
        yield utterance, frames[:length].numpy()


def main(arguments: list[str] | None = None) -> None:
    """Write one archive."""
    args = parse_arguments(arguments)
    if (args.data / ARK).exists():
        raise InputError(f"{args.data} was extracted with --format ark; this script reads --format pt and npy")
    prepare_to_write(args.save)
    features = read_features(args.data)
    is_ark = args.save.suffix == ".ark"
    count = write_ark(args.save, features) if is_ark else write_blogmel(args.save, features, args.decimals)
    print(f"{args.save}: {count} utterances")


if __name__ == "__main__":
    run_script(main)
