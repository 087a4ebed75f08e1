"""Frame-wise phone classification: how much a simple classifier can read off log Mel, or off an APC's features.

    python downstream/phone_classification.py --data mboshi --classifier mlp3
    python downstream/phone_classification.py --data mboshi --context 5
    python downstream/phone_classification.py --data mboshi --checkpoint logs/foo.dir/foo__epoch_100.model --layer all

Prints the error per frame and per phone on the test set, with mean and deviation over seeds. The corpus and the sets:
downstream/corpus.py and splits.py; classifiers and training: probes.py; what the errors mean: scoring.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import statistics
from typing import Any

import torch

from downstream.corpus import Corpus, add_corpus_options, load_corpus
from downstream.features import Features, log_mel_features, model_features
from downstream.probes import CLASSIFIERS, ProbeOptions, train_probe
from downstream.scoring import error_by_phone, score_phones
from downstream.splits import DEV, SETS, TEST, TRAIN
from load_pretrained_model import load_pretrained, pick_layers
from utils.command_line import HelpFormatter, natural, positive, positive_float
from utils.errors import run_script
from utils.files import write_json
from utils.memory import reuse_freed_memory
from utils.options import pick_device

FeatureSets = dict[str, Features]  # of 'train', 'dev' and 'test'
DEFAULTS = ProbeOptions()


def classify_phones(
    corpus: Corpus, features: FeatureSets, classifier: str, seed: int, options: ProbeOptions, device: torch.device
) -> dict[str, Any]:
    """Train a classifier on train, stopped by dev, and score it on test.

    Returns:
        dev_error, frame_error, segment_error (shares of 1), the best epoch, and the confusion matrix: JSON types.
    """
    train, dev, test = (features[name].with_labels(corpus.sets[name]).to(device) for name in (TRAIN, DEV, TEST))
    num_phones = len(corpus.labels.phones)
    probe, dev_error, epoch = train_probe(train, dev, num_phones, classifier, seed, options)
    log_posteriors = probe.log_posteriors(test.features)  # (frames, phones)
    scores = score_phones(log_posteriors.numpy(), test.classes.cpu().numpy(), corpus.sets[TEST].segments)
    return {
        "dev_error": dev_error,
        "frame_error": scores.frame_error,
        "segment_error": scores.segment_error,
        "epoch": epoch,
        "confusion": scores.confusion.tolist(),
    }


def mean_and_deviation(values: list[float]) -> tuple[float, float]:
    """Mean, and sample standard deviation (0 of a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: list[float]) -> str:
    """Errors of several seeds as 'mean ± deviation', in percent."""
    mean, deviation = mean_and_deviation(values)
    return f"{100 * mean:.2f}" if len(values) == 1 else f"{100 * mean:.2f} ± {100 * deviation:.2f}"


def add_probe_options(parser: argparse.ArgumentParser) -> None:
    """How probes are trained."""
    add = parser.add_argument
    add("--seeds", type=positive, default=3, metavar="N", help="Train each probe with this many seeds.")
    add("--seed", type=natural, default=0, help="The first of the seeds.")
    add("--probe_hidden_size", type=positive, default=DEFAULTS.hidden_size,
        help="Units of each hidden layer of mlp1 and mlp3.")  # fmt: skip
    add("--probe_learning_rate", type=positive_float, default=DEFAULTS.learning_rate,
        help="Adam's learning rate for probes, at first.")  # fmt: skip
    add("--probe_batch_size", type=positive, default=DEFAULTS.batch_size, help="Frames in a batch of a probe.")
    add("--probe_epochs", type=positive, default=DEFAULTS.max_epochs, help="Epochs of a probe, at most.")
    add("--patience", type=positive, default=DEFAULTS.patience,
        help="Stop a probe after this many epochs without a lower error on dev.")  # fmt: skip
    add("--device", default="auto", help="Where to compute: auto, cpu, cuda or cuda:i.")


def probe_options(options: argparse.Namespace) -> ProbeOptions:
    """What the options of `add_probe_options` say."""
    return ProbeOptions(options.probe_hidden_size, options.probe_learning_rate, options.probe_batch_size,
                        options.probe_epochs, options.patience)  # fmt: skip


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """What a probe reads."""
    add = parser.add_argument
    add("--save_dir", type=Path, default=Path("logs/downstream"), metavar="DIR",
        help="Keep the prepared corpus below this directory.")  # fmt: skip
    add("--checkpoint", type=Path, metavar="FILE", help="Read this APC's hidden states; without it, log Mel.")
    add("--layer", default="-1", help="Which layer of the checkpoint: a number, -1 for the last, or all.")
    add("--residual", action=argparse.BooleanOptionalAction, default=None,
        help="Whether the model has residual connections, where no config.json or file name tells.")  # fmt: skip
    add("--save", type=Path, metavar="FILE", help="Write the results to this file, as JSON.")


def chosen_features(
    corpus: Corpus, options: argparse.Namespace, context: tuple[int, int] = (0, 0)
) -> dict[str, FeatureSets]:
    """The features that the options name, under a name for each: one of log Mel, or one a layer."""
    if options.checkpoint is None:
        around = f", {context[0]} frames before and {context[1]} after" if any(context) else ""
        return {f"log Mel{around}": {name: log_mel_features(corpus.sets[name], context) for name in SETS}}
    device = pick_device(options.device)
    model = load_pretrained(options.checkpoint, device, options.residual)
    layers = pick_layers(options.layer, model)
    by_set = {name: model_features(model, corpus.sets[name], device) for name in SETS}
    return {f"layer {layer}": {name: by_set[name][layer] for name in SETS} for layer in layers}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_corpus_options(parser)
    add_feature_options(parser)
    parser.add_argument("--context", type=natural, nargs="+", default=[0], metavar="FRAMES",
        help="Stack each frame of log Mel with so many before and after it; two numbers: before, after.")  # fmt: skip
    parser.add_argument("--classifier", choices=CLASSIFIERS, default=CLASSIFIERS[0],
        help="Softmax regression, or a perceptron with one or three hidden layers.")  # fmt: skip
    add_probe_options(parser)
    options = parser.parse_args(arguments)
    if len(options.context) > 2:
        parser.error("--context takes one number or two")
    options.context = (options.context[0], options.context[-1])
    if options.checkpoint and any(options.context):
        parser.error("--context is for log Mel: an APC's features have their own")
    return options


def main(arguments: list[str] | None = None) -> None:
    """Classify, and print errors."""
    options = parse_options(arguments)
    reuse_freed_memory()
    device = pick_device(options.device)
    corpus = load_corpus(options, options.save_dir)
    results = {}
    for name, features in chosen_features(corpus, options, options.context).items():
        seeds = range(options.seed, options.seed + options.seeds)
        settings = options.classifier, probe_options(options), device
        runs = [classify_phones(corpus, features, settings[0], seed, *settings[1:]) for seed in seeds]
        errors = {key: percent([run[key] for run in runs]) for key in ("frame_error", "segment_error", "dev_error")}
        print(f"{name}, {options.classifier}: error per frame {errors['frame_error']} %, per phone "
              f"{errors['segment_error']} %; per frame on dev {errors['dev_error']} %")  # fmt: skip
        results[name] = runs
    confusion = torch.tensor(runs[0]["confusion"]).numpy()
    worst = sorted(zip(-error_by_phone(confusion), corpus.labels.phones, strict=True))
    print("error by phone: " + ", ".join(f"{phone} {-100 * error:.0f}" for error, phone in worst if error == error))
    if options.save:
        write_json(options.save, {"phones": corpus.labels.phones, "runs": results})


if __name__ == "__main__":
    run_script(main)
