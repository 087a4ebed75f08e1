"""Facts about phone labels: which frame gets which phone, and what bad label files are told."""

from pathlib import Path

import numpy as np
import pytest

from downstream.probing.labels import NO_PHONE, frame_centres, read_labels
from utils.system.errors import InputError

CTM = """\
;; a comment
b 1 0.00 0.03 SIL
a 1 0.02 0.02 K 0.9
a 1 0.04 0.03 A
a 1 0.09 0.02 A
"""


def write(directory: Path, text: str, name: str = "phones.ctm") -> Path:
    """A file of labels."""
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_frame_has_the_phone_spoken_at_the_middle_of_its_window(tmp_path):
    """Frame t's window is t * 10 ms to t * 10 + 25 ms, its middle at 12.5, 22.5, 32.5, ... ms."""
    labels = read_labels(write(tmp_path, CTM))
    assert labels.phones == ["A", "K", "SIL"]
    assert frame_centres(3) == pytest.approx([0.0125, 0.0225, 0.0325])
    a, k, no = 0, 1, NO_PHONE
    of_frames = labels.of("a", 11)
    # middles:                   12  22 32 42 52 62 72  82  92 102 112 ms
    assert of_frames.phones.tolist() == [no, k, k, a, a, a, no, no, a, a, no]
    assert of_frames.segments.tolist() == [no, 0, 0, 1, 1, 1, no, no, 2, 2, no]  # two A's that touch no other stay two


def test_labels_that_are_late_are_taken_earlier(tmp_path):
    early, late = (read_labels(write(tmp_path, CTM), late_ms=ms).of("a", 11).phones for ms in (0, 20))
    assert late[:9].tolist() == early[2:].tolist()


def test_an_utterance_without_labels_has_no_phones(tmp_path):
    assert (read_labels(write(tmp_path, CTM)).of("c", 5).phones == NO_PHONE).all()


def test_where_two_lines_overlap_the_later_one_holds(tmp_path):
    labels = read_labels(write(tmp_path, "a 1 0 0.10 X\na 1 0.03 0.02 Y\n"))
    assert [labels.phones[phone] for phone in labels.of("a", 4).phones] == ["X", "X", "Y", "Y"]


def test_of_lines_that_start_together_the_shortest_holds_first(tmp_path):
    for lines in ("a 1 0 0.02 X\na 1 0 0.04 Y\n", "a 1 0 0.04 Y\na 1 0 0.02 X\n"):
        labels = read_labels(write(tmp_path, lines))
        assert [labels.phones[phone] for phone in labels.of("a", 4).phones[:3]] == ["X", "Y", "Y"]


def test_labels_that_are_not_in_utf8_are_refused_not_merged(tmp_path):
    path = tmp_path / "phones.ctm"
    path.write_bytes("a 1 0 1 a\na 1 1 1 æ\na 1 2 1 ø\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"phones\.ctm:2: a line is not in UTF-8"):
        read_labels(path)
    path.write_text("a 1 0 1 a\na 1 1 1 æ\na 1 2 1 ø\n", encoding="utf-8")
    assert read_labels(path).phones == ["a", "æ", "ø"]


def test_a_line_of_no_duration_cuts_no_phone_in_two(tmp_path):
    for lines in ("0 1 a\nu 1 .5 0 b\nu 1 1 .5 c", "0.1 0.2 a\nu 1 0.3 0 b\nu 1 0.5 0.1 c"):
        labels = read_labels(write(tmp_path, f"u 1 {lines}\n"))
        assert [labels.phones[phone] for phone in labels.spoken("u", 200)] == ["a", "c"]


def test_a_byte_order_mark_is_no_part_of_an_id_and_the_case_of_a_suffix_is_none(tmp_path):
    path = tmp_path / "phones.CTM"
    path.write_text("\N{BYTE ORDER MARK}u 1 0 1 a\nu 1 1 1 b\n", encoding="utf-8")
    assert len(read_labels(path).alignments["u"].phones) == 2
    with pytest.raises(InputError, match=r"phones\.ctm\.gz is compressed: unpack it"):
        read_labels(tmp_path / "phones.ctm.gz")


def test_lines_of_frame_labels_give_each_frame_its_own(tmp_path):
    labels = read_labels(write(tmp_path, "a SIL SIL K A A K\nb A\n", "frames.txt"))
    of_frames = labels.of("a", 6)
    assert [labels.phones[phone] for phone in of_frames.phones] == ["SIL", "SIL", "K", "A", "A", "K"]
    assert of_frames.segments.tolist() == [0, 0, 1, 2, 2, 3]
    assert labels.of("a", 8).phones[6:].tolist() == [NO_PHONE] * 2  # a few frames more or fewer are tolerated
    with pytest.raises(InputError, match=r"frames\.txt: utterance a has 6 labels for 20 frames"):
        labels.of("a", 20)
    long = read_labels(write(tmp_path, f"a {'K ' * 2000}\n", "frames.txt"))
    assert (long.of("a", 1600).phones == 0).all()  # the rest was cut
    with pytest.raises(InputError, match="2000 labels for 1500 frames"):
        long.of("a", 1500)


def test_the_bundled_alignments_label_every_frame():
    sample = Path(__file__).resolve().parent.parent / "librispeech_data" / "sample" / "phones.ctm"
    labels = read_labels(sample)
    assert len(labels.alignments) == 5 and "AA" in labels.phones
    assert (labels.of("austen-ss01-0890", 528).phones != NO_PHONE).all()
    assert np.unique(labels.of("austen-ss01-0890", 528).segments).size > 40


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.ctm", "a 1 0.0 0.1 A\na 1 0.1 A\n", r"p\.ctm:2: a line of a CTM should be `utterance channel"),
        ("p.ctm", "a 1 zero 0.1 A\n", r"p\.ctm:1: a line"),
        ("p.ctm", "a 1 -0.5 0.1 A\n", r"p\.ctm:1: a line"),
        ("p.ctm", "a 1 nan 0.1 A\n", r"p\.ctm:1: a line"),
        ("p.ctm", "", r"p\.ctm holds no labels"),
        ("p.txt", "a A A\na A\n", r"p\.txt:2: duplicate utterance id a"),
        ("p.txt", "a\n", r"p\.txt:1: utterance a has no label"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_the_line(tmp_path, name, text, told):
    with pytest.raises(InputError, match=told):
        read_labels(write(tmp_path, text, name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.ctm does not exist"):
        read_labels(tmp_path / "none.ctm")
