"""Errors of classifiers and of verification."""

import statistics
from typing import NamedTuple

import numpy as np
from sklearn.metrics import confusion_matrix, roc_curve


class PhoneScores(NamedTuple):
    """What a frame classifier gets wrong, in shares of 1.

    Attributes:
        frame_error: of frames.
        segment_error: of segments (spoken phones), each given the phone of the highest mean log posterior over its
            frames: the error per phone.
        confusion: int64 (phones, phones), frames by true phone (row) and by the phone they were given (column).
    """

    frame_error: float
    segment_error: float
    confusion: np.ndarray


def score_phones(log_posteriors: np.ndarray, phones: np.ndarray, segments: np.ndarray) -> PhoneScores:
    """Score a classifier.

    Args:
        log_posteriors: float (frames, phones).
        phones: int64 (frames,), the true phones.
        segments: int64 (frames,), a number for each segment; the frames of a segment share their phone.
    """
    given = log_posteriors.argmax(1)
    confusion = confusion_matrix(phones, given, labels=np.arange(log_posteriors.shape[1]))
    _, first, number = np.unique(segments, return_index=True, return_inverse=True)
    sums = np.stack([np.bincount(number, weights=column) for column in log_posteriors.T], axis=1)  # (segments, phones)
    segment_error = np.mean(sums.argmax(1) != phones[first])
    return PhoneScores(float(np.mean(given != phones)), float(segment_error), confusion)


def error_by_phone(confusion: np.ndarray) -> np.ndarray:
    """The share of each true phone's frames that got another phone: (phones,), NaN for phones without frames."""
    frames = confusion.sum(1)
    with np.errstate(invalid="ignore"):
        return 1 - np.diag(confusion) / frames


def equal_error_rate(scores: np.ndarray, is_same: np.ndarray) -> float:
    """The error at the threshold where as many true pairs are refused as false ones are accepted.

    Between two thresholds the rates are taken to be linear.

    Args:
        scores: (trials,), higher where both sides sound like one speaker.
        is_same: bool (trials,), the truth; both kinds must be there.
    """
    false_accepts, true_accepts, _ = roc_curve(is_same, scores, drop_intermediate=False)
    false_rejects = 1 - true_accepts
    gap = false_accepts - false_rejects  # from -1 to 1, never falling
    after = int(np.argmax(gap >= 0))
    before = after - 1  # gap[0] is -1
    share = -gap[before] / (gap[after] - gap[before])
    return float(false_accepts[before] + share * (false_accepts[after] - false_accepts[before]))


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean, and sample standard deviation (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: list[float]) -> str:
    """Errors of several seeds as 'mean ± deviation', in percent."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.2f}" if len(values) == 1 else f"{100 * mean:.2f} ± {100 * deviation:.2f}"
