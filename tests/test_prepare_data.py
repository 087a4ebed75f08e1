"""Facts about preparing: text archives become exactly the numbers they hold, and nothing half done is left."""

import gzip
import json
import lzma
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from preparing_runs import ROOT, content, prepare, run_to_death

from utils.corpus.normalization import Normalizer
from utils.corpus.prepared import load_lengths, load_tensor
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError
from utils.system.workers import ordered_map

SAMPLE = ROOT / "librispeech_data" / "sample" / "sample-dev.blogmel.xz"
GOOD = "a-1-1\n1 2\n3 4\n.\nb-1-1\n5 6\n.\n"


@pytest.fixture
def archive(tmp_path):
    """A function that writes text to an archive."""

    def write(text, name="feats.blogmel"):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return tmp_path / name

    return write


@pytest.fixture
def corpus(archive):
    """Forty utterances of four speakers, of 1 to 60 frames of size 3."""
    rng = np.random.default_rng(0)
    text = ""
    for i in range(40):
        rows = "\n".join(" ".join(map(repr, row)) for row in rng.normal(5, 2, (rng.integers(1, 60), 3)).tolist())
        text += f"s{i % 4}-1-{i}\n{rows}\n.\n"
    return archive(text, "corpus.blogmel")


def test_a_real_archive_becomes_the_very_numbers_it_holds(tmp_path):
    prepare(SAMPLE, tmp_path / "out", workers=1)
    utterance, *lines = lzma.decompress(SAMPLE.read_bytes()).decode().splitlines()
    frames = torch.tensor([[float(token) for token in line.split(" ")] for line in lines[:-1]])
    tensor = load_tensor(tmp_path / "out" / f"{utterance}.pt")
    assert lines[-1] == "." and tensor.shape == (1600, 80) and tensor.dtype == torch.float32
    assert load_lengths(tmp_path / "out") == {utterance: len(frames)}
    assert torch.equal(tensor[: len(frames)], frames) and not tensor[len(frames) :].any()


def test_long_utterances_are_truncated_and_short_ones_padded(archive, tmp_path, capsys):
    prepare(archive("a\n1 2\n3 4\n5 6\n.\nb\n7 8\n.\n"), tmp_path / "out", "--max_seq_len", "2")
    assert load_tensor(tmp_path / "out" / "a.pt").tolist() == [[1, 2], [3, 4]]
    assert load_tensor(tmp_path / "out" / "b.pt").tolist() == [[7, 8], [0, 0]]
    assert load_lengths(tmp_path / "out") == {"a": 2, "b": 1}
    assert "2 utterances, 3 frames, 0.00 hours, 1 truncated, 0 skipped" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["f.blogmel.xz", "f.blogmel.gz", "two_streams.xz"])
def test_compressed_archives_hold_the_same(archive, tmp_path, corpus, name):
    compress = gzip.compress if name.endswith("gz") else lzma.compress
    text = corpus.read_bytes()
    parts = (text[:1000], text[1000:]) if name.startswith("two") else (text,)
    prepare(corpus, tmp_path / "plain")
    prepare(archive(b"".join(map(compress, parts)), name), tmp_path / "out", workers=2)
    plain, out = content(tmp_path / "plain"), content(tmp_path / "out")
    assert plain.pop("made_from.json") != out.pop("made_from.json") and plain == out


def test_a_missing_last_newline_and_odd_spacing_change_nothing(archive, tmp_path):
    prepare(archive(GOOD), tmp_path / "plain")
    odd = archive("a-1-1\n +1  2\t\n3. 4 \n.\nb-1-1\n5e0 6\n.", "odd.blogmel")
    prepare(odd, tmp_path / "odd")
    for name in ("a-1-1.pt", "b-1-1.pt", "lengths.pkl"):
        assert (tmp_path / "plain" / name).read_bytes() == (tmp_path / "odd" / name).read_bytes()


BAD_ARCHIVES = {
    "cut off in a row": ("1 2\n3 ", r"feats.blogmel:4: utterance bad: truncated file"),
    "cut off before the dot": ("1 2\n", r"feats.blogmel:4: utterance bad: truncated file"),
    "ragged": ("1 2\n3 4 5\n.\n", r"feats.blogmel:6: utterance bad: a frame of 3 numbers after frames of 2"),
    "ragged to the same count": ("1 2\n3 4 5\n6\n.\n", r"feats.blogmel:6: utterance bad: a frame of 3"),
    "no number": ("1 2\n3 x4\n.\n", r"feats.blogmel:6: utterance bad: 'x4' is not a number"),
    "brackets": ("1 2\n[3] 4\n.\n", r"feats.blogmel:6: utterance bad: '\[3\]' is not a number"),
    "commas": ("1,2 3\n.\n", r"feats.blogmel:5: utterance bad: '1,2' is not a number"),
    "thousands separator": ("1 2_0\n.\n", r"feats.blogmel:5: utterance bad: '2_0' is not a number"),
    "literal": ("1 true\n.\n", r"feats.blogmel:5: utterance bad: 'true' is not a number"),
    "nan": ("1 2\n1 2\n3 nan\n.\n", r"feats.blogmel:7: utterance bad: number 2 of the frame is NaN"),
    "inf": ("1 -inf\n.\n", r"feats.blogmel:5: utterance bad: number 2 of the frame is NaN, infinite"),
    "too large for float32": ("1 1e39\n.\n", r"feats.blogmel:5: utterance bad: number 2 .* too large"),
    "too large for a float": ("1 1e999\n.\n", r"feats.blogmel:5: utterance bad: number 2 .* too large"),
    "empty": (".\n", r"feats.blogmel:5: utterance bad: it is empty"),
    "an empty line": ("1 2\n\n3 4\n.\n", r"feats.blogmel:6: utterance bad: an empty line"),
    "no dot": ("1 2\nc-1-1\n3 4\n.\n", r"feats.blogmel:6: utterance bad: 'c-1-1' is not a number"),
    "binary": ("1 2\n\0\xff\n.\n", r"feats.blogmel:6: utterance bad: '.*' is not a number"),
    "other size": ("1 2 3\n.\n", r"feats.blogmel:4: utterance bad: frames of size 3, .*feats.blogmel:1, have size 2"),
}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("rows, message", BAD_ARCHIVES.values(), ids=BAD_ARCHIVES)
def test_a_bad_utterance_stops_with_file_and_line_or_is_left_out(archive, tmp_path, rows, message, workers):
    path = archive(f"a-1-1\n1 2\n.\nbad\n{rows}")
    with pytest.raises(InputError, match=message):
        prepare(path, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out" / "lengths.pkl").exists()
    prepare(path, tmp_path / "out", "--on_error", "skip", workers=workers)
    assert load_lengths(tmp_path / "out") == {"a-1-1": 1}
    assert not (tmp_path / "out" / "bad.pt").exists()
    utterance, reason = (tmp_path / "out" / "skipped.txt").read_text().rstrip("\n").split("\t")
    assert utterance == "bad" and "feats.blogmel:" in reason


def test_an_id_that_stands_twice_is_named_with_both_places(archive, tmp_path):
    first, second = archive(GOOD, "1.blogmel"), archive(GOOD.replace("b-1-1", "c-1-1"), "2.blogmel")
    for sources in ([first, second], [archive(GOOD + "a-1-1\n7 8\n.\n", "3.blogmel")]):
        with pytest.raises(
            InputError, match=r"[23].blogmel:\d: utterance a-1-1: duplicate utterance id: first at .*[13].blogmel:1"
        ):
            prepare(sources, tmp_path / "out", "--overwrite")
    prepare([first, second], tmp_path / "out", "--overwrite", "--on_error", "skip")
    assert load_lengths(tmp_path / "out") == {"a-1-1": 2, "b-1-1": 1, "c-1-1": 1}
    assert load_tensor(tmp_path / "out" / "a-1-1.pt")[0].tolist() == [1, 2]
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("a-1-1\t")


@pytest.mark.parametrize("bad", ["../a", "a/b", "a\0b", "..", ".hidden", "/a", "a\\b"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_id_never_leaves_the_directory(archive, tmp_path, bad, on_error):
    path = archive(f"ok-1-1\n1 2\n.\n{bad}\n1 2\n.\n")
    with pytest.raises(InputError, match=r"feats.blogmel:4: refused: the utterance id"):
        prepare(path, tmp_path / "out", "--on_error", on_error)
    assert [p.name for p in tmp_path.iterdir()] == ["feats.blogmel"]


@pytest.mark.parametrize("text, message", [
    ("", "no utterance"), ("\n", "no utterance"), ("1 2\n.\n", "holds a space"), ("1 2\n3 4\n.\n", "holds a space"),
    ("a\r\n1 2\r\n.\r\n", "Windows"), (b"\xff\n1 2\n.\n", "not UTF-8"), ("x" * 9999, "no utterance id"),
])  # fmt: skip
def test_what_is_no_archive_is_refused(archive, tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        prepare(archive(text), tmp_path / "out")


def test_a_cut_off_compressed_archive_names_what_it_cuts(archive, tmp_path, corpus):
    whole = gzip.compress(corpus.read_bytes(), mtime=0)
    path = archive(whole[: len(whole) // 2], "cut.blogmel.gz")
    with pytest.raises(InputError, match=r"cut.blogmel.gz:\d+: utterance s\d-1-\d+: truncated file"):
        prepare(path, tmp_path / "out")
    prepare(path, tmp_path / "out", "--on_error", "skip")
    assert (tmp_path / "out" / "skipped.txt").read_text().count("\n") == 1


def test_a_bomb_stops_at_the_limit_of_an_utterance(archive, tmp_path):
    compressor = lzma.LZMACompressor(preset=0)
    bomb = compressor.compress(b"a-1-1\n") + b"".join(compressor.compress(b"1 1 1 " * (1 << 20)) for _ in range(16))
    with pytest.raises(InputError, match="utterance a-1-1 has more than 64 MiB"):
        prepare(archive(bomb + compressor.flush(), "bomb.xz"), tmp_path / "out", "--on_error", "skip")


def test_an_archive_that_an_scp_points_to_is_told_from_another_of_its_size(tmp_path):
    write_ark(tmp_path / "f.ark", [("a-1-1", np.ones((9, 3), np.float32))])
    prepare(tmp_path / "f.scp", tmp_path / "out")
    made_from = json.loads((tmp_path / "out/made_from.json").read_text())
    del made_from["archives"][0]["points_to_sha256"]  # as before it was recorded
    (tmp_path / "out/made_from.json").write_text(json.dumps(made_from))
    prepare(tmp_path / "f.scp", tmp_path / "out")
    prepare(tmp_path / "f.scp", tmp_path / "other")
    write_ark(tmp_path / "f.ark", [("a-1-1", np.zeros((9, 3), np.float32))])
    with pytest.raises(InputError, match="made from other archives"):
        prepare(tmp_path / "f.scp", tmp_path / "other")


def test_statistics_of_any_number_of_speakers_are_read_again(tmp_path):
    one = np.random.default_rng(0).normal(size=80), np.ones(80)
    Normalizer("speaker-mean", "a map", {f"s{n}": one for n in range(40_000)}).save(tmp_path / "normalization.json")
    assert (tmp_path / "normalization.json").stat().st_size > 64 << 20
    assert len(Normalizer.load(tmp_path).statistics) == 40_000


def test_a_directory_of_another_job_is_refused_unless_told(archive, tmp_path):
    path = archive(GOOD)
    prepare(path, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(InputError, match=r"max_seq_len 1600, not 5.*--overwrite"):
        prepare(path, tmp_path / "out", "--max_seq_len", "5")
    path.write_text(GOOD.replace("5 6", "5 7"))
    with pytest.raises(InputError, match=r"made from other archives; give another directory, or --overwrite"):
        prepare(path, tmp_path / "out")
    assert content(tmp_path / "out") == before
    prepare(path, tmp_path / "out", "--overwrite", "--norm", "none")
    assert load_tensor(tmp_path / "out" / "b-1-1.pt")[0].tolist() == [5, 7]


@pytest.mark.parametrize("options", [[], ["--norm", "speaker"], ["--norm", "utterance", "--on_error", "skip"]])
def test_the_number_of_workers_changes_no_byte(corpus, tmp_path, options):
    for workers in (0, 1, 3):
        prepare(corpus, tmp_path / str(workers), *options, workers=workers)
    assert content(tmp_path / "0") == content(tmp_path / "1") == content(tmp_path / "3")
    lengths = list(load_lengths(tmp_path / "3"))
    assert lengths == sorted(lengths, key=lambda utterance: int(utterance.split("-")[2]))  # the archive's order


@pytest.mark.parametrize("norm, at, method, signal_name", [
    ("none", 1, "record", "SIGKILL"), ("none", 23, "record", "SIGTERM"), ("none", 20, "keep_if_same_size", "SIGINT"),
    ("speaker", 17, "keep_if_same_size", "SIGKILL"), ("speaker", 1, "save", "SIGKILL"),
    ("speaker", 9, "record", "SIGKILL"), ("speaker", 31, "record", "SIGTERM"),
])  # fmt: skip
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    corpus, tmp_path, norm, at, method, signal_name
):
    corpus.write_text(corpus.read_text() + "s0-1-99\n1 2\n.\n")  # and one to skip
    options = ["--norm", norm, "--on_error", "skip"]
    prepare(corpus, tmp_path / "alone", *options)
    arguments = ["--librispeech_from_kaldi", str(corpus), "--save_dir", str(tmp_path / "out"), *options]
    killed = run_to_death([*arguments, "--num_workers", "2"], at, method, signal_name)
    number = getattr(signal, signal_name)
    assert killed.returncode == (-number if signal_name == "SIGKILL" else 128 + number), killed.stderr
    assert signal_name == "SIGKILL" or "run the same command again to continue" in killed.stderr
    assert not (tmp_path / "out" / "lengths.pkl").exists()
    prepare(corpus, tmp_path / "out", *options)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_what_is_done_is_not_done_again(corpus, tmp_path):
    arguments = ["--librispeech_from_kaldi", str(corpus), "--save_dir", str(tmp_path / "out"), "--num_workers", "0"]
    run_to_death(arguments, 30, "record", "SIGKILL")
    first = tmp_path / "out" / "s0-1-0.pt"
    made = first.stat().st_ino
    prepare(corpus, tmp_path / "out")
    assert first.stat().st_ino == made and len(load_lengths(tmp_path / "out")) == 40


def die(_job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_stops_the_job_in_one_line():
    with pytest.raises(InputError, match=r"worker process was killed.*run the same command again"):
        list(ordered_map(die, range(3), 2))


def double_or_refuse(job):
    if job == 7:
        raise InputError("seven")
    return 2 * job


def test_work_comes_back_in_order_and_an_error_at_its_place():
    def jobs():
        yield from range(9)
        raise InputError("the source broke")

    got = []
    with pytest.raises(InputError, match="seven"):
        got.extend(result for _, result in ordered_map(double_or_refuse, jobs(), 2))
    results = ordered_map(double_or_refuse, jobs(), 2)
    assert [next(results) for _ in range(7)] == [(job, 2 * job) for job in range(7)]
    results.close()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "prepare_data.py", "--librispeech_from_kaldi", "nowhere.blogmel", "--save_dir"]
    ended = subprocess.run([*command, str(tmp_path / "out")], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == "prepare_data.py: error: nowhere.blogmel does not exist\n"


@pytest.mark.parametrize("workers", ["100000", "-1"])
def test_an_absurd_number_of_processes_is_refused_before_one_starts(archive, tmp_path, capsys, workers):
    with pytest.raises(SystemExit):
        prepare(archive(GOOD), tmp_path / "out", workers=workers)
    assert "--num_workers" in capsys.readouterr().err and not (tmp_path / "out").exists()
