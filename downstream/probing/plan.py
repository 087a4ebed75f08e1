"""What run_all.py compares, under which names, and how the best of it is chosen."""

from typing import NamedTuple

from downstream.probing.study import Study

RANDOM = "random"
CURVE_EPOCHS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Plan(NamedTuple):
    """What is compared.

    Attributes:
        time_shifts: a trained model for each.
        epochs: how long each is trained.
        layers: of every model.
        context: neighbours on each side of a frame of log Mel.
    """

    time_shifts: list[int]
    epochs: int
    layers: list[int]
    context: int

    @property
    def contexts(self) -> dict[str, tuple[int, int]]:
        """The stacks of log Mel, by system: frames before and after. The second is causal, as APC's features are."""
        return {
            f"log_mel_{left}_{right}": (left, right) for left, right in ((self.context,) * 2, (2 * self.context, 0))
        }

    def experiment(self, time_shift: int) -> str:
        """The name of a model's experiment."""
        return f"apc-ts{time_shift}"

    def trained(self, time_shift: int, epoch: int | None = None) -> str:
        """The system of a model's hidden states after an epoch, or after the last."""
        return f"ts{time_shift}_epoch{self.epochs if epoch is None else epoch}"

    def curve_epochs(self) -> list[int]:
        """The epochs at which the best model is also probed, beside the last."""
        return [epoch for epoch in CURVE_EPOCHS if epoch < self.epochs]


class Best(NamedTuple):
    """A layer of a trained model."""

    time_shift: int
    layer: int


def choose_best(study: Study, plan: Plan) -> Best:
    """The time shift and layer with the lowest frame error on dev."""
    candidates = [Best(time_shift, layer) for time_shift in plan.time_shifts for layer in plan.layers]
    return min(candidates, key=lambda best: study.dev_error(plan.trained(best.time_shift), best.layer))


def best_random_layer(study: Study, plan: Plan) -> int:
    """The layer of the random networks with the lowest frame error on dev."""
    return min(plan.layers, key=lambda layer: study.dev_error(RANDOM, layer))
