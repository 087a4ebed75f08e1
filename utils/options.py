"""The options of train_apc.py: the released script's, with their names and defaults, and what it lacked."""

import argparse
import re

import torch

from utils.command_line import HelpFormatter, natural, positive, positive_float
from utils.configs import RNN_TYPES
from utils.errors import InputError
from utils.objective import LOSSES

OPTIMIZERS = ("adam", "adadelta", "sgd", "adagrad", "rmsprop")

# What may differ when an experiment is resumed: it changes how long or where training runs, not its result.
MAY_CHANGE = frozenset((
    "epochs", "max_steps", "device", "load_data_workers", "save_every", "on_nonfinite", "librispeech_path",
    "store_path", "resume", "overwrite", "torch",
))  # fmt: skip


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
    return parser.parse_args(arguments)


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--prenet_num_layers", type=natural, default=0, help="Number of feed-forward layers before the RNN.")
    add("--prenet_dropout", type=float, default=0.0, help="Dropout probability after each layer of the prenet.")
    add("--rnn_type", choices=RNN_TYPES, default="gru", help="Kind of recurrent layer.")
    add("--rnn_num_layers", type=positive, default=3, help="Number of recurrent layers.")
    add("--rnn_hidden_size", type=positive, default=512, help="Hidden size of every recurrent layer and of the prenet.")
    add("--rnn_dropout", type=float, default=0.0, help="Dropout probability after each recurrent layer but the last.")
    add("--rnn_residual", action="store_true", help="Add each recurrent layer's input to its output where sizes agree.")
    add("--feature_dim", type=positive, default=80, help="Size of a frame: the number of mel bins.")


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adam",
        help="The optimizer, with PyTorch's defaults but for the rate.",
    )
    add("--batch_size", type=positive, default=32, help="Number of utterances in a batch.")
    add("--learning_rate", type=positive_float, default=1e-4, help="The learning rate of the optimizer.")
    add("--epochs", type=natural, default=100, help="Number of passes over the training set.")
    add("--max_steps", type=positive, default=None, help="Stop after this many steps, even within an epoch.")
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
    add("--load_data_workers", type=natural, default=2, help="Number of processes that read data.")
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


def pick_device(name: str) -> torch.device:
    """The device that --device names; 'auto' is CUDA where there is one.

    Raises:
        InputError: there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", name):
        raise InputError(f"--device {name}: give auto, cpu, cuda or cuda:i")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device
