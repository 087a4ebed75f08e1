"""Facts about log-Mel filterbanks: the numbers are those of Kaldi's definition, worked out here in plain numpy."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile

from utils.audio import log_mel as module
from utils.audio.front_ends import FRONT_ENDS
from utils.system.errors import InputError

SAMPLE = Path(__file__).parent.parent / "librispeech_data" / "sample" / "audio" / "dev" / "austen-ss01-0890.flac"

log_mel = partial(module.log_mel, front_end=FRONT_ENDS["kaldi-hires"])  # tests/test_front_ends.py is about all


def mel(hertz):
    return 1127.0 * np.log(1.0 + np.asarray(hertz, float) / 700.0)


def filterbank():
    """(80, 257): triangles of equal width in mel between 20 Hz and 7600 Hz, over the bins of a 512-point FFT."""
    edges = np.linspace(mel(20.0), mel(8000.0 - 400.0), 82)
    bins = mel(np.arange(257) * 16000.0 / 512.0)
    left, centre, right = (edges[i : i + 80, None] for i in range(3))
    rising, falling = (bins - left) / (centre - left), (right - bins) / (right - centre)
    weights = np.maximum(0.0, np.minimum(rising, falling))
    weights[:, 256] = 0.0  # Kaldi leaves the Nyquist frequency out
    return weights


def kaldi_log_mel(samples):
    """compute-fbank-feats --num-mel-bins=80 --low-freq=20 --high-freq=-400 --dither=0, in float64.

    Args:
        samples: (samples,) in the range of int16.
    """
    starts = np.arange(0, len(samples) - 400 + 1, 160)  # snip-edges: whole windows only
    windows = samples.astype(np.float64)[starts[:, None] + np.arange(400)]  # (frames, 400)
    windows -= windows.mean(axis=1, keepdims=True)  # remove-dc-offset
    before = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    windows = windows - 0.97 * before  # preemphasis
    windows *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85  # the povey window
    power = np.abs(np.fft.rfft(windows, 512)) ** 2  # (frames, 257); padded to a power of two
    return np.log(np.maximum(power @ filterbank().T, np.finfo(np.float32).eps))


def test_real_speech_gives_kaldis_numbers():
    samples, _ = soundfile.read(SAMPLE, dtype="int16")
    frames, expected = log_mel(samples), kaldi_log_mel(samples)
    assert frames.dtype == np.float32 and frames.shape == (1 + (len(samples) - 400) // 160, 80)
    assert np.abs(frames - expected).max() < 5e-3 and np.abs(frames - expected).mean() < 1e-4


@pytest.mark.parametrize("scale", [1e-4, 0.01, 0.3])
def test_noise_gives_kaldis_numbers(scale):
    noise = np.random.default_rng(0).normal(0, scale, 16000)
    assert np.abs(log_mel(noise) - kaldi_log_mel(noise * 32768)).max() < 2e-3


def test_a_tone_stands_in_the_bin_of_its_frequency():
    for hertz in (300.0, 1000.0, 5000.0):
        tone = 0.5 * np.sin(2 * np.pi * hertz * np.arange(16000) / 16000)
        edges = np.linspace(mel(20.0), mel(7600.0), 82)
        nearest = np.abs(edges[1:-1] - mel(hertz)).argmin()
        assert abs(log_mel(tone).mean(axis=0).argmax() - nearest) <= 1


def test_digital_silence_is_the_floor_and_not_infinite():
    assert np.allclose(log_mel(np.zeros(1600, np.int16)), np.log(np.finfo(np.float32).eps))


def test_int16_and_floating_point_are_the_same_waveform():
    samples, _ = soundfile.read(SAMPLE, dtype="int16")
    for dtype in (np.float32, np.float64):
        assert np.array_equal(log_mel(samples), log_mel(samples.astype(dtype) / 32768))


def test_a_frame_depends_on_its_own_window_only():
    samples, _ = soundfile.read(SAMPLE, dtype="int16")
    assert np.array_equal(log_mel(samples)[10:20], log_mel(samples[1600:])[:10])
    assert np.array_equal(log_mel(samples)[:10], log_mel(samples[: 9 * 160 + 400]))


def test_long_recordings_are_computed_as_one():
    samples = np.random.default_rng(0).normal(0, 0.1, 61 * 16000).astype(np.float32)  # more than a block
    assert np.array_equal(log_mel(samples)[5990:6010], log_mel(samples[5990 * 160 :])[:20])


@pytest.mark.parametrize("waveform, rate, message", [
    (np.zeros(399, np.int16), 16000, "399 samples are shorter than a window of 400"),
    (np.zeros((2, 800), np.int16), 16000, r"has the shape \(samples,\), not \(2, 800\)"),
    (np.zeros(800, np.int32), 16000, "not int32"), (np.zeros(800), 8000, "8000 Hz, not 16000 Hz"),
    (np.full(800, np.nan), 16000, "NaN"), (np.zeros(0), 16000, "0 samples"),
    (np.full(800, -9830.0), 16000, "a floating-point sample is 9830, where full scale is 1"),
])  # fmt: skip
def test_what_is_no_waveform_is_refused(waveform, rate, message):
    with pytest.raises(InputError, match=message):
        log_mel(waveform, rate)
