"""Log-Mel filterbanks as Kaldi computes them, of a whole waveform or of one that is still coming in."""

import kaldi_native_fbank
import numpy as np

from utils.audio.frames import NUM_MEL_BINS, SAMPLE_RATE, SHIFT_MS, WINDOW_MS, WINDOW_SAMPLES
from utils.system.errors import InputError

LOW_FREQ = 20  # Hz
HIGH_FREQ = -400  # Hz, from the Nyquist frequency down: Kaldi's hires configurations
INT16_SCALE = 32768  # Kaldi computes on samples in the range of int16
BLOCK_SAMPLES = 60 * SAMPLE_RATE  # what is handed to the library at once


_OPTIONS = kaldi_native_fbank.FbankOptions()
_OPTIONS.frame_opts.samp_freq = SAMPLE_RATE
_OPTIONS.frame_opts.frame_length_ms = WINDOW_MS
_OPTIONS.frame_opts.frame_shift_ms = SHIFT_MS
_OPTIONS.frame_opts.dither = 0
_OPTIONS.frame_opts.snip_edges = True
_OPTIONS.mel_opts.num_bins = NUM_MEL_BINS
_OPTIONS.mel_opts.low_freq = LOW_FREQ
_OPTIONS.mel_opts.high_freq = HIGH_FREQ
_OPTIONS.use_energy = False


class OnlineLogMel:
    """Log-Mel frames of a waveform that arrives in pieces: bit for bit those of `log_mel`, however it is cut.

    Each frame is returned as soon as its last sample is there. Memory does not grow.
    """

    def __init__(self) -> None:
        self._fbank = kaldi_native_fbank.OnlineFbank(_OPTIONS)
        self._done = 0

    def accept(self, waveform: np.ndarray) -> np.ndarray:
        """The frames that the next samples complete, perhaps none: (frames, 80) float32, as `log_mel` gives them.

        Args:
            waveform: (samples,), 16 kHz, either floating point in [-1, 1] or int16; any number of samples. InputError
                is raised for another shape or type, or a NaN.
        """
        samples = _in_int16_range(waveform)
        pieces = [np.empty((0, NUM_MEL_BINS), np.float32)]
        for start in range(0, len(samples), BLOCK_SAMPLES):
            # A memoryview is the fastest sequence for the library, by half.
            self._fbank.accept_waveform(SAMPLE_RATE, memoryview(samples[start : start + BLOCK_SAMPLES]))
            ready = range(self._done, self._fbank.num_frames_ready)
            if ready:
                pieces.append(np.stack([self._fbank.get_frame(frame) for frame in ready]))
                self._fbank.pop(len(ready))
                self._done = ready.stop
        return np.concatenate(pieces)


def log_mel(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Kaldi's compute-fbank-feats with --num-mel-bins=80 --low-freq=20 --high-freq=-400 --dither=0.

    Frames are 25 ms, every 10 ms, and only whole ones (snip-edges): n samples give 1 + (n - 400) // 160 frames.

    Args:
        waveform: (samples,), either floating point in [-1, 1] or int16.
        sample_rate: of the waveform, in Hz; only 16000 is accepted.

    Returns:
        (frames, 80) float32, the natural logarithm of the energies, not normalised.

    Raises:
        InputError: another sample rate, shape or type, a NaN, or fewer samples than a window has.
    """
    if sample_rate != SAMPLE_RATE:
        raise InputError(f"the sample rate is {sample_rate} Hz, not {SAMPLE_RATE} Hz: resample first")
    frames = OnlineLogMel().accept(waveform)
    if len(frames) == 0:
        raise InputError(f"{len(waveform)} samples are shorter than a window of {WINDOW_SAMPLES} ({WINDOW_MS} ms)")
    return frames


def _in_int16_range(waveform: np.ndarray) -> np.ndarray:
    """(samples,) float32 in the range of int16, as Kaldi has them."""
    waveform = np.asarray(waveform)
    if waveform.ndim != 1:
        raise InputError(f"a waveform has the shape (samples,), not {waveform.shape}")
    if waveform.dtype == np.int16:
        return waveform.astype(np.float32)
    if not np.issubdtype(waveform.dtype, np.floating):
        raise InputError(f"a waveform is floating point in [-1, 1] or int16, not {waveform.dtype}")
    samples = waveform.astype(np.float32) * np.float32(INT16_SCALE)
    if not np.isfinite(samples).all():
        raise InputError("a sample of the waveform is NaN or infinite")
    return samples
