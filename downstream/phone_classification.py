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
import torch

from downstream.probing.corpus import Corpus, chosen_features, load_corpus
from downstream.probing.features import FeatureSets
from downstream.probing.options import (
    add_corpus_options,
    add_feature_options,
    add_probe_options,
    add_run_options,
    probe_options,
)  # fmt: skip
from downstream.probing.probes import CLASSIFIERS, ProbeOptions, train_probe
from downstream.probing.scoring import error_by_phone, percent, score_phones
from downstream.probing.splits import DEV, TEST, TRAIN
from utils.system.arguments import HelpFormatter, natural
from utils.system.device import pick_device
from utils.system.errors import run_script
from utils.system.files import make_way_for, write_json
from utils.system.memory import reuse_freed_memory


def classify_phones(
    corpus: Corpus, features: FeatureSets, classifier: str, seed: int, options: ProbeOptions, device: torch.device
) -> dict[str, Any]:
    """Train a classifier on train, stopped by dev, and score it on test.

    Returns:
        dev_error, frame_error, segment_error (shares of 1), the best epoch, and the confusion matrix: JSON types.
    """
    train, dev, test = (features[name].with_labels(corpus.sets[name]).to(device) for name in (TRAIN, DEV, TEST))
    num_phones = len(corpus.labels.phones)
    probe, dev_error, epoch = train_probe(train, dev, num_phones, classifier, seed, options)
    log_posteriors = probe.log_posteriors(test.features)  # (frames, phones)
    scores = score_phones(log_posteriors.numpy(), test.classes.cpu().numpy(), corpus.sets[TEST].segments)
    return {
        "dev_error": dev_error,
        "frame_error": scores.frame_error,
        "segment_error": scores.segment_error,
        "epoch": epoch,
        "confusion": scores.confusion.tolist(),
    }


def tell(name: str, classifier: str, phones: list[str], runs: list[dict[str, Any]]) -> None:
    """Print the errors of a classifier's runs, and the error of each phone, over all of them."""
    errors = {key: percent([run[key] for run in runs]) for key in ("frame_error", "segment_error", "dev_error")}
    print(f"{name}, {classifier}: error per frame {errors['frame_error']} %, per phone {errors['segment_error']} %; "
          f"per frame on dev {errors['dev_error']} %")  # fmt: skip
    by_phone = error_by_phone(np.sum([run["confusion"] for run in runs], axis=0))
    worst_first = sorted((-error, phone) for error, phone in zip(by_phone, phones, strict=True) if error == error)
    print("  by phone, per frame: " + ", ".join(f"{phone} {-100 * error:.0f}" for error, phone in worst_first))


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_corpus_options(parser)
    add_run_options(parser, "Train each classifier with this many seeds.")
    add_feature_options(parser)
    parser.add_argument("--context", type=natural, nargs="+", default=[0], metavar="FRAMES",
        help="Stack each frame of log Mel with so many before and after it; two numbers: before, after.")  # fmt: skip
    parser.add_argument("--classifier", choices=CLASSIFIERS, default=CLASSIFIERS[0],
        help="Softmax regression, or a perceptron with one or three hidden layers.")  # fmt: skip
    add_probe_options(parser)
    options = parser.parse_args(arguments)
    if len(options.context) > 2:
        parser.error("--context takes one number or two")
    options.context = (options.context[0], options.context[-1])
    if options.checkpoint and any(options.context):
        parser.error("--context is for log Mel: an APC's features have their own")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Classify, and print errors."""
    options = parse_options(arguments)
    reuse_freed_memory()
    if options.save:
        make_way_for(options.save)
    device = pick_device(options.device)
    corpus = load_corpus(options, options.save_dir)
    results = {}
    for name, features in chosen_features(corpus, options, options.context).items():
        results[name] = [
            classify_phones(corpus, features, options.classifier, options.seed + n, probe_options(options), device)
            for n in range(options.seeds)
        ]
        tell(name, options.classifier, corpus.labels.phones, results[name])
    if options.save:
        write_json(options.save, {"phones": corpus.labels.phones, "runs": results})


if __name__ == "__main__":
    run_script(main)
