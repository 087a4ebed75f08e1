"""The phone of every frame, from a CTM or from lines of frame labels.

Frame t of the log Mel covers the 25 ms from t * 10 ms; its phone is the one spoken at the middle of that window,
t * 10 ms + 12.5 ms. A frame whose middle no line covers has no phone and is skipped.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.audio.frames import SHIFT_MS, WINDOW_MS
from utils.corpus.preparation import MAX_SEQ_LEN
from utils.system.errors import InputError, one_line
from utils.system.reading import reading

NO_PHONE = -1
SILENCE = ("SIL", "SP", "SPN", "sil", "sp", "spn")  # phones that are no speech
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, by surrogateescape
COMPRESSED = (".gz", ".xz", ".bz2", ".zip")
CTM_FIELDS = (4, 5)  # after the utterance: channel start duration phone [confidence]
FRAMES_TOLERANCE = 3  # by which a line of frame labels may miss the frames: tools differ at the edges
MAX_SECONDS = 1 << 20
EDGE_SECONDS = (WINDOW_MS - SHIFT_MS) / 2 / 1000  # from the start of a frame to the 10 ms around its middle

Segment = tuple[float, float, str]  # start and end in seconds, phone


class Alignment(NamedTuple):
    """The segments (spoken phones) of an utterance, in order."""

    starts: np.ndarray  # float64 (segments,), in seconds
    ends: np.ndarray  # float64 (segments,), in seconds
    phones: np.ndarray  # int64 (segments,), indices into the phones
    num_labels: int | None = None  # in a line of frame labels


class FrameLabels(NamedTuple):
    """The phones of an utterance's frames."""

    phones: np.ndarray  # int64 (frames,), NO_PHONE where there is none
    segments: np.ndarray  # int64 (frames,), the index of each frame's segment in the utterance, or NO_PHONE


class PhoneLabels(NamedTuple):
    """The alignments of a corpus."""

    phones: list[str]  # sorted
    alignments: dict[str, Alignment]  # by utterance id
    source: str  # the file, for errors
    late_ms: float = 0.0  # how late its times are

    def of(self, utterance: str, frames: int) -> FrameLabels:
        """The phones of an utterance's frames; NO_PHONE for all where the file does not have the utterance.

        Raises InputError where a line of frame labels is more than 3 frames shorter or longer than the utterance.
        """
        alignment = self.alignments.get(utterance)
        if alignment is None:
            return FrameLabels(np.full(frames, NO_PHONE), np.full(frames, NO_PHONE))
        more = 0 if alignment.num_labels is None else alignment.num_labels - frames
        if abs(more) > FRAMES_TOLERANCE and not (more > 0 and frames == MAX_SEQ_LEN):  # it was cut to that
            counts = f"{alignment.num_labels} labels for {frames} frames"
            limits = f"they must be 10 ms apart and agree to within {FRAMES_TOLERANCE}"
            raise InputError(f"utterance {utterance} has {counts}; {limits}", self.source)
        centres = frame_centres(frames) + self.late_ms / 1000
        segments = np.searchsorted(alignment.starts, centres, side="right") - 1  # the last that started
        is_covered = (segments >= 0) & (centres < alignment.ends[segments])
        phones = np.where(is_covered, alignment.phones[segments], NO_PHONE)
        return FrameLabels(phones, np.where(is_covered, segments, NO_PHONE))

    def spoken(self, utterance: str, frames: int) -> np.ndarray:
        """The phones spoken in an utterance, in order: int64 (phones,), indices into `phones`.

        Only those whose middle comes before the end of the last frame's window: the audio may have been truncated.
        """
        alignment = self.alignments[utterance]
        end = (frames * SHIFT_MS + WINDOW_MS - SHIFT_MS + self.late_ms) / 1000
        return alignment.phones[(alignment.starts + alignment.ends) / 2 < end]


NO_LABELS = PhoneLabels([], {}, "")  # for a corpus whose phones are not wanted


def frame_centres(frames: int) -> np.ndarray:
    """The middle of each frame's window, (frames,) float64, in seconds."""
    return (np.arange(frames) * SHIFT_MS + WINDOW_MS / 2) / 1000


def read_labels(path: str | Path, late_ms: float = 0.0) -> PhoneLabels:
    """Read phone labels: a CTM where the file's name ends in .ctm, else lines of `utterance label label ...` at 100 Hz.

    Where two segments of a CTM overlap, the one that starts later holds, or of two that start together the shorter one;
    when it ends, the other one continues.

    Args:
        path: the file.
        late_ms: how late its times are, in ms (early if negative). The offset of an aligner is the value with which
            single frames of log Mel are classified best.

    Raises:
        InputError: the file is missing, or a line has another form; names the line.
    """
    path = Path(path)
    if path.suffix.lower() in COMPRESSED:
        raise InputError(f"{path} is compressed: unpack it")
    spoken: dict[str, list[Segment]] = defaultdict(list)
    num_labels: dict[str, int] = {}
    for location, (utterance, *labels) in read_lines(path):
        if path.suffix.lower() == ".ctm":
            spoken[utterance].append(_ctm_segment(labels, location))
            continue
        if utterance in spoken:
            raise InputError(f"duplicate utterance id {one_line(utterance, 80)}", location)
        if not labels:
            raise InputError(f"utterance {one_line(utterance, 80)} has no label", location)
        spoken[utterance] = list(_runs(labels))
        num_labels[utterance] = len(labels)
    if not spoken:
        raise InputError(f"{path} holds no labels")
    phones = sorted({phone for segments in spoken.values() for *_, phone in segments})
    index = {phone: number for number, phone in enumerate(phones)}
    alignments = {u: _alignment(segments, index, num_labels.get(u)) for u, segments in spoken.items()}
    return PhoneLabels(phones, alignments, str(path), late_ms)


def read_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The location (file:line) and the fields of each line of a text file, without blank lines and `;;` comments."""
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is not a file")
    with reading(path), path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            if not line.isascii() and UNDECODED.search(line):
                raise InputError("a line is not in UTF-8; convert the file, with iconv for example", f"{path}:{number}")
            if line.strip() and not line.startswith(";;"):
                yield f"{path}:{number}", line.split()


def _ctm_segment(fields: list[str], location: str) -> Segment:
    """(start, end, phone) of a line of a CTM, given its fields after the utterance's id."""
    try:
        start, duration = (float(field) for field in fields[1:3])
    except ValueError:
        start = duration = -1.0
    if len(fields) not in CTM_FIELDS or not (0 <= start < MAX_SECONDS and 0 <= duration < MAX_SECONDS):
        raise InputError("a line of a CTM should be `utterance channel start duration phone`, in seconds", location)
    return start, start + duration, fields[3]


def _runs(labels: Iterable[str]) -> Iterator[Segment]:
    """(start, end, label) of each run of equal labels, so that a frame's middle falls into its own."""
    end = 0  # frames
    for label, run in groupby(labels):
        first, end = end, end + len(list(run))
        yield first * SHIFT_MS / 1000 + EDGE_SECONDS, end * SHIFT_MS / 1000 + EDGE_SECONDS, label


def _without_overlaps(segments: list[Segment]) -> list[Segment]:
    """Sorted segments, trimmed so that of those that overlap, the one that starts later holds until it ends."""
    pieces: list[Segment] = []
    running: list[Segment] = []  # those that have started; the last one holds
    now = 0.0
    for segment in [*segments, (np.inf, np.inf, "")]:
        while running and now < segment[0]:
            _, end, phone = running[-1]
            if end <= now:
                running.pop()
                continue
            pieces.append((now, min(end, segment[0]), phone))
            now = pieces[-1][1]
        now = segment[0]
        running.append(segment)
    return pieces


def _alignment(segments: list[Segment], index: dict[str, int], num_labels: int | None) -> Alignment:
    lasting = [segment for segment in segments if segment[0] < segment[1]]  # others would cut a phone in two
    lasting.sort(key=lambda segment: (segment[0], -segment[1]))  # of those that start together, the shortest holds
    starts, ends, phones = zip(*(_without_overlaps(lasting) or segments[:1]), strict=True)
    return Alignment(np.array(starts), np.array(ends), np.array([index[phone] for phone in phones]), num_labels)
