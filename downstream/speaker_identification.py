"""Speaker identification: a linear classifier tells who speaks, from features averaged over each utterance.

    python downstream/speaker_identification.py --data mboshi
    python downstream/speaker_identification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the share of test utterances that are given to another speaker, with mean and deviation over seeds. The test
speakers must be in the training set.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse

import torch

from downstream.probing.corpus import Corpus, chosen_features, load_corpus
from downstream.probing.features import FeatureSets
from downstream.probing.options import add_corpus_options, add_feature_options, add_run_options
from downstream.probing.probes import Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import percent
from downstream.probing.splits import DEV, SETS, TEST, TRAIN
from utils.system.arguments import HelpFormatter
from utils.system.errors import InputError, run_script
from utils.system.files import make_way_for, write_json
from utils.system.memory import reuse_freed_memory

PROBE = ProbeOptions(learning_rate=1e-2, batch_size=32, max_epochs=100, patience=10)  # utterances, not frames: few


def identify(corpus: Corpus, features: FeatureSets, seed: int) -> float:
    """Train a linear classifier of speakers on train, stopped by dev; its error on test, in shares of 1.

    Raises:
        InputError: train has one speaker, or dev or test have one that train does not have.
    """
    names = sorted(set(corpus.speakers_of(TRAIN)))
    if len(names) < 2:
        raise InputError("the training set has one speaker: there is nobody to tell apart")
    unknown = {speaker for name in (DEV, TEST) for speaker in corpus.speakers_of(name)} - set(names)
    if unknown:
        raise InputError(f"speaker {min(unknown)} of dev or test is not in the training set: nobody could name them")
    sets = {}
    for name in SETS:
        speakers = torch.tensor([names.index(speaker) for speaker in corpus.speakers_of(name)])
        sets[name] = Labelled(features[name].pooled, speakers)
    probe, *_ = train_probe(sets[TRAIN], sets[DEV], len(names), "linear", seed, PROBE)
    return probe.error(sets[TEST])


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_corpus_options(parser)
    add_run_options(parser, "Train each classifier with this many seeds.")
    add_feature_options(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Identify, and print errors."""
    options = parse_options(arguments)
    reuse_freed_memory()
    if options.save:
        make_way_for(options.save)
    corpus = load_corpus(options, options.save_dir)
    results = {}
    for name, features in chosen_features(corpus, options).items():
        results[name] = [identify(corpus, features, options.seed + n) for n in range(options.seeds)]
        print(f"{name}: error {percent(results[name])} %")
    if options.save:
        write_json(options.save, results)


if __name__ == "__main__":
    run_script(main)
