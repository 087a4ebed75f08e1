"""Does batching utterances of similar length train faster to the same validation loss?

    python benchmarks/bucketing.py --librispeech_path DIR --train_split train --val_split dev

Trains the same model with and without `--bucketing`, from the same weights, over several seeds, in turns; prints the
time an epoch takes and the time until the validation loss is down to what both reach.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train_apc
from utils.training.validation import ALL_SPLITS

ORDERS = ("random order", "bucketed")


class Timed(train_apc.Trainer):
    """A trainer that notes when each epoch ended, validation aside, and at which validation loss."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.history: list[tuple[float, float]] = []
        self.seconds, self.started = 0.0, time.perf_counter()

    def validate(self, stop: train_apc.StopRequest) -> dict[str, float]:
        """Validate with the clock stopped."""
        self.seconds += time.perf_counter() - self.started
        losses = super().validate(stop)
        self.history.append((self.seconds, losses[ALL_SPLITS]))
        self.started = time.perf_counter()
        return losses


def main() -> None:
    """Print a table, or one JSON object."""
    args, training = parse_arguments()
    runs = {order: [] for order in ORDERS}
    for seed in range(args.seeds):
        for order in ORDERS:
            runs[order].append(train([*training, "--seed", str(seed)], order))
    reached = max(history[-1][1] for histories in runs.values() for history in histories)
    result = {
        "validation_loss": round(reached, 4),
        "orders": {
            order: {
                "seconds_an_epoch": round(statistics.median(h[-1][0] / max(1, len(h) - 1) for h in histories), 2),
                "seconds_to_loss": round(statistics.median(seconds_to(h, reached) for h in histories), 2),
                "final_losses": [round(h[-1][1], 4) for h in histories],
            }
            for order, histories in runs.items()
        },
    }
    if args.json:
        print(json.dumps(result))
        return
    print(f"{'':14}{'s an epoch':>12}{f's to loss {reached:.4f}':>22}  final losses")
    for order, row in result["orders"].items():
        print(f"{order:14}{row['seconds_an_epoch']:>12}{row['seconds_to_loss']:>22}  {row['final_losses']}")


def parse_arguments() -> tuple[argparse.Namespace, list[str]]:
    """This script's options, and those it hands on to training."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="Runs of each.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of the table.")
    return parser.parse_known_args()


def train(arguments: list[str], order: str) -> list[tuple[float, float]]:
    """Train once: the seconds spent, and the validation loss, before training and at the end of each epoch."""
    flag = "--bucketing" if order == "bucketed" else "--no-bucketing"
    with tempfile.TemporaryDirectory() as directory:
        args = train_apc.parse_arguments([*arguments, flag, "--store_path", directory])
        sets, ranks = train_apc.load_sets(args), train_apc.Ranks(args.device)
        config = train_apc.make_config(args, sets, ranks.size)
        with (
            train_apc.BatchReader(args.load_data_workers) as reader,
            train_apc.StopRequest() as stop,
            train_apc.Experiment(args.store_path, args.experiment_name, config) as experiment,
        ):
            trainer = Timed(args, experiment, sets, reader, ranks)
            trainer.run(stop)
    return trainer.history


def seconds_to(history: list[tuple[float, float]], target: float) -> float:
    """When the validation loss passed a target, interpolated between the ends of epochs."""
    before = (0.0, history[0][1] + (history[0][1] - history[-1][1]))
    for seconds, loss in history:
        if loss <= target:
            share = (before[1] - target) / max(before[1] - loss, 1e-12)
            return before[0] + share * (seconds - before[0])
        before = (seconds, loss)
    return history[-1][0]


if __name__ == "__main__":
    main()
