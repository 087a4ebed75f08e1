"""Errors of classifiers and of verification."""

import statistics
from typing import NamedTuple

import numpy as np


class PhoneScores(NamedTuple):
    """Errors of a frame classifier, as fractions."""

    frame_error: float
    segment_error: float  # per spoken phone, classified by the highest mean log posterior over its frames
    confusion: np.ndarray  # int64 (phones, phones), frames by true phone (row) and predicted phone (column)


def score_phones(log_posteriors: np.ndarray, phones: np.ndarray, segments: np.ndarray) -> PhoneScores:
    """Score a classifier.

    Args:
        log_posteriors: float (frames, phones).
        phones: int64 (frames,), the true phones.
        segments: int64 (frames,), the index of each frame's segment; the frames of a segment have the same phone.
    """
    from sklearn.metrics import confusion_matrix

    predicted = log_posteriors.argmax(1)
    confusion = confusion_matrix(phones, predicted, labels=np.arange(log_posteriors.shape[1]))
    _, first, number = np.unique(segments, return_index=True, return_inverse=True)
    sums = np.stack([np.bincount(number, weights=column) for column in log_posteriors.T], axis=1)  # (segments, phones)
    segment_error = np.mean(sums.argmax(1) != phones[first])
    return PhoneScores(float(np.mean(predicted != phones)), float(segment_error), confusion)


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
    from sklearn.metrics import roc_curve

    false_accepts, true_accepts, _ = roc_curve(is_same, scores, drop_intermediate=False)
    false_rejects = 1 - true_accepts
    gap = false_accepts - false_rejects  # rises from -1 to 1
    after = int(np.argmax(gap >= 0))
    before = after - 1  # gap[0] is -1
    share = -gap[before] / (gap[after] - gap[before])
    return float(false_accepts[before] + share * (false_accepts[after] - false_accepts[before]))


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: list[float]) -> str:
    """Errors of several seeds in percent, as 'mean ± standard deviation'."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.2f}" if len(values) == 1 else f"{100 * mean:.2f} ± {100 * deviation:.2f}"
