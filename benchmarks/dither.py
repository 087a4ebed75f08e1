"""How much dither moves log Mel, by this project's noise and by Kaldi's, on any audio files.

    python benchmarks/dither.py LibriSpeech/dev-clean/84/121123/*.flac

Kaldi draws new noise for each window; here noise is added to the waveform once. Prints mean absolute differences.
"""

import argparse
import dataclasses
from pathlib import Path

import common  # noqa: F401  # finds the project
import kaldi_native_fbank
import numpy as np

from utils.audio.frames import INT16_SCALE, SAMPLE_RATE
from utils.audio.front_ends import FRONT_ENDS
from utils.audio.log_mel import _fbank_options, log_mel
from utils.audio.waveforms import read_waveform

DITHERED = FRONT_ENDS["released"]


def kaldi(waveform: np.ndarray) -> np.ndarray:
    """Log Mel with the library's own dither, (frames, 80), of samples (samples,) in [-1, 1]."""
    options = _fbank_options(DITHERED)
    options.frame_opts.dither = DITHERED.dither
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(SAMPLE_RATE, memoryview((waveform * INT16_SCALE).astype(np.float32)))
    return np.stack([fbank.get_frame(frame) for frame in range(fbank.num_frames_ready)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="Audio.")
    differences = []
    for file in parser.parse_args().files:
        waveform = read_waveform(file)
        plain = log_mel(waveform, front_end=dataclasses.replace(DITHERED, dither=0))
        ours = [log_mel(waveform, front_end=DITHERED, seed=seed) for seed in "ab"]
        theirs = [kaldi(waveform) for _ in range(2)]
        pairs = (ours[0], plain), (theirs[0], plain), ours, theirs, (ours[0], theirs[0])
        differences.append([np.abs(one - other).mean() for one, other in pairs])
    names = "ours and none", "Kaldi's and none", "ours, two seeds", "Kaldi's, twice", "ours and Kaldi's"
    for name, difference in zip(names, np.mean(differences, 0), strict=True):
        print(f"{name}: {difference:.4f}")


if __name__ == "__main__":
    main()
