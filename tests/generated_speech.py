"""Generated speech whose phones and speakers are easy to tell apart."""

import numpy as np

from utils.audio.frames import SAMPLE_RATE

SPEAKERS = {"ann": (200, 400), "bob": (600, 900), "cid": (4000, 5000)}  # Hz at which their voices are loud
PHONES = {"SIL": (0, 60), "LOW": (100, 1000), "HIGH": (3000, 7000)}  # Hz
SECONDS = 0.2  # of each phone


def say(phone: str, voice: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Noise in a phone's band, coloured by the speaker's voice."""
    samples = int(SECONDS * SAMPLE_RATE)
    spectrum = np.fft.rfft(random.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / SAMPLE_RATE)
    low, high = PHONES[phone]
    loud = np.where((hz >= low) & (hz <= high), 1.0, 1e-3) * np.where((hz >= voice[0]) & (hz <= voice[1]), 4.0, 1.0)
    return np.fft.irfft(spectrum * loud)
