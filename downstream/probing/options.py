"""The options that the scripts of downstream/ share."""

import argparse
from pathlib import Path

from downstream.probing.probes import ProbeOptions
from utils.system.arguments import add_residual_option, natural, positive, positive_float

NORMS = ("global", "speaker", "utterance")
DEFAULTS = ProbeOptions()


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what corpus, how it is split, and how it is normalised."""
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR",
        help="The corpus: audio/{train,dev,test} and phones.ctm are in this directory.")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="Phone labels elsewhere: a CTM (.ctm), or lines of `utterance label label ...` at 100 Hz.")  # fmt: skip
    add("--label_shift", type=float, metavar="MS",
        help="Take the labels this much earlier: the alignments of some corpora are late by a constant.")  # fmt: skip
    add("--held_out_speakers", nargs="+", metavar="SPEAKER",
        help="Test on these speakers and train on the others, instead of testing on audio/test.")  # fmt: skip
    add("--norm", choices=NORMS, default=NORMS[0],
        help="Scale log Mel to zero mean and unit variance by train's statistics, or by each speaker's or "
        "utterance's own (by which speakers are harder to tell apart).")  # fmt: skip
    add("--num_workers", type=natural, default=2, metavar="N", help="Prepare in this many processes.")


def add_run_options(parser: argparse.ArgumentParser, what_seeds_do: str | None = None) -> None:
    """Where results and prepared data are, what is random, and where it is computed."""
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("logs/downstream"), metavar="DIR",
        help="Keep the prepared corpus, and what else is made of it, below this directory.")  # fmt: skip
    if what_seeds_do:
        add("--seeds", type=positive, default=3, metavar="N", help=what_seeds_do)
    add("--seed", type=natural, default=0, help="The first seed.")
    add("--device", default="auto", help="Where to compute: auto, cpu, cuda or cuda:i.")


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """What a probe reads."""
    add = parser.add_argument
    add("--checkpoint", type=Path, metavar="FILE", help="Read this APC's hidden states; without it, log Mel.")
    add("--layer", default="-1", help="Which layer of the checkpoint: a number, -1 for the last, or all.")
    add_residual_option(parser)
    add("--save", type=Path, metavar="FILE", help="Write the results to this file, as JSON.")


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """How probes are trained."""
    add = parser.add_argument
    add("--probe_hidden_size", type=positive, default=DEFAULTS.hidden_size,
        help="Units of each hidden layer of mlp1 and mlp3.")  # fmt: skip
    add("--probe_learning_rate", type=positive_float, default=DEFAULTS.learning_rate,
        help="Adam's learning rate for probes, at first.")  # fmt: skip
    add("--probe_batch_size", type=positive, default=DEFAULTS.batch_size, help="Frames in a batch of a probe.")
    add("--probe_epochs", type=positive, default=DEFAULTS.max_epochs, help="Epochs of a probe, at most.")
    add("--patience", type=positive, default=DEFAULTS.patience,
        help="Stop a probe after this many epochs without a lower error on dev.")  # fmt: skip


def probe_options(options: argparse.Namespace) -> ProbeOptions:
    """What the options of `add_probe_options` say."""
    return ProbeOptions(options.probe_hidden_size, options.probe_learning_rate, options.probe_batch_size,
                        options.probe_epochs, options.patience)  # fmt: skip
