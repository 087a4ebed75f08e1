"""Peak memory of the phone probe by the size of the corpus, beside that of whole arrays of stacked frames.

    python benchmarks/probe_memory.py --frames 100000 1000000

The features are random log Mel with neighbours, of utterances of 500 frames with a phone each, and a fifth as many for
dev. A linear probe is trained. Each row is measured in a process of its own, from its start to its end, with the
libraries and all files that are mapped into memory; Linux only. The probe of whole arrays takes 7 KB a frame.
"""

import argparse
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from common import MEL_DIM, memory_mb

from downstream.probing.features import Features, LabelledFrames
from downstream.probing.frame_file import FrameFile
from downstream.probing.probes import Labelled, ProbeOptions, train_probe

FROM_FILE, IN_MEMORY = VARIANTS = ("this project", "whole arrays")
UTTERANCE_FRAMES, NUM_PHONES = 500, 60


def make_labelled(num_frames: int, context: int, variant: str, directory: Path) -> Labelled:
    """Random features of so many frames, and their phones."""
    random = torch.Generator().manual_seed(num_frames)
    lengths = np.full(max(1, num_frames // UTTERANCE_FRAMES), UTTERANCE_FRAMES)
    file = FrameFile(directory, MEL_DIM)
    for number in range(len(lengths)):
        frames = torch.randn(UTTERANCE_FRAMES, MEL_DIM, generator=random)
        file.write(number * UTTERANCE_FRAMES, frames)
    features = Features(file, lengths, (context, context))
    phones = torch.randint(NUM_PHONES, (int(lengths.sum()),), generator=random)
    if variant == IN_MEMORY:
        return Labelled(torch.cat(list(features)), phones)
    return Labelled(LabelledFrames(features, np.arange(len(phones))), phones)


def measure(variant: str, num_frames: int, context: int, epochs: int) -> tuple[float, float]:
    """Train a probe; returns the peak memory of this process in MB, and the seconds of an epoch."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        train, dev = (
            make_labelled(count, context, variant, Path(directory)) for count in (num_frames, num_frames // 5)
        )
        start = time.perf_counter()
        train_probe(train, dev, NUM_PHONES, "linear", 0, ProbeOptions(max_epochs=epochs))
        seconds = time.perf_counter() - start
    return memory_mb("VmHWM"), seconds / epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    help = "Frames of the training set (default: 100000 1000000)."
    parser.add_argument("--frames", type=int, nargs="+", default=[100_000, 1_000_000], help=help)
    parser.add_argument("--context", type=int, default=5, help="Frames before and after each (default: 5).")
    parser.add_argument("--epochs", type=int, default=2, help="Epochs of training (default: 2).")
    help = "What to measure (default: both)."
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=VARIANTS, help=help)
    args = parser.parse_args()
    print(f"linear probe of {args.context} + 1 + {args.context} frames of {MEL_DIM} mel bins, {args.epochs} epochs")
    spawn = multiprocessing.get_context("spawn")
    for variant in args.variants:
        for num_frames in args.frames:
            with ProcessPoolExecutor(1, spawn) as process:
                peak, seconds = process.submit(measure, variant, num_frames, args.context, args.epochs).result()
            print(f"{variant:14}{num_frames:12,} frames: {peak:8,.0f} MB at the peak, {seconds:6.1f} s an epoch")


if __name__ == "__main__":
    main()
