"""Audio files: finding them, reading them as 16 kHz mono of any length, and turning them into log-Mel frames."""

import contextlib
import errno
import os
import re
import stat
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

from utils.audio.log_mel import SAMPLE_RATE, WINDOW_SAMPLES, OnlineLogMel, log_mel, num_frames
from utils.kaldi.byte_reader import open_regular, reading
from utils.system.errors import InputError, one_line
from utils.system.files import check_utterance_id

AUDIO_SUFFIXES = (".flac", ".wav", ".wave", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".sph")
MAX_SECONDS = 1800  # longer files are no utterances, and a header can claim any length
MAX_SAMPLES = 1 << 28  # over all channels: 1 GiB as float32
BLOCK_VALUES = 1 << 20  # over all channels: a minute of mono, where a file is read piece by piece
LONG_SECONDS = 60  # from here on an utterance is better read piece by piece
STREAMED_BYTES = 0x7FFFF000  # a file that was written to a pipe claims at least this, not its true size
UNKNOWN_FRAMES = (1 << 63) - 1  # of a FLAC that was written to a pipe
TOLERATED_SECONDS = 1  # that a header may promise beyond what is there
NIST_HEADER_BYTES = 1024
CONVERTIBLE_SUFFIXES = (".m4a", ".aac")
CONVERT = "ffmpeg -i in.m4a -ar 16000 out.wav"
# What libsndfile's log says of WAV and CAF (data), W64 (riff), RF64 (Riff size), AU (Data Size) and AIFF (SSND).
_CLAIMED = re.compile(r"^\s*(?:data|riff|Riff size|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_NO_LENGTH = re.compile(r"^\s*Data Size\s*: -1$", re.MULTILINE)
_NO_END = re.compile(r"lacks an end-of-stream bit")  # Ogg
_NIST_SAMPLES = re.compile(rb"^sample_count -i (\d+)", re.MULTILINE)


class AudioUtterance(NamedTuple):
    """An audio file; loading it computes its log-Mel frames."""

    utterance: str
    where: str
    num_bytes: int
    folder: str
    channel: int | None = None
    resample: bool = False
    mtime_ns: int = 0

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

    def remark(self) -> str | None:
        """How much shorter it is than its header promises, where that is tolerated; None where it is whole."""
        with self._naming_utterance(), _open_audio(self.where) as audio:
            return _check_length(audio, self.where)

    @contextlib.contextmanager
    def _naming_utterance(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            reason = str(error).removeprefix(self.where).removeprefix(": ")
            raise InputError(f"{self.where}: utterance {self.utterance}: {reason}") from error


def find_audio(
    directory: str | Path, channel: int | None = None, resample: bool = False, skip_errors: bool = False
) -> tuple[list[AudioUtterance], Counter[str]]:
    """Every audio file below a directory, sorted by utterance id, which is the file's name without its ending.

    Links are followed. With `skip_errors`, directories that cannot be read are skipped.

    Returns:
        The files, and how many entries of each kind are not read.

    Raises:
        InputError: there is none, two have the same name, or a name is no utterance id; or a directory cannot be read.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory} is not a directory")
    files, not_read = _walk(directory, skip_errors)
    found: dict[str, AudioUtterance] = {}
    problems = []
    for path, size, mtime_ns in sorted(files):
        try:
            utterance = check_utterance_id(path.stem, str(path))
        except InputError as error:
            problems.append(str(error))
            continue
        if utterance in found:
            problems.append(f"{found[utterance].where} and {path} are both utterance {utterance}: rename one")
            continue
        folder = path.absolute().parent.name
        found[utterance] = AudioUtterance(utterance, str(path), size, folder, channel, resample, mtime_ns)
    if problems:
        others = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(problems[0] + others, details=problems if others else ())
    if not found:
        told = f"; {describe_not_read(not_read)}" if not_read else ""
        raise InputError(f"{directory} holds no audio files ({', '.join(AUDIO_SUFFIXES)}){told}")
    return [found[utterance] for utterance in sorted(found)], not_read


def describe_not_read(not_read: Counter[str]) -> str:
    """The entries of a directory that are not read: how many of each kind."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in not_read.most_common())
    convert = f" (convert these: {CONVERT})" if any(kind in CONVERTIBLE_SUFFIXES for kind in not_read) else ""
    return f"{not_read.total()} files not read: {kinds}{convert}"


def _walk(top: Path, skip_errors: bool) -> tuple[list[tuple[Path, int, int]], Counter[str]]:
    """The path, size and time of each audio file below a directory, and how many entries of each kind are not read.

    Linked directories come after all others, so that what is reached both ways has its own path.
    """
    files: list[tuple[Path, int, int]] = []
    not_read: Counter[str] = Counter()
    folders, linked, seen = [top], deque[Path](), set()
    while folders or linked:
        folder = folders.pop() if folders else linked.popleft()
        try:
            status = folder.stat()
            entries = [] if (status.st_dev, status.st_ino) in seen else sorted(os.scandir(folder), key=os.fspath)
        except OSError as error:
            if not skip_errors:
                reason = f"{folder} cannot be read: {error.strerror}; --on_error skip leaves it out"
                raise InputError(reason) from error
            not_read["unreadable directory"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            not_read["link to a directory that is read already"] += 1
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path, kind = folder / entry.name, _kind(entry)
            if kind == "file":
                files.append((path, *_size_and_time(path)))
            elif kind != "directory":
                not_read[kind] += 1
            elif not entry.is_symlink():
                folders.append(path)
            elif _is_above(path, folder) or _is_above(path, top):
                not_read["link to a directory above it"] += 1
            else:
                linked.append(path)
    return files, not_read


def _kind(entry: os.DirEntry) -> str:
    """'directory', 'file' where it is to be read, or the kind of what is not."""
    if entry.name.startswith("."):  # macOS adds ._name files
        return "hidden"
    suffix = Path(entry.name).suffix.lower()
    is_audio = suffix in AUDIO_SUFFIXES
    try:
        mode = Path(entry.path).stat().st_mode
    except OSError as error:
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return "broken link"
        if entry.is_dir(follow_symlinks=False):
            return "directory"  # reading it says what is wrong
        return "file" if is_audio else suffix or "without suffix"
    if stat.S_ISDIR(mode):
        return "directory"
    if not is_audio:
        return suffix or "without suffix"
    return "file" if stat.S_ISREG(mode) else "device or pipe"


def _size_and_time(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0  # loading it says what is wrong
    return status.st_size, status.st_mtime_ns


def _is_above(link: Path, folder: Path) -> bool:
    """Whether a link leads to a directory that holds the folder, or to the folder itself."""
    return folder.resolve().is_relative_to(link.resolve())


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
    with _open_audio(path) as audio:
        _check_header(audio, path, channel, resample, max_seconds)
        for samples in _mono_blocks(audio, path, channel or 0):
            given += len(samples)
            lowest, highest = min(lowest, samples.min(initial=np.inf)), max(highest, samples.max(initial=-np.inf))
            yield samples
    if given < WINDOW_SAMPLES:
        raise InputError(f"{path}: {given} samples, less than a window of {WINDOW_SAMPLES} (25 ms)")
    if lowest == highest:
        raise InputError(f"{path}: all samples are {lowest:g}: a recording with zero variance")


@contextlib.contextmanager
def _open_audio(path: str | Path) -> Iterator[soundfile.SoundFile]:
    """Open an audio file; what cannot be read of it in the block is an InputError that names it."""
    try:
        with reading(path), open_regular(path) as file, soundfile.SoundFile(file.fileno(), closefd=False) as audio:
            yield audio
    except soundfile.SoundFileError as error:
        reason = one_line(getattr(error, "error_string", error), 200)
        raise InputError(f"{path}: no audio, cut off or damaged: {reason}") from error


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
    if audio.frames == UNKNOWN_FRAMES:  # which libsndfile cannot read block by block
        raise InputError(f"{path}: its header does not say how long it is: write it anew (flac -d, then flac)")
    too_long = max_seconds and audio.frames > max_seconds * audio.samplerate
    if too_long or (max_seconds and audio.frames * audio.channels > MAX_SAMPLES):
        raise InputError(f"{path}: longer than {max_seconds} seconds, or damaged: split it into utterances")
    _check_length(audio, path)


def _check_length(audio: soundfile.SoundFile, path: str | Path) -> str | None:
    """What a file lacks of the length that its header promises, or that it promises none; None where it is whole.

    Raises:
        InputError: it lacks more than a second, or more than half, or an Ogg stream has no end.
    """
    if _NO_END.search(audio.extra_info):
        raise InputError(f"{path}: cut off: the end of its stream is missing")
    promised = _promised_frames(audio)
    if promised is None:
        return f"{path}: its header does not say how long it is"
    seconds = (promised - audio.frames) / audio.samplerate
    if seconds > TOLERATED_SECONDS or promised > 2 * audio.frames:
        raise InputError(f"{path}: cut off: {seconds:.2f} s less than its header promises")
    return f"{path}: shorter than its header: {seconds:.3f} s are missing" if seconds > 0 else None


def _promised_frames(audio: soundfile.SoundFile) -> int | None:
    """The samples of each channel that a header promises; None where it gives no length."""
    if audio.format == "NIST":
        samples = _NIST_SAMPLES.search(os.pread(audio.name, NIST_HEADER_BYTES, 0))  # opened by its descriptor
        return int(samples[1]) if samples else None
    claimed = _CLAIMED.search(audio.extra_info)
    if _NO_LENGTH.search(audio.extra_info):
        return None
    if not claimed:
        return audio.frames
    promised, there = int(claimed[1]), int(claimed[2])
    if promised == 0 or promised >= STREAMED_BYTES:
        return None
    return round(audio.frames * promised / max(1, there))
