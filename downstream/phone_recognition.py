"""Phone recognition with little labelled speech: a small recogniser is trained by CTC on shares of the training set.

    python downstream/phone_recognition.py --data mboshi
    python downstream/phone_recognition.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer 1
    python downstream/phone_recognition.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --fine_tune

Prints the phone error rate on the test set for each share, with mean and deviation over seeds: of log Mel, of frozen
features, or of a network that is then trained on with it. The recogniser: downstream/probing/recognition.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import statistics
from collections.abc import Iterator
from typing import Any

from downstream.probing.arguments import (
    add_feature_options,
    add_recognition_options,
    add_silence_option,
    make_parser,
    parse_feature_arguments,
    recognition_options,
    saved_results,
)
from downstream.probing.corpus import Corpus, chosen_features, chosen_layers, load_corpus
from downstream.probing.recognition import left_out, recognise
from downstream.probing.scoring import percent
from load_pretrained_model import load_pretrained
from utils.system.device import pick_device
from utils.system.errors import run_script


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "Train each recogniser with this many seeds.")
    add_feature_options(parser)
    help = "Then train the checkpoint's network up to --layer with the recogniser."
    parser.add_argument("--fine_tune", action="store_true", help=help)
    add_recognition_options(parser)
    add_silence_option(parser)
    args = parse_feature_arguments(parser, arguments)
    if args.fine_tune and not args.checkpoint:
        parser.error("--fine_tune needs a --checkpoint")
    return args


def systems(corpus: Corpus, args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """What to recognise from, by name: arguments of `recognise`."""
    if not args.fine_tune:
        for name, features in chosen_features(corpus, args).items():
            yield name, {"features": features}
        return
    device = pick_device(args.device)
    model = load_pretrained(args.checkpoint, device, args.residual)
    for layer, features in corpus.hidden_states(model, device, chosen_layers(args, model)).items():
        yield f"layer {layer}, fine-tuned", {"features": features, "encoder": model, "layer": layer}


def main(arguments: list[str] | None = None) -> None:
    """Recognise, and print phone error rates."""
    args = parse_arguments(arguments)
    settings = {"options": recognition_options(args), "device": pick_device(args.device)}
    with saved_results(args) as results:
        corpus, seeds = load_corpus(args), range(args.seed, args.seed + args.seeds)
        for line in left_out(corpus, settings["options"].silence):
            print(line)
        for name, system in systems(corpus, args):
            results[name] = []
            for share in sorted(set(args.fractions), reverse=True):
                runs = [recognise(corpus, **system, fraction=share, seed=seed, **settings)[-1] for seed in seeds]
                errors, dev = (percent([run[key] for run in runs]) for key in ("error", "dev_error"))
                minutes = statistics.fmean(run["minutes"] for run in runs)
                print(f"{name}, {minutes:.1f} minutes labelled: phone error rate {errors} %; on dev {dev} %")
                of_seeds = zip(seeds, runs, strict=True)
                results[name] += [{"fraction": share, "seed": seed, **run} for seed, run in of_seeds]


if __name__ == "__main__":
    run_script(main)
