"""A step of the whole loop of train_apc.py beside the bare step, and where its time goes.

    python benchmarks/train_loop.py

The bare step is forward with the loss, backward, clipping and Adam on a batch in memory. The loop also reads batches in
a worker process, copies them, checks and logs what each step gave, and draws a progress bar. Both take turns.
"""

import argparse
import statistics
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import torch
from common import MEL_DIM, make_model, parse_arguments
from distributed import prepare, step_seconds
from torch import nn
from train_step import TIME_SHIFT

from utils.training.objective import Objective
from utils.training.optimization import make_optimizer

PARTS = "forward and loss", "backward", "clipping", "Adam"


def main() -> None:
    args = parse_arguments(__doc__.splitlines()[0], 400, add_options)
    if args.ragged:
        raise SystemExit("train_loop.py: all its utterances are of one length; --ragged is for train_step.py")
    parts, loop = [], []
    with tempfile.TemporaryDirectory() as directory:
        prepare(Path(directory), args)
        for _ in range(args.repeats):
            parts += bare_steps(args)
            loop += step_seconds(Path(directory), args, 1, args.threads)
    medians = [statistics.median(seconds) for seconds in zip(*parts, strict=True)]
    bare, whole = statistics.median(map(sum, parts)), statistics.median(loop)
    print(f"{args.batch_size} x {args.seq_len} frames, {args.num_layers} x {args.hidden_size}, {args.precision}")
    for name, seconds in zip(("train_apc.py", "bare step", *PARTS), (whole, bare, *medians), strict=True):
        print(f"{name:18}{seconds:8.3f} s{seconds / whole:8.1%}")
    print(f"{'all else':18}{whole - bare:8.3f} s{(whole - bare) / whole:8.1%}")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--precision", default="fp32", help="As of train_apc.py.")
    parser.add_argument("--steps", type=int, default=6, help="Steps of each run.")


def bare_steps(args: argparse.Namespace) -> list[list[float]]:
    """Seconds of each part of each step but the first."""
    model = make_model(args)
    objective = Objective(model, TIME_SHIFT, "masked", args.precision)
    optimizer = make_optimizer("adam", model.parameters(), 1e-4)
    inputs, lengths = torch.randn(args.batch_size, args.seq_len + 1, MEL_DIM), [args.seq_len + 1] * args.batch_size
    steps = []
    for _ in range(args.steps):
        times = [time.perf_counter()]
        loss = objective(inputs, torch.tensor(lengths), args.seq_len + 1)
        times.append(time.perf_counter())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        times.append(time.perf_counter())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        times.append(time.perf_counter())
        optimizer.step()
        times.append(time.perf_counter())
        steps.append([end - start for start, end in pairwise(times)])
    return steps[1:]


if __name__ == "__main__":
    main()
