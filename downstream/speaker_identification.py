"""Speaker identification: a linear classifier tells who speaks, from features averaged over each utterance.

    python downstream/speaker_identification.py --data mboshi
    python downstream/speaker_identification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the error on the test utterances, with mean and deviation over seeds. The test speakers must be in the training
set.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse

from downstream.probing.arguments import (
    add_feature_options,
    add_probe_options,
    make_parser,
    parse_feature_arguments,
    probe_options,
    saved_results,
)
from downstream.probing.corpus import chosen_features, load_corpus
from downstream.probing.scoring import percent
from downstream.probing.speakers import PROBE, identify
from utils.system.errors import run_script


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "Train each classifier with this many seeds.")
    add_feature_options(parser)
    add_probe_options(parser, PROBE, "Utterances")
    return parse_feature_arguments(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Identify, and print errors."""
    args = parse_arguments(arguments)
    with saved_results(args) as results:
        corpus = load_corpus(args)
        for name, features in chosen_features(corpus, args).items():
            seeds = range(args.seed, args.seed + args.seeds)
            results[name] = [identify(corpus, features, seed, probe_options(args)) for seed in seeds]
            print(f"{name}: error {percent(results[name])} %")


if __name__ == "__main__":
    run_script(main)
