"""Does a model learn a new corpus faster when it starts from a pre-trained one?

    python benchmarks/continued_training.py --data CORPUS --first SPEAKER

CORPUS holds audio/train/ and audio/dev/, each with a folder for every speaker. A model is trained on the first speaker
alone and written as the released checkpoints are: a bare state dict, whose name tells the rest. Then the others are
learnt twice by the same command, from scratch and with --init_from; printed is the validation loss on them after each
epoch. With --first_data the first model is trained on another such corpus, on all of its speakers.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from common import MEL_DIM
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print a row an epoch, or one JSON object."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        new = speakers_of(args.data)
        first = speakers_of(args.first_data) if args.first_data else [args.first or new[0]]
        new = new if args.first_data else [speaker for speaker in new if speaker not in first]
        prepare(args.first_data or args.data, first, work / "first", args.front_end)
        prepare(args.data, new, work / "new", args.front_end)
        train(args, work, "first", first, args.first_epochs)
        released = work / f"bs{args.batch_size}-rhl3-rhs{args.hidden_size}-rd0-adam-res-ts{args.time_shift}.pt"
        shutil.copy(work / f"logs/first.dir/first__epoch_{args.first_epochs}.model", released)
        scratch = train(args, work, "new", new, args.epochs)
        continued = train(args, work, "new", new, args.epochs, "--init_from", str(released))
    if args.json:
        print(json.dumps({"first": first, "new": new, "from_scratch": scratch, "continued": continued}))
        return
    print(f"first: {', '.join(first)}, {args.first_epochs} epochs; then {', '.join(new)}")
    print(f"{'epoch':>5}{'from scratch':>14}{'continued':>11}   validation loss on the new data")
    for epoch, losses in enumerate(zip(scratch, continued, strict=True), start=1):
        print(f"{epoch:5}{losses[0]:14.4f}{losses[1]:11.4f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="The new corpus: audio/{train,dev}/<speaker>/.")
    parser.add_argument("--first", help="The speaker of it that the first model knows (default: the first by name).")
    parser.add_argument("--first_data", type=Path, help="Another corpus to train the first model on instead.")
    parser.add_argument("--first_epochs", type=int, default=10, help="Epochs of the first model.")
    parser.add_argument("--epochs", type=int, default=5, help="Epochs on the new data.")
    parser.add_argument("--hidden_size", type=int, default=128, help="Hidden size of every layer.")
    parser.add_argument("--batch_size", type=int, default=16, help="Utterances in a batch.")
    parser.add_argument("--learning_rate", default="5e-4", help="The learning rate of all three models.")
    parser.add_argument("--time_shift", type=int, default=3, help="How many frames ahead the models predict.")
    parser.add_argument("--front_end", default="released", help="How audio becomes frames, by name.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of the table.")
    return parser.parse_args()


def speakers_of(corpus: Path) -> list[str]:
    """The speakers of a corpus, by name."""
    found = sorted(path.name for path in corpus.glob("audio/train/*") if path.is_dir())
    if not found:
        raise SystemExit(f"{corpus} has no speaker's folder below audio/train")
    return found


def prepare(corpus: Path, speakers: list[str], directory: Path, front_end: str) -> None:
    """Prepare each speaker's train and dev as a split of its own: train-<speaker>, dev-<speaker>."""
    for split in ("train", "dev"):
        for speaker in speakers:
            audio, out = corpus / "audio" / split / speaker, directory / f"{split}-{speaker}"
            run("prepare_data.py", "--librispeech_audio", str(audio), "--save_dir", str(out), "--front_end", front_end)


def train(args: argparse.Namespace, work: Path, name: str, speakers: list[str], epochs: int, *init: str) -> list[float]:
    """Train on some speakers; the validation loss after each epoch."""
    arguments = {
        "librispeech_path": work / name, "store_path": work / "logs", "experiment_name": name, "epochs": epochs,
        "batch_size": args.batch_size, "learning_rate": args.learning_rate, "time_shift": args.time_shift,
        "rnn_hidden_size": args.hidden_size, "feature_dim": MEL_DIM, "load_data_workers": 1,
    }  # fmt: skip
    splits = [f"--{option}_split {' '.join(f'{split}-{speaker}' for speaker in speakers)}".split()
              for option, split in (("train", "train"), ("val", "dev"))]  # fmt: skip
    command = [part for option, value in arguments.items() for part in (f"--{option}", str(value))]
    run("train_apc.py", *command, *splits[0], *splits[1], "--rnn_residual", "--bucketing", "--overwrite", *init)
    events = EventAccumulator(str(work / f"logs/{name}.dir/{name}.tb_log")).Reload()
    return [event.value for event in events.Scalars("epoch/val_loss")][1:]  # without that before training


def run(script: str, *arguments: str) -> None:
    """Run a script of the project; an error of it ends this one with its words."""
    ran = subprocess.run([sys.executable, ROOT / script, *arguments], capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)


if __name__ == "__main__":
    main()
