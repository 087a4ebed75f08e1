"""Speed of feature extraction on a CPU, beside plain formulations of the same work with the same weights.

    python benchmarks/extract.py --seq_len 1600 --ragged

Extraction is the model's forward without gradients, to predictions and the features of every layer. Variants: this
project; PyTorch's layers over packed sequences, padded and packed again in between; PyTorch's layers on one
utterance at a time.

Below the table: seconds of work for each second of speech (real-time factor) for batches of 1 and 32; the latency of
`stream` on one core; and what load_pretrained_model.py takes as a whole, from a WAV file to features, for a minute and
for --hours of one recording.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from common import (
    MEL_DIM,
    PlainAPC,
    forward_flops_per_frame,
    gemm_ceiling,
    interleaved_seconds,
    make_lengths,
    make_model,
    memory_mb,
    parse_arguments,
    peak_memory_mb,
    report,
    report_memory_of,
    with_default_allocation,
)

from utils.audio.frames import FRAMES_PER_SECOND, SAMPLE_RATE
from utils.rnn.precision import autocast
from utils.rnn.products import has_bf16_products

OURS, BF16, PACKED, ONE_BY_ONE = "this project", "this project, bf16", "packed", "one file at a time"
PADDED = "padded"
SCRIPT = Path(__file__).resolve().parent.parent / "load_pretrained_model.py"
BATCHES, FRAMES_A_CALL, STREAMED_FRAMES, WARM_UP_CALLS = (1, 32), (1, 10, 100), 3000, 5
COLUMNS = ("seconds", "frames_per_second", "times_slower", "share_of_ceiling", "peak_memory_mb")
MEMORY_LIMIT_SECONDS = 300


def main() -> None:
    args = parse_arguments(__doc__.splitlines()[0], 1600, add_options)
    if args.memory_of:
        report_memory_of(make_extraction(args.memory_of, args))
        return
    ours = (OURS, BF16) if has_bf16_products() else (OURS,)
    extractions = {name: make_extraction(name, args) for name in (*ours, PACKED, PADDED, ONE_BY_ONE)}
    ceilings = {name: gemm_ceiling(name) for name in ("fp32", "bf16")[: len(ours)]}
    seconds = interleaved_seconds(extractions, args.repeats)
    ceilings = {name: max(ceiling, gemm_ceiling(name)) for name, ceiling in ceilings.items()}
    frames = int(make_lengths(args, args.seq_len).sum())
    results = {"ceilings": ceilings, "variants": {}}
    for name in extractions:
        gflops = forward_flops_per_frame(args)[0] * frames / seconds[name] / 1e9
        results["variants"][name] = {
            "seconds": seconds[name],
            "frames_per_second": frames / seconds[name],
            "times_slower": seconds[name] / seconds[OURS],
            "gflops": gflops,
            "share_of_ceiling": gflops / ceilings["bf16" if name == BF16 else "fp32"],
            "peak_memory_mb": peak_memory_mb(name, MEMORY_LIMIT_SECONDS)[0],
            "notes": [],
        }
    if BF16 in extractions:
        results["bf16_error"] = bf16_error(extractions)
    results["real_time_factor"] = {batch: real_time_factor(args, batch) for batch in BATCHES}
    results["recording"] = {minutes: recording(args, minutes) for minutes in (1, round(60 * args.hours))}
    results["stream_ms"] = {frames: stream_latency(args, frames) for frames in FRAMES_A_CALL}
    report(args, "extraction", COLUMNS, results)
    if not args.json:
        report_more(results)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this benchmark alone."""
    parser.add_argument("--hours", type=float, default=2, help="Length of the long recording.")


def report_more(results: dict) -> None:
    """Prints what the table does not hold."""
    if "bf16_error" in results:
        errors = ", ".join(f"{error:.2%}" for error in results["bf16_error"])
        print(f"relative error of features in bf16, by layer of an untrained network: {errors}")
    for batch, factor in results["real_time_factor"].items():
        print(f"real-time factor, batch of {batch}: {factor:.5f} ({1 / factor:,.0f} times real time)")
    for frames, (median, late) in results["stream_ms"].items():
        print(f"stream, {frames} frames per call, one core: {median:.2f} ms (median), {late:.2f} ms (99th percentile), "
              f"{median / frames:.2f} ms per frame")  # fmt: skip
    for minutes, (peak, seconds) in results["recording"].items():
        print(
            f"load_pretrained_model.py on a WAV file of {minutes} minutes: {peak:,.0f} MB at its peak, {seconds:.0f} s"
        )


def make_extraction(variant: str, args: argparse.Namespace) -> Callable[[], object]:
    """Returns a function that extracts a batch's features; all variants have the same weights and inputs."""
    torch.manual_seed(0)
    model, lengths = make_model(args), make_lengths(args, args.seq_len)
    inputs = torch.randn(args.batch_size, args.seq_len, MEL_DIM)
    is_ours, precision = variant in (OURS, BF16), "bf16" if variant == BF16 else "fp32"
    if not is_ours:
        model = PlainAPC(model, packed=variant == PACKED)

    @torch.no_grad()
    def extract() -> object:
        if variant != ONE_BY_ONE:
            with autocast(inputs.device, precision):
                predicted, feats = model(inputs, lengths)
            return predicted, feats if is_ours else torch.stack(feats)
        return [model(frames[None, :length], None) for frames, length in zip(inputs, lengths, strict=True)]

    return extract if is_ours else with_default_allocation(extract)


def bf16_error(extractions: dict[str, Callable[[], object]]) -> list[float]:
    """The norm of the error of features in bf16, relative to that of the features, for each layer."""
    feats, expected = (extractions[name]()[1] for name in (BF16, OURS))
    return [((one - other).norm() / other.norm()).item() for one, other in zip(feats, expected, strict=True)]


def real_time_factor(args: argparse.Namespace, batch_size: int) -> float:
    """Seconds of work for each second of speech, from log-Mel frames in memory to features in memory."""
    args = argparse.Namespace(**vars(args) | {"batch_size": batch_size})
    seconds = interleaved_seconds({OURS: make_extraction(OURS, args)}, args.repeats)[OURS]
    return seconds * FRAMES_PER_SECOND / int(make_lengths(args, args.seq_len).sum())


def stream_latency(args: argparse.Namespace, frames: int) -> tuple[float, float]:
    """Milliseconds of a call of `stream` with this many frames, on one core: the median and the 99th percentile."""
    model, inputs, state = make_model(args).eval(), torch.randn(1, frames, MEL_DIM), None
    torch.set_num_threads(1)
    milliseconds = []
    for _ in range(WARM_UP_CALLS + STREAMED_FRAMES // frames):
        start = time.perf_counter()
        _, state = model.stream(inputs, state)
        milliseconds.append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(args.threads)
    median, late = np.percentile(milliseconds[WARM_UP_CALLS:], [50, 99])
    return float(median), float(late)


def recording(args: argparse.Namespace, minutes: int) -> tuple[float, float]:
    """Peak memory in MB and seconds of load_pretrained_model.py, from a WAV file of this many minutes to a .pt file."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "audio").mkdir()
        noise = np.random.default_rng(0).normal(0, 1000, 60 * SAMPLE_RATE).astype(np.int16)
        with soundfile.SoundFile(root / "audio" / "a.wav", "w", SAMPLE_RATE, 1) as file:
            for _ in range(minutes):
                file.write(noise)
        torch.save(make_model(args).state_dict(), root / "model.pt")
        command = [sys.executable, SCRIPT, "--checkpoint", root / "model.pt", "--residual", "--data", root / "audio",
                   "--save_dir", root / "features", "--load_data_workers", "0", "--device", "cpu"]  # fmt: skip
        environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
        start = time.perf_counter()
        peak = 0.0
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
        ) as process:
            while process.poll() is None:  # its resource usage would tell the peak of this process, which forked it
                peak = max(peak, memory_mb("VmHWM", process.pid))
                time.sleep(0.05)
        if process.returncode:
            raise RuntimeError(f"{SCRIPT.name} ended with {process.returncode}")
        return peak, time.perf_counter() - start


if __name__ == "__main__":
    main()
