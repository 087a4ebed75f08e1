"""What losses to expect: models of several time shifts, beside the author's figures and trivial predictions.

    python benchmarks/expected_losses.py --train LibriSpeech/train-clean-100 --test LibriSpeech/dev-clean

Prepares both directories of audio, trains a model for each time shift by train_apc.py, as the released script does (the
loss counts padding), and prints mean absolute errors (L1) after the epoch with the lowest loss on the test set: over
true frames, and over padding to 1600 frames too. An interrupted run continues with the same command, and so does one
with more --epochs, unless the schedule is cosine.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import subprocess

import numpy as np

import prepare_data
from datasets import LibriSpeech
from downstream.probing.markdown import table
from load_pretrained_model import load_pretrained
from utils.features.check import AUTHORS_LOSSES, prediction_errors
from utils.system.errors import InputError, run_script

ROOT = Path(__file__).resolve().parent.parent
SPLITS = ("train", "test")
COLUMNS = "n", "set", "with padding", "the author's", "true frames", "repeating a frame", "the mean", "model/repeat"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--train", type=Path, required=True, metavar="DIR", help="Audio to train on.")
    add("--test", type=Path, required=True, metavar="DIR", help="Audio of other speakers.")
    add("--save_dir", type=Path, default=Path("logs/expected_losses"), metavar="DIR", help="Where everything is kept.")
    add("--time_shifts", type=int, nargs="+", default=[1, 3, 5, 10, 20], metavar="N", help="Frames to predict ahead.")
    add("--epochs", type=int, default=100, help="Number of epochs of training each model.")
    add("--hidden_size", type=int, default=512, help="Hidden size of each of three layers.")
    add("--batch_size", type=int, default=32, help="Utterances in a batch.")
    add("--learning_rate", default="1e-4", help="Adam's learning rate.")
    add("--lr_schedule", default="constant", help="The learning rate's schedule; with cosine, --epochs cannot change.")
    add("--precision", default="fp32", help="Precision of matrix products in training.")
    add("--loss", choices=("padded", "masked"), default="padded", help="The loss to train with.")
    return parser.parse_args(arguments)


def read(directory: Path) -> list[np.ndarray]:
    """The frames of each utterance of a prepared directory, without padding."""
    dataset = LibriSpeech(directory)
    return [x[:length].numpy() for x, length in (dataset[index] for index in range(len(dataset)))]


def train(args: argparse.Namespace, prepared: Path, time_shift: int) -> Path:
    """Train a model, or continue to; returns its best checkpoint."""
    name, store = f"ts{time_shift}", args.save_dir / "models"
    settings = {"librispeech_path": prepared, "train_split": "train", "val_split": "test", "store_path": store}
    settings |= {"experiment_name": name, "rnn_hidden_size": args.hidden_size, "time_shift": time_shift}
    same = "epochs", "batch_size", "learning_rate", "lr_schedule", "precision", "loss"
    settings |= {key: getattr(args, key) for key in same}
    command = [sys.executable, str(ROOT / "train_apc.py"), "--rnn_residual", "--resume"]
    if subprocess.run([*command, *(f"--{key}={value}" for key, value in settings.items())]).returncode:
        raise InputError("train_apc.py failed; the same command continues")
    return store / f"{name}.dir" / f"{name}__best.model"


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each time shift and set."""
    args = parse_arguments(arguments)
    prepared = args.save_dir / "prepared"
    for split in SPLITS:
        prepare_data.main(["--librispeech_audio", str(getattr(args, split)), "--save_dir", str(prepared / split)])
    frames = {split: read(prepared / split) for split in SPLITS}
    rows = []
    for time_shift in args.time_shifts:
        model = load_pretrained(train(args, prepared, time_shift))
        for number, split in enumerate(SPLITS):
            errors = prediction_errors(model, frames[split])
            authors = AUTHORS_LOSSES.get(time_shift)
            cells = [f"{error:.3f}" for error in (errors.padded, errors.model, errors.persistence, errors.mean)]
            cells.insert(1, f"{authors[number]:.2f}" if authors else "")
            rows.append([str(time_shift), f"{split} ({errors.share:.0%} true frames)", *cells, f"{errors.ratio:.2f}"])
    print(*table(COLUMNS, rows), sep="\n")


if __name__ == "__main__":
    run_script(main)
