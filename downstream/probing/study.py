"""Probes of many feature systems on one corpus. Each result is a file, so that an interrupted run continues.

    results/phones__<system>__<layer>__<classifier>__seed<n>.json
    results/speakers__<system>__<layer>.json
    results/abx__<system>__<layer>.json
    results/recognition__<system>__<layer>__<share>__seed<n>.json

A system is a kind of features: 'log_mel', 'random_seed0', 'ts3_epoch20', ... Log Mel has the single layer 0. 'random'
stands for the random networks of all seeds, 'ts3_epoch20_trainings' for 'ts3_epoch20', 'ts3_epoch20_seed1', ... of
several trainings, each probed with the seed of its weights. 'ts3_epoch20_tuned' has been trained on with a recogniser.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from apc_model import APCModel
from downstream.probing.abx import AbxOptions, abx_errors
from downstream.probing.corpus import Corpus
from downstream.probing.features import FeatureSets
from downstream.probing.phones import classify_phones
from downstream.probing.probes import ProbeOptions
from downstream.probing.recognition import RecognitionOptions, recognise
from downstream.probing.scoring import mean_and_deviation, percent
from downstream.probing.speakers import identify, make_trials, verify
from downstream.probing.splits import DEV, TEST, TRAIN
from utils.system.device import jobs_at_once
from utils.system.errors import InputError
from utils.system.files import read_json, remove_leftovers, write_json
from utils.system.workers import call_all

Layers = Mapping[int, FeatureSets]
MakeFeatures = Callable[[Sequence[int]], Layers]
Result = dict[str, Any]  # JSON types
LINEAR = "linear"
RANDOM, TRAININGS, TUNED = "random", "_trainings", "_tuned"


class Task(NamedTuple):
    """The results of one layer to be computed: a file for each."""

    paths: list[Path]
    layer: int
    compute: Callable[[FeatureSets], list[Result]]

    def do(self, features: FeatureSets) -> None:
        """Compute and write them."""
        for path, result in zip(self.paths, self.compute(features), strict=True):
            write_json(path, result)


class System(NamedTuple):
    """A layer's features to recognise from, in each of its seeds; a network that makes them is also fine-tuned."""

    name: str
    layer: int
    make_features: MakeFeatures
    seeds: Sequence[int]
    encoder: APCModel | None = None


class StudyOptions(NamedTuple):
    """The settings of what is measured."""

    probe: ProbeOptions
    abx: AbxOptions
    recognition: RecognitionOptions


class Study:
    """The results of probes, kept in a directory, computed where they are missing.

    Args:
        corpus: what is probed.
        directory: of the results.
        seeds: of probes, recognisers and random networks.
        training_seeds: of the trainings of one APC, the first the same.
        options: the settings.
        device: where to compute.

    Attributes:
        no_speakers: why the corpus has no speaker tasks, or an empty string.
    """

    def __init__(
        self, corpus: Corpus, directory: Path, seeds: Sequence[int], training_seeds: Sequence[int],
        options: StudyOptions, device: torch.device,
    ) -> None:  # fmt: skip
        self.corpus, self.directory, self.options, self.device = corpus, directory, options, device
        self.seeds, self.training_seeds = seeds, training_seeds
        open_results(directory)
        self.no_speakers = self._why_no_speakers()

    def seeded_name(self, name: str, seed: int) -> str:
        """The name of what a training with a seed gives: the first has the plain name."""
        return name if seed == self.training_seeds[0] else f"{name}_seed{seed}"

    def members(self, system: str) -> list[tuple[str, int]]:
        """The (system, seed) of each of a system's files of results."""
        if system.endswith(TUNED):
            return [(name + TUNED, seed) for name, seed in self.members(system.removesuffix(TUNED))]
        if system.endswith(TRAININGS):
            return [(self.seeded_name(system.removesuffix(TRAININGS), seed), seed) for seed in self.training_seeds]
        return [(f"{RANDOM}_seed{seed}" if system == RANDOM else system, seed) for seed in self.seeds]

    def log_mel(self, context: tuple[int, int] = (0, 0)) -> MakeFeatures:
        """A function that makes the features of log Mel with its neighbours."""
        return lambda layers: {0: self.corpus.log_mel(context)}

    def hidden_states(self, make_model: Callable[[], APCModel]) -> MakeFeatures:
        """A function that makes the features of layers of a model."""
        return lambda layers: self.corpus.hidden_states(make_model(), self.device, layers)

    def classify(
        self,
        system: str,
        layers: Sequence[int],
        make_features: MakeFeatures,
        classifiers: Sequence[str] = (LINEAR,),
        seeds: Sequence[int] | None = None,
        with_speakers: bool = False,
        with_abx: bool = False,
    ) -> None:
        """Compute the missing results of a system; the features are made only if one is missing.

        Speaker tasks and ABX have no classifier: they are done once for each layer.
        """
        seeds, tasks = self.seeds if seeds is None else seeds, []
        for layer in layers:
            for classifier, seed in itertools.product(reversed(classifiers), seeds):  # those that take long first
                compute = partial(self._classify, classifier, seed)
                tasks.append(Task([self._phones_path(system, layer, classifier, seed)], layer, compute))
            if with_speakers and not self.no_speakers and not self._has_speakers(system, layer):
                path = self._speakers_path(system, layer)
                path.unlink(missing_ok=True)  # of fewer seeds
                tasks.append(Task([path], layer, self._probe_speakers))
            if with_abx:
                tasks.append(Task([self._abx_path(system, layer)], layer, self._abx))
        call_all(missing_calls(tasks, make_features), jobs_at_once(self.device))  # one on each core of a CPU
        for layer, classifier in itertools.product(layers, classifiers):
            paths = [self._phones_path(system, layer, classifier, seed) for seed in seeds]
            errors = [read_json(path)["frame_error"] for path in paths]
            tqdm.write(f"{system}, layer {layer}, {classifier}: frame error {percent(errors)} %")

    def recognise(self, systems: Sequence[System], fractions: Sequence[float]) -> None:
        """Recognise from shares of the training set where results are missing, of all systems at once."""
        calls, done = [], []
        for system in systems:
            names = [system.name] if system.encoder is None else [system.name, system.name + TUNED]
            tasks = []
            for fraction, seed in itertools.product(fractions, system.seeds):
                paths = [self._recognition_path(name, system.layer, fraction, seed) for name in names]
                compute = partial(self._recognise, fraction, seed, system.encoder, system.layer)
                tasks.append(Task(paths, system.layer, compute))
                done += zip(names, itertools.repeat(system.layer), paths, strict=False)
            calls.append(missing_calls(tasks, system.make_features))
        by_size = itertools.chain.from_iterable(itertools.zip_longest(*calls))
        call_all([call for call in by_size if call], jobs_at_once(self.device))
        for name, layer, path in done:
            minutes, error = (read_json(path)[key] for key in ("minutes", "error"))
            tqdm.write(f"{name}, layer {layer}, {minutes:.1f} minutes: phone error rate {percent([error])} %")

    def recognition(self, system: str, layer: int, fraction: float) -> list[dict[str, Any]]:
        """The results of recognition from a share of the training set, one for each seed."""
        paths = [self._recognition_path(name, layer, fraction, seed) for name, seed in self.members(system)]
        return [read_json(path) for path in paths if path.exists()]

    def abx(self, system: str, layer: int, task: str) -> list[float]:
        """The ABX errors of a system's layer, one for each network; empty where there are none."""
        paths = dict.fromkeys(self._abx_path(name, layer) for name, _ in self.members(system))  # one for all seeds
        return [error for path in paths if path.exists() and (error := read_json(path)[task]) is not None]

    def runs(self, system: str, layer: int, classifier: str = LINEAR) -> list[dict[str, Any]]:
        """The phone results of a system's layer, one for each seed."""
        paths = [self._phones_path(name, layer, classifier, seed) for name, seed in self.members(system)]
        return [read_json(path) for path in paths if path.exists()]

    def errors(self, system: str, layer: int, classifier: str = LINEAR, key: str = "frame_error") -> list[float]:
        """One of the errors (fractions) of a system's layer, one for each seed."""
        return [run[key] for run in self.runs(system, layer, classifier)]

    def dev_error(self, system: str, layer: int) -> float:
        """The mean frame error on dev, by which layers and time shifts are chosen."""
        return mean_and_deviation(self.errors(system, layer, key="dev_error"))[0]

    def speakers(self, system: str, layer: int) -> dict[str, Any]:
        """The errors of speaker tasks, 'cosine', 'lda' and 'identification'; empty where there are none."""
        path = self._speakers_path(f"{RANDOM}_seed{self.seeds[0]}" if system == RANDOM else system, layer)
        return read_json(path) if path.exists() else {}

    def _classify(self, classifier: str, seed: int, features: FeatureSets) -> list[Result]:
        return [classify_phones(self.corpus, features, classifier, seed, self.options.probe, self.device)]

    def _abx(self, features: FeatureSets) -> list[Result]:
        return [abx_errors(self.corpus, features, self.options.abx, self.device)]

    def _recognise(
        self, fraction: float, seed: int, encoder: APCModel | None, layer: int, features: FeatureSets
    ) -> list[Result]:
        settings = fraction, seed, self.options.recognition, self.device, encoder, layer
        return recognise(self.corpus, features, *settings)

    def _has_speakers(self, system: str, layer: int) -> bool:
        """Whether the results of the speaker tasks exist, for as many seeds as are wanted."""
        path = self._speakers_path(system, layer)
        return path.exists() and len(read_json(path).get("identification", self.seeds)) == len(self.seeds)

    def _probe_speakers(self, features: FeatureSets) -> list[Result]:
        trials = make_trials(self.corpus.speakers_of(TEST), self.seeds[0])
        results: Result = {"trials": len(trials.is_same), **verify(self.corpus, features, trials)}
        known = set(self.corpus.speakers_of(TRAIN))
        if set(self.corpus.speakers_of(DEV) + self.corpus.speakers_of(TEST)) <= known:
            results["identification"] = [identify(self.corpus, features, seed) for seed in self.seeds]
        return [results]

    def _why_no_speakers(self) -> str:
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

    def _abx_path(self, system: str, layer: int) -> Path:
        return self.directory / f"abx__{system}__{layer}.json"

    def _recognition_path(self, system: str, layer: int, fraction: float, seed: int) -> Path:
        return self.directory / f"recognition__{system}__{layer}__{fraction:g}__seed{seed}.json"


def open_results(directory: Path) -> None:
    """Make a directory of results, or remove what a killed run left of one that it was writing."""
    directory.mkdir(parents=True, exist_ok=True)
    remove_leftovers(directory)


def missing_calls(tasks: Sequence[Task], make_features: MakeFeatures) -> list[Callable[[], None]]:
    """Functions that do the tasks without results; the features are made only if one is missing."""
    missing = [task for task in tasks if not task.paths[-1].exists()]
    if not missing:
        return []
    _import_for_workers()
    features = make_features(sorted({task.layer for task in missing}))
    return [partial(task.do, features[task.layer]) for task in missing]


def _import_for_workers() -> None:
    """Import what probes would import, two seconds' worth, once, before processes are forked."""
    import sklearn.discriminant_analysis
    import sklearn.preprocessing  # noqa: F401
    import torch._dynamo  # noqa: F401  # by Adam
