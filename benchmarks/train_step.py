"""Speed and memory of a training step on a CPU, beside plain formulations of the same step with the same weights.

    python benchmarks/train_step.py --seq_len 1600

A step is forward, masked L1 loss at time shift 1, backward, gradient clipping and Adam. Variants: this project, also
in bf16 where the CPU has such products; PyTorch's layers over packed sequences, padded and packed again in between;
PyTorch's layers over padded batches, which know no lengths (for an LSTM, oneDNN's whole layer). The packed one is
quadratic in length: every step back in time fills a gradient of all frames. A step of it that has not finished after
--plain_budget is stopped, and its time extrapolated, and labelled so, from the share of those gradients that it had
filled. (PyTorch's LSTM is quadratic only where lengths differ.)
"""

import argparse
import time
from collections.abc import Callable

import torch
from common import (
    MEL_DIM,
    PlainAPC,
    forward_flops_per_frame,
    gemm_ceiling,
    interleaved_seconds,
    make_lengths,
    make_model,
    parse_arguments,
    peak_memory_mb,
    report,
    report_memory_of,
    with_default_allocation,
)
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from utils.rnn.precision import autocast
from utils.rnn.products import has_bf16_products
from utils.training.objective import apc_loss

OURS, BF16, PACKED, PADDED = "this project", "this project, bf16", "packed", "padded"
TIME_SHIFT = 1
COLUMNS = ("seconds", "frames_per_second", "times_padded", "share_of_ceiling", "peak_memory_mb", "loss")
MEMORY_LIMIT_SECONDS = 300


def main() -> None:
    args = parse_arguments(__doc__.splitlines()[0], 400, add_options)
    if args.memory_of:
        report_memory_of(make_step(args.memory_of, args, args.seq_len))
        return
    ours = (OURS, BF16) if has_bf16_products() else (OURS,)
    steps = {name: make_step(name, args, args.seq_len) for name in (*ours, PADDED)}
    losses = {name: step() for name, step in steps.items()}
    notes = {name: [] for name in ours} | {PADDED: ["true lengths are not used"]}
    seconds = {}
    if args.plain_budget:
        seconds[PACKED], note = measure_packed(args)
        notes[PACKED] = [note]
        if "extrapolated" not in note and seconds[PACKED] * args.repeats <= args.plain_budget:
            steps[PACKED] = make_step(PACKED, args, args.seq_len)
            losses[PACKED] = steps[PACKED]()
            notes[PACKED] = []
    ceilings = {name: gemm_ceiling(name) for name in ("fp32", "bf16")[: len(ours)]}
    seconds |= interleaved_seconds(steps, args.repeats)
    ceilings = {name: max(ceiling, gemm_ceiling(name)) for name, ceiling in ceilings.items()}
    results = {"ceilings": ceilings, "variants": {}}
    for name in seconds:
        memory, finished = peak_memory_mb(name, args.plain_budget or MEMORY_LIMIT_SECONDS)
        if not finished:
            notes[name].append("stopped at --plain_budget while its memory was measured: the peak is at least this")
        ceiling = ceilings["bf16" if name == BF16 else "fp32"]
        results["variants"][name] = {
            **speeds(seconds[name], seconds[PADDED], ceiling, args),
            "peak_memory_mb": memory,
            "loss": losses.get(name),
            "notes": notes[name],
        }
    report(args, "training step", COLUMNS, results)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument(
        "--plain_budget",
        type=float,
        default=90.0,
        metavar="SECONDS",
        help="Longest packed step to run as it is; 0: no packed variant.",
    )


def make_step(variant: str, args: argparse.Namespace, seq_len: int) -> Callable[[], float]:
    """Returns a function that does one training step and gives its loss; all variants start alike."""
    torch.manual_seed(0)
    model = make_model(args)
    inputs = torch.randn(args.batch_size, seq_len, MEL_DIM)
    lengths = make_lengths(args, seq_len)  # (batch,)
    is_target = torch.arange(seq_len - TIME_SHIFT)[None, :] < (lengths - TIME_SHIFT)[:, None]
    is_ours = variant in (OURS, BF16)
    precision = "bf16" if variant == BF16 else "fp32"
    if not is_ours:
        model = PlainAPC(model, packed=variant == PACKED)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> float:
        """Does one step and returns its loss."""
        if is_ours:
            with autocast(inputs.device, precision):
                loss = apc_loss(model, inputs, lengths, TIME_SHIFT)
        else:
            predicted, _ = model(inputs[:, :-TIME_SHIFT], lengths - TIME_SHIFT)
            if variant == PACKED and args.ragged:
                loss = nn.functional.l1_loss(predicted[is_target], inputs[:, TIME_SHIFT:][is_target])
            else:
                loss = nn.functional.l1_loss(predicted, inputs[:, TIME_SHIFT:])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return step if is_ours else with_default_allocation(step)


class SliceGradients(TorchDispatchMode):
    """Counts the gradients of slices that a backward fills, and stops it at a deadline."""

    def __init__(self, budget: float = float("inf")) -> None:
        super().__init__()
        self.deadline = time.perf_counter() + budget
        self.first, self.last, self.count = 0.0, 0.0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket is torch.ops.aten.slice_backward:
            self.last = time.perf_counter()
            self.first = self.first or self.last
            if self.last > self.deadline:
                raise TimeoutError
            self.count += 1
        return function(*args, **(kwargs or {}))


def measure_packed(args: argparse.Namespace) -> tuple[float, str]:
    """Returns seconds of one step of the packed variant at --seq_len, and how they were found."""
    counts = []
    for seq_len in (16, 32):  # frames
        with SliceGradients() as slices:
            make_step(PACKED, args, seq_len)()
        counts.append(slices.count)
    total = counts[0] + (counts[1] - counts[0]) * (args.seq_len - 16) // 16
    step = make_step(PACKED, args, args.seq_len)
    start = time.perf_counter()
    try:
        with SliceGradients(args.plain_budget) as slices:
            step()
        return time.perf_counter() - start, "one run"
    except TimeoutError:
        seconds = (slices.first - start) + (slices.last - slices.first) * total / slices.count
        return seconds, f"extrapolated from its forward and the first {slices.count / total:.1%} of its backward"


def speeds(seconds: float, padded_seconds: float, ceiling: float, args: argparse.Namespace) -> dict[str, float]:
    """A backward has twice the products of a forward, less the gradient of the first layer's input."""
    forward, first = forward_flops_per_frame(args)
    frames = int((make_lengths(args, args.seq_len) - TIME_SHIFT).sum())
    gflops = (3 * forward - first) * frames / seconds / 1e9
    return {
        "seconds": seconds,
        "frames_per_second": frames / seconds,
        "times_padded": padded_seconds / seconds,
        "gflops": gflops,
        "share_of_ceiling": gflops / ceiling,
    }


if __name__ == "__main__":
    main()
