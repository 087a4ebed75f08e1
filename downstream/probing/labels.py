"""The phone of every frame, from a CTM or from lines of frame labels.

Frame t of the log Mel covers the 25 ms from t * 10 ms; its phone is the one spoken at the middle of that window,
t * 10 ms + 12.5 ms. A frame whose middle no line covers has no phone and takes part in nothing.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.audio.frames import SHIFT_MS, WINDOW_MS
from utils.system.errors import InputError, one_line
from utils.system.reading import reading

NO_PHONE = -1
CTM_FIELDS = (5, 6)  # utterance channel start duration phone [confidence]
FRAMES_TOLERANCE = 3  # by which a line of frame labels may miss the frames: tools differ at the edges
MAX_SECONDS = 1 << 20
EDGE_SECONDS = (WINDOW_MS - SHIFT_MS) / 2 / 1000  # from a frame's beginning to the 10 ms around its middle

Segment = tuple[float, float, str]  # start and end in seconds, phone


class Alignment(NamedTuple):
    """What is spoken in an utterance, before its frames are known.

    Attributes:
        starts, ends: float64 (segments,), in seconds, in order.
        phones: int64 (segments,), indices into the phones.
        num_labels: frames of a line of frame labels; None for a CTM.
    """

    starts: np.ndarray
    ends: np.ndarray
    phones: np.ndarray
    num_labels: int | None = None


class FrameLabels(NamedTuple):
    """The phones of an utterance's frames.

    Attributes:
        phones: int64 (frames,), NO_PHONE where there is none.
        segments: int64 (frames,), which of the utterance's segments (spoken phones) a frame belongs to.
    """

    phones: np.ndarray
    segments: np.ndarray


class PhoneLabels(NamedTuple):
    """The alignments of a corpus.

    Attributes:
        phones: the names of the phones, sorted.
        alignments: of each utterance id.
        source: the file, for errors.
        late_ms: how late its times are, in ms: they are taken so much earlier.
    """

    phones: list[str]
    alignments: dict[str, Alignment]
    source: str
    late_ms: float = 0.0

    def of(self, utterance: str, frames: int) -> FrameLabels:
        """The phone of each of an utterance's frames; NO_PHONE for all where the file does not have the utterance.

        Raises:
            InputError: a line of frame labels is shorter or longer than the utterance by more than 3 frames.
        """
        alignment = self.alignments.get(utterance)
        if alignment is None:
            return FrameLabels(np.full(frames, NO_PHONE), np.full(frames, NO_PHONE))
        if alignment.num_labels is not None and abs(alignment.num_labels - frames) > FRAMES_TOLERANCE:
            raise InputError(f"{self.source}: utterance {utterance} has {alignment.num_labels} labels for {frames} "
                             f"frames; they must be 10 ms apart and agree to within {FRAMES_TOLERANCE}")  # fmt: skip
        centres = frame_centres(frames) + self.late_ms / 1000
        segments = np.searchsorted(alignment.starts, centres, side="right") - 1  # the last that started
        is_covered = (segments >= 0) & (centres < alignment.ends[segments])
        return FrameLabels(
            np.where(is_covered, alignment.phones[segments], NO_PHONE), np.where(is_covered, segments, NO_PHONE)
        )


def frame_centres(frames: int) -> np.ndarray:
    """The middle of each frame's window, (frames,) float64, in seconds."""
    return (np.arange(frames) * SHIFT_MS + WINDOW_MS / 2) / 1000


def read_labels(path: str | Path, late_ms: float = 0.0) -> PhoneLabels:
    """Read phone labels: a CTM where the file's name ends in .ctm, else `utterance label label ...` at 100 Hz a line.

    Where two lines of a CTM overlap, the one that starts later holds; where it ends, the other one goes on.

    Args:
        path: the file.
        late_ms: how late its times are, in ms (early if negative). Aligners may be off by some constant: it is where a
            classifier of single frames of log Mel has the lowest error.

    Raises:
        InputError: the file is missing, or a line has another form; names the line.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist, or is no file")
    is_ctm = path.suffix == ".ctm"
    spoken: dict[str, list[Segment]] = defaultdict(list)
    num_labels: dict[str, int] = {}
    for number, line in enumerate(_lines(path), 1):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        where = f"{path}:{number}"
        if is_ctm:
            spoken[fields[0]].append(_ctm_segment(fields, where))
            continue
        if len(fields) == 1 or fields[0] in spoken:
            reason = "has no label" if len(fields) == 1 else "stands twice"
            raise InputError(f"{where}: utterance {one_line(fields[0], 80)} {reason}")
        spoken[fields[0]] = list(_runs(fields[1:]))
        num_labels[fields[0]] = len(fields) - 1
    if not spoken:
        raise InputError(f"{path} holds no labels")
    phones = sorted({phone for segments in spoken.values() for *_, phone in segments})
    index = {phone: number for number, phone in enumerate(phones)}
    alignments = {u: _alignment(segments, index, num_labels.get(u)) for u, segments in spoken.items()}
    return PhoneLabels(phones, alignments, str(path), late_ms)


def _lines(path: Path) -> Iterator[str]:
    with reading(path), path.open(encoding="utf-8", errors="replace") as file:
        yield from file


def _ctm_segment(fields: list[str], where: str) -> Segment:
    """(start, end, phone) of a line of a CTM."""
    try:
        start, duration = (float(field) for field in fields[2:4])
    except ValueError:
        start = duration = -1.0
    if len(fields) not in CTM_FIELDS or not (0 <= start < MAX_SECONDS and 0 <= duration < MAX_SECONDS):
        raise InputError(f"{where}: a line of a CTM should be `utterance channel start duration phone`, in seconds")
    return start, start + duration, fields[4]


def _runs(labels: Iterable[str]) -> Iterator[Segment]:
    """(start, end, label) of each run of equal labels, so that a frame's middle falls into its own."""
    end = 0  # frames
    for label, run in groupby(labels):
        first, end = end, end + len(list(run))
        yield first * SHIFT_MS / 1000 + EDGE_SECONDS, end * SHIFT_MS / 1000 + EDGE_SECONDS, label


def _without_overlaps(segments: list[Segment]) -> list[Segment]:
    """Sorted segments, cut so that of those that overlap, the one that starts later holds until it ends."""
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
    return pieces or segments[:1]  # all of no duration: one of them, which covers nothing


def _alignment(segments: list[Segment], index: dict[str, int], num_labels: int | None) -> Alignment:
    starts, ends, phones = zip(*_without_overlaps(sorted(segments)), strict=True)
    return Alignment(np.array(starts), np.array(ends), np.array([index[phone] for phone in phones]), num_labels)
