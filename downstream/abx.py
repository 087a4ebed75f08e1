"""ABX error: how often a triphone is nearer to one with another middle phone than to one with the same.

    python downstream/abx.py --data mboshi
    python downstream/abx.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all
    python downstream/abx.py --data mboshi --items mboshi.item

Nothing is trained: the distance is the angle between frames, averaged along the best warping path. Prints the errors
on the test set within a speaker and across speakers; chance is 50 %. The method: downstream/probing/abx.py. An item
file lets other tools, such as fastabx, evaluate the same triphones.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse

from downstream.probing.abx import abx_errors, corpus_triphones, write_items
from downstream.probing.arguments import (
    abx_options,
    add_abx_options,
    add_feature_options,
    add_silence_option,
    make_parser,
    parse_feature_arguments,
    saved_results,
)
from downstream.probing.corpus import chosen_features, load_corpus
from downstream.probing.splits import DEV, TEST
from utils.system.device import pick_device
from utils.system.errors import InputError, run_script
from utils.system.files import prepare_to_write


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add_feature_options(parser)
    add_abx_options(parser)
    add_silence_option(parser)
    add = parser.add_argument
    add("--set", choices=(DEV, TEST), default=TEST, help="Compare triphones of this set.")
    add("--items", type=Path, metavar="FILE", help="Write the triphones to this file, in the format of ZeroSpeech.")
    return parse_feature_arguments(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Compare, and print errors."""
    args = parse_arguments(arguments)
    if args.items:
        prepare_to_write(args.items)
    options, device = abx_options(args), pick_device(args.device)
    with saved_results(args) as results:
        corpus = load_corpus(args)
        triphones = corpus_triphones(corpus, options, args.set)
        print(f"{args.set}: {len(triphones.rows)} triphones without silence")
        if args.items:
            write_items(args.items, corpus, triphones, args.set)
        for name, features in chosen_features(corpus, args).items():
            found = results[name] = abx_errors(corpus, features, options, device, args.set)
            errors = [f"{task} speakers {100 * error:.2f} %" for task, error in found.items() if error is not None]
            if not errors:
                reason = "no triphones that differ in their middle phone only: nothing to compare"
                raise InputError(f"{args.set} has {reason}")
            print(f"{name}: ABX error {', '.join(errors)}")


if __name__ == "__main__":
    run_script(main)
