"""Audio files, or parts of them, read as 16 kHz mono, and checked against the length that they promise."""

import contextlib
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from utils.audio.frames import SAMPLE_RATE, WHOLE, WINDOW_SAMPLES, Span, num_frames
from utils.system.errors import InputError, one_line
from utils.system.reading import open_regular, raise_unless_of_file

MAX_SECONDS = 1800  # longer files are no utterances, and a header can claim any length
MAX_SAMPLES = 1 << 28  # over all channels: 1 GiB as float32
BLOCK_VALUES = 1 << 20  # over all channels: a minute of mono, where a file is read piece by piece
SILENCE_SAMPLES = 4096  # read at once where the first sample that is not 0 is looked for
SKIPPED_SAMPLES = 1 << 16  # decoded at once where a file cannot be searched
LONG_SECONDS = 60  # from here on an utterance is better read piece by piece
STREAMED_BYTES = 0x7FFFF000  # a file that was written to a pipe claims at least this, not its true size
UNKNOWN_FRAMES = (1 << 63) - 1  # of a FLAC that was written to a pipe
INEXACT_SEEKING = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III", "OPUS")  # their frames need those before them
TOLERATED_SECONDS = 1  # that a header may promise, or a segment ask for, beyond what is there; or that may follow it
NIST_HEADER_BYTES = 1024
ID3_HEADER_BYTES, MPEG_FRAME_BYTES = 10, 2048  # the frame is shorter
OGG_TAIL_BYTES, OGG_END = 1 << 17, 4  # longer than a page; its flag of the last page
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of each byte
# What libsndfile's log says of WAV and CAF (data), W64 (riff), RF64 (Riff size), AU (Data Size) and AIFF (SSND).
_CLAIMED = re.compile(r"^\s*(?:data|riff|Riff size|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_WAV_REST = re.compile(r"(?:Unknown chunk marker \(\w+\)|Have 0 marker) at position (\d+)")
_WAV_DATA = re.compile(r"^data : (\d+)", re.MULTILINE)
_NO_LENGTH = re.compile(r"^\s*Data Size\s*: -1$", re.MULTILINE)
_NO_END = re.compile(r"lacks an end-of-stream bit|Junk after the last page")  # Ogg
_NIST_SAMPLES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


def read_waveform(
    path: str | Path, channel: int | None = None, resample: bool = False, span: Span = WHOLE
) -> np.ndarray:
    """A file's samples, mono, at 16 kHz: (samples,) float32 in [-1, 1].

    Args:
        path: any format that libsndfile reads.
        channel: which one to take, from 0; None takes the only one, and refuses files with several.
        resample: convert other sample rates (soxr, high quality) where they would be refused.
        span: the part to read. Where the format allows, what precedes it is not decoded.

    Raises:
        InputError: damaged, truncated, empty, shorter than a window, constant (but not 0), too long, with several
            channels or of another sample rate, or without such a part; names the file.
    """
    return np.concatenate(list(waveform_blocks(path, channel, resample, MAX_SECONDS, span)))


def waveform_blocks(
    path: str | Path,
    channel: int | None = None,
    resample: bool = False,
    max_seconds: int | None = None,
    span: Span = WHOLE,
) -> Iterator[np.ndarray]:
    """What `read_waveform` gives and raises, block after block, of any length up to `max_seconds`."""
    given, lowest, highest = 0, np.inf, -np.inf
    with _open_audio(path) as audio:
        first, samples = _check_header(audio, channel, resample, max_seconds, span)
        for block in _mono_blocks(audio, channel or 0, first, samples):
            given += len(block)
            if max_seconds and given > max_seconds * SAMPLE_RATE:  # no header promised it
                raise InputError(_too_long(max_seconds))
            lowest, highest = min(lowest, block.min(initial=np.inf)), max(highest, block.max(initial=-np.inf))
            yield block
        if given < WINDOW_SAMPLES:
            raise InputError(f"{given} samples, less than a window of {WINDOW_SAMPLES} (25 ms)")
        if lowest == highest != 0:
            raise InputError(f"all samples are {lowest:g}: a recording with zero variance")


def long_frames(path: str | Path, span: Span = WHOLE) -> int | None:
    """The approximate number of frames, by header and span, if they take longer than LONG_SECONDS; else None."""
    if span.end is not None and span.end - span.start <= LONG_SECONDS:
        return None
    # A file that cannot be read is not long: reading it says why.
    with contextlib.suppress(InputError), _open_audio(path) as audio:
        _, samples = _find_span(audio, span)
        seconds = min(samples / audio.samplerate, MAX_SECONDS if samples == UNKNOWN_FRAMES else np.inf)
        if seconds > LONG_SECONDS:
            return num_frames(round(seconds * SAMPLE_RATE))
    return None


def describe_length(path: str | Path, span: Span = WHOLE) -> str | None:
    """How much shorter a file or a part is than promised, where that is tolerated; None where it is whole."""
    with _open_audio(path) as audio:
        return _check_length(audio) if span == WHOLE else _check_span(audio, span)


def is_silent(path: str | Path, channel: int | None = None, span: Span = WHOLE) -> bool:
    """Whether every sample of a file or a part (of one of its channels) is 0; reads to the first that is not."""
    with _open_audio(path) as audio:
        first, left = _find_span(audio, span)
        audio.skip_to(first)
        while left > 0 and len(block := audio.read(min(SILENCE_SAMPLES, left), dtype="float32", always_2d=True)):
            if block[:, channel or 0].any():
                return False
            left -= len(block)
    return True


class _AudioFile(soundfile.SoundFile):
    """An audio file; one of unknown length, or whose samples seeking would change, is only read front to back.

    SoundFile seeks after each reading where it can, so that also blocks in a row would differ from the whole.
    """

    def seekable(self) -> bool:
        is_exact = self.frames != UNKNOWN_FRAMES and self.subtype not in INEXACT_SEEKING
        return is_exact and super().seekable()

    def skip_to(self, sample: int) -> None:
        """Move from the first sample to another."""
        if sample and self.seekable():
            self.seek(sample)
            return
        for start in range(0, sample, SKIPPED_SAMPLES):
            self.read(min(SKIPPED_SAMPLES, sample - start), dtype="float32")


@contextlib.contextmanager
def _open_audio(path: str | Path) -> Iterator[_AudioFile]:
    """Open an audio file, and let the errors of the block name it."""
    with open_regular(path) as file:
        try:
            with _AudioFile(file.fileno(), closefd=False) as audio:
                yield audio
        except InputError as error:
            raise InputError(error.reason, str(path)) from error
        except soundfile.SoundFileError as error:
            reason = error.error_string.rstrip(".") if isinstance(error, soundfile.LibsndfileError) else error
            raise InputError(f"no audio, truncated or damaged: {one_line(reason, 200)}", str(path)) from error
        except OSError as error:
            raise_unless_of_file(error)
            raise InputError(f"cannot be read: {error.strerror or error}", str(path)) from error


def _mono_blocks(audio: _AudioFile, channel: int, first: int, samples: int) -> Iterator[np.ndarray]:
    """A channel's samples at 16 kHz, from the first on, as many as there must be, or where unknown all."""
    at_once = max(1, BLOCK_VALUES // audio.channels)
    resampler = None
    if audio.samplerate != SAMPLE_RATE:
        resampler = soxr.ResampleStream(audio.samplerate, SAMPLE_RATE, 1, dtype="float32", quality="HQ")
    audio.skip_to(first)
    read, is_last = 0, False
    while not is_last:
        block = audio.read(min(at_once, samples - read), dtype="float32", always_2d=True)  # (samples, channels)
        read, is_last = read + len(block), len(block) < at_once or read + len(block) == samples
        is_guess = is_last and first + samples == audio.frames and _guesses_length(audio)
        if is_last and read < samples != UNKNOWN_FRAMES and not is_guess:
            raise InputError(f"no audio, truncated or damaged: {read} of {samples} samples can be read")
        if is_guess:
            left = os.fstat(audio.name).st_size - os.lseek(audio.name, 0, os.SEEK_CUR)
            if left > MPEG_FRAME_BYTES:
                raise InputError("an .mp3 that does not say how long it is, so that only a part is read: convert it")
        mono = np.ascontiguousarray(block[:, channel])
        yield mono if resampler is None else resampler.resample_chunk(mono, last=is_last)


def _check_header(
    audio: _AudioFile, channel: int | None, resample: bool, max_seconds: int | None, span: Span
) -> tuple[int, int]:
    """Refuse what cannot be read rightly, before memory is taken for it; returns the first sample and their number."""
    if audio.samplerate != SAMPLE_RATE and not resample:
        raise InputError(f"{audio.samplerate} Hz, not {SAMPLE_RATE} Hz; --resample converts it")
    if channel is None and audio.channels != 1:
        raise InputError(f"{audio.channels} channels; --channel takes one of them (from 0)")
    if channel is not None and channel >= audio.channels:
        raise InputError(f"no channel {channel}: it has {audio.channels} (the first is 0)")
    _check_length(audio)
    _check_span(audio, span)
    first, samples = _find_span(audio, span)
    if max_seconds and UNKNOWN_FRAMES > samples > min(max_seconds * audio.samplerate, MAX_SAMPLES // audio.channels):
        raise InputError(_too_long(max_seconds))
    return first, samples


def _too_long(max_seconds: int) -> str:
    return f"longer than {max_seconds} seconds, or damaged: split it into utterances"


def _find_span(audio: _AudioFile, span: Span) -> tuple[int, int]:
    """The first sample of a part and their number, by the header; UNKNOWN_FRAMES where it does not say."""
    if span == WHOLE:
        return 0, audio.frames
    first = round(span.start * audio.samplerate)
    last = audio.frames if span.end is None else min(audio.frames, round(span.end * audio.samplerate))
    return first, max(0, last - first)


def _check_span(audio: _AudioFile, span: Span) -> str | None:
    """What a part lacks because the recording ends before it; None where nothing is lacking.

    Raises InputError if it lacks more than a second, or more than half, or the length of the recording is unknown.
    """
    if span == WHOLE:
        return None
    if audio.frames == UNKNOWN_FRAMES:
        raise InputError("its header does not say how long it is, so it has no segments; write it anew (flac -d, flac)")
    seconds = audio.frames / audio.samplerate
    lacking = (span.end or 0) - seconds
    if span.start >= seconds or lacking > min(TOLERATED_SECONDS, ((span.end or 0) - span.start) / 2):
        part = f"{span.start:g} s to {'its end' if span.end is None else f'{span.end:g} s'}"
        raise InputError(f"the segment from {part} is not there: the recording has {seconds:.2f} s")
    return f"its segment ends {lacking:.3f} s after the recording" if lacking * audio.samplerate >= 0.5 else None


def _check_length(audio: soundfile.SoundFile) -> str | None:
    """What a file lacks of the length that its header promises, or that it promises none; None where it is whole.

    Raises InputError if it lacks more than a second, or more than half, or an Ogg stream has no end, or a WAV file goes
    on for more than a second.
    """
    if (beyond := _seconds_beyond(audio)) > TOLERATED_SECONDS:
        seconds = audio.frames / audio.samplerate
        raise InputError(f"its header promises {seconds:.2f} s, but {beyond:.2f} s more follow: repair its header")
    if _NO_END.search(audio.extra_info) and not _has_ogg_end(audio.name):  # a tag may follow it
        raise InputError("truncated file, or several in one: its stream does not end at the end of the file")
    promised = _promised_frames(audio)
    if promised is None or audio.frames == UNKNOWN_FRAMES:
        return "its header does not say how long it is"
    seconds = (promised - audio.frames) / audio.samplerate
    if seconds > TOLERATED_SECONDS or promised > 2 * audio.frames:
        raise InputError(f"truncated file: {seconds:.2f} s less than its header promises")
    return f"shorter than its header: {seconds:.3f} s are missing" if seconds > 0 else None


def _seconds_beyond(audio: soundfile.SoundFile) -> float:
    """The seconds of a WAV file that follow what its header promises, and are no other chunk."""
    rest, data = _WAV_REST.search(audio.extra_info), _WAV_DATA.search(audio.extra_info)
    if audio.format not in ("WAV", "WAVEX") or not rest or not data or audio.frames == 0:
        return 0.0
    bytes_per_second = int(data[1]) / audio.frames * audio.samplerate
    return (os.fstat(audio.name).st_size - int(rest[1])) / bytes_per_second


def _promised_frames(audio: soundfile.SoundFile) -> int | None:
    """The samples of each channel that a header promises; None where it gives no length."""
    if audio.format == "NIST":
        samples = _NIST_SAMPLES.search(os.pread(audio.name, NIST_HEADER_BYTES, 0))  # opened by its descriptor
        return int(samples[1]) if samples else None
    if _guesses_length(audio):
        return None
    if _NO_LENGTH.search(audio.extra_info):
        return None
    claimed = _CLAIMED.search(audio.extra_info)
    if not claimed:
        return audio.frames
    promised, there = int(claimed[1]), int(claimed[2])
    if promised == 0 or promised >= STREAMED_BYTES:
        return None
    return round(audio.frames * promised / max(1, there))


def _guesses_length(audio: soundfile.SoundFile) -> bool:
    """Whether it is an .mp3 without a frame that tells its length; libsndfile goes by the size of its first frame."""
    if not audio.subtype.startswith("MPEG"):
        return False
    head, start = os.pread(audio.name, ID3_HEADER_BYTES, 0), 0
    if head.startswith(b"ID3"):  # a tag, its size four times seven bits
        start = ID3_HEADER_BYTES + sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
    frame = os.pread(audio.name, MPEG_FRAME_BYTES, start)
    return not any(name in frame for name in (b"Xing", b"Info", b"VBRI"))


def _has_ogg_end(descriptor: int) -> bool:
    """Whether the last page of an Ogg file is whole, and the last one of the stream that it starts with."""
    size = os.fstat(descriptor).st_size
    start = max(0, size - OGG_TAIL_BYTES)
    tail, serial = os.pread(descriptor, OGG_TAIL_BYTES, start), os.pread(descriptor, 4, 14)
    page = tail[max(0, tail.rfind(b"OggS")) :]
    num_segments = page[26] if len(page) > 26 else 0
    num_bytes = 27 + num_segments + sum(page[27 : 27 + num_segments])
    if len(page) < num_bytes or not page[5] & OGG_END or page[14:18] != serial:
        return False
    bits = (page[:22] + bytes(4) + page[26:num_bytes]).translate(REVERSED)  # Ogg's CRC is zlib's of reversed bits
    checksum = zlib.crc32(bits, 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(REVERSED) == page[22:26]
