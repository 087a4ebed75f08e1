"""Speaker identification and verification, from features averaged over each utterance."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.labels import read_lines
from downstream.probing.probes import Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import equal_error_rate
from downstream.probing.splits import DEV, SETS, TEST, TRAIN
from utils.system.errors import InputError, one_line

PROBE = ProbeOptions(learning_rate=1e-2, batch_size=32, max_epochs=100, patience=10)  # for few utterances, not frames
MAX_TRIALS = 20_000
SAME = {"1": True, "0": False, "target": True, "nontarget": False}


class Trials(NamedTuple):
    """Pairs of utterances of a set: int64 (trials,), int64 (trials,) and bool (trials,)."""

    first: np.ndarray
    second: np.ndarray
    is_same: np.ndarray


def identify(corpus: Corpus, features: FeatureSets, seed: int, options: ProbeOptions = PROBE) -> float:
    """Train a linear classifier of speakers on train, with early stopping on dev; return its error on test.

    Raises:
        InputError: train has a single speaker, or dev or test have a speaker that train does not have.
    """
    names = sorted(set(corpus.speakers_of(TRAIN)))
    if len(names) < 2:
        raise InputError("the training set has one speaker: there is nobody to tell apart")
    unknown = {speaker for name in (DEV, TEST) for speaker in corpus.speakers_of(name)} - set(names)
    if unknown:
        raise InputError(f"speaker {min(unknown)} of dev or test is not in the training set: it cannot be identified")
    sets = {}
    for name in SETS:
        speakers = torch.tensor([names.index(speaker) for speaker in corpus.speakers_of(name)])
        sets[name] = Labelled(features[name].pooled, speakers)
    probe, *_ = train_probe(sets[TRAIN], sets[DEV], len(names), "linear", seed, options)
    return probe.error(sets[TEST])


def make_trials(speakers: list[str], seed: int = 0, max_trials: int = MAX_TRIALS) -> Trials:
    """Make a trial of every pair of utterances, given their speakers; of `max_trials` random pairs if there are more.

    Raises:
        InputError: there is a single speaker, or no speaker has two utterances.
    """
    first, second = np.triu_indices(len(speakers), k=1)
    if len(first) > max_trials:
        kept = np.sort(np.random.default_rng(seed).choice(len(first), max_trials, replace=False))
        first, second = first[kept], second[kept]
    numbers = np.unique(speakers, return_inverse=True)[1]
    return _with_both_kinds(Trials(first, second, numbers[first] == numbers[second]), "the test set")


def read_trials(path: Path, utterances: list[str]) -> Trials:
    """Read lines of `1 utterance utterance` (0: other speakers) or Kaldi's `utterance utterance target` (nontarget).

    Raises:
        InputError: a line has another form, or an utterance is not in the set; names the line.
    """
    index = {utterance: number for number, utterance in enumerate(utterances)}
    rows = []
    for location, fields in read_lines(path):
        truth, *pair = fields if fields[0] in SAME else [fields[-1], *fields[:-1]]
        if len(pair) != 2 or truth not in SAME:
            raise InputError("a line should be `1 utterance utterance`, or `0 ...`", location)
        for utterance in pair:
            if utterance not in index:
                raise InputError(f"utterance {one_line(utterance, 80)} is not in the test set", location)
        rows.append((index[pair[0]], index[pair[1]], SAME[truth]))
    first, second, is_same = zip(*rows, strict=True) if rows else ((), (), ())
    return _with_both_kinds(Trials(np.array(first), np.array(second), np.array(is_same, bool)), str(path))


def _with_both_kinds(trials: Trials, source: str) -> Trials:
    if trials.is_same.all() or not trials.is_same.any():
        raise InputError(f"{source} has no pair of utterances of one speaker, or none of two: nothing to verify")
    return trials


def cosine_scores(vectors: np.ndarray, trials: Trials) -> np.ndarray:
    """The cosine between the vectors, (utterances, size), of each trial's two utterances: (trials,)."""
    from sklearn.preprocessing import normalize

    directions = normalize(vectors)
    return np.sum(directions[trials.first] * directions[trials.second], axis=1)


def verify(corpus: Corpus, features: FeatureSets, trials: Trials) -> dict[str, float | None]:
    """Equal error rates (fractions): 'cosine' and 'lda' (None where train has fewer than three speakers)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    train, test = (features[name].pooled.double().numpy() for name in (TRAIN, TEST))  # (utterances, size)
    train, test = train - train.mean(0), test - train.mean(0)  # cosines are relative to the mean of train
    speakers = corpus.speakers_of(TRAIN)
    rates = {"cosine": equal_error_rate(cosine_scores(test, trials), trials.is_same), "lda": None}
    if len(set(speakers)) > 2:  # two speakers differ along a line, where every cosine is 1 or -1
        lda = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(train, speakers)
        rates["lda"] = equal_error_rate(cosine_scores(lda.transform(test), trials), trials.is_same)
    return rates
