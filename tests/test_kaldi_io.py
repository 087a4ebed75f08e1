"""Facts about Kaldi input: the same matrices from every form, no command run, no size believed."""

import gzip
import struct
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from preparing_runs import prepare

import prepare_data
from utils.corpus.prepared import load_lengths, load_tensor
from utils.corpus.sources import ArchiveSource
from utils.kaldi.write_archives import write_ark, write_blogmel
from utils.system.errors import InputError

RNG = np.random.default_rng(0)
MATRICES = {f"s{i}-1-{i}": RNG.normal(10, 3, (n, 5)).astype(np.float32) for i, n in enumerate((7, 1, 30))}


def read(path):
    """All utterances of an archive."""
    return {found.id: found.load() for found in ArchiveSource([path]).utterances()}


def same(found, expected=MATRICES):
    return list(found) == list(expected) and all(
        found[name].dtype == np.float32 and np.array_equal(found[name], expected[name]) for name in expected
    )


@pytest.fixture
def ark(tmp_path):
    """A binary archive with its .scp, as Kaldi's tools would write them."""
    kaldiio.save_ark(str(tmp_path / "feats.ark"), MATRICES, scp=str(tmp_path / "feats.scp"))
    return tmp_path / "feats.ark"


def test_binary_archives_hold_their_matrices(ark):
    assert same(read(ark)) and same(read(ark.with_suffix(".scp")))


def test_double_archives_are_rounded_to_float32(tmp_path):
    doubles = {name: matrix.astype(np.float64) * np.pi for name, matrix in MATRICES.items()}
    kaldiio.save_ark(str(tmp_path / "d.ark"), doubles)
    assert same(read(tmp_path / "d.ark"), {name: matrix.astype(np.float32) for name, matrix in doubles.items()})


@pytest.mark.parametrize("method", range(1, 8))
def test_compressed_archives_hold_what_kaldiio_reads(tmp_path, method):
    unit = {name: (matrix - matrix.min()) / np.ptp(matrix) for name, matrix in MATRICES.items()}
    path = tmp_path / "c.ark"
    kaldiio.save_ark(str(path), unit, scp=str(tmp_path / "c.scp"), compression_method=method)
    expected = {name: matrix.astype(np.float32) for name, matrix in kaldiio.load_ark(str(path))}
    assert same(read(path), expected) and same(read(tmp_path / "c.scp"), expected)
    if method == 2:  # speech features, Kaldi's own choice
        assert all(np.abs(expected[name] - unit[name]).max() < 0.02 for name in unit)


def test_text_archives_hold_their_matrices(tmp_path):
    path = tmp_path / "t.ark"
    kaldiio.save_ark(str(path), MATRICES, scp=str(tmp_path / "t.scp"), text=True)
    assert same(read(path)) and same(read(tmp_path / "t.scp"))
    path.write_text("a  [\n  1 2.5 \n  3 4 ]\nb  [ 0 7 ]\n")
    assert same(read(path), {"a": np.float32([[1, 2.5], [3, 4]]), "b": np.float32([[0, 7]])})


@pytest.mark.parametrize("text", [False, True])
def test_gzipped_archives_hold_the_same(tmp_path, text):
    kaldiio.save_ark(str(tmp_path / "x.ark"), MATRICES, text=text)
    path = tmp_path / "x.ark.gz"
    path.write_bytes(gzip.compress((tmp_path / "x.ark").read_bytes()))
    assert same(read(path))


@pytest.mark.parametrize("span, rows, columns", [
    ("[2:9]", slice(2, 10), slice(None)), ("[0:0,1:3]", slice(0, 1), slice(1, 4)), ("[,4:4]", slice(None), slice(4, 5)),
    (" [3:31]", slice(3, 30), slice(None)),
])  # fmt: skip
def test_ranges_include_both_ends(ark, span, rows, columns):
    lines = ark.with_suffix(".scp").read_text().splitlines()
    ark.with_suffix(".scp").write_text(f"{lines[2]}{span}\n")
    assert same(read(ark.with_suffix(".scp")), {"s2-1-2": MATRICES["s2-1-2"][rows, columns]})


@pytest.mark.parametrize("span", ["[5:2]", "[0:40]", "[40:41]", "[0:1,0:9]", "[1]", "[0:1,0:1,0:1]"])
def test_a_range_that_does_not_fit_is_an_error(ark, span):
    lines = ark.with_suffix(".scp").read_text().splitlines()
    ark.with_suffix(".scp").write_text(f"{lines[2]}{span}\n")
    with pytest.raises(InputError, match=r"feats.scp:1: utterance s2-1-2: .*range"):
        read(ark.with_suffix(".scp"))


def test_an_scp_is_relative_to_the_working_directory_or_else_to_itself(ark, monkeypatch):
    scp = ark.with_suffix(".scp")
    scp.write_text(scp.read_text().replace(str(ark), "feats.ark"))
    assert same(read(scp))  # beside the .scp
    elsewhere = ark.parent / "elsewhere"
    elsewhere.mkdir()
    write_ark(elsewhere / "feats.ark", [(name, matrix + 1) for name, matrix in MATRICES.items()])
    monkeypatch.chdir(elsewhere)
    assert same(read(scp), {name: matrix + 1 for name, matrix in MATRICES.items()})


def test_several_inputs_become_one_directory(ark, tmp_path):
    kaldiio.save_ark(str(tmp_path / "2.ark"), {"z-1-1": MATRICES["s1-1-1"]}, scp=str(tmp_path / "2.scp"))
    prepare([ark.with_suffix(".scp"), tmp_path / "2.scp"], tmp_path / "out", "--max_seq_len", "10")
    assert load_lengths(tmp_path / "out") == {"s0-1-0": 7, "s1-1-1": 1, "s2-1-2": 10, "z-1-1": 1}
    assert np.array_equal(load_tensor(tmp_path / "out" / "s2-1-2.pt"), MATRICES["s2-1-2"][:10])
    with pytest.raises(InputError, match=r"feats.scp:1: utterance s0-1-0: duplicate .*first at .*feats.ark"):
        prepare([ark, ark.with_suffix(".scp")], tmp_path / "twice")


@pytest.mark.parametrize("entry", [
    "touch {0} |", "|touch {0}", "cat feats.ark | touch {0} |", "-", "", "feats.ark:17|",
])  # fmt: skip
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_command_is_refused_always_and_never_run(ark, tmp_path, entry, on_error):
    proof = tmp_path / "proof"
    scp = tmp_path / "hostile.scp"
    scp.write_text(f"{ark.with_suffix('.scp').read_text()}x-1-1 {entry.format(proof)}\n")
    with pytest.raises(InputError, match=r"hostile.scp:4: utterance x-1-1: refused: .* is a command or a pipe"):
        prepare(scp, tmp_path / "out", "--on_error", on_error)
    assert not proof.exists() and not (tmp_path / "out" / "lengths.pkl").exists()


@pytest.mark.parametrize("name", ["touch proof |", "| cat", "-", "feats.ark|"])
def test_a_file_name_that_is_a_command_is_refused(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="refused"):
        prepare_data.main([f"--librispeech_from_kaldi={name}", "--save_dir", "out"])
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("entry, message", [
    ("nowhere.ark:5", "nowhere.ark does not exist"), ("feats.ark:999999", "feats.ark ends before byte 999999"),
    ("feats.ark:8", "no matrix at byte 8"), ("/dev/zero:0", "/dev/zero is not a file"), ("feats.ark.gz", "compressed"),
    (".", "is not a file"),
])  # fmt: skip
def test_an_scp_that_points_nowhere_names_the_line_or_is_skipped(ark, tmp_path, entry, message):
    scp = ark.with_suffix(".scp")
    scp.write_text(f"{scp.read_text()}x-1-1 {entry}\n")
    with pytest.raises(InputError, match=rf"feats.scp:4: utterance x-1-1.*{message}"):
        prepare(scp, tmp_path / "out")
    prepare(scp, tmp_path / "out", "--on_error", "skip")
    assert len(load_lengths(tmp_path / "out")) == 3
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("x-1-1\t")


@pytest.mark.parametrize("compression", [None, 2, 3, 5])
@pytest.mark.parametrize("suffix", [".ark", ".ark.gz"])
def test_a_cut_off_archive_names_the_utterance_it_cuts(tmp_path, compression, suffix):
    kaldiio.save_ark(str(tmp_path / "whole.ark"), MATRICES, compression_method=compression)
    whole = (tmp_path / "whole.ark").read_bytes()
    path = tmp_path / f"cut{suffix}"
    for size in (len(whole) - 3, whole.index(b"s2-1-2") + 12):  # within the numbers, and within the header
        path.write_bytes(gzip.compress(whole[:size]) if suffix.endswith("gz") else whole[:size])
        with pytest.raises(InputError, match=r"cut.*ark.*: utterance s2-1-2.* truncated file"):
            prepare(path, tmp_path / "out", "--overwrite")
        prepare(path, tmp_path / "out", "--on_error", "skip", "--overwrite")
        assert list(load_lengths(tmp_path / "out")) == ["s0-1-0", "s1-1-1"]
        assert (tmp_path / "out" / "skipped.txt").read_text().startswith("s2-1-2\t")


def header(kind, rows, columns):
    sizes = struct.pack("<ii", rows, columns)
    if kind.startswith(b"CM"):
        return b"\0B" + kind + b" " + bytes(8) + sizes
    return b"\0B" + kind + b" \4" + sizes[:4] + b"\4" + sizes[4:]


@pytest.mark.parametrize("kind", [b"FM", b"DM", b"CM", b"CM2", b"CM3"])
@pytest.mark.parametrize("rows, columns, message", [
    (2**31 - 1, 2**31 - 1, "is not an utterance"), (2**24, 2, "truncated"), (-1, 80, "damaged"), (0, 0, "is empty"),
])  # fmt: skip
def test_sizes_in_a_header_are_checked_before_memory_is_taken(tmp_path, kind, rows, columns, message):
    for path in (tmp_path / "a.ark", tmp_path / "a.ark.gz"):
        content = b"x-1-1 " + header(kind, rows, columns)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        with pytest.raises(InputError, match=rf"utterance x-1-1.*{message}"):
            read(path)
    (tmp_path / "a.scp").write_text("x-1-1 a.ark:6\n")
    with pytest.raises(InputError, match=rf"a.scp:1: utterance x-1-1.*{message}"):
        read(tmp_path / "a.scp")


@pytest.mark.parametrize(
    "content", [b"\0BFV \4\1\0\0\0\0\0\0\0", b"PKLcos\nsystem\n", b"\0B\4\1\0\0\0", b"NPY", b"fLaC", b"1 2\n"]
)
def test_what_is_no_matrix_is_refused(tmp_path, content):
    (tmp_path / "a.ark").write_bytes(b"x-1-1 " + content)
    with pytest.raises(InputError, match="utterance x-1-1"):
        read(tmp_path / "a.ark")
    (tmp_path / "a.scp").write_text("x-1-1 a.ark:6\n")
    with pytest.raises(InputError, match="utterance x-1-1"):
        read(tmp_path / "a.scp")


def test_a_number_that_is_not_finite_names_its_frame(tmp_path):
    kaldiio.save_ark(str(tmp_path / "a.ark"), {"a-1-1": np.float64([[1, 2], [3, 1e300]])})
    with pytest.raises(InputError, match="utterance a-1-1: frame 2, number 2 is NaN, infinite or too large"):
        read(tmp_path / "a.ark")


@pytest.mark.parametrize("name", ["f.blogmel", "f.blogmel.xz", "f.blogmel.gz", "f.ark"])
def test_what_is_written_reads_back_bit_for_bit(tmp_path, name):
    hard = np.float32([[0.1, -0.0, 1e-45], [3.4028235e38, -1.1754944e-38, 16777217]])
    features = MATRICES | {"hard-1-1": hard}
    write = write_ark if name.endswith("ark") else write_blogmel
    assert write(tmp_path / name, features.items()) == 4
    found = read(tmp_path / name)
    assert list(found) == list(features)
    assert all(found[name].tobytes() == features[name].tobytes() for name in features)
    if name == "f.ark":
        assert same(read(tmp_path / "f.scp"), features)
        assert same({name: np.array(matrix) for name, matrix in kaldiio.load_ark(str(tmp_path / name))}, features)
        assert same({name: np.array(m) for name, m in kaldiio.load_scp(str(tmp_path / "f.scp")).items()}, features)
    once = (tmp_path / name).read_bytes()
    write(tmp_path / name, features.items())
    assert (tmp_path / name).read_bytes() == once


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
def test_every_float32_survives_text(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "float32.blogmel"
    write_blogmel(path, [("a", np.float32([values]))])
    assert read(path)["a"].tobytes() == np.float32([values]).tobytes()


def test_a_failed_write_leaves_what_was_there(tmp_path):
    def features():
        yield "a-1-1", MATRICES["s0-1-0"]
        raise InputError("the source broke")

    for name, write in (("f.ark", write_ark), ("f.blogmel.xz", write_blogmel)):
        (tmp_path / name).write_bytes(b"before")
        with pytest.raises(InputError):
            write(tmp_path / name, features())
        assert (tmp_path / name).read_bytes() == b"before"
    assert len(list(Path(tmp_path).iterdir())) == 2


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_read_or_refused_in_one_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    path = folder / data.draw(st.sampled_from(["m.ark", "t.ark", "m.blogmel", "m.scp"]))
    if path.suffix == ".blogmel":
        write_blogmel(path, MATRICES.items())
    elif path.name == "t.ark":
        kaldiio.save_ark(str(path), MATRICES, text=True)
    else:
        write_ark(folder / "m.ark", MATRICES.items())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    path.write_bytes(content)
    try:
        for found in ArchiveSource([path]).utterances():
            frames = found.load()
            assert frames.dtype == np.float32 and frames.ndim == 2 and frames.size and np.isfinite(frames).all()
    except InputError as error:
        assert "\n" not in str(error)
