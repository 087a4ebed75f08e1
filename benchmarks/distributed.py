"""The time of a training step in processes of one thread each, beside one process of as many threads, and of one.

    python benchmarks/distributed.py --seq_len 400             # the whole loop of train_apc.py, on an idle machine
    python benchmarks/distributed.py --seq_len 400 --busy 2    # beside two other processes that use a core each

Runs train_apc.py itself, by torchrun, on generated frames, and reads its speed off the curves: everything between two
steps counts, from reading the data to what the processes agree on. The runs take turns, and the first step of each, in
which memory is taken for the first time, is left out.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from common import make_prepared
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

TRAIN = Path(__file__).resolve().parent.parent / "train_apc.py"
SHAPES = ((1, 2), (2, 1), (1, 1))  # (processes, threads of each)


def main() -> None:
    """Print a row for each way to use the same cores, or one JSON object."""
    args = parse_arguments()
    seconds = {shape: [] for shape in SHAPES}
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), args)
        with other_processes(args.busy):
            for _ in range(args.repeats):
                for shape in SHAPES:
                    seconds[shape] += step_seconds(Path(directory), args, *shape)
    medians = {shape: statistics.median(values) for shape, values in seconds.items()}
    if args.json:
        print(json.dumps({f"{processes}x{threads}": value for (processes, threads), value in medians.items()}))
        return
    sizes = f"{args.num_layers} x {args.hidden_size}"
    beside = f", beside {args.busy} busy processes" if args.busy else ""
    print(f"training step of train_apc.py: {args.batch_size} x {args.seq_len} frames, {sizes}{beside}")
    print(f"{'processes':>9}{'threads of each':>17}{'s a step':>10}{'frames/s':>11}{'times as long':>15}")
    frames = args.batch_size * args.seq_len
    for (processes, threads), value in medians.items():
        ratio = value / medians[SHAPES[0]]
        print(f"{processes:9}{threads:17}{value:10.3f}{frames / value:11,.0f}{ratio:15.2f}")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seq_len", type=int, default=400, help="Frames of each utterance.")
    parser.add_argument("--batch_size", type=int, default=32, help="Utterances in a batch, of all processes.")
    parser.add_argument("--hidden_size", type=int, default=512, help="Hidden size of every layer.")
    parser.add_argument("--num_layers", type=int, default=3, help="Recurrent layers.")
    parser.add_argument("--steps", type=int, default=8, help="Steps of each run.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each; the median step is reported.")
    parser.add_argument("--precision", default="fp32", help="As of train_apc.py.")
    parser.add_argument("--rnn_type", default="gru", help="As of train_apc.py.")
    parser.add_argument("--busy", type=int, default=0, metavar="N", help="Run beside this many processes that compute.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of the table.")
    return parser.parse_args()


@contextlib.contextmanager
def other_processes(count: int) -> Iterator[None]:
    """Keep this many other processes computing."""
    command = [sys.executable, "-c", "while True: sum(range(1000))"]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def prepare(directory: Path, args: argparse.Namespace) -> None:
    """Prepared directories of random frames: enough to train on for all steps, and one utterance to validate on."""
    random = torch.Generator().manual_seed(0)
    length = args.seq_len + 1  # frames, of which seq_len are predicted
    for split, count in (("train", args.batch_size * args.steps), ("dev", 1)):
        (directory / split).mkdir()
        make_prepared(directory / split, [length] * count, length, random)


def step_seconds(directory: Path, args: argparse.Namespace, processes: int, threads: int) -> list[float]:
    """Seconds of each step of a run but the first."""
    arguments = {
        "librispeech_path": directory, "train_split": "train", "val_split": "dev", "store_path": directory / "logs",
        "experiment_name": "speed", "epochs": 1, "batch_size": args.batch_size, "load_data_workers": 1,
        "rnn_hidden_size": args.hidden_size, "rnn_num_layers": args.num_layers, "device": "cpu",
        "precision": args.precision, "rnn_type": args.rnn_type,
    }  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", TRAIN]
    command += [part for name, value in arguments.items() for part in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ran = subprocess.run([*command, "--rnn_residual", "--overwrite"], env=environment, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    events = EventAccumulator(str(directory / "logs/speed.dir/speed.tb_log")).Reload()
    speeds = [event.value for event in events.Scalars("step/frames_per_second")]
    return [args.batch_size * (args.seq_len + 1) / speed for speed in speeds[1:]]


if __name__ == "__main__":
    main()
