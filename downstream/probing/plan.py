"""The systems that run_all.py compares, their names, and the choice of the best."""

from typing import NamedTuple

from downstream.probing.probes import CLASSIFIERS
from downstream.probing.scoring import mean_and_deviation
from downstream.probing.study import LINEAR, RANDOM, TRAININGS, TUNED, Study

CURVE_EPOCHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Row(NamedTuple):
    """A system's layer and a classifier, as in the report's table."""

    name: str
    system: str
    layer: int
    classifier: str = LINEAR
    shows_layer: bool = True

    @property
    def result(self) -> tuple[str, int, str]:
        """The arguments of `Study.errors`."""
        return self.system, self.layer, self.classifier

    @property
    def label(self) -> str:
        """The classifier, the features and their layer, in words."""
        return f"{self.classifier} on {self.name}" + (f", layer {self.layer}" if self.shows_layer else "")


class Plan(NamedTuple):
    """The systems to compare."""

    time_shifts: list[int]  # of the trained models
    epochs: int  # that each is trained
    layers: list[int]  # of every model
    context: int  # neighbours on each side of a frame of log Mel
    fractions: list[float]  # shares of the training set to recognise from, the largest first

    @property
    def contexts(self) -> dict[str, tuple[int, int]]:
        """The stacks of log Mel, by system: frames before and after. The second is causal, as APC's features are."""
        stacks = (self.context, self.context), (2 * self.context, 0)
        return {f"log_mel_{left}_{right}": (left, right) for left, right in stacks}

    def experiment(self, time_shift: int) -> str:
        """The name of a model's experiment."""
        return f"apc-ts{time_shift}"

    def trained(self, time_shift: int, epoch: int | None = None) -> str:
        """The system of a model's hidden states after an epoch (default: the last)."""
        return f"ts{time_shift}_epoch{self.epochs if epoch is None else epoch}"

    def rows(self) -> list[Row]:
        """Everything that is compared, in order."""
        rows = [Row("log Mel", "log_mel", 0, classifier, False) for classifier in CLASSIFIERS]
        for system, (left, right) in self.contexts.items():
            rows.append(Row(f"log Mel, {left} before and {right} after", system, 0, LINEAR, False))
        rows += [Row("random APC", RANDOM, layer) for layer in self.layers]
        for time_shift in self.time_shifts:
            rows += [Row(f"APC, time shift {time_shift}", self.trained(time_shift), layer) for layer in self.layers]
        return rows

    def curve_epochs(self) -> list[int]:
        """The epochs before the last at which the best model is probed, too."""
        return [epoch for epoch in CURVE_EPOCHS if epoch < self.epochs]


class Best(NamedTuple):
    """A layer of a trained model."""

    time_shift: int
    layer: int


def choose_best(study: Study, plan: Plan) -> Best:
    """The time shift and layer with the lowest frame error on dev."""
    candidates = [Best(time_shift, layer) for time_shift in plan.time_shifts for layer in plan.layers]
    return min(candidates, key=lambda best: study.dev_error(plan.trained(best.time_shift), best.layer))


def trainings_row(study: Study, plan: Plan, best: Best) -> Row:
    """The best layer of all trainings with the best time shift."""
    name = f"APC, time shift {best.time_shift}, {len(study.training_seeds)} trainings"
    return Row(name, plan.trained(best.time_shift) + TRAININGS, best.layer)


def baseline_rows(study: Study, plan: Plan) -> list[Row]:
    """mlp3 on log Mel, log Mel with neighbours, and the layer of the random networks that is best on dev."""
    layer = best_random_layer(study, plan)
    wanted = {("log_mel", 0, CLASSIFIERS[-1]), (RANDOM, layer, LINEAR)} | {(name, 0, LINEAR) for name in plan.contexts}
    return [row for row in plan.rows() if row.result in wanted]


def best_random_layer(study: Study, plan: Plan) -> int:
    """The layer of the random networks with the lowest frame error on dev."""
    return min(plan.layers, key=lambda layer: study.dev_error(RANDOM, layer))


class RecognitionRows(NamedTuple):
    """What recognisers read: log Mel, the best random layer, and the best trained layer, frozen and fine-tuned."""

    log_mel: Row
    random: Row
    frozen: Row
    fine_tuned: Row


def recognition_rows(study: Study, plan: Plan, best: Best) -> RecognitionRows:
    """The systems that recognisers read."""
    row = trainings_row(study, plan, best)
    name = f"APC, time shift {best.time_shift}"
    return RecognitionRows(
        Row("log Mel", "log_mel", 0, shows_layer=False),
        Row("random APC", RANDOM, best_random_layer(study, plan)),
        row._replace(name=name),
        row._replace(name=f"{name}, fine-tuned", system=row.system + TUNED),
    )


def recognition_errors(study: Study, row: Row, fraction: float) -> list[float]:
    """The phone error rates of recognition from a share of the training set, one for each seed."""
    return [run["error"] for run in study.recognition(row.system, row.layer, fraction)]


def paired_errors(study: Study, row: Row, other: Row, fraction: float) -> tuple[list[float], list[float]]:
    """The phone error rates of two systems, of the seeds that both have: each draws the same speech for both."""
    errors, others = (recognition_errors(study, of_row, fraction) for of_row in (row, other))
    count = min(len(errors), len(others))
    return errors[:count], others[:count]


def labelled_minutes(study: Study, row: Row, fraction: float) -> float:
    """The minutes of a share of the training set, the mean over seeds."""
    return mean_and_deviation([run["minutes"] for run in study.recognition(row.system, row.layer, fraction)])[0]
