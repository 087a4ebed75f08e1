"""The options of train_apc.py: the released script's, with their names and defaults, and what it lacked."""

import argparse
import re
from typing import TYPE_CHECKING, Any

import torch

from utils.configs import RNN_TYPES
from utils.rnn.precision import PRECISIONS
from utils.rnn.products import matmul_library
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
from utils.system.errors import InputError, describe_changes
from utils.training.checkpoints import FRAMES_KEY, read_checkpoint
from utils.training.objective import LOSSES
from utils.training.optimization import OPTIMIZERS, SCHEDULES
from utils.training.progress import PLATEAU_EPOCHS

if TYPE_CHECKING:
    from datasets import Sets

MODEL_OPTIONS = ("feature_dim", "prenet_num_layers", "rnn_type", "rnn_num_layers", "rnn_hidden_size", "rnn_residual")
# What may differ on resuming: how long and where training runs, which changes no result beyond float precision
MAY_CHANGE = frozenset(("epochs", "max_steps", "patience", "save_every", "keep", "on_nonfinite", "resume"))
MAY_CHANGE |= {"overwrite", "device", "num_processes", "grad_accumulation", "load_data_workers", "matmul", "torch"}
MAY_CHANGE |= {"librispeech_path", "store_path"}
MAY_CHANGE |= {"any_frames", FRAMES_KEY}  # which follow from the data, or were not recorded
MAY_DIFFER = frozenset(("librispeech_path", "store_path", "load_data_workers", "matmul", "torch"))  # between processes
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
        """Whether to save after this many steps and seconds since the last save."""
        return steps >= self.steps if self.seconds is None else seconds >= self.seconds


def models_kept(text: str) -> int | None:
    """How many epochs' weights are kept, the last ones; None for 'all'."""
    return None if text == "all" else positive(text)


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line of train_apc.py (default: this process's)."""
    description = "Train an Autoregressive Predictive Coding model."
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    _add_model_options(parser.add_argument_group("model"))
    _add_training_options(parser.add_argument_group("training"))
    _add_data_options(parser.add_argument_group("data"))
    _add_experiment_options(parser.add_argument_group("experiment"))
    args = parser.parse_args(arguments, argparse.Namespace(**dict.fromkeys(MODEL_OPTIONS)))  # None: not given
    model = {name: parser.get_default(name) for name in MODEL_OPTIONS}
    given = {name: value for name in MODEL_OPTIONS if (value := getattr(args, name)) is not None}
    if args.init_from is not None:
        model = _model_options(args.init_from, args.rnn_residual)
        if conflicts := describe_changes(model, model | given, template="--{key} is {before} there, not {after}"):
            raise InputError(f"{args.init_from} is of another model: {conflicts}; do not give these options")
    vars(args).update(model | given)
    return args


def make_config(args: argparse.Namespace, sets: "Sets", num_processes: int) -> dict[str, Any]:
    """What config.json holds: every option, and digests of the data, so that a run can be made again."""
    train_set, val_set = sets
    config = {**vars(args), "save_every": args.save_every.text, "num_processes": num_processes}
    config |= {"train_data": train_set.fingerprint(), "val_data": val_set.fingerprint()}
    config[FRAMES_KEY] = train_set.frame_spec.to_json()
    return config | {"matmul": matmul_library(), "torch": torch.__version__}


def may_change(args: argparse.Namespace) -> frozenset[str]:
    """The options that may differ when this experiment is resumed."""
    return MAY_CHANGE - DECIDES_COSINE if args.lr_schedule == "cosine" else MAY_CHANGE


def _model_options(path: str, residual: bool | None) -> dict[str, int | str | bool]:
    """The options of a model that takes a checkpoint's weights and computes the same; `residual` where it is silent."""
    try:
        checkpoint = read_checkpoint(path)
    except InputError:
        if residual is None:
            raise
        checkpoint = read_checkpoint(path, residual)
    prenet, rnn = checkpoint.prenet, checkpoint.rnn
    if rnn.residual and rnn.first_residual_layer > 0 and rnn.input_size == rnn.hidden_size:
        raise InputError(f"{path}: its first layer has no residual connection, as the models here have it")
    num_prenet_layers = prenet.num_layers if prenet else 0
    values = (checkpoint.mel_dim, num_prenet_layers, rnn.rnn_type, rnn.num_layers, rnn.hidden_size, rnn.residual)
    return dict(zip(MODEL_OPTIONS, values, strict=True))


def _add_model_options(group: argparse._ArgumentGroup) -> None:
    add, flag = group.add_argument, argparse.BooleanOptionalAction
    add("--prenet_num_layers", type=count, default=0, help="Number of feed-forward layers before the RNN.")
    add("--prenet_dropout", type=float, default=0.0, help="Dropout probability after each layer of the prenet.")
    add("--rnn_type", choices=RNN_TYPES, default="gru", help="Kind of recurrent layer.")
    add("--rnn_num_layers", type=positive_count, default=3, help="Number of recurrent layers.")
    add("--rnn_hidden_size", type=size, default=512, help="Hidden size of every recurrent layer and of the prenet.")
    add("--rnn_dropout", type=float, default=0.0, help="Dropout probability after each recurrent layer but the last.")
    text = "Add each recurrent layer's input to its output when their sizes match."
    add("--rnn_residual", "--residual", action=flag, default=False, help=text)
    add("--feature_dim", type=size, default=80, help="Size of a frame: the number of mel bins.")
    text = (
        "Start from the weights of any APC checkpoint. Model options that are not given are then the checkpoint's. "
        "Its optimizer, time shift and number of steps are not taken."
    )
    add("--init_from", metavar="CHECKPOINT", help=text)


def _add_training_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--optimizer", choices=tuple(OPTIMIZERS), default="adam", help="The optimizer, with PyTorch's other defaults.")
    add("--batch_size", type=positive, default=32, help="Number of utterances per step, across all processes.")
    text = "Process each process's share of a batch in this many parts, to save memory."
    add("--grad_accumulation", type=positive_count, default=1, metavar="PARTS", help=text)
    text = "Precision of matrix products; weights stay in fp32. A CPU without bf16 products computes in fp32."
    add("--precision", choices=tuple(PRECISIONS), default="fp32", help=text)
    add("--learning_rate", type=positive_float, default=1e-4, help="Peak learning rate of the optimizer.")
    text = (
        "The learning rate after the warm-up: constant, falling along a cosine to zero at the last step that --epochs "
        "and --max_steps allow (which then stay as they are when resuming), or halved after "
        f"{PLATEAU_EPOCHS} epochs without a better validation loss."
    )
    add("--lr_schedule", choices=SCHEDULES, default="constant", help=text)
    add("--warmup_steps", type=natural, default=0, help="Steps over which the learning rate rises to its highest.")
    add("--epochs", type=natural, default=100, help="Number of passes over the training set.")
    add("--max_steps", type=positive, help="Stop after this many steps, even within an epoch.")
    text = "Stop after this many epochs without a better validation loss."
    add("--patience", type=positive, metavar="EPOCHS", help=text)
    add("--time_shift", type=positive, default=1, help="How many frames ahead the model predicts: n of the paper.")
    text = "Maximum norm of the gradient."
    add("--clip_thresh", type=positive_float, default=1.0, help=text)
    text = "Mean over true frames; 'padded' also averages over padding, as the released code does."
    add("--loss", choices=LOSSES, default="masked", help=text)
    add("--seed", type=natural, default=0, help="Seed of the weights, the order of the data and dropout.")
    add("--device", default="auto", help="Where to train: auto, cpu, cuda or cuda:i.")
    text = "What to do when a loss or gradient is NaN or infinite: stop, or skip that batch."
    add("--on_nonfinite", choices=("stop", "skip"), default="stop", help=text)


def _add_data_options(group: argparse._ArgumentGroup) -> None:
    add, flag = group.add_argument, argparse.BooleanOptionalAction
    add("--librispeech_path", default="./librispeech_data/preprocessed", help="The directory of prepared directories.")
    text = "Directories to train on, by name or unique prefix."
    add("--train_split", nargs="+", default=["train-clean-360"], metavar="NAME", help=text)
    text = "Directories to validate on, by name or unique prefix."
    add("--val_split", nargs="+", default=["dev-clean"], metavar="NAME", help=text)
    text = "Train on this fraction of the utterances, always the same ones for a seed."
    add("--train_fraction", type=fraction, default=1.0, help=text)
    text = (
        "Cut the utterances of training into segments of equal length, of this many frames at most: an epoch has more "
        "steps, and takes no longer."
    )
    add("--segment_frames", type=positive, metavar="FRAMES", help=text)
    text = "Train on frames that were made or scaled in different ways, or in another way than those of --init_from."
    add("--any_frames", action="store_true", help=text)
    add("--load_data_workers", type=count, default=2, help="Number of processes that read data, for each that trains.")
    add("--bucketing", action=flag, default=False, help="Batch utterances of similar length together.")


def _add_experiment_options(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--experiment_name", default="foo", help="The name of the experiment, and of its directory.")
    add("--store_path", default="./logs", help="The directory of experiments.")
    text = "Save the state needed to resume after this many steps (500) or minutes (10m), besides every epoch."
    add("--save_every", type=SaveInterval, default="10m", metavar="INTERVAL", help=text)
    text = "Keep the weights of the last N epochs, and of the best; 'all' keeps those of every epoch."
    add("--keep", type=models_kept, default="all", metavar="N", help=text)
    start = group.add_mutually_exclusive_group()
    text = "Continue the experiment of that name where it was last saved, or start it."
    start.add_argument("--resume", action="store_true", help=text)
    start.add_argument("--overwrite", action="store_true", help="Remove the experiment of that name and start over.")
