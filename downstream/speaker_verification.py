"""Speaker verification: are two utterances of one speaker? By layer, from features averaged over each utterance.

    python downstream/speaker_verification.py --data mboshi
    python downstream/speaker_verification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the equal error rate over a list of trials: every pair of test utterances (a random part where they are too
many), or those of --trials. Two scores: the cosine of two averages, less the mean of the training set; and the cosine
after linear discriminant analysis (LDA) of the training set's speakers. Unless speakers are held out, those of the
test set are known from training: easier than what the literature reports.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
from typing import NamedTuple

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.preprocessing import normalize

from downstream.probing.corpus import Corpus, chosen_features, load_corpus
from downstream.probing.features import FeatureSets
from downstream.probing.options import add_corpus_options, add_feature_options, add_run_options
from downstream.probing.scoring import equal_error_rate
from downstream.probing.splits import TEST, TRAIN
from utils.system.arguments import HelpFormatter
from utils.system.errors import InputError, one_line, run_script
from utils.system.files import make_way_for, write_json
from utils.system.memory import reuse_freed_memory

MAX_TRIALS = 20_000
SAME = {"1": True, "0": False, "target": True, "nontarget": False}


class Trials(NamedTuple):
    """Pairs of utterances of a set: int64 (trials,), (trials,), and bool (trials,)."""

    first: np.ndarray
    second: np.ndarray
    is_same: np.ndarray


def make_trials(speakers: list[str], seed: int = 0, max_trials: int = MAX_TRIALS) -> Trials:
    """Every pair of utterances, or a random part of them.

    Args:
        speakers: of each utterance.
        seed: decides which pairs, where they are too many.
        max_trials: at most so many.

    Raises:
        InputError: all speakers are one, or no speaker has two utterances.
    """
    first, second = np.triu_indices(len(speakers), k=1)
    if len(first) > max_trials:
        kept = np.sort(np.random.default_rng(seed).choice(len(first), max_trials, replace=False))
        first, second = first[kept], second[kept]
    numbers = np.unique(speakers, return_inverse=True)[1]
    return _check_both(Trials(first, second, numbers[first] == numbers[second]), "the test set")


def read_trials(path: Path, utterances: list[str]) -> Trials:
    """Read lines of `1 utterance utterance` (0: other speakers) or Kaldi's `utterance utterance target` (nontarget).

    Raises:
        InputError: a line of another form, or an utterance that is not in the set; names the line.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file")
    index = {utterance: number for number, utterance in enumerate(utterances)}
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        truth, *pair = fields if fields[0] in SAME else [fields[-1], *fields[:-1]]
        if len(pair) != 2 or truth not in SAME:
            raise InputError(f"{path}:{number}: a line should be `1 utterance utterance`, or `0 ...`")
        for utterance in pair:
            if utterance not in index:
                raise InputError(f"{path}:{number}: utterance {one_line(utterance, 80)} is not in the test set")
        rows.append((index[pair[0]], index[pair[1]], SAME[truth]))
    first, second, is_same = zip(*rows, strict=True) if rows else ((), (), ())
    return _check_both(Trials(np.array(first), np.array(second), np.array(is_same, bool)), str(path))


def _check_both(trials: Trials, where: str) -> Trials:
    if trials.is_same.all() or not trials.is_same.any():
        raise InputError(f"{where} has no two utterances of one speaker, or none of two: nothing to verify")
    return trials


def cosine_scores(vectors: np.ndarray, trials: Trials) -> np.ndarray:
    """The cosine between the vectors, (utterances, size), of each trial's two utterances: (trials,)."""
    directions = normalize(vectors)
    return np.sum(directions[trials.first] * directions[trials.second], axis=1)


def verify(corpus: Corpus, features: FeatureSets, trials: Trials) -> dict[str, float | None]:
    """Equal error rates, in shares of 1: 'cosine' and 'lda' (None where train has fewer than three speakers)."""
    train, test = (features[name].pooled.double().numpy() for name in (TRAIN, TEST))  # (utterances, size)
    train, test = train - train.mean(0), test - train.mean(0)  # angles, before and after LDA, are seen from the mean
    speakers = corpus.speakers_of(TRAIN)
    rates = {"cosine": equal_error_rate(cosine_scores(test, trials), trials.is_same), "lda": None}
    if len(set(speakers)) > 2:  # two speakers differ along a line, where every cosine is 1 or -1
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(train, speakers)
        rates["lda"] = equal_error_rate(cosine_scores(lda.transform(test), trials), trials.is_same)
    return rates


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_corpus_options(parser)
    add_run_options(parser)
    add_feature_options(parser)
    parser.add_argument("--trials", type=Path, metavar="FILE",
        help="Take the trials from this file: lines of `1 utterance utterance`, 0 for other speakers.")  # fmt: skip
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Verify, and print equal error rates."""
    options = parse_options(arguments)
    reuse_freed_memory()
    if options.save:
        make_way_for(options.save)
    corpus = load_corpus(options, options.save_dir)
    if options.trials:
        trials = read_trials(options.trials, corpus.sets[TEST].ids)
    else:
        trials = make_trials(corpus.speakers_of(TEST), options.seed)
    print(f"{len(trials.is_same)} trials, {int(trials.is_same.sum())} of them of one speaker")
    results = {}
    for name, features in chosen_features(corpus, options).items():
        results[name] = verify(corpus, features, trials)
        shown = [f"{score} {100 * rate:.2f} %" for score, rate in results[name].items() if rate is not None]
        print(f"{name}: equal error rate: {', '.join(shown)}")
    if options.save:
        write_json(options.save, results)


if __name__ == "__main__":
    run_script(main)
