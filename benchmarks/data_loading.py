"""Speed of data loading, beside a plain loader of the same utterances; and what a batch costs in padding.

    python benchmarks/data_loading.py
    python benchmarks/data_loading.py --data librispeech_data/preprocessed/train-clean-360-hires-norm.blogmel

Variants: this project's loader (safe reading with checksums; batches trimmed and assembled in the workers) with 0, 1
and 2 workers; and plain: one file at a time by torch.load, batches stacked at their full padded length.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from common import make_prepared, memory_mb, seconds_of

from datasets import BatchOrder, BatchReader, LibriSpeech

LIBRISPEECH_MEAN_FRACTION = 0.77  # of 1600 frames: train-clean-360's utterances have 12.3 s on average
ORDERS = ("random order", "bucketed")


def main() -> None:
    """Print a table, or one JSON object."""
    args = parse_arguments()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        if args.data is None:
            make_data(Path(directory), args)
        dataset = LibriSpeech(args.data or directory)
        variants = {f"this project, {n} workers": lambda n=n: ours(dataset, args, n) for n in (0, 1, 2)}
        variants["plain"] = lambda: plain(dataset, args)
        seconds = interleaved(variants, args.repeats)
    frames = sum(dataset.lengths)
    result = {
        "utterances": len(dataset),
        "frames": frames,
        "variants": {
            name: {
                "seconds": round(value, 3),
                "frames_per_second": round(frames / value),
                "times_plain": round(seconds["plain"] / value, 2),
            }
            for name, value in seconds.items()
        },
        "padding_share": {name: round(padding_share(dataset, args, name == "bucketed"), 3) for name in ORDERS},
        "peak_memory_mb": round(memory_mb("VmHWM")),
    }
    report(result, args.json)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="A prepared directory; generated where none is given.")
    parser.add_argument("--utterances", type=int, default=600, help="How many to generate.")
    parser.add_argument("--seq_len", type=int, default=1600, help="Frames that generated utterances are padded to.")
    parser.add_argument("--batch_size", type=int, default=32, help="Utterances in a batch.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads.")
    parser.add_argument("--repeats", type=int, default=5, help="Runs of each variant; the median is reported.")
    parser.add_argument("--json", action="store_true", help="Print one JSON object instead of the table.")
    return parser.parse_args()


def make_data(directory: Path, args: argparse.Namespace) -> None:
    """A prepared directory of random frames with lengths like LibriSpeech's."""
    random = torch.Generator().manual_seed(0)
    longest, mean = args.seq_len, LIBRISPEECH_MEAN_FRACTION * args.seq_len
    lengths = (mean + 0.3 * longest * torch.randn(args.utterances, generator=random)).clamp(longest // 8, longest)
    make_prepared(directory, lengths.int().tolist(), longest, random)


def ours(dataset: LibriSpeech, args: argparse.Namespace, num_workers: int) -> None:
    """An epoch of this project's batches."""
    with BatchReader(num_workers) as reader:
        for _ in reader.batches(dataset, BatchOrder(dataset.lengths, args.batch_size, seed=0)):
            pass


def plain(dataset: LibriSpeech, args: argparse.Namespace) -> None:
    """An epoch of batches read one file at a time and stacked at their full length."""
    for indices in BatchOrder(dataset.lengths, args.batch_size, seed=0):
        torch.stack([torch.load(dataset.files[index], weights_only=True) for index in indices])


def interleaved(variants: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each variant, run in turn; a first round warms the file cache."""
    seconds = {name: [] for name in variants}
    for _ in range(repeats + 1):
        for name, run in variants.items():
            seconds[name].append(seconds_of(run))
    return {name: statistics.median(values[1:]) for name, values in seconds.items()}


def padding_share(dataset: LibriSpeech, args: argparse.Namespace, bucketing: bool) -> float:
    """Which share of a trimmed batch's frames is padding."""
    order = BatchOrder(dataset.lengths, args.batch_size, seed=0, bucketing=bucketing)
    padded = sum(max(dataset.lengths[i] for i in batch) * len(batch) for batch in order)
    return 1 - sum(dataset.lengths) / padded


def report(result: dict, as_json: bool) -> None:
    """Print the result."""
    if as_json:
        print(json.dumps(result))
        return
    print(f"{result['utterances']} utterances, {result['frames']} frames; peak memory {result['peak_memory_mb']} MB")
    print(f"{'':28}{'seconds':>10}{'frames/s':>14}{'times plain':>13}")
    for name, row in result["variants"].items():
        print(f"{name:28}{row['seconds']:>10.3f}{row['frames_per_second']:>14,}{row['times_plain']:>13.2f}")
    for name, share in result["padding_share"].items():
        print(f"padding in trimmed batches, {name}: {share:.1%}")


if __name__ == "__main__":
    main()
