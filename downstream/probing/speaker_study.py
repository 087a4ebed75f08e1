"""Verification of unseen speakers: on a corpus of its own, with models that are trained on it.

    results/verification__<system>__<layer>.json

The systems are named as in study.py.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from apc_model import APCModel
from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.scoring import equal_error_rate
from downstream.probing.speakers import bootstrap_rates, make_trials, verification_scores
from downstream.probing.splits import TEST
from downstream.probing.study import RANDOM, MakeFeatures, Result, Task, missing_calls, open_results
from utils.system.device import jobs_at_once
from utils.system.files import read_json
from utils.system.workers import call_all

SCORES = {"cosine": "cosine", "lda": "LDA"}  # and what people call them
FIRST_LAYER = "The first layer carries more information about speakers than the last (2019)"  # a claim
INTERVAL = (2.5, 97.5)  # percentiles


class Rate(NamedTuple):
    """An equal error rate (a fraction), and those of draws of the speakers; the same draws for all systems."""

    rate: float
    draws: np.ndarray

    @classmethod
    def mean(cls, rates: Iterable["Rate"]) -> "Rate":
        """The mean of several systems' rates."""
        values, draws = zip(*rates, strict=True)
        return cls(float(np.mean(values)), np.mean(draws, axis=0))

    def __sub__(self, other: "Rate") -> "Rate":
        """The difference from another system's."""
        return Rate(self.rate - other.rate, self.draws - other.draws)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval, by the bootstrap."""
        low, high = np.percentile(self.draws, INTERVAL)
        return float(low), float(high)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


class SpeakerStudy:
    """The results of verification, kept in a directory, computed where they are missing.

    Raises:
        InputError: test has a single speaker, or no speaker with two utterances.
    """

    def __init__(self, corpus: Corpus, directory: Path, seeds: Sequence[int], device: torch.device) -> None:
        self.corpus, self.directory, self.seeds, self.device = corpus, directory, seeds, device
        self.trials = make_trials(corpus.speakers_of(TEST), seeds[0])
        open_results(directory)

    def verify_log_mel(self) -> None:
        """Verify with averages of log Mel."""
        self._verify_missing("log_mel", [0], lambda layers: {0: self.corpus.log_mel()})

    def verify(self, system: str, layers: Sequence[int], make_model: Callable[[], APCModel]) -> None:
        """Verify with averages of a model's hidden states, for each layer without a result."""
        self._verify_missing(
            system, layers, lambda missing: self.corpus.hidden_states(make_model(), self.device, missing)
        )
        for layer, score in itertools.product(layers, SCORES):
            if rate := self.rate(system, layer, score):
                tqdm.write(f"speakers: {system}, layer {layer}, {score}: equal error rate {rate} %")

    def rate(self, system: str, layer: int, score: str) -> Rate | None:
        """The equal error rate of one of SCORES, of RANDOM the mean over all seeds; None where it cannot be."""
        systems = [f"{RANDOM}_seed{seed}" for seed in self.seeds] if system == RANDOM else [system]
        found = [read_json(self._path(name, layer))[score] for name in systems]
        return None if None in found else Rate.mean(Rate(one["rate"], np.array(one["draws"])) for one in found)

    def _verify_missing(self, system: str, layers: Sequence[int], make_features: MakeFeatures) -> None:
        tasks = [Task([self._path(system, layer)], layer, self._verify) for layer in layers]
        call_all(missing_calls(tasks, make_features), jobs_at_once(self.device))

    def _verify(self, features: FeatureSets) -> list[Result]:
        result: Result = {"trials": len(self.trials.is_same)}
        speakers = self.corpus.speakers_of(TEST)
        for name, scores in verification_scores(self.corpus, features, self.trials).items():
            result[name] = None
            if scores is not None:
                rate = equal_error_rate(scores, self.trials.is_same)
                result[name] = {"rate": rate, "draws": bootstrap_rates(scores, self.trials, speakers).tolist()}
        return [result]

    def _path(self, system: str, layer: int) -> Path:
        return self.directory / f"verification__{system}__{layer}.json"
