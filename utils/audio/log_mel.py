"""Log-Mel filterbanks as Kaldi computes them, of a whole waveform or of one that is still coming in."""

import hashlib

import kaldi_native_fbank
import numpy as np

from utils.audio.frames import INT16_SCALE, SAMPLE_RATE, SHIFT_MS, WINDOW_MS, WINDOW_SAMPLES
from utils.audio.front_ends import DEFAULT_FRONT_END, FRONT_ENDS, FrontEnd
from utils.system.errors import InputError

MAX_FLOAT = 100  # a sample may be above 1, by clipping or resampling; far above, it is in the range of integers
BLOCK_SAMPLES = 60 * SAMPLE_RATE  # what is handed to the library at once


def _fbank_options(front_end: FrontEnd) -> kaldi_native_fbank.FbankOptions:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.frame_length_ms = WINDOW_MS
    options.frame_opts.frame_shift_ms = SHIFT_MS
    options.frame_opts.window_type = front_end.window
    options.frame_opts.dither = 0  # the library's noise cannot be repeated
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = front_end.num_mel_bins
    options.mel_opts.low_freq = front_end.low_freq
    options.mel_opts.high_freq = front_end.high_freq
    options.use_energy = False
    return options


class OnlineLogMel:
    """Log-Mel frames of a waveform that arrives in pieces: bit for bit those of `log_mel`, however it is cut.

    Each frame is returned as soon as its last sample is there. Memory does not grow.

    Kaldi dithers each window anew. Here noise is added to the waveform, once: sample i of a seed always has the same
    noise.

    Args:
        front_end: which filterbank.
        seed: of the dither, if the front end has one: an utterance's id.
    """

    def __init__(self, front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END], seed: str = "") -> None:
        self._fbank = kaldi_native_fbank.OnlineFbank(_fbank_options(front_end))
        self._front_end, self._done = front_end, 0
        digest = hashlib.sha256(seed.encode("utf-8", "surrogateescape")).digest()
        self._noise = np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))

    def accept(self, waveform: np.ndarray) -> np.ndarray:
        """The frames that the next samples complete, perhaps none: (frames, 80) float32, as `log_mel` gives them.

        Args:
            waveform: (samples,), 16 kHz, either floating point in [-1, 1] or int16; any number of samples. InputError
                is raised for another shape or type, a NaN, or samples far above 1.
        """
        samples = _in_int16_range(waveform)
        if self._front_end.dither:
            samples += np.float32(self._front_end.dither) * self._noise.standard_normal(len(samples), np.float32)
        samples *= np.float32(self._front_end.full_scale / INT16_SCALE)
        pieces = [np.empty((0, self._front_end.num_mel_bins), np.float32)]
        for start in range(0, len(samples), BLOCK_SAMPLES):
            # A memoryview is the fastest sequence for the library, by half.
            self._fbank.accept_waveform(SAMPLE_RATE, memoryview(samples[start : start + BLOCK_SAMPLES]))
            ready = range(self._done, self._fbank.num_frames_ready)
            if ready:
                pieces.append(np.stack([self._fbank.get_frame(frame) for frame in ready]))
                self._fbank.pop(len(ready))
                self._done = ready.stop
        return np.concatenate(pieces)


def log_mel(
    waveform: np.ndarray,
    sample_rate: int = SAMPLE_RATE,
    front_end: FrontEnd = FRONT_ENDS[DEFAULT_FRONT_END],
    seed: str = "",
) -> np.ndarray:
    """Kaldi's compute-fbank-feats with the options of a front end.

    Frames are 25 ms, every 10 ms, and only whole ones (snip-edges): n samples give 1 + (n - 400) // 160 frames.

    Args:
        waveform: (samples,), either floating point in [-1, 1] or int16.
        sample_rate: of the waveform, in Hz; only 16000 is accepted.
        front_end: which filterbank.
        seed: of the dither, if the front end has one: the utterance's id.

    Returns:
        (frames, 80) float32, the natural logarithm of the energies, not normalised.

    Raises:
        InputError: another sample rate, shape or type, a NaN, or fewer samples than a window has.
    """
    if sample_rate != SAMPLE_RATE:
        raise InputError(f"the sample rate is {sample_rate} Hz, not {SAMPLE_RATE} Hz: resample first")
    frames = OnlineLogMel(front_end, seed).accept(waveform)
    if len(frames) == 0:
        raise InputError(f"{len(waveform)} samples are shorter than a window of {WINDOW_SAMPLES} ({WINDOW_MS} ms)")
    return frames


def check_type(waveform: np.ndarray) -> None:
    """Raise InputError for samples that are neither floating point nor int16."""
    if waveform.dtype != np.int16 and not np.issubdtype(waveform.dtype, np.floating):
        raise InputError(f"a waveform is floating point in [-1, 1] or int16, not {waveform.dtype}")


def _in_int16_range(waveform: np.ndarray) -> np.ndarray:
    """(samples,) float32 in the range of int16, as Kaldi has them."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise InputError(f"a waveform has the shape (samples,), not {waveform.shape}")
    if waveform.dtype == np.int16:
        return waveform.astype(np.float32)
    check_type(waveform)
    samples = waveform.astype(np.float32) * np.float32(INT16_SCALE)
    if not np.isfinite(samples).all():
        raise InputError("a sample of the waveform is NaN or infinite")
    if (peak := np.abs(samples).max(initial=0) / INT16_SCALE) > MAX_FLOAT:
        raise InputError(f"a floating-point sample is {peak:g}, where full scale is 1: divide by {INT16_SCALE}?")
    return samples
