"""Does it work? Trains APC on a small corpus, probes what it has learned beside honest baselines, and reports.

    python downstream/run_all.py --data mboshi --save_dir logs/mboshi        about an hour on two cores
    python downstream/run_all.py --data librispeech_data/sample --quick      a minute; only to see that it runs

The corpus: DIR/audio/{train,dev,test}/<speaker>/*.flac and DIR/phones.ctm. The probes are phone classifiers for every
frame, speaker verification and speaker identification. They read log Mel; log Mel with its neighbours; every layer of
networks with random weights; and every layer of the same networks, trained at several time shifts. The layer and the
time shift to compare are chosen on dev, the errors are of test.

Can be killed at any moment: the same command continues. Writes, below --save_dir:

    prepared/  models/  results/      log-Mel frames, experiments of train_apc.py, a JSON file for each result
    report/report.md, *.png           the table, the claims, and figures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import hashlib
import json
from functools import partial

import torch

from apc_model import APCModel
from downstream.probing.corpus import load_corpus
from downstream.probing.options import add_corpus_options, add_probe_options, add_run_options, probe_options
from downstream.probing.plan import Plan, choose_best
from downstream.probing.probes import CLASSIFIERS
from downstream.probing.report import write_report
from downstream.probing.study import Study
from downstream.probing.training import checkpoint_path, train
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.system.arguments import HelpFormatter, positive, positive_float
from utils.system.device import pick_device
from utils.system.errors import InputError, one_line, run_script
from utils.system.files import lock_directory, read_json, refuse_other_files, remove_leftovers, write_json
from utils.system.memory import reuse_freed_memory

CONFIG_FILE = "config.json"
MAY_CHANGE = {"data", "labels", "save_dir", "time_shifts", "epochs", "seeds", "device", "num_workers", "quick"}
QUICK = {"time_shifts": [1, 3], "epochs": 3, "hidden_size": 64, "seeds": 2, "probe_epochs": 4, "probe_hidden_size": 64}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_corpus_options(parser)
    add_run_options(parser, "Train each probe with this many seeds.")
    add = parser.add_argument
    add("--quick", action="store_true", help="Small models, little training: see that everything runs, in minutes.")
    add("--time_shifts", type=positive, nargs="+", default=[1, 3, 5, 10], metavar="N",
        help="Train a model to predict each of these numbers of frames ahead.")  # fmt: skip
    add("--epochs", type=positive, default=20, help="Train each for this many passes over the training set.")
    add("--hidden_size", type=positive, default=256, help="Hidden size of every recurrent layer.")
    add("--num_layers", type=positive, default=3, help="Number of recurrent layers.")
    add("--learning_rate", type=positive_float, default=1e-3, help="Adam's learning rate in training APC.")
    add("--batch_size", type=positive, default=8, help="Utterances in a batch in training APC.")
    add("--context", type=positive, default=5,
        help="Stack log Mel with so many frames before and after each; and, causal, twice as many before.")  # fmt: skip
    add_probe_options(parser)
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error("--seeds must be 2 at least: what holds is told by the deviation between them")
    options.time_shifts = sorted(set(options.time_shifts))
    return options


def check_config(options: argparse.Namespace) -> None:
    """Remember what the results in --save_dir are made with, and refuse to mix them with others.

    Raises:
        InputError: they were made with other options, or other labels.
    """
    labels = options.labels or options.data / "phones.ctm"
    now = {key: value for key, value in vars(options).items() if key not in MAY_CHANGE}
    if labels.is_file():  # else reading them says what is wrong
        now["labels"] = hashlib.sha256(labels.read_bytes()).hexdigest()
    now = json.loads(json.dumps(now))  # as it will be read back
    path = options.save_dir / CONFIG_FILE
    before = read_json(path) if path.exists() else now
    changed = [
        f"{key} was {one_line(before.get(key), 60)} and is now {one_line(now.get(key), 60)}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise InputError(f"{options.save_dir} holds other results: {'; '.join(changed)}; give another --save_dir")
    write_json(path, now)


def rnn_config(options: argparse.Namespace, mel_dim: int) -> RNNConfig:
    """The recurrent stack of every model here: the papers', with residual connections."""
    return RNNConfig(mel_dim, options.hidden_size, options.num_layers, 0.0, residual=True)


def random_model(config: RNNConfig, seed: int) -> APCModel:
    """A network as it is before training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return APCModel(config.input_size, None, config)


def training_arguments(options: argparse.Namespace, time_shift: int, prepared: Path) -> list[str]:
    """What train_apc.py is told, beside names."""
    settings = {
        "librispeech_path": prepared, "train_split": "train", "val_split": "dev", "time_shift": time_shift,
        "rnn_hidden_size": options.hidden_size, "rnn_num_layers": options.num_layers, "batch_size": options.batch_size,
        "learning_rate": options.learning_rate, "seed": options.seed, "device": options.device, "load_data_workers": 1,
    }  # fmt: skip
    return ["--rnn_residual", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]


def probe_baselines(study: Study, options: argparse.Namespace, plan: Plan) -> None:
    """Log Mel with every classifier, log Mel with its neighbours, and random networks."""
    for classifier in CLASSIFIERS:
        study.classify("log_mel", [0], study.log_mel(), classifier, with_speakers=classifier == CLASSIFIERS[0])
    for system, context in plan.contexts.items():
        study.classify(system, [0], study.log_mel(context))
    mel_dim = study.corpus.sets["train"].log_mel[0].size(1)
    for seed in study.seeds:
        make_model = partial(random_model, rnn_config(options, mel_dim), seed)
        is_first = seed == study.seeds[0]
        study.classify(f"random_seed{seed}", plan.layers, study.hidden_states(make_model), seeds=[seed],
                       with_speakers=is_first)  # fmt: skip


def probe_checkpoint(study: Study, store: Path, plan: Plan, time_shift: int, epoch: int, layers: list[int]) -> None:
    """Linear probes of a trained model after an epoch."""
    path = checkpoint_path(store, plan.experiment(time_shift), epoch)
    study.classify(
        plan.trained(time_shift, epoch), layers, study.hidden_states(partial(load_pretrained, path)),
        with_speakers=epoch == plan.epochs,
    )  # fmt: skip


def run(options: argparse.Namespace) -> None:
    """Everything that is not done yet, in --save_dir, which this process owns."""
    check_config(options)
    store = options.save_dir / "models"
    device = pick_device(options.device)
    corpus = load_corpus(options, options.save_dir)
    seeds = range(options.seed, options.seed + options.seeds)
    study = Study(corpus, options.save_dir / "results", seeds, probe_options(options), device)
    plan = Plan(options.time_shifts, options.epochs, list(range(options.num_layers)), options.context)
    probe_baselines(study, options, plan)
    for time_shift in options.time_shifts:
        experiment = plan.experiment(time_shift)
        train(store, experiment, options.epochs, training_arguments(options, time_shift, corpus.prepared))
        probe_checkpoint(study, store, plan, time_shift, options.epochs, plan.layers)
    best = choose_best(study, plan)
    for epoch in plan.curve_epochs():
        probe_checkpoint(study, store, plan, best.time_shift, epoch, [best.layer])
    model = load_pretrained(checkpoint_path(store, plan.experiment(best.time_shift), options.epochs), device)
    report = write_report(study, plan, model, options.save_dir / "report")
    print(report.read_text(encoding="utf-8"))
    print(f"{report}")


def main(arguments: list[str] | None = None) -> None:
    """Train, probe, report."""
    options = parse_options(arguments)
    reuse_freed_memory()

    def check() -> None:
        if not (options.save_dir / CONFIG_FILE).exists():
            refuse_other_files(options.save_dir)

    with lock_directory(options.save_dir, "another run of run_all.py", check):
        remove_leftovers(options.save_dir)
        run(options)


if __name__ == "__main__":
    run_script(main)
