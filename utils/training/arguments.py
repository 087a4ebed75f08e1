"""The options of train_apc.py: the released script's, with their names and defaults, and what it lacked."""

import argparse
import re

from utils.configs import RNN_TYPES
from utils.system.arguments import (
    HelpFormatter,
    count,
    fraction,
    natural,
    positive,
    positive_count,
    positive_float,
    size,
)
from utils.system.errors import InputError
from utils.training.checkpoints import Checkpoint, read_checkpoint
from utils.training.objective import LOSSES, PRECISIONS
from utils.training.optimizers import OPTIMIZERS
from utils.training.schedules import PLATEAU_EPOCHS, SCHEDULES

# What may differ when an experiment is resumed: it changes how long or where training runs, not its result (the number
# of processes, and of parts that a batch is done in: not beyond float precision, dropout aside).
MAY_CHANGE = frozenset((
    "epochs", "max_steps", "patience", "device", "num_processes", "grad_accumulation", "load_data_workers",
    "save_every", "on_nonfinite", "librispeech_path", "store_path", "resume", "overwrite", "torch",
))  # fmt: skip
MAY_DIFFER = frozenset(("librispeech_path", "store_path", "load_data_workers", "torch"))  # between processes
DECIDES_COSINE = frozenset(("epochs", "max_steps"))  # the steps over which the learning rate falls


class SaveInterval:
    """How often the training state is saved: '500' is every 500 steps, '10m' every 10 minutes."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"(\d+)(m?)", text)
        if not match or int(match[1]) == 0:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number of steps (500) nor of minutes (10m)")
        self.text = text
        self.steps = None if match[2] else int(match[1])
        self.seconds = int(match[1]) * 60 if match[2] else None

    def is_due(self, steps: int, seconds: float) -> bool:
        """Whether to save after so many steps and seconds since the last save."""
        return steps >= self.steps if self.seconds is None else seconds >= self.seconds


def parse_training_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line of train_apc.py (default: this process's)."""
    parser = argparse.ArgumentParser(
        description="Train an Autoregressive Predictive Coding model.",
        formatter_class=HelpFormatter,
    )
    _add_model_options(parser.add_argument_group("model"))
    _add_training_options(parser.add_argument_group("training"))
    _add_data_options(parser.add_argument_group("data"))
    _add_experiment_options(parser.add_argument_group("experiment"))
    options = parser.parse_args(arguments)
    if options.init_from is None:
        return options
    parser.set_defaults(rnn_residual=None)
    residual = parser.parse_args(arguments).rnn_residual  # None where not given: the checkpoint's, if that can be known
    sizes = _model_options(options.init_from, read_checkpoint(options.init_from, residual))
    parser.set_defaults(**sizes)
    options = parser.parse_args(arguments)
    differing = [f"--{name} is {value} there, not {given}"
                 for name, value in sizes.items() if (given := getattr(options, name)) != value]  # fmt: skip
    if differing:
        raise InputError(f"{options.init_from} is of another model: {'; '.join(differing)}; leave these options out")
    return options


def may_change(options: argparse.Namespace) -> frozenset[str]:
    """The options that may differ when this experiment is resumed."""
    return MAY_CHANGE - DECIDES_COSINE if options.lr_schedule == "cosine" else MAY_CHANGE


def _model_options(path: str, checkpoint: Checkpoint) -> dict[str, int | str | bool]:
    """The options that make a model which takes a checkpoint's weights and computes the same."""
    prenet, rnn = checkpoint.prenet, checkpoint.rnn
    if rnn.residual and rnn.first_residual_layer > 0 and rnn.input_size == rnn.hidden_size:
        raise InputError(f"{path}: its first layer has no residual connection, as the models here have it")
    return {
        "feature_dim": checkpoint.mel_dim,
        "prenet_num_layers": prenet.num_layers if prenet else 0,
        "rnn_type": rnn.rnn_type,
        "rnn_num_layers": rnn.num_layers,
        "rnn_hidden_size": rnn.hidden_size,
        "rnn_residual": rnn.residual,
    }


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prenet_num_layers", type=count, default=0, help="Number of feed-forward layers before the RNN.")
    add("--prenet_dropout", type=float, default=0.0, help="Dropout probability after each layer of the prenet.")
    add("--rnn_type", choices=RNN_TYPES, default="gru", help="Kind of recurrent layer.")
    add("--rnn_num_layers", type=positive_count, default=3, help="Number of recurrent layers.")
    add("--rnn_hidden_size", type=size, default=512, help="Hidden size of every recurrent layer and of the prenet.")
    add("--rnn_dropout", type=float, default=0.0, help="Dropout probability after each recurrent layer but the last.")
    add("--rnn_residual", "--residual", action=argparse.BooleanOptionalAction, default=False,
        help="Add each recurrent layer's input to its output where sizes agree.")  # fmt: skip
    add("--feature_dim", type=size, default=80, help="Size of a frame: the number of mel bins.")
    add("--init_from", metavar="CHECKPOINT", default=None,
        help="Start from these weights, of any APC checkpoint, instead of random ones. Model options that are not "
        "given are then the checkpoint's. Its optimizer, time shift and number of steps are not taken.")  # fmt: skip


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--optimizer",
        choices=tuple(OPTIMIZERS),
        default="adam",
        help="The optimizer, with PyTorch's defaults but for the rate.",
    )
    add("--batch_size", type=positive, default=32,
        help="Number of utterances in a batch: those of one step of the optimizer, on all processes.")  # fmt: skip
    add("--grad_accumulation", type=positive_count, default=1, metavar="PARTS",
        help="Do each process's share of a batch in so many parts, one after the other, to save memory.")  # fmt: skip
    add("--precision", choices=tuple(PRECISIONS), default="fp32",
        help="Precision of matrix products by autocast; weights, and on a CPU the RNN, stay in fp32.")  # fmt: skip
    add("--learning_rate", type=positive_float, default=1e-4, help="The learning rate, at its highest.")
    add("--lr_schedule", choices=SCHEDULES, default="constant",
        help="The learning rate after the warm-up: constant, falling along a cosine to zero at the last step that "
        "--epochs and --max_steps allow (which then stay as they are when resuming), or halved after "
        f"{PLATEAU_EPOCHS} epochs without a better validation loss.")  # fmt: skip
    add("--warmup_steps", type=natural, default=0, help="Steps over which the learning rate rises to its highest.")
    add("--epochs", type=natural, default=100, help="Number of passes over the training set.")
    add("--max_steps", type=positive, default=None, help="Stop after this many steps, even within an epoch.")
    add("--patience", type=positive, default=None, metavar="EPOCHS",
        help="Stop after so many epochs without a better validation loss.")  # fmt: skip
    add("--time_shift", type=positive, default=1, help="How many frames ahead the model predicts: n of the paper.")
    add(
        "--clip_thresh",
        type=positive_float,
        default=1.0,
        help="Gradients are scaled down to this norm when they exceed it.",
    )
    add("--loss", choices=LOSSES, default="masked",
        help="Average the L1 distance over true frames, or over padding too as the released code did.")  # fmt: skip
    add("--seed", type=natural, default=0, help="Seed of the weights, the order of the data and dropout.")
    add("--device", default="auto", help="Where to train: auto, cpu, cuda or cuda:i.")
    add("--on_nonfinite", choices=("stop", "skip"), default="stop",
        help="What to do when a loss or gradient is NaN or infinite: stop, or leave that batch out.")  # fmt: skip


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--librispeech_path", default="./librispeech_data/preprocessed",
        help="The directory that holds prepared directories, of LibriSpeech or any other corpus.")  # fmt: skip
    add("--train_split", nargs="+", default=["train-clean-360"], metavar="NAME",
        help="Directories to train on, by name or by what only their name starts with.")  # fmt: skip
    add("--val_split", nargs="+", default=["dev-clean"], metavar="NAME", help="Directories to validate on, likewise.")
    add("--train_fraction", type=fraction, default=1.0,
        help="Train on this fraction of the utterances, always the same ones for a seed.")  # fmt: skip
    add("--load_data_workers", type=count, default=2,
        help="Number of processes that read data, for each that trains.")  # fmt: skip
    add("--bucketing", action=argparse.BooleanOptionalAction, default=False,
        help="Batch utterances of similar length together.")  # fmt: skip


def _add_experiment_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--experiment_name", default="foo", help="The name of the experiment, and of its directory.")
    add("--store_path", default="./logs", help="The directory that holds experiments.")
    add("--save_every", type=SaveInterval, default="10m", metavar="INTERVAL",
        help="Save what resuming needs every so many steps (500) or minutes (10m), besides every epoch.")  # fmt: skip
    start = group.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true",
        help="Continue the experiment of that name where it was last saved, or start it.")  # fmt: skip
    start.add_argument("--overwrite", action="store_true", help="Remove the experiment of that name and start anew.")
