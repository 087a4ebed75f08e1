"""Errors of classifiers and of verification."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

MIN_DEVIATIONS = 2  # of a difference that counts


class PhoneScores(NamedTuple):
    """Errors of a frame classifier, as fractions."""

    frame_error: float
    segment_error: float  # per spoken phone, classified by the highest mean log posterior over its frames
    confusion: np.ndarray  # int64 (phones, phones), frames by true phone (row) and predicted phone (column)


def score_phones(batches: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> PhoneScores:
    """Score a classifier, given batches of frames in order.

    Args:
        batches: the log posteriors, float (frames, phones); the true phones, int64 (frames,); and the index of each
            frame's segment, int64 (frames,), which never falls. The frames of a segment have the same phone.
    """
    from sklearn.metrics import confusion_matrix

    confusion: Any = 0
    num_segments = num_wrong = 0
    for log_posteriors, phones, segments in _whole_segments(batches):
        confusion += confusion_matrix(phones, log_posteriors.argmax(1), labels=np.arange(log_posteriors.shape[1]))
        _, first, number = np.unique(segments, return_index=True, return_inverse=True)
        sums = np.stack([np.bincount(number, weights=column) for column in log_posteriors.T], axis=1)
        num_wrong += int(np.sum(sums.argmax(1) != phones[first]))  # sums: (segments, phones)
        num_segments += len(first)
    num_frames = int(confusion.sum())
    return PhoneScores((num_frames - int(np.trace(confusion))) / num_frames, num_wrong / num_segments, confusion)


def _whole_segments(batches: Iterable[Sequence[np.ndarray]]) -> Iterator[Sequence[np.ndarray]]:
    """The same frames in batches none of which ends inside a segment."""
    last: Sequence[np.ndarray] = ()
    for batch in batches:
        batch = [np.concatenate(parts) for parts in zip(last, batch, strict=True)] if last else batch
        start = int(np.searchsorted(batch[-1], batch[-1][-1]))  # of the last segment, which may continue
        if start:
            yield [part[:start] for part in batch]
        last = [part[start:] for part in batch]
    yield last


def error_by_phone(confusion: np.ndarray) -> np.ndarray:
    """The error of the frames of each true phone: (phones,), NaN for phones without frames."""
    frames = confusion.sum(1)
    with np.errstate(invalid="ignore"):
        return 1 - np.diag(confusion) / frames


def equal_error_rate(scores: np.ndarray, is_same: np.ndarray) -> float:
    """The error at the threshold where the false reject rate equals the false accept rate, by linear interpolation.

    Args:
        scores: (trials,), higher for the same speaker.
        is_same: bool (trials,), whether the speaker is the same; both values must occur.
    """
    return float(equal_error_rates(scores, is_same, np.ones((1, len(scores))))[0])


def equal_error_rates(scores: np.ndarray, is_same: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`equal_error_rate` of weighted trials: weights, (draws, trials), say how often each counts; (draws,)."""
    order = np.argsort(-scores, kind="stable")
    is_last = np.append(np.diff(scores[order]) != 0, True)  # of equal scores: accepted together
    accepted = np.stack([np.cumsum(weights[:, order] * (is_same[order] == same), axis=1) for same in (False, True)])
    accepted = accepted[:, :, is_last] / accepted[:, :, -1:]  # (2, draws, thresholds)
    false_accepts, true_accepts = np.pad(accepted, ((0, 0), (0, 0), (1, 0)))  # at first, none is accepted
    gap = false_accepts + true_accepts - 1  # the false accept rate less the false reject rate, rises from -1 to 1
    after = np.argmax(gap >= 0, axis=1)[:, None]
    (low, high), (first, last) = (
        (np.take_along_axis(x, after - 1, 1)[:, 0], np.take_along_axis(x, after, 1)[:, 0]) for x in (gap, false_accepts)
    )
    return first - low / (high - low) * (last - first)


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: list[float]) -> str:
    """Errors of several seeds in percent, as 'mean ± standard deviation'."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.2f}" if len(values) == 1 else f"{100 * mean:.2f} ± {100 * deviation:.2f}"


class Difference(NamedTuple):
    """By how much one system's errors (fractions) are lower than another's, with an interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def between(cls, lower: list[float], higher: list[float]) -> "Difference":
        """The difference of the means of errors, one for each seed; MIN_DEVIATIONS of it on each side."""
        (mean, deviation), (other, other_deviation) = map(mean_and_deviation, (lower, higher))
        margin = MIN_DEVIATIONS * math.hypot(deviation, other_deviation)
        return cls(other - mean, other - mean - margin, other - mean + margin)

    @classmethod
    def by_seed(cls, lower: list[float], higher: list[float]) -> "Difference":
        """The same where a seed decides the same for both systems: the deviation is that of the differences."""
        differences = [b - a for a, b in zip(lower, higher, strict=True)]
        mean, deviation = mean_and_deviation(differences)
        return cls(mean, mean - MIN_DEVIATIONS * deviation, mean + MIN_DEVIATIONS * deviation)

    @property
    def verdict(self) -> str:
        """The verdict on a claim that the difference is above 0."""
        return verdict(self.low, self.high)

    def __str__(self) -> str:
        return f"{100 * self.mean:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"


def verdict(low: float, high: float) -> str:
    """The verdict on a claim that a difference is above 0, given the difference's interval."""
    if low > 0:
        return "**holds**"
    return f"**does not hold** ({'contradicted' if high < 0 else 'undecided'})"
