"""Train APC on a small corpus, compare its features with baselines by probes, and report.

    python downstream/run_all.py --data mboshi --save_dir logs/mboshi        two to six hours on two cores
    python downstream/run_all.py --data librispeech_data/sample --quick      under a minute; only to see that it runs

The corpus: DIR/audio/{train,dev,test}/<speaker>/*.flac and DIR/phones.ctm. The probes are phone classifiers for every
frame, speaker verification and speaker identification. They read log Mel; log Mel with its neighbours; every layer of
networks with random weights; and every layer of the same networks, trained at several time shifts. The layer and the
time shift to compare are chosen on dev, the errors are of test; that model is trained with several seeds. ABX errors of
the same features need no probe. Last, small recognisers learn from shares of the training set: from log Mel, and from
the best layers, frozen and fine-tuned.

With --speaker_data, models are also trained on a corpus of many speakers, and verify unseen ones.

An interrupted run continues with the same command. Writes, below --save_dir:

    prepared/  models/  results/      log-Mel frames, experiments of train_apc.py, a JSON file for each result
    speakers/                         the same of --speaker_data
    report/summary.md                 the main systems, and whether the claims of the papers hold
    report/report.md, *.png, *.pdf    every system, and figures
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import shlex
from functools import partial

import torch

from apc_model import APCModel
from downstream.probing.arguments import (
    abx_options,
    add_abx_options,
    add_perceptron_options,
    add_recognition_options,
    add_silence_option,
    add_training_options,
    make_parser,
    probe_options,
    recognition_options,
    results_directory,
)
from downstream.probing.corpus import DEFAULT_NORM, Corpus, load_corpus, load_speaker_corpus, record_corpus
from downstream.probing.plan import Best, Plan, choose_best, recognition_rows
from downstream.probing.probes import CLASSIFIERS
from downstream.probing.recognition import left_out
from downstream.probing.report import head_lines, write_report
from downstream.probing.speaker_study import SpeakerStudy
from downstream.probing.study import RANDOM, Study, StudyOptions, System
from downstream.probing.summary import write_summary
from downstream.probing.training import Training, options_of, train
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.rnn.precision import available_precision
from utils.system.arguments import positive
from utils.system.device import jobs_at_once, pick_device
from utils.system.errors import run_script

MAY_CHANGE = {"data", "labels", "save_dir", "time_shifts", "epochs", "seeds", "device", "num_workers"}
MAY_CHANGE |= {"command", "training_seeds", "on_error", "quick", "any_frames", "fractions", "speaker_data"}
RECIPE = "rnn_type", "rnn_dropout", "learning_rate", "lr_schedule", "batch_size", "segment_frames", "bucketing"
RECIPE += "loss", "precision"  # of train_apc.py
QUICK = {"time_shifts": [1, 3], "epochs": 3, "hidden_size": 64, "seeds": 2, "training_seeds": 2, "probe_epochs": 4}
QUICK |= {"probe_hidden_size": 64, "fractions": [1.0, 0.5], "recogniser_epochs": 1, "recogniser_min_steps": 5}
QUICK |= {"fine_tune_epochs": 1}


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, "Train each probe with this many seeds.")
    add = parser.add_argument
    add("--quick", action="store_true", help="Small models, little training: see that it runs, in under a minute.")
    help = "Train a model for each of these time shifts, in frames."
    add("--time_shifts", type=positive, nargs="+", default=[3, 5], metavar="N", help=help)
    add_training_options(parser)
    help = "Train the model with the best time shift with this many seeds."
    add("--training_seeds", type=positive, default=3, metavar="N", help=help)
    help = "Stack each log-Mel frame with this many on either side; also, causally, with twice as many before it."
    add("--context", type=positive, default=5, help=help)
    help = "Also train models on the audio of DIR/train*, and verify the speakers of DIR/test*, who must be others."
    add("--speaker_data", type=Path, metavar="DIR", help=help)
    add_perceptron_options(parser)
    add_abx_options(parser)
    add_recognition_options(parser, "*")
    add_silence_option(parser)
    parser.set_defaults(checkpoint=None, norm=DEFAULT_NORM)
    if parser.parse_args(arguments).quick:
        parser.set_defaults(**QUICK)
    args = parser.parse_args(arguments)
    if min(args.seeds, args.training_seeds) < 2:
        parser.error("--seeds and --training_seeds must be 2 at least: claims are judged by deviations between seeds")
    if args.rnn_dropout >= 1:
        parser.error(f"--rnn_dropout is {args.rnn_dropout:g}, not below 1")
    least = 2 * max(args.time_shifts)
    if args.segment_frames is not None and args.segment_frames <= least:
        parser.error(
            f"--segment_frames is {args.segment_frames}, not above twice the highest of --time_shifts: {least}"
        )
    given = sys.argv[1:] if arguments is None else arguments
    args.command = shlex.join(["python", "downstream/run_all.py", *given])
    args.time_shifts, args.fractions = sorted(set(args.time_shifts)), sorted(set(args.fractions), reverse=True)
    return args


def rnn_config(args: argparse.Namespace, mel_dim: int) -> RNNConfig:
    """The recurrent layers of the random networks: those of the trained models, with residual connections."""
    return RNNConfig(mel_dim, args.hidden_size, args.num_layers, 0.0, True, args.rnn_type)


def random_model(config: RNNConfig, seed: int) -> APCModel:
    """An untrained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return APCModel(config.input_size, None, config)


def training_of(
    args: argparse.Namespace, directory: Path, experiment: str, time_shift: int, corpus: Corpus, seed: int
) -> Training:
    """One model's training, kept below a directory."""
    settings = {"librispeech_path": corpus.prepared, "train_split": "train", "val_split": "dev", "load_data_workers": 1}
    settings |= {"feature_dim": corpus.mel_dim}
    settings |= {"rnn_hidden_size": args.hidden_size, "rnn_num_layers": args.num_layers, "rnn_residual": True}
    settings |= {"time_shift": time_shift, "seed": seed, "device": args.device}
    settings |= {name: getattr(args, name) for name in RECIPE}
    return Training(directory / "models", experiment, args.epochs, options_of(settings))


def train_time_shifts(
    args: argparse.Namespace, plan: Plan, directory: Path, corpus: Corpus, device: torch.device
) -> dict[int, Training]:
    """Train a model for each time shift; return the trainings by time shift."""
    trainings = {n: training_of(args, directory, plan.experiment(n), n, corpus, args.seed) for n in plan.time_shifts}
    train([*trainings.values()], jobs_at_once(device))
    return trainings


def probe_baselines(study: Study, args: argparse.Namespace, plan: Plan) -> None:
    """Probe log Mel with every classifier, log Mel with its neighbours, and random networks."""
    study.classify("log_mel", [0], study.log_mel(), CLASSIFIERS, with_speakers=True, with_abx=True)
    for system, context in plan.contexts.items():
        study.classify(system, [0], study.log_mel(context), with_abx=True)
    mel_dim = study.corpus.mel_dim
    for seed in study.seeds:
        features = study.hidden_states(partial(random_model, rnn_config(args, mel_dim), seed))
        is_first = seed == study.seeds[0]
        system = f"{RANDOM}_seed{seed}"
        study.classify(system, plan.layers, features, seeds=[seed], with_speakers=is_first, with_abx=True)


def probe_checkpoint(study: Study, path: Path, plan: Plan, time_shift: int, epoch: int, layers: list[int]) -> None:
    """Probe a trained model after an epoch by linear classifiers."""
    features, is_last = study.hidden_states(partial(load_pretrained, path)), epoch == plan.epochs
    study.classify(plan.trained(time_shift, epoch), layers, features, with_speakers=is_last, with_abx=is_last)


def train_again(study: Study, args: argparse.Namespace, plan: Plan, best: Best) -> dict[int, Path]:
    """Train the best model with the other seeds as well, and probe the best, the first and the last layer.

    Returns:
        The path of the weights by seed.
    """
    trainings = {}
    for seed in study.training_seeds:
        experiment = study.seeded_name(plan.experiment(best.time_shift), seed)
        settings = experiment, best.time_shift, study.corpus, seed
        trainings[seed] = training_of(args, args.save_dir, *settings)
    train([*trainings.values()], jobs_at_once(study.device))
    paths = {seed: training.checkpoint() for seed, training in trainings.items()}
    for seed in study.training_seeds:
        system = study.seeded_name(plan.trained(best.time_shift), seed)
        features = study.hidden_states(partial(load_pretrained, paths[seed]))
        study.classify(system, [best.layer], features, seeds=[seed], with_abx=True)
        study.classify(system, sorted({plan.layers[0], plan.layers[-1]} - {best.layer}), features, seeds=[seed])
    return paths


def recognise(study: Study, args: argparse.Namespace, plan: Plan, best: Best, paths: dict[int, Path]) -> None:
    """Recognise phones from log Mel, random networks and the best layer of each training, frozen and fine-tuned."""
    rows = recognition_rows(study, plan, best)
    mel_dim = study.corpus.mel_dim
    networks, trained = [], []
    for seed in study.seeds:
        features = study.hidden_states(partial(random_model, rnn_config(args, mel_dim), seed))
        networks.append(System(f"{RANDOM}_seed{seed}", rows.random.layer, features, [seed]))
    for seed, path in paths.items():
        name = study.seeded_name(plan.trained(best.time_shift), seed)
        features = study.hidden_states(partial(load_pretrained, path))
        trained.append(System(name, best.layer, features, [seed], load_pretrained(path)))
    for systems in [System(rows.log_mel.system, rows.log_mel.layer, study.log_mel(), study.seeds)], networks, trained:
        study.recognise(systems, plan.fractions)


def speaker_study(args: argparse.Namespace, device: torch.device) -> SpeakerStudy | None:
    """The study of --speaker_data; None where it is not given."""
    if args.speaker_data is None:
        return None
    corpus, directory = load_speaker_corpus(args), args.save_dir / "speakers"
    record_corpus(directory, corpus)
    return SpeakerStudy(corpus, directory / "results", range(args.seed, args.seed + args.seeds), device)


def verify_speakers(study: SpeakerStudy, args: argparse.Namespace, plan: Plan) -> None:
    """Train a model for each time shift on the speakers' corpus, and verify its test speakers."""
    study.verify_log_mel()
    config = rnn_config(args, study.corpus.mel_dim)
    for seed in study.seeds:
        study.verify(f"{RANDOM}_seed{seed}", plan.layers, partial(random_model, config, seed))
    directory = args.save_dir / "speakers"
    for time_shift, training in train_time_shifts(args, plan, directory, study.corpus, study.device).items():
        make_model = partial(load_pretrained, training.checkpoint())
        study.verify(plan.trained(time_shift), plan.layers, make_model)


def run(args: argparse.Namespace) -> None:
    """Do everything that is not done yet in --save_dir, which this process has locked."""
    device = pick_device(args.device)
    corpus = load_corpus(args)
    record_corpus(args.save_dir, corpus)
    seeds, training_seeds = (range(args.seed, args.seed + count) for count in (args.seeds, args.training_seeds))
    options = StudyOptions(probe_options(args), abx_options(args), recognition_options(args))
    study = Study(corpus, args.save_dir / "results", seeds, training_seeds, options, device)
    plan = Plan(args.time_shifts, args.epochs, list(range(args.num_layers)), args.context, args.fractions)
    if plan.fractions:  # before any training: a corpus of no use stops the run here
        for line in left_out(corpus, options.recognition.silence):
            print(line)
    speakers = speaker_study(args, device)
    probe_baselines(study, args, plan)
    trainings = train_time_shifts(args, plan, args.save_dir, corpus, device)
    for time_shift, training in trainings.items():
        probe_checkpoint(study, training.checkpoint(), plan, time_shift, args.epochs, plan.layers)
    best = choose_best(study, plan)
    for epoch in plan.curve_epochs():
        path = trainings[best.time_shift].checkpoint(epoch)
        probe_checkpoint(study, path, plan, best.time_shift, epoch, [best.layer])
    paths = train_again(study, args, plan, best)
    model = load_pretrained(paths[args.seed], device)
    recognise(study, args, plan, best, paths)
    if speakers:
        verify_speakers(speakers, args, plan)
    report = write_report(head_lines(args), study, plan, model, args.save_dir / "report", speakers)
    summary = write_summary(study, plan, args.save_dir / "report", speakers)
    print(*(path.read_text(encoding="utf-8") for path in (report, summary)), report, summary, sep="\n")


def main(arguments: list[str] | None = None) -> None:
    """Train, probe, report."""
    args = parse_arguments(arguments)
    args.precision = available_precision(args.precision, pick_device(args.device))  # as it is reported
    decides = {"epochs"} if args.lr_schedule == "cosine" else set()  # the epochs over which the learning rate falls
    with results_directory(args, "run_all.py", MAY_CHANGE - decides):
        run(args)


if __name__ == "__main__":
    run_script(main)
