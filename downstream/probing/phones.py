"""Frame-wise phone classification."""

from typing import Any

import torch

from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.probes import Labelled, ProbeOptions, train_probe
from downstream.probing.scoring import score_phones
from downstream.probing.splits import DEV, TEST, TRAIN


def classify_phones(
    corpus: Corpus, features: FeatureSets, classifier: str, seed: int, options: ProbeOptions, device: torch.device
) -> dict[str, Any]:
    """Train a classifier on train, with early stopping on dev, and score it on test.

    Returns:
        dev_error, frame_error and segment_error (fractions), the best epoch, and the confusion matrix: JSON types.
    """
    train, dev, test = (
        Labelled(corpus.sets[name].labelled(features[name]), corpus.sets[name].labels) for name in (TRAIN, DEV, TEST)
    )
    num_phones = len(corpus.labels.phones)
    probe, dev_error, epoch = train_probe(train, dev, num_phones, classifier, seed, options, device)
    segments = corpus.sets[TEST].segments
    scores = score_phones(
        (probe.log_posteriors(x).numpy(), phones.numpy(), segments[rows]) for rows, x, phones in test.in_order()
    )
    return {
        "dev_error": dev_error,
        "frame_error": scores.frame_error,
        "segment_error": scores.segment_error,
        "epoch": epoch,
        "confusion": scores.confusion.tolist(),
    }
