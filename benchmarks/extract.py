"""Speed of feature extraction on a CPU, beside plain formulations of the same work with the same weights.

    python benchmarks/extract.py --seq_len 1600 --ragged

Extraction is the model's forward without gradients, to predictions and the features of every layer. Variants: this
project; PyTorch's layers over packed sequences, padded and packed again in between; PyTorch's layers on one
utterance at a time.
"""

import argparse
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
    parse_options,
    peak_memory_mb,
    report,
    report_memory_of,
    with_default_allocation,
)

OURS, PACKED, ONE_BY_ONE = "this project", "packed", "one file at a time"
COLUMNS = ("seconds", "frames_per_second", "times_slower", "share_of_ceiling", "peak_memory_mb")
MEMORY_LIMIT_SECONDS = 300


def main() -> None:
    options = parse_options(__doc__.splitlines()[0], 1600)
    if options.memory_of:
        report_memory_of(make_extraction(options.memory_of, options))
        return
    extractions = {name: make_extraction(name, options) for name in (OURS, PACKED, ONE_BY_ONE)}
    ceiling = gemm_ceiling()
    seconds = interleaved_seconds(extractions, options.repeats)
    ceiling = max(ceiling, gemm_ceiling())
    frames = int(make_lengths(options, options.seq_len).sum())
    results = {"ceiling_gflops": ceiling, "variants": {}}
    for name in extractions:
        gflops = forward_flops_per_frame(options)[0] * frames / seconds[name] / 1e9
        results["variants"][name] = {
            "seconds": seconds[name],
            "frames_per_second": frames / seconds[name],
            "times_slower": seconds[name] / seconds[OURS],
            "gflops": gflops,
            "share_of_ceiling": gflops / ceiling,
            "peak_memory_mb": peak_memory_mb(name, MEMORY_LIMIT_SECONDS)[0],
            "notes": [],
        }
    report(options, "extraction", COLUMNS, results)


def make_extraction(variant: str, options: argparse.Namespace) -> Callable[[], object]:
    """Returns a function that extracts a batch's features; all variants have the same weights and inputs."""
    torch.manual_seed(0)
    model, lengths = make_model(options), make_lengths(options, options.seq_len)
    inputs = torch.randn(options.batch_size, options.seq_len, MEL_DIM)
    if variant != OURS:
        model = PlainAPC(model, packed=variant == PACKED)

    @torch.no_grad()
    def extract() -> object:
        if variant != ONE_BY_ONE:
            predicted, feats = model(inputs, lengths)
            return predicted, feats if variant == OURS else torch.stack(feats)
        return [model(frames[None, :length], None) for frames, length in zip(inputs, lengths, strict=True)]

    return extract if variant == OURS else with_default_allocation(extract)


if __name__ == "__main__":
    main()
