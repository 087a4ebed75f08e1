"""Speaker verification: are two utterances of one speaker? By layer, from features averaged over each utterance.

    python downstream/speaker_verification.py --data mboshi
    python downstream/speaker_verification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the equal error rate over a list of trials: every pair of test utterances, or where there are more than 20,000 as
many at random, half of them of one speaker if there are so many; or those of --trials. Two scores: the cosine of two
averages, less the mean of the training set; and the cosine after linear discriminant analysis (LDA) of the training
set's speakers, or where fewer than three of them have two utterances, of the test speakers who are not in the trial.
Unless speakers are held out, those of the test set are known from training: easier than what the literature reports.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse

from downstream.probing.arguments import add_feature_options, make_parser, parse_feature_arguments, saved_results
from downstream.probing.corpus import chosen_features, load_corpus
from downstream.probing.speakers import make_trials, read_trials, verify
from downstream.probing.splits import TEST
from utils.system.errors import run_script


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add_feature_options(parser)
    help = "Read the trials from this file: lines of `1 utterance utterance`, 0 for other speakers."
    parser.add_argument("--trials", type=Path, metavar="FILE", help=help)
    return parse_feature_arguments(parser, arguments)


def main(arguments: list[str] | None = None) -> None:
    """Verify, and print equal error rates."""
    args = parse_arguments(arguments)
    with saved_results(args) as results:
        corpus = load_corpus(args)
        if args.trials:
            trials = read_trials(args.trials, corpus.sets[TEST].ids)
        else:
            trials = make_trials(corpus.speakers_of(TEST), args.seed)
        print(f"{len(trials.is_same)} trials, {int(trials.is_same.sum())} of them of one speaker")
        for name, features in chosen_features(corpus, args).items():
            results[name] = verify(corpus, features, trials)
            rates = [f"{score} {100 * rate:.2f} %" for score, rate in results[name].items() if rate is not None]
            print(f"{name}: equal error rate: {', '.join(rates)}")


if __name__ == "__main__":
    run_script(main)
