"""The arithmetic of frames: 25 ms long, every 10 ms, of speech at 16 kHz."""

from typing import NamedTuple

SAMPLE_RATE = 16000  # Hz
WINDOW_MS = 25
SHIFT_MS = 10
WINDOW_SAMPLES = SAMPLE_RATE * WINDOW_MS // 1000
SHIFT_SAMPLES = SAMPLE_RATE * SHIFT_MS // 1000
FRAMES_PER_SECOND = 1000 // SHIFT_MS
NUM_MEL_BINS = 80
INT16_SCALE = 32768  # Kaldi computes on samples in the range of int16


class Span(NamedTuple):
    """A part of a recording, in seconds; an `end` of None is that of the recording."""

    start: float = 0.0
    end: float | None = None


WHOLE = Span()


def frames_to_minutes(frames: int) -> float:
    """The duration of frames, in minutes."""
    return 60 * frames_to_hours(frames)


def frames_to_hours(frames: int) -> float:
    """The duration of this many frames, in hours."""
    return frames / FRAMES_PER_SECOND / 3600


def num_frames(samples: int) -> int:
    """The number of whole frames in this many samples at 16 kHz."""
    return max(0, 1 + (samples - WINDOW_SAMPLES) // SHIFT_SAMPLES)
