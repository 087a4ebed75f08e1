"""Audio files: finding them, reading them as 16 kHz mono of any length, and turning them into log-Mel frames."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from utils.byte_reader import open_regular
from utils.errors import InputError, one_line
from utils.files import check_utterance_id
from utils.log_mel import SAMPLE_RATE, WINDOW_SAMPLES, OnlineLogMel, log_mel, num_frames

AUDIO_SUFFIXES = (".flac", ".wav", ".wave", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".sph")
MAX_SECONDS = 1800  # longer files are no utterances, and a header can claim any length
MAX_SAMPLES = 1 << 28  # over all channels: 1 GiB as float32
BLOCK_VALUES = 1 << 20  # over all channels: a minute of mono, where a file is read piece by piece
LONG_SECONDS = 60  # from here on an utterance is better read piece by piece
STREAMED_BYTES = 0x7FFFF000  # a WAV that was written to a pipe claims at least this, not its true size
_CLAIMED_DATA = re.compile(r"^\s*data\s*: (\d+) \(should be", re.MULTILINE)


class AudioUtterance(NamedTuple):
    """An audio file; loading it computes its log-Mel frames."""

    utterance: str
    where: str
    num_bytes: int
    folder: str
    channel: int | None = None
    resample: bool = False

    def load(self) -> np.ndarray:
        """(frames, 80) float32. Raises InputError, naming the file, where it is no usable speech."""
        with self._naming_utterance():
            return log_mel(read_waveform(self.where, self.channel, self.resample))

    def blocks(self) -> Iterator[np.ndarray]:
        """The frames of `load`, a block after another, of a recording of any length."""
        online = OnlineLogMel()
        with self._naming_utterance():
            for samples in waveform_blocks(self.where, self.channel, self.resample):
                yield online.accept(samples)

    def long_frames(self) -> int | None:
        """About how many frames it has, by its header, if that is more than a minute of them; else None."""
        # A file that cannot be read is not long: loading it says why.
        with contextlib.suppress(InputError, OSError, soundfile.SoundFileError), open_regular(self.where) as file:
            audio = soundfile.info(file)
            if audio.frames > LONG_SECONDS * audio.samplerate:
                return num_frames(audio.frames * SAMPLE_RATE // audio.samplerate)
        return None

    @contextlib.contextmanager
    def _naming_utterance(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            reason = str(error).removeprefix(self.where).removeprefix(": ")
            raise InputError(f"{self.where}: utterance {self.utterance}: {reason}") from error


def find_audio(directory: str | Path, channel: int | None = None, resample: bool = False) -> list[AudioUtterance]:
    """Every audio file below a directory, sorted by utterance id, which is the file's name without its ending.

    Raises:
        InputError: there is none, two have the same name, or a name is no utterance id.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    found: dict[str, AudioUtterance] = {}
    for path in sorted(_walk(directory)):
        utterance = check_utterance_id(path.stem, str(path))
        if utterance in found:
            raise InputError(f"{found[utterance].where} and {path} are both utterance {utterance}: rename one")
        found[utterance] = AudioUtterance(
            utterance, str(path), path.stat().st_size, path.absolute().parent.name, channel, resample
        )
    if not found:
        raise InputError(f"{directory} holds no audio files ({', '.join(AUDIO_SUFFIXES)})")
    return [found[utterance] for utterance in sorted(found)]


def _walk(directory: Path) -> Iterator[Path]:
    for path in directory.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(directory).parts)  # macOS adds ._name files
        if not hidden and path.suffix.lower() in AUDIO_SUFFIXES and path.is_file():
            yield path


def read_waveform(path: str | Path, channel: int | None = None, resample: bool = False) -> np.ndarray:
    """A file's samples, mono, at 16 kHz.

    Args:
        path: any format that libsndfile reads.
        channel: which one to take, from 0; None takes the only one, and refuses files with several.
        resample: convert other sample rates (soxr, high quality) where they would be refused.

    Returns:
        (samples,) float32 in [-1, 1].

    Raises:
        InputError: damaged, cut off, empty, shorter than a window, constant, too long, with several channels or of
            another sample rate; names the file.
    """
    return np.concatenate(list(waveform_blocks(path, channel, resample, MAX_SECONDS)))


def waveform_blocks(
    path: str | Path, channel: int | None = None, resample: bool = False, max_seconds: int | None = None
) -> Iterator[np.ndarray]:
    """What `read_waveform` gives, a block of samples after another, of a file of any length up to `max_seconds`.

    Raises:
        InputError: as of `read_waveform`; what is only seen at the end is said there.
    """
    given, lowest, highest = 0, np.inf, -np.inf
    try:
        with open_regular(path) as file, soundfile.SoundFile(file.fileno(), closefd=False) as audio:
            _check_header(audio, path, channel, resample, max_seconds)
            for samples in _mono_blocks(audio, path, channel or 0):
                given += len(samples)
                lowest, highest = min(lowest, samples.min(initial=np.inf)), max(highest, samples.max(initial=-np.inf))
                yield samples
    except soundfile.SoundFileError as error:
        reason = one_line(getattr(error, "error_string", error), 200)
        raise InputError(f"{path}: no audio, cut off or damaged: {reason}") from error
    if given < WINDOW_SAMPLES:
        raise InputError(f"{path}: {given} samples, less than a window of {WINDOW_SAMPLES} (25 ms)")
    if lowest == highest:
        raise InputError(f"{path}: all samples are {lowest:g}: a recording with zero variance")


def _mono_blocks(audio: soundfile.SoundFile, path: str | Path, channel: int) -> Iterator[np.ndarray]:
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
            raise InputError(f"{path}: no audio, cut off or damaged: {read} of {audio.frames} samples can be read")
        samples = np.ascontiguousarray(block[:, channel])
        yield samples if resampler is None else resampler.resample_chunk(samples, last=is_last)


def _check_header(
    audio: soundfile.SoundFile, path: str | Path, channel: int | None, resample: bool, max_seconds: int | None
) -> None:
    """Refuse what cannot be read rightly, before memory is taken for it."""
    if audio.samplerate != SAMPLE_RATE and not resample:
        raise InputError(f"{path}: {audio.samplerate} Hz, not {SAMPLE_RATE} Hz; --resample converts it")
    if channel is None and audio.channels != 1:
        raise InputError(f"{path}: {audio.channels} channels; --channel takes one of them (from 0)")
    if channel is not None and channel >= audio.channels:
        raise InputError(f"{path}: no channel {channel}: it has {audio.channels} (the first is 0)")
    too_long = max_seconds and audio.frames > max_seconds * audio.samplerate
    if too_long or (max_seconds and audio.frames * audio.channels > MAX_SAMPLES):
        raise InputError(f"{path}: longer than {max_seconds} seconds, or damaged: split it into utterances")
    claimed = _CLAIMED_DATA.search(audio.extra_info)
    if claimed and int(claimed[1]) < STREAMED_BYTES:
        raise InputError(f"{path}: cut off: its header promises {claimed[1]} bytes of samples")
