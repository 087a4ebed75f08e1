"""Speaker identification and verification, from features averaged over each utterance."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.labels import read_lines
from downstream.probing.probes import Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import equal_error_rate, equal_error_rates
from downstream.probing.splits import DEV, SETS, TEST, TRAIN
from utils.system.errors import InputError, one_line

if TYPE_CHECKING:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

PROBE = ProbeOptions(learning_rate=1e-2, batch_size=32, max_epochs=100, patience=10)  # for few utterances, not frames
MAX_TRIALS = 20_000
PLAIN_SHRINKAGE = 0.1  # of LDA's covariances, where none can be estimated
MIN_LDA_SPEAKERS = 3  # two differ along a line, where every cosine is 1 or -1
DRAWS, DRAWS_AT_A_TIME = 1000, 100  # of speakers, for an interval
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

    Half of these are of one speaker, or all that there are: in a plain draw they would be few. The equal error rate
    does not depend on their share.

    Raises:
        InputError: there is a single speaker, or no speaker has two utterances.
    """
    numbers, count = np.unique(speakers, return_inverse=True)[1], len(speakers)
    if count * (count - 1) // 2 <= max_trials:
        first, second = np.triu_indices(count, k=1)
    else:
        random = np.random.default_rng(seed)
        pairs = _draw_pairs([np.arange(count)], 4 * max_trials, random)
        others = pairs[numbers[pairs[:, 0]] != numbers[pairs[:, 1]]]
        of_speakers = [np.flatnonzero(numbers == number) for number in range(numbers.max() + 1)]
        same = _draw_pairs(of_speakers, max(max_trials // 2, max_trials - len(others)), random)
        first, second = np.concatenate([same, others[: max_trials - len(same)]]).T
    return _with_both_kinds(Trials(first, second, numbers[first] == numbers[second]), "the test set")


def _draw_pairs(groups: list[np.ndarray], most: int, random: np.random.Generator) -> np.ndarray:
    """So many of the pairs within groups of utterances at random, or all, in random order: int64 (pairs, 2)."""
    sizes = np.array([len(group) for group in groups])
    pairs = sizes * (sizes - 1) // 2
    ends = np.cumsum(pairs)
    drawn = random.choice(ends[-1], min(most, ends[-1]), replace=False)  # numbers of pairs, group after group
    group = np.searchsorted(ends, drawn, side="right")
    number = drawn - (ends - pairs)[group]
    second = ((1 + np.sqrt(1 + 8 * number)) // 2).astype(np.int64)  # in the group: (0, 1), (0, 2), (1, 2), (0, 3), ...
    places = np.stack([number - second * (second - 1) // 2, second], 1) + (np.cumsum(sizes) - sizes)[group, None]
    return np.concatenate(groups)[places]


def read_trials(path: Path, utterances: list[str]) -> Trials:
    """Read lines of `1 utterance utterance` (0: other speakers) or Kaldi's `utterance utterance target` (nontarget).

    Raises:
        InputError: a line has another form, or an utterance is not in the set; names the line.
    """
    index = {utterance: number for number, utterance in enumerate(utterances)}
    rows = []
    for location, fields in read_lines(path):
        is_kaldis = fields[-1] in ("target", "nontarget") or fields[0] not in SAME
        truth, *pair = [fields[-1], *fields[:-1]] if is_kaldis else fields
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


def verification_scores(corpus: Corpus, features: FeatureSets, trials: Trials) -> dict[str, np.ndarray | None]:
    """The scores of trials of the test set, float64 (trials,), higher for the same speaker.

    'cosine' is the cosine of two averages, less the mean of train. 'lda' is the cosine after linear discriminant
    analysis (LDA) of the speakers of train; where fewer than three of them have two utterances, of the speakers of test
    other than those of the trial; and None where they are too few as well.
    """
    train, test = (features[name].pooled.double().numpy() for name in (TRAIN, TEST))  # (utterances, size)
    train, test = train - train.mean(0), test - train.mean(0)
    scores: dict[str, np.ndarray | None] = {"cosine": cosine_scores(test, trials), "lda": None}
    speakers, speakers_of_test = (np.array(corpus.speakers_of(name)) for name in (TRAIN, TEST))
    if len(repeats(speakers)) >= MIN_LDA_SPEAKERS:
        scores["lda"] = cosine_scores(_fit_lda(train, speakers).transform(test), trials)
    elif len(repeats(speakers_of_test)) >= MIN_LDA_SPEAKERS + 2:
        scores["lda"] = _scores_by_others(test, speakers_of_test, trials)
    return scores


def repeats(speakers: Sequence[str]) -> list[str]:
    """The speakers with two utterances or more, from which LDA learns."""
    return [speaker for speaker, count in Counter(speakers).items() if count > 1]


def _fit_lda(vectors: np.ndarray, speakers: np.ndarray) -> "LinearDiscriminantAnalysis":
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    kept = np.isin(speakers, repeats(speakers))
    vectors, speakers = vectors[kept], speakers[kept]
    try:
        return LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto").fit(vectors, speakers)
    except np.linalg.LinAlgError:  # scikit-learn chooses by speaker, and does not shrink what two utterances give
        return LinearDiscriminantAnalysis(solver="eigen", shrinkage=PLAIN_SHRINKAGE).fit(vectors, speakers)


def _scores_by_others(vectors: np.ndarray, speakers: np.ndarray, trials: Trials) -> np.ndarray:
    """The cosine scores of each trial after LDA of the speakers who are not in it."""
    scores = np.empty(len(trials.is_same))
    pairs = np.sort([speakers[trials.first], speakers[trials.second]], axis=0)  # (2, trials)
    for pair in np.unique(pairs, axis=1).T:
        others, of_pair = ~np.isin(speakers, pair), (pairs == pair[:, None]).all(0)
        directions = _fit_lda(vectors[others], speakers[others]).transform(vectors)
        scores[of_pair] = cosine_scores(directions, Trials(*(part[of_pair] for part in trials)))
    return scores


def verify(corpus: Corpus, features: FeatureSets, trials: Trials) -> dict[str, float | None]:
    """Equal error rates (fractions) of the scores of `verification_scores`."""
    scores = verification_scores(corpus, features, trials)
    return {name: None if of is None else equal_error_rate(of, trials.is_same) for name, of in scores.items()}


def bootstrap_rates(scores: np.ndarray, trials: Trials, speakers: Sequence[str], draws: int = DRAWS) -> np.ndarray:
    """Equal error rates of trials whose speakers are drawn at random, with replacement, as many as there are.

    A trial of one speaker counts as often as that one is drawn, a trial of two the product of how often each is. All
    trials of a speaker depend on each other, which draws of trials would ignore. The draws are the same for all scores.

    Args:
        scores: (trials,).
        trials: pairs of utterances.
        speakers: of each utterance.
        draws: the number of rates; draws without both kinds of trials are repeated.

    Returns:
        (draws,), fractions.
    """
    numbers = np.unique(speakers, return_inverse=True)[1]
    first, second, count = numbers[trials.first], numbers[trials.second], numbers.max() + 1
    random, rates = np.random.default_rng(0), np.empty(0)
    while len(rates) < draws:
        drawn = random.multinomial(count, np.full(count, 1 / count), size=DRAWS_AT_A_TIME)  # how often each speaker is
        weights = np.where(trials.is_same, drawn[:, first], drawn[:, first] * drawn[:, second])
        has_both = (weights[:, trials.is_same].sum(1) > 0) & (weights[:, ~trials.is_same].sum(1) > 0)
        rates = np.append(rates, equal_error_rates(scores, trials.is_same, weights[has_both]))
    return rates[:draws]
