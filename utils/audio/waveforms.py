"""Audio files read as 16 kHz mono, whole or block by block, and checked against the length that they promise."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from utils.audio.frames import SAMPLE_RATE, WINDOW_SAMPLES, num_frames
from utils.system.errors import InputError, one_line
from utils.system.reading import open_regular

MAX_SECONDS = 1800  # longer files are no utterances, and a header can claim any length
MAX_SAMPLES = 1 << 28  # over all channels: 1 GiB as float32
BLOCK_VALUES = 1 << 20  # over all channels: a minute of mono, where a file is read piece by piece
SILENCE_SAMPLES = 4096  # read at once where the first sample that is not 0 is looked for
LONG_SECONDS = 60  # from here on an utterance is better read piece by piece
STREAMED_BYTES = 0x7FFFF000  # a file that was written to a pipe claims at least this, not its true size
UNKNOWN_FRAMES = (1 << 63) - 1  # of a FLAC that was written to a pipe
TOLERATED_SECONDS = 1  # that a header may promise beyond what is there
NIST_HEADER_BYTES = 1024
# What libsndfile's log says of WAV and CAF (data), W64 (riff), RF64 (Riff size), AU (Data Size) and AIFF (SSND).
_CLAIMED = re.compile(r"^\s*(?:data|riff|Riff size|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_LENGTH = re.compile(r"^\s*Data Size\s*: -1$", re.MULTILINE)
_NO_END = re.compile(r"lacks an end-of-stream bit")  # Ogg
_NIST_SAMPLES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


def read_waveform(path: str | Path, channel: int | None = None, resample: bool = False) -> np.ndarray:
    """A file's samples, mono, at 16 kHz: (samples,) float32 in [-1, 1].

    Args:
        path: any format that libsndfile reads.
        channel: which one to take, from 0; None takes the only one, and refuses files with several.
        resample: convert other sample rates (soxr, high quality) where they would be refused.

    Raises:
        InputError: damaged, truncated, empty, shorter than a window, constant (but not 0), too long, with several
            channels or of another sample rate; names the file.
    """
    return np.concatenate(list(waveform_blocks(path, channel, resample, MAX_SECONDS)))


def waveform_blocks(
    path: str | Path, channel: int | None = None, resample: bool = False, max_seconds: int | None = None
) -> Iterator[np.ndarray]:
    """What `read_waveform` gives and raises, block after block, of a file of any length up to `max_seconds`."""
    given, lowest, highest = 0, np.inf, -np.inf
    with _open_audio(path) as audio:
        _check_header(audio, channel, resample, max_seconds)
        for samples in _mono_blocks(audio, channel or 0):
            given += len(samples)
            lowest, highest = min(lowest, samples.min(initial=np.inf)), max(highest, samples.max(initial=-np.inf))
            yield samples
        if given < WINDOW_SAMPLES:
            raise InputError(f"{given} samples, less than a window of {WINDOW_SAMPLES} (25 ms)")
        if lowest == highest != 0:
            raise InputError(f"all samples are {lowest:g}: a recording with zero variance")


def long_frames(path: str | Path) -> int | None:
    """The approximate number of frames of a file, by its header, if it is longer than LONG_SECONDS; else None."""
    # A file that cannot be read is not long: reading it says why.
    with contextlib.suppress(InputError), _open_audio(path) as audio:
        if audio.frames > LONG_SECONDS * audio.samplerate:
            return num_frames(audio.frames * SAMPLE_RATE // audio.samplerate)
    return None


def describe_length(path: str | Path) -> str | None:
    """How much shorter a file is than its header promises, where that is tolerated; None where it is whole."""
    with _open_audio(path) as audio:
        return _check_length(audio)


def is_silent(path: str | Path, channel: int | None = None) -> bool:
    """Whether every sample of a file (of one of its channels) is 0; reads to the first that is not."""
    with _open_audio(path) as audio:
        blocks = audio.blocks(SILENCE_SAMPLES, dtype="float32", always_2d=True)
        return not any(block[:, channel or 0].any() for block in blocks)


@contextlib.contextmanager
def _open_audio(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file, and let the errors of the block name it."""
    with open_regular(path) as file:
        try:
            with soundfile.SoundFile(file.fileno(), closefd=False) as audio:
                yield audio
        except InputError as error:
            raise InputError(error.reason, str(path)) from error
        except soundfile.SoundFileError as error:
            reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
            raise InputError(f"no audio, truncated or damaged: {one_line(reason, 200)}", str(path)) from error
        except OSError as error:
            raise InputError(f"cannot be read: {error.strerror or error}", str(path)) from error


def _mono_blocks(audio: soundfile.SoundFile, channel: int) -> Iterator[np.ndarray]:
    """A channel's samples at 16 kHz, to the last that the header promises."""
    at_once = max(1, BLOCK_VALUES // audio.channels)
    resampler = None
    if audio.samplerate != SAMPLE_RATE:
        resampler = soxr.ResampleStream(audio.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    read, is_last = 0, False
    while not is_last:
        block = audio.read(at_once, dtype="float32", always_2d=True)  # (samples, channels)
        read, is_last = read + len(block), len(block) < at_once
        if is_last and read < audio.frames:
            raise InputError(f"no audio, truncated or damaged: {read} of {audio.frames} samples can be read")
        samples = np.ascontiguousarray(block[:, channel])
        yield samples if resampler is None else resampler.resample_chunk(samples, last=is_last)


def _check_header(audio: soundfile.SoundFile, channel: int | None, resample: bool, max_seconds: int | None) -> None:
    """Refuse what cannot be read rightly, before memory is taken for it."""
    if audio.samplerate != SAMPLE_RATE and not resample:
        raise InputError(f"{audio.samplerate} Hz, not {SAMPLE_RATE} Hz; --resample converts it")
    if channel is None and audio.channels != 1:
        raise InputError(f"{audio.channels} channels; --channel takes one of them (from 0)")
    if channel is not None and channel >= audio.channels:
        raise InputError(f"no channel {channel}: it has {audio.channels} (the first is 0)")
    if audio.frames == UNKNOWN_FRAMES:  # which libsndfile cannot read block by block
        raise InputError("its header does not say how long it is: write it anew (flac -d, then flac)")
    limit = min(max_seconds * audio.samplerate, MAX_SAMPLES // audio.channels) if max_seconds else audio.frames
    if audio.frames > limit:
        raise InputError(f"longer than {max_seconds} seconds, or damaged: split it into utterances")
    _check_length(audio)


def _check_length(audio: soundfile.SoundFile) -> str | None:
    """What a file lacks of the length that its header promises, or that it promises none; None where it is whole.

    Raises InputError if it lacks more than a second, or more than half, or an Ogg stream has no end.
    """
    if _NO_END.search(audio.extra_info):
        raise InputError("truncated file: the end of its stream is missing")
    promised = _promised_frames(audio)
    if promised is None:
        return "its header does not say how long it is"
    seconds = (promised - audio.frames) / audio.samplerate
    if seconds > TOLERATED_SECONDS or promised > 2 * audio.frames:
        raise InputError(f"truncated file: {seconds:.2f} s less than its header promises")
    return f"shorter than its header: {seconds:.3f} s are missing" if seconds > 0 else None


def _promised_frames(audio: soundfile.SoundFile) -> int | None:
    """The samples of each channel that a header promises; None where it gives no length."""
    if audio.format == "NIST":
        samples = _NIST_SAMPLES.search(os.pread(audio.name, NIST_HEADER_BYTES, 0))  # opened by its descriptor
        return int(samples[1]) if samples else None
    if _NO_LENGTH.search(audio.extra_info):
        return None
    claimed = _CLAIMED.search(audio.extra_info)
    if not claimed:
        return audio.frames
    promised, there = int(claimed[1]), int(claimed[2])
    if promised == 0 or promised >= STREAMED_BYTES:
        return None
    return round(audio.frames * promised / max(1, there))
