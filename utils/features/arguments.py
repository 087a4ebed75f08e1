"""The options of load_pretrained_model.py."""

import argparse
from pathlib import Path

from utils.corpus.arguments import add_source_options
from utils.features.feature_files import FORMATS
from utils.system.arguments import HelpFormatter, add_residual_option, count, positive


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line (default: this process's)."""
    description = "Load a pre-trained APC model, and extract features."
    parser = argparse.ArgumentParser(description=description, formatter_class=HelpFormatter)
    add = parser.add_argument
    checkpoint = "The checkpoint: of this project, released, or of s3prl; by default the small model in pretrained/."
    add("--checkpoint", help=checkpoint)
    data = (
        "What to extract features from: a prepared directory, a directory of audio, audio files, a Kaldi data "
        "directory, a manifest (.tsv), archives (.blogmel, .ark, .scp), or - for an audio file on standard input; "
        "without it the model is only described."
    )
    add("--data", nargs="+", type=Path, metavar="PATH", help=data)
    check = (
        "Instead, print how well the model predicts some of this data, from audio with the frames of each front end: "
        "does the data fit the model?"
    )
    add("--check", nargs="+", type=Path, metavar="PATH", help=check)
    add("--save_dir", help="The directory that the features are written to.")
    help = "Which layer's features to write: a number from 0, -1 for the last, all, or mean."
    add("--layer", default="-1", help=help)
    form = "A .pt or .npy file per utterance, or one Kaldi archive, feats.ark with feats.scp."
    add("--format", choices=FORMATS, default="pt", help=form)
    add("--half", action="store_true", help="Write 16 bits per number: float16; in an archive, Kaldi's own (CM2).")
    add_residual_option(parser)
    text = "How many frames ahead the model predicts, whatever its configuration or file name says."
    add("--time_shift", type=positive, metavar="N", help=text)
    add("--device", default="auto", help="Where to run: auto, cpu, cuda or cuda:i.")
    precision = "Precision of matrix products. A CPU without bf16 products computes in fp32."
    add("--precision", choices=("fp32", "bf16"), default="fp32", help=precision)
    add("--batch_size", type=positive, default=32, help="Number of utterances per batch.")
    chunk = "Compute this many frames of an utterance at a time; more take more memory."
    add("--chunk", type=positive, default=1000, metavar="FRAMES", help=chunk)
    add("--load_data_workers", type=count, default=2, help="Number of processes that read data.")
    add("--overwrite", action="store_true", help="Remove the features that --save_dir holds, and start over.")
    add_source_options(parser)
    args = parser.parse_args(arguments)
    if bool(args.data) != bool(args.save_dir):
        parser.error("--data and --save_dir go together")
    if args.data and args.check:
        parser.error("--data and --check exclude each other")
    return args
