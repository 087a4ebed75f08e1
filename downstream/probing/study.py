"""Probes of many feature systems on one corpus; each result is a file of its own, so that a killed run goes on.

    results/phones__<system>__<layer>__<classifier>__seed<n>.json
    results/speakers__<system>__<layer>.json

A system is a kind of features: 'log_mel', 'random_seed0', 'ts3_epoch20', ... Log Mel has the one layer 0.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from apc_model import APCModel
from downstream.phone_classification import classify_phones
from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.probes import ProbeOptions
from downstream.probing.scoring import mean_and_deviation, percent
from downstream.probing.splits import DEV, TEST, TRAIN
from downstream.speaker_identification import identify
from downstream.speaker_verification import make_trials, verify
from utils.system.errors import InputError
from utils.system.files import read_json, remove_leftovers, write_json

Layers = list[FeatureSets]
LINEAR = "linear"


class Study:
    """Results of probes, made where they are missing.

    Args:
        corpus: what is probed on.
        directory: where the results are kept.
        seeds: of the probes.
        probe: how they are trained.
        device: where they are trained, and where models run.
    """

    def __init__(
        self, corpus: Corpus, directory: Path, seeds: Sequence[int], probe: ProbeOptions, device: torch.device
    ) -> None:
        self.corpus, self.directory, self.seeds, self.probe, self.device = corpus, directory, seeds, probe, device
        directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(directory)
        self.no_speakers = self._why_no_speakers()

    def log_mel(self, context: tuple[int, int] = (0, 0)) -> Callable[[], Layers]:
        """Makes the features of log Mel with its neighbours."""
        return lambda: [self.corpus.log_mel(context)]

    def hidden_states(self, make_model: Callable[[], APCModel]) -> Callable[[], Layers]:
        """Makes the features of each layer of a model."""
        return lambda: self.corpus.hidden_states(make_model(), self.device)

    def classify(
        self,
        system: str,
        layers: Sequence[int],
        make_features: Callable[[], Layers],
        classifier: str = LINEAR,
        seeds: Sequence[int] | None = None,
        with_speakers: bool = False,
    ) -> None:
        """Make the results of a system that are not there yet; the features are made only if one is missing."""
        features: Layers | None = None
        for layer in layers:
            for seed in self.seeds if seeds is None else seeds:
                path = self._phones_path(system, layer, classifier, seed)
                if path.exists():
                    continue
                features = features or make_features()
                settings = classifier, seed, self.probe, self.device
                write_json(path, classify_phones(self.corpus, features[layer], *settings))
            if with_speakers and not self.no_speakers and not self._has_speakers(system, layer):
                features = features or make_features()
                write_json(self._speakers_path(system, layer), self._speakers(features[layer]))
            self._say(system, layer, classifier)

    def runs(self, system: str, layer: int, classifier: str = LINEAR) -> list[dict[str, Any]]:
        """The results of a system's layer, one a seed.

        For 'random' every seed is a network of its own, with a probe of the same seed.
        """
        names = [f"random_seed{seed}" if system == "random" else system for seed in self.seeds]
        paths = [self._phones_path(name, layer, classifier, seed) for name, seed in zip(names, self.seeds, strict=True)]
        return [read_json(path) for path in paths if path.exists()]

    def errors(self, system: str, layer: int, classifier: str = LINEAR, key: str = "frame_error") -> list[float]:
        """One of the errors of a system's layer, by seed, in shares of 1."""
        return [run[key] for run in self.runs(system, layer, classifier)]

    def dev_error(self, system: str, layer: int) -> float:
        """The mean frame error on dev, by which layers and time shifts are chosen."""
        return mean_and_deviation(self.errors(system, layer, key="dev_error"))[0]

    def speakers(self, system: str, layer: int) -> dict[str, Any]:
        """Error rates about speakers: 'cosine', 'lda', 'identification'; none of them where there are none."""
        path = self._speakers_path(f"random_seed{self.seeds[0]}" if system == "random" else system, layer)
        return read_json(path) if path.exists() else {}

    def _has_speakers(self, system: str, layer: int) -> bool:
        """Whether the results about speakers are there, of as many seeds as are asked for."""
        path = self._speakers_path(system, layer)
        return path.exists() and len(read_json(path).get("identification", self.seeds)) == len(self.seeds)

    def _speakers(self, features: FeatureSets) -> dict[str, Any]:
        trials = make_trials(self.corpus.speakers_of(TEST), self.seeds[0])
        found: dict[str, Any] = {"trials": len(trials.is_same), **verify(self.corpus, features, trials)}
        known = set(self.corpus.speakers_of(TRAIN))
        if set(self.corpus.speakers_of(DEV) + self.corpus.speakers_of(TEST)) <= known:
            found["identification"] = [identify(self.corpus, features, seed) for seed in self.seeds]
        return found

    def _why_no_speakers(self) -> str:
        """Why this corpus says nothing about speakers, or an empty string."""
        if len(set(self.corpus.speakers_of(TRAIN))) < 2:
            return "the training set has one speaker"
        try:
            make_trials(self.corpus.speakers_of(TEST), self.seeds[0])
        except InputError as error:
            return str(error)
        return ""

    def _phones_path(self, system: str, layer: int, classifier: str, seed: int) -> Path:
        return self.directory / f"phones__{system}__{layer}__{classifier}__seed{seed}.json"

    def _speakers_path(self, system: str, layer: int) -> Path:
        return self.directory / f"speakers__{system}__{layer}.json"

    def _say(self, system: str, layer: int, classifier: str) -> None:
        of_system = "random" if system.startswith("random_seed") else system
        errors = self.errors(of_system, layer, classifier)
        tqdm.write(f"{system}, layer {layer}, {classifier}: frame error {percent(errors)} %" if errors else system)
