"""Frame-wise phone classification: how much a simple classifier can read off log Mel, or off an APC's features.

    python downstream/phone_classification.py --data mboshi --classifier mlp3
    python downstream/phone_classification.py --data mboshi --context 5
    python downstream/phone_classification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the error per frame and per phone on the test set, with mean and deviation over seeds. The corpus and the sets:
downstream/probing/corpus.py and splits.py; classifiers and training: probes.py; what the errors mean: scoring.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
from typing import Any

import numpy as np

from downstream.probing.arguments import (
    add_feature_options,
    add_perceptron_options,
    make_parser,
    parse_feature_arguments,
    probe_options,
    saved_results,
)
from downstream.probing.corpus import chosen_features, load_corpus
from downstream.probing.phones import classify_phones
from downstream.probing.probes import CLASSIFIERS
from downstream.probing.scoring import error_by_phone, percent
from utils.system.arguments import natural
from utils.system.device import pick_device
from utils.system.errors import run_script


def print_errors(name: str, classifier: str, phones: list[str], runs: list[dict[str, Any]]) -> None:
    """Print the errors of a classifier's runs, and the error of each phone, over all of them."""
    frame, segment, dev = (percent([run[key] for run in runs]) for key in ("frame_error", "segment_error", "dev_error"))
    print(f"{name}, {classifier}: error per frame {frame} %, per phone {segment} %; per frame on dev {dev} %")
    by_phone = error_by_phone(np.sum([run["confusion"] for run in runs], axis=0))
    worst_first = sorted((-error, phone) for error, phone in zip(by_phone, phones, strict=True) if error == error)
    print("  by phone, per frame: " + ", ".join(f"{phone} {-100 * error:.0f}" for error, phone in worst_first))


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "Train each classifier with this many seeds.")
    add_feature_options(parser)
    help = "Stack each frame of log Mel with this many before and after it; two numbers: before, after."
    parser.add_argument("--context", type=natural, nargs="+", default=[0], metavar="FRAMES", help=help)
    help = "Softmax regression, or a perceptron with one or three hidden layers."
    parser.add_argument("--classifier", choices=CLASSIFIERS, default=CLASSIFIERS[0], help=help)
    add_perceptron_options(parser)
    args = parse_feature_arguments(parser, arguments)
    if len(args.context) > 2:
        parser.error("--context takes one number or two")
    args.context = (args.context[0], args.context[-1])
    if args.checkpoint and any(args.context):
        parser.error("--context is for log Mel: an APC's features have their own")
    return args


def main(arguments: list[str] | None = None) -> None:
    """Classify, and print errors."""
    args = parse_arguments(arguments)
    options, device = probe_options(args), pick_device(args.device)
    with saved_results(args) as results:
        corpus = load_corpus(args)
        results |= {"phones": corpus.labels.phones, "runs": {}}
        for name, features in chosen_features(corpus, args, args.context).items():
            seeds = range(args.seed, args.seed + args.seeds)
            runs = [classify_phones(corpus, features, args.classifier, seed, options, device) for seed in seeds]
            print_errors(name, args.classifier, corpus.labels.phones, runs)
            results["runs"][name] = runs


if __name__ == "__main__":
    run_script(main)
