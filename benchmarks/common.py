"""What the speed benchmarks share: options, generated data, the plain formulation, timing, peak memory, the ceiling."""

import argparse
import contextlib
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apc_model import RNN_CLASSES, APCModel
from utils import RNNConfig
from utils.configs import RNN_GATES
from utils.corpus.prepared import save_lengths, save_tensor
from utils.rnn.products import BF16Products, OneDNNProducts, TorchProducts, matmul_library
from utils.system.memory import M_MMAP_MAX, M_TRIM_THRESHOLD, reuse_freed_memory

MEL_DIM = 80
M_MMAP_THRESHOLD = -3  # glibc's malloc.h


class PlainAPC(nn.Module):
    """APC from PyTorch's own layers, packing and padding between them, or on padded batches without lengths."""

    def __init__(self, model: APCModel, packed: bool = True) -> None:
        super().__init__()
        config, self.packed = model.rnn_config, packed
        sizes = [model.mel_dim] + [config.hidden_size] * config.num_layers
        rnn_class = RNN_CLASSES[config.rnn_type]
        self.rnns = nn.ModuleList(rnn_class(a, b, batch_first=True) for a, b in pairwise(sizes))
        self.postnet = nn.Module()
        self.postnet.layer = nn.Conv1d(config.hidden_size, model.mel_dim, kernel_size=1)
        self.load_state_dict(model.state_dict())

    def forward(self, inputs: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, seq_len, mel_dim), (batch,) -> predicted (batch, seq_len, mel_dim), each layer's output."""
        feats = []
        for rnn in self.rnns:
            output = self._run_layer(rnn, inputs, lengths)  # (batch, seq_len, hidden)
            inputs = output + inputs if output.size(-1) == inputs.size(-1) else output
            feats.append(inputs)
        return self.postnet.layer(inputs.transpose(1, 2)).transpose(1, 2), feats

    def _run_layer(self, rnn: nn.RNNBase, inputs: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        if not self.packed:
            return rnn(inputs)[0]
        packed = pack_padded_sequence(inputs, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(rnn(packed)[0], batch_first=True, total_length=inputs.size(1))[0]


def parse_arguments(description: str, seq_len: int, extra: Callable | None = None) -> argparse.Namespace:
    """The options that every benchmark of the model takes; sets the number of threads and the seed."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seq_len", type=int, default=seq_len, help="Frames of each utterance.")
    parser.add_argument("--batch_size", type=int, default=32, help="Utterances in a batch.")
    parser.add_argument("--hidden_size", type=int, default=512, help="Hidden size of every layer.")
    parser.add_argument("--num_layers", type=int, default=3, help="Recurrent layers.")
    parser.add_argument("--rnn_type", choices=RNN_GATES, default="gru", help="Kind of recurrent layer.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each variant; the median is reported.")
    parser.add_argument(
        "--ragged", action="store_true", help="Lengths from a quarter of --seq_len to all of it, instead of all equal."
    )
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of the table.")
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)  # this process only measures one variant's memory
    if extra is not None:
        extra(parser)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    reuse_freed_memory()
    return args


def with_default_allocation(work: Callable[[], object]) -> Callable[[], object]:
    """Makes a plain variant run as it would by itself, with glibc's own handling of large tensors.

    The thresholds are those that glibc arrives at by itself once a few large tensors have been freed.
    """

    def run() -> object:
        """Does the work between two changes of the allocator's settings."""
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(M_MMAP_MAX, 65536)
            libc.mallopt(M_MMAP_THRESHOLD, 32 * 2**20)
            libc.mallopt(M_TRIM_THRESHOLD, 64 * 2**20)
        try:
            return work()
        finally:
            reuse_freed_memory()

    return run


def make_prepared(directory: Path, lengths: Sequence[int], max_seq_len: int, random: torch.Generator) -> None:
    """Fill a prepared directory with random frames, (max_seq_len, MEL_DIM) for each length, zero beyond it."""
    named = {f"1-1-{number:06d}": length for number, length in enumerate(lengths)}
    for utterance, length in named.items():
        frames = torch.zeros(max_seq_len, MEL_DIM)
        frames[:length] = torch.randn(length, MEL_DIM, generator=random)
        save_tensor(directory / f"{utterance}.pt", frames)
    save_lengths(directory, named)


def make_lengths(args: argparse.Namespace, seq_len: int) -> torch.Tensor:
    """True frames of each utterance: (batch,)."""
    shortest = max(2, seq_len // 4) if args.ragged else seq_len
    return torch.linspace(shortest, seq_len, args.batch_size).long()


def make_model(args: argparse.Namespace) -> APCModel:
    """The project's model, with residual connections and without dropout."""
    config = RNNConfig(MEL_DIM, args.hidden_size, args.num_layers, 0.0, True, args.rnn_type)
    return APCModel(MEL_DIM, None, config)


def forward_flops_per_frame(args: argparse.Namespace) -> tuple[int, int]:
    """Floating-point operations of the matrix products: of a whole forward, and of its first input projection."""
    hidden, columns = args.hidden_size, RNN_GATES[args.rnn_type] * args.hidden_size
    first = 2 * MEL_DIM * columns
    others = (args.num_layers - 1) * 2 * hidden * columns + args.num_layers * 2 * hidden * columns
    return first + others + 2 * hidden * MEL_DIM, first


def gemm_ceiling(precision: str = "fp32", size: int = 2048) -> float:
    """GFLOP/s of the best large product that any of PyTorch's libraries reaches: what no formulation can pass."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    kinds = (TorchProducts(), OneDNNProducts()) if precision == "fp32" else (BF16Products(),)
    works = []
    for kind in kinds:
        operand, prepared = kind.operand(a), kind.prepare(b)
        works.append(lambda kind=kind, x=operand, prepared=prepared: kind.multiply_raw(x, prepared))
    return 2 * size**3 / min(seconds_of(work) for work in works for _ in range(8)) / 1e9


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved_seconds(variants: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, run in turns so that a noisy moment meets them all.

    In its turn a variant runs twice and the second run counts: as in a long run, it finds its own memory warm.
    """
    seconds = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            work()
            seconds[name].append(seconds_of(work))
    return {name: statistics.median(values) for name, values in seconds.items()}


def memory_mb(key: str, pid: int | str = "self") -> float:
    """'VmRSS' (now) or 'VmHWM' (the peak) of a process, in MB; Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    return float("nan")


def report_memory_of(work: Callable[[], object]) -> None:
    """In a process of its own: prints the memory before the work, and its peak after."""
    print(memory_mb("VmRSS"), flush=True)
    work()
    print(memory_mb("VmHWM"), flush=True)


def peak_memory_mb(variant: str, limit_seconds: float) -> tuple[float, bool]:
    """MB that this script's variant takes above its model and data, from a new process with the same options.

    Returns:
        The peak, and whether the work was finished; if not, it was stopped and the peak is at least this.
    """
    command = [sys.executable, *sys.argv, "--memory_of", variant]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        before = float(process.stdout.readline())
        try:
            process.wait(limit_seconds)  # communicate() would miss a line that has come with the first
            peak, finished = float(process.stdout.readline()), True
        except subprocess.TimeoutExpired:
            peak, finished = memory_mb("VmHWM", process.pid), False
            process.kill()
    return peak - before, finished


def report(args: argparse.Namespace, title: str, columns: Sequence[str], results: dict) -> None:
    """Prints results as JSON, or as a table of one row a variant, its notes below."""
    settings = ("seq_len", "batch_size", "hidden_size", "num_layers", "rnn_type", "ragged", "threads", "repeats")
    results = {"settings": {name: getattr(args, name) for name in settings}, **results}
    if args.json:
        print(json.dumps(results))
        return
    frames = f"{args.seq_len} frames" + (" at most" if args.ragged else "")
    sizes = f"{args.num_layers} x {args.hidden_size}, {args.rnn_type}, {args.threads} threads"
    print(f"{title}: {args.batch_size} x {frames}, {sizes}")
    ceilings = ", ".join(f"{ceiling:.0f} GFLOP/s in {name}" for name, ceiling in results["ceilings"].items())
    print(f"large matrix product, the best of PyTorch's libraries: {ceilings}; this project uses {matmul_library()}")
    print(f"{'':22}" + "".join(f"{column.replace('_', ' '):>20}" for column in columns))
    for name, row in results["variants"].items():
        cells = ["-" if row.get(column) is None else f"{row[column]:,.3g}" for column in columns]
        if "frames_per_second" in columns:
            cells[columns.index("frames_per_second")] = f"{row['frames_per_second']:,.0f}"
        print(f"{name:22}" + "".join(f"{cell:>20}" for cell in cells))
    for name, row in results["variants"].items():
        for note in row["notes"]:
            print(f"{name}: {note}")
