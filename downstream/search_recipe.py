"""Try recipes of training APC for equal time, and rank them by the frame error of linear classifiers on dev.

    python downstream/search_recipe.py --data mboshi --label_shift 65 --minutes 4 --save_dir logs/search
    python downstream/search_recipe.py --data mboshi --label_shift 65 --minutes 12 --save_dir logs/search12 \
        --recipes "lr_schedule=cosine" "lr_schedule=cosine rnn_hidden_size=512"

A recipe is a line of options of train_apc.py (flags with the value on or off) and of norm and front_end of the frames;
what it does not name is as in BASE. Unless it sets its epochs, it is trained for as many as fit into --minutes, going
by a trial epoch: minutes of one core's CPU time, which other jobs do not distort, or of wall-clock time on a GPU. An
interrupted search continues with the same command.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import re
import resource
import tempfile
import time
from typing import Any

import torch

from downstream.probing.arguments import NORMS, add_probe_options, make_parser, probe_options, results_directory
from downstream.probing.corpus import DEFAULT_NORM, Corpus, load_corpus, record_corpus
from downstream.probing.markdown import table
from downstream.probing.phones import classify_phones
from downstream.probing.splits import DEV
from downstream.probing.study import LINEAR
from downstream.probing.training import POLL_SECONDS, Training, options_of, train
from load_pretrained_model import load_pretrained
from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS
from utils.features.check import prediction_errors
from utils.system.arguments import positive_float
from utils.system.device import pick_device
from utils.system.errors import run_script
from utils.system.files import read_json, write_json

BASE = {
    "rnn_hidden_size": "256",
    "rnn_num_layers": "3",
    "batch_size": "8",
    "learning_rate": "1e-3",
    "time_shift": "3",
    "precision": "bf16",
    "rnn_residual": "on",
}
FLAGS = {"on": True, "off": False}
NOT_OF_RECIPES = {"seed", "device", "keep", "load_data_workers", "librispeech_path", "train_split", "val_split"}
NOT_OF_RECIPES |= {"experiment_name", "store_path", "resume", "overwrite", "feature_dim"}  # the search's own
NOT_OF_RECIPES |= {"patience", "max_steps"}  # which end a training before its time
FRAMES = "front_end", "norm"  # of a recipe, or else of the options of these names
PACE = "lr_schedule=cosine bucketing=on"
FAST = f"{PACE} learning_rate=2e-3"
GOOD = f"{FAST} segment_frames=100"
RECIPES = (
    "",
    PACE,
    FAST,
    f"{FAST} batch_size=16",
    f"{FAST} batch_size=4",
    GOOD,
    f"{GOOD} learning_rate=4e-3",
    f"{GOOD} segment_frames=50 batch_size=16",
    f"{GOOD} norm=speaker",
    f"{GOOD} time_shift=5",
    f"{GOOD} rnn_hidden_size=512",
    f"{GOOD} rnn_hidden_size=512 rnn_num_layers=2",
    f"{GOOD} rnn_type=lstm",
    f"{GOOD} front_end=kaldi-hires",
    f"{GOOD} rnn_num_layers=4",
    f"{GOOD} rnn_dropout=0.2",
)
MAY_CHANGE = {"data", "labels", "save_dir", "minutes", "recipes", "seed", "device", "num_workers", "on_error"}
COLUMNS = "recipe", "epochs", "L1 on dev / repeating a frame", "layer", "frame error on dev (%)"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    help = "Train each recipe for this much time of one core, or of a GPU."
    add("--minutes", type=positive_float, default=10.0, help=help)
    help = f"What to try: lines such as 'rnn_dropout=0.2 norm=speaker' (default: {len(RECIPES)} recipes)."
    add("--recipes", nargs="+", default=list(RECIPES), metavar="RECIPE", help=help)
    add_probe_options(parser)
    parser.set_defaults(checkpoint=None, norm=DEFAULT_NORM, save_dir=Path("logs/search"))
    args = parser.parse_args(arguments)
    for recipe in args.recipes:
        if not all("=" in setting for setting in recipe.split()):
            parser.error(f"--recipes: {recipe!r} is not a line of NAME=VALUE")
        settings = settings_of(recipe)
        if not settings.get("epochs", "1").isdecimal():
            parser.error(f"--recipes: {recipe!r} has no whole number of epochs")
        for name, known in {"norm": NORMS, "front_end": FRONT_ENDS}.items():
            if settings.get(name, next(iter(known))) not in known:
                parser.error(f"--recipes: {recipe!r} has a {name} that is not one of {', '.join(known)}")
        if names := sorted(NOT_OF_RECIPES & settings.keys()):
            parser.error(f"--recipes: {recipe!r} has {names[0]}, which is no part of a recipe")
    return args


def settings_of(recipe: str) -> dict[str, str]:
    """The settings of a line of NAME=VALUE."""
    return dict(setting.split("=", 1) for setting in recipe.split())


def corpus_of(args: argparse.Namespace, recipe: dict[str, str], loaded: dict[Path, Corpus]) -> Corpus:
    """The corpus with a recipe's frames, prepared and loaded once for each kind of frames."""
    frames = {name: recipe.get(name, getattr(args, name)) for name in FRAMES}
    directory = args.save_dir / f"{frames['front_end'] or DEFAULT_FRONT_END}-{frames['norm']}"
    if directory not in loaded:
        loaded[directory] = load_corpus(argparse.Namespace(**vars(args) | frames | {"save_dir": directory}))
        record_corpus(directory, loaded[directory])
    return loaded[directory]


def epochs_within(minutes: float, arguments: list[str], device: torch.device) -> int:
    """The number of epochs that take so many minutes of one core, or of a GPU.

    An epoch takes the time of a training of one epoch less that of a training of none.
    """
    seconds = []
    with tempfile.TemporaryDirectory() as store:
        for number, epochs in enumerate((0, 0, 1)):  # by the clock, the first would be slow
            start = _seconds_used(device)
            train([Training(Path(store), f"timing{number}", epochs, arguments)])
            seconds.append(_seconds_used(device) - start)
    return max(1, round(60 * minutes / max(seconds[2] - seconds[1], POLL_SECONDS)))


def _seconds_used(device: torch.device) -> float:
    """The CPU time of trainings that have ended, or on a GPU the clock's."""
    if device.type != "cpu":
        return time.perf_counter()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def try_recipe(args: argparse.Namespace, line: str, path: Path, corpus: Corpus, device: torch.device) -> dict[str, Any]:
    """Train a recipe and classify phones on dev from each layer. A result is kept in a file."""
    if path.exists():
        return read_json(path)
    recipe = settings_of(line)
    settings = BASE | {name: value for name, value in recipe.items() if name not in FRAMES}
    settings |= {"librispeech_path": corpus.prepared, "train_split": "train", "val_split": "dev", "seed": args.seed}
    settings |= {"load_data_workers": 0, "device": args.device, "keep": 1, "feature_dim": corpus.mel_dim}
    epochs = settings.pop("epochs", None)
    options = options_of({name: FLAGS.get(value, value) for name, value in settings.items()})
    epochs_path = path.with_suffix(".epochs")
    if not epochs_path.exists():
        write_json(epochs_path, {"epochs": int(epochs or epochs_within(args.minutes, options, device))})
    epochs = read_json(epochs_path)["epochs"]
    training = Training(args.save_dir / "models", path.stem, epochs, options)
    train([training])
    model = load_pretrained(training.checkpoint(), device)
    layers = range(model.num_feats)
    features = corpus.hidden_states(model, device, layers)
    probe = LINEAR, args.seed, probe_options(args), device
    errors = [classify_phones(corpus, features[layer], *probe)["dev_error"] for layer in layers]
    utterances = corpus.sets[DEV].log_mel
    l1 = prediction_errors(model, [utterances[index].numpy() for index in range(len(utterances))])
    result = {"recipe": line, "epochs": epochs, "minutes": args.minutes, "ratio": l1.ratio, "dev_errors": errors}
    write_json(path, result)
    return result


def ranking(results: list[dict[str, Any]]) -> list[str]:
    """The results as lines of a Markdown table, the lowest error first."""
    rows = []
    for result in sorted(results, key=lambda result: min(result["dev_errors"])):
        error = min(result["dev_errors"])
        cells = [result["recipe"] or "the base", str(result["epochs"]), f"{result['ratio']:.3f}"]
        rows.append([*cells, str(result["dev_errors"].index(error)), f"{100 * error:.2f}"])
    return table(COLUMNS, rows)


def main(arguments: list[str] | None = None) -> None:
    """Try what is not tried yet, and print a table."""
    args = parse_arguments(arguments)
    with results_directory(args, "search_recipe.py", MAY_CHANGE):
        results, loaded, device = [], {}, pick_device(args.device)
        clock = "" if device.type == "cpu" else f"-{device.type}"  # whose minutes they are
        for recipe in args.recipes:
            name = re.sub(r"[^\w.-]+", "-", recipe) or "base"
            path = args.save_dir / f"{name}-{args.minutes:g}min{clock}-seed{args.seed}.json"
            corpus = corpus_of(args, settings_of(recipe), loaded)
            results.append(try_recipe(args, recipe, path, corpus, device))
            print(*ranking(results), sep="\n", flush=True)


if __name__ == "__main__":
    run_script(main)
