"""The options that the scripts of downstream/ share."""

import argparse
import contextlib
import hashlib
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from downstream.probing.abx import AbxOptions
from downstream.probing.corpus import DEFAULT_NORM
from downstream.probing.labels import SILENCE
from downstream.probing.probes import ProbeOptions
from downstream.probing.recognition import RecognitionOptions
from utils.audio.front_ends import DEFAULT_FRONT_END
from utils.configs import RNN_TYPES
from utils.corpus.arguments import add_front_end_options
from utils.rnn.precision import PRECISIONS
from utils.system.arguments import (
    HelpFormatter,
    add_residual_option,
    count,
    fraction,
    natural,
    nonnegative_float,
    positive,
    positive_float,
)
from utils.system.errors import InputError, describe_changes
from utils.system.files import (
    LOCK_FILE,
    lock_directory,
    prepare_to_write,
    read_json,
    refuse_other_files,
    remove_leftovers,
    write_json,
)
from utils.training.objective import LOSSES
from utils.training.optimization import SCHEDULES

NORMS = ("global", "global-mean", "speaker", "speaker-mean", "utterance", "utterance-mean", "none")
CONFIG_FILE = "config.json"  # in --save_dir
DEFAULTS = ProbeOptions()
FRACTIONS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125)


def make_parser(description: str, seeds_help: str | None = None) -> argparse.ArgumentParser:
    """A parser with the options for reading a corpus, and for the output directory, the seeds and the device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    add = parser.add_argument
    help = "The corpus, with audio/{train,dev,test} and phones.ctm."
    add("--data", type=Path, required=True, metavar="DIR", help=help)
    help = "Read phone labels from this file: a CTM (.ctm), or lines of `utterance label label ...` at 100 Hz."
    add("--labels", type=Path, metavar="FILE", help=help)
    help = "Shift labels to be this much earlier: the alignments of some corpora are late by a constant."
    add("--label_shift", type=float, metavar="MS", help=help)
    help = "Test on these speakers and train on the others, instead of testing on audio/test."
    add("--held_out_speakers", nargs="+", metavar="SPEAKER", help=help)
    help = (
        "Scale log Mel to zero mean and unit variance over train, each speaker or each utterance, or remove the mean "
        f"(by default: with a checkpoint, audio as its frames are and features not; without one, {DEFAULT_NORM})."
    )
    add("--norm", choices=NORMS, help=help)
    add_front_end_options(parser)
    add("--num_workers", type=count, default=2, metavar="N", help="Number of processes that prepare audio.")
    help = "Stop at the first bad audio file, or skip it and list it in skipped.txt."
    add("--on_error", choices=("stop", "skip"), default="stop", help=help)
    help = "Write the prepared corpus, and all results that are kept, below this directory."
    add("--save_dir", type=Path, default=Path("logs/downstream"), metavar="DIR", help=help)
    if seeds_help:
        add("--seeds", type=positive, default=3, metavar="N", help=seeds_help)
    add("--seed", type=natural, default=0, help="The first seed.")
    add("--device", default="auto", help="Where to compute: auto, cpu, cuda or cuda:i.")
    return parser


@contextlib.contextmanager
def results_directory(args: argparse.Namespace, script: str, may_change: Set[str]) -> Iterator[None]:
    """Own --save_dir for the block, with the options and the labels of its results recorded there.

    Raises:
        InputError: it holds something else, or results of other options or labels, or another process owns it.
    """

    def check() -> None:
        if not (args.save_dir / CONFIG_FILE).exists():
            refuse_other_files(args.save_dir)

    with lock_directory(args.save_dir, f"another run of {script}", check):
        remove_leftovers(args.save_dir)
        _record_settings(args, may_change)
        try:
            yield
        except InputError:
            _remove_unused(args.save_dir)
            raise


def _remove_unused(directory: Path) -> None:
    """Remove the record of options with which nothing was done; of what lies beside it only locks and empty folders."""
    paths = sorted(directory.rglob("*"), reverse=True)  # what is within a folder before it
    files = [path for path in paths if path.is_symlink() or not path.is_dir()]
    if any(path.name != LOCK_FILE and path != directory / CONFIG_FILE for path in files):
        return
    for path in paths:
        with contextlib.suppress(OSError):  # not empty any more
            if path.is_dir():
                path.rmdir()
            elif path != directory / LOCK_FILE:
                path.unlink()


def _record_settings(args: argparse.Namespace, may_change: Set[str]) -> None:
    labels = args.labels or args.data / "phones.ctm"
    now = {key: value for key, value in vars(args).items() if key not in may_change}
    now["front_end"] = args.front_end or DEFAULT_FRONT_END
    if labels.is_file():  # otherwise reading them raises the error
        now["labels"] = hashlib.sha256(labels.read_bytes()).hexdigest()
    now = json.loads(json.dumps(now))  # as it is read back
    path = args.save_dir / CONFIG_FILE
    before = read_json(path) if path.exists() else now
    if changes := describe_changes(before, now):
        raise InputError(f"{args.save_dir} holds other results: {changes}; give another --save_dir")
    write_json(path, now)


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for the features to probe, and for the file of results."""
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="Probe this APC's hidden states instead of log Mel.")
    add("--layer", help="Which layer of the checkpoint: a number, -1 for the last (the default), or all.")
    add_residual_option(parser)
    add("--save", type=Path, metavar="FILE", help="Write the results to this file, as JSON.")


def parse_feature_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Read a command line with the options of `add_feature_options`; those of a checkpoint are refused without one."""
    args = parser.parse_args(arguments)
    if args.checkpoint is None and (args.layer, args.residual) != (None, None):
        parser.error("--layer and --residual are for a --checkpoint, and none is given")
    args.layer = args.layer or "-1"
    return args


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Add the recipe of training APC, by the names that train_apc.py has but for the sizes."""
    add = parser.add_argument
    add("--epochs", type=positive, default=10, help="Number of epochs of training each model.")
    add("--hidden_size", type=positive, default=768, help="Hidden size of every recurrent layer.")
    add("--num_layers", type=positive, default=3, help="Number of recurrent layers.")
    add("--rnn_type", choices=RNN_TYPES, default="gru", help="Kind of recurrent layer.")
    help = "Dropout probability after each recurrent layer but the last, in training APC."
    add("--rnn_dropout", type=nonnegative_float, default=0.0, help=help)
    add("--learning_rate", type=positive_float, default=2e-3, help="Adam's learning rate in training APC.")
    help = "The learning rate in training APC: constant, falling along a cosine to zero, or halved on a plateau."
    add("--lr_schedule", choices=SCHEDULES, default="cosine", help=help)
    add("--batch_size", type=positive, default=8, help="Utterances in a batch in training APC.")
    help = "Cut the utterances in training APC into segments of equal length, of this many frames at most."
    add("--segment_frames", type=positive, metavar="FRAMES", help=help)
    help = "Batch utterances of similar length together in training APC."
    add("--bucketing", action=argparse.BooleanOptionalAction, default=True, help=help)
    add("--loss", choices=LOSSES, default="masked", help="The mean over true frames, or also over padding.")
    help = "Precision of matrix products in training APC, where the device has it; probes compute in fp32."
    add("--precision", choices=tuple(PRECISIONS), default="bf16", help=help)


@contextlib.contextmanager
def saved_results(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A dictionary to fill, JSON types, which is written to --save when the block ends without an error."""
    if args.save:
        prepare_to_write(args.save)
    results: dict[str, Any] = {}
    yield results
    if args.save:
        write_json(args.save, results)


def add_probe_options(
    parser: argparse.ArgumentParser, default: ProbeOptions = DEFAULTS, examples: str = "Frames"
) -> None:
    """Add the options for training probes, linear classifiers of these examples."""
    add = parser.add_argument
    help = "Initial learning rate of Adam for probes."
    add("--probe_learning_rate", type=positive_float, default=default.learning_rate, help=help)
    add("--probe_batch_size", type=positive, default=default.batch_size, help=f"{examples} in a batch of a probe.")
    add("--probe_epochs", type=positive, default=default.max_epochs, help="Maximum number of epochs of a probe.")
    help = "Stop training a probe after this many epochs without a lower error on dev."
    add("--patience", type=positive, default=default.patience, help=help)


def add_perceptron_options(parser: argparse.ArgumentParser) -> None:
    """Add the options for probes that may be perceptrons as well."""
    add_probe_options(parser)
    help = "Hidden size of mlp1 and mlp3."
    parser.add_argument("--probe_hidden_size", type=positive, default=DEFAULTS.hidden_size, help=help)


def probe_options(args: argparse.Namespace) -> ProbeOptions:
    """The settings of the options of `add_perceptron_options` or `add_probe_options`."""
    hidden_size = vars(args).get("probe_hidden_size", DEFAULTS.hidden_size)
    settings = args.probe_learning_rate, args.probe_batch_size, args.probe_epochs, args.patience
    return ProbeOptions(hidden_size, *settings)


def add_silence_option(parser: argparse.ArgumentParser) -> None:
    """Add --silence: the non-speech phones."""
    help = "The non-speech phones, for ABX and recognition."
    parser.add_argument("--silence", nargs="*", default=list(SILENCE), metavar="PHONE", help=help)


def add_abx_options(parser: argparse.ArgumentParser) -> None:
    """Add the limits of the triphones that ABX compares."""
    add, default = parser.add_argument, AbxOptions()
    help = "Draw at most this many tokens of each triphone per speaker."
    add("--abx_items", type=positive, default=default.max_items, metavar="N", help=help)
    help = "Across speakers, draw X from at most this many other speakers for each triphone and speaker of A."
    add("--abx_speakers", type=positive, default=default.max_speakers, metavar="N", help=help)


def abx_options(args: argparse.Namespace) -> AbxOptions:
    """The settings of the options of `add_abx_options` and `add_silence_option`."""
    return AbxOptions(args.abx_items, args.abx_speakers, args.seed, tuple(args.silence))


def add_recognition_options(parser: argparse.ArgumentParser, shares: str = "+") -> None:
    """Add the shares of labelled speech, and the options for training recognisers."""
    add, default = parser.add_argument, RecognitionOptions()
    help = "Train recognisers on these shares of the training set" + (", or on none." if shares == "*" else ".")
    add("--fractions", type=fraction, nargs=shares, default=list(FRACTIONS), metavar="SHARE", help=help)
    help = "Channels of a recogniser's convolutions."
    add("--recogniser_hidden_size", type=positive, default=default.hidden_size, metavar="N", help=help)
    help = "Highest learning rate of Adam for recognisers."
    add("--recogniser_learning_rate", type=positive_float, default=default.learning_rate, metavar="RATE", help=help)
    help = "Highest learning rate of fine-tuning a network with a recogniser."
    add(
        "--encoder_learning_rate", type=positive_float, default=default.encoder_learning_rate, metavar="RATE", help=help
    )
    help = "Utterances in a batch of a recogniser."
    add("--recogniser_batch_size", type=positive, default=default.batch_size, metavar="N", help=help)
    help = "Batches of an epoch, at least, where the training set has fewer; half as many of fine-tuning."
    add("--recogniser_min_steps", type=positive, default=default.min_steps, metavar="N", help=help)
    help = "Number of epochs of training a recogniser."
    add("--recogniser_epochs", type=positive, default=default.epochs, metavar="N", help=help)
    help = "Number of epochs of fine-tuning, after those of the recogniser on frozen features."
    add("--fine_tune_epochs", type=positive, default=default.fine_tune_epochs, metavar="N", help=help)


def recognition_options(args: argparse.Namespace) -> RecognitionOptions:
    """The settings of the options of `add_recognition_options` and `add_silence_option`."""
    return RecognitionOptions(
        hidden_size=args.recogniser_hidden_size,
        learning_rate=args.recogniser_learning_rate,
        encoder_learning_rate=args.encoder_learning_rate,
        batch_size=args.recogniser_batch_size,
        min_steps=args.recogniser_min_steps,
        epochs=args.recogniser_epochs,
        fine_tune_epochs=args.fine_tune_epochs,
        silence=tuple(args.silence),
    )
