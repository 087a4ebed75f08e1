"""Facts about directories that long jobs fill."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import make_prepared
from preparing_runs import content, prepare

from utils.corpus.output_directory import OutputDirectory
from utils.corpus.prepared import load_lengths, save_tensor
from utils.system.errors import InputError
from utils.system.files import atomic_write, check_utterance_id, lock_directory

JOB = {"source": "a.blogmel", "max_seq_len": 4}


def fill(directory, utterances, made_from=JOB, finish=True, **options):
    with OutputDirectory(directory, made_from, **options) as out:
        for utterance in utterances:
            out.claim(utterance)
            save_tensor(out.tensor_path(utterance), torch.ones(4, 2))
            out.record(utterance, frames=3)
        if finish:
            out.finish(dict.fromkeys(utterances, 3), [])


def test_progress_survives_a_torn_last_line(tmp_path):
    fill(tmp_path, ["a", "b"], finish=False)
    with (tmp_path / "progress.jsonl").open("ab") as file:
        file.write(b'{"id": "c", "fra')
    with OutputDirectory(tmp_path, JOB) as out:
        assert out.done == {"a": {"frames": 3}, "b": {"frames": 3}}
        assert out.has("a") and not out.has("c") and not out.complete
        out.record("c", frames=1)
    with OutputDirectory(tmp_path, JOB) as out:
        assert out.done["c"] == {"frames": 1}


def test_a_complete_directory_has_lengths_and_no_progress(tmp_path):
    fill(tmp_path, ["a", "b"])
    assert load_lengths(tmp_path) == {"a": 3, "b": 3}
    assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["a.pt", "b.pt", "lengths.pkl", "made_from.json"]


def test_another_job_is_refused_and_overwrites_when_told(tmp_path):
    fill(tmp_path, ["a", "b"])
    with pytest.raises(InputError, match=r"max_seq_len 4, not 5.*--overwrite"):
        fill(tmp_path, ["c"], JOB | {"max_seq_len": 5})
    assert (tmp_path / "a.pt").exists()
    fill(tmp_path, ["c"], JOB | {"max_seq_len": 5}, overwrite=True)
    assert load_lengths(tmp_path) == {"c": 3} and not (tmp_path / "a.pt").exists()


def test_a_directory_of_something_else_is_never_emptied(tmp_path):
    (tmp_path / "thesis.pt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="already holds other files"):
            fill(tmp_path, ["a"], overwrite=overwrite)
    assert (tmp_path / "thesis.pt").read_text() == "years of work"


def test_two_processes_cannot_fill_one_directory(tmp_path):
    code = "import sys, pathlib, utils.system.files as f\nwith f.lock_directory(pathlib.Path(sys.argv[1]), 'x'): pass"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with lock_directory(tmp_path, "another run"):
        second = subprocess.run(command, capture_output=True, text=True)
    assert "InputError" in second.stderr and "in use" in second.stderr
    assert subprocess.run(command).returncode == 0


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the n")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["weights"]


def test_a_symbolic_link_is_replaced_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (tmp_path / "a.pt").symlink_to(outside)
    save_tensor(tmp_path / "a.pt", torch.ones(2, 2))
    assert outside.read_bytes() == b"mine" and not (tmp_path / "a.pt").is_symlink()


@pytest.mark.parametrize("bad", ["a/b", "..", "a\0b", "/etc", "a\\b", "", ".hidden", "x" * 300, "a\nb"])
def test_ids_stay_in_their_directory(bad):
    with pytest.raises(InputError, match=r"feats.ark:7: refused"):
        check_utterance_id(bad, "feats.ark:7")


@pytest.mark.parametrize("finish", [True, False])
def test_overwriting_refuses_before_anything_is_removed_where_there_are_other_files(tmp_path, finish):
    fill(tmp_path, ["a"], finish=finish)
    (tmp_path / "mine.pt").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(InputError, match=r"other files \(mine\.pt\)"):
        fill(tmp_path, ["b"], JOB | {"max_seq_len": 5}, overwrite=True)
    assert content(tmp_path) == before
    (tmp_path / "mine.pt").unlink()
    fill(tmp_path, ["b"], JOB | {"max_seq_len": 5}, overwrite=True)
    assert sorted(content(tmp_path)) == ["b.pt", "lengths.pkl", "made_from.json"]


def test_finishing_an_interrupted_job_removes_what_it_made_and_no_other_file(tmp_path):
    fill(tmp_path, ["a", "b"], finish=False)
    with OutputDirectory(tmp_path, JOB) as out:
        out.claim("c")  # written by a run that was killed before it was recorded
        save_tensor(out.tensor_path("c"), torch.ones(4, 2))
    (tmp_path / "x.pt").write_text("years of work")
    fill(tmp_path, ["a"])
    assert sorted(content(tmp_path)) == ["a.pt", "lengths.pkl", "made_from.json", "x.pt"]


def test_a_refused_command_leaves_nothing_in_a_directory_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="already holds other files"):
        fill(tmp_path, ["a"])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_directory_of_the_released_script_is_overwritten_when_told(tmp_path):
    make_prepared(tmp_path / "out", [3, 4])
    (tmp_path / "f.blogmel").write_text("a-1-1\n1 2\n.\n")
    with pytest.raises(InputError, match="already holds other files"):
        prepare(tmp_path / "f.blogmel", tmp_path / "out")
    prepare(tmp_path / "f.blogmel", tmp_path / "out", "--overwrite")
    assert sorted(content(tmp_path / "out")) == ["a-1-1.pt", "lengths.pkl", "made_from.json"]


def test_a_complete_directory_without_a_tensor_is_refused(tmp_path):
    fill(tmp_path, ["a", "b"])
    (tmp_path / "b.pt").unlink()
    with pytest.raises(InputError, match=r"b\.pt is missing.*--overwrite"):
        fill(tmp_path, ["a", "b"])


def test_what_is_to_be_read_is_not_overwritten(tmp_path):
    (tmp_path / "f.blogmel").write_text("a-1-1\n1 2\n3 5\n.\n")
    out = prepare(tmp_path / "f.blogmel", tmp_path / "out", "--norm", "global")
    before = content(out)
    with pytest.raises(InputError, match="is to be read"):
        prepare(tmp_path / "f.blogmel", out, "--norm_from", out, "--overwrite")
    assert content(out) == before


@pytest.mark.parametrize("name", [".lock", "progress.jsonl", "normalization.json", ".raw"])
@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent.parent / "outside")])
def test_pipes_and_links_in_the_place_of_a_jobs_files_are_refused(tmp_path, name, make):
    (tmp_path / "f.blogmel").write_text("a-1-1\n1 2\n3 5\n.\n")
    out = prepare(tmp_path / "f.blogmel", tmp_path / "out", "--norm", "global")
    (out / "lengths.pkl").unlink()
    (out / name).unlink(missing_ok=True)
    make(out / name)
    with pytest.raises(InputError, match="is a link, pipe or device"):
        prepare(tmp_path / "f.blogmel", out, "--norm", "global")
    assert not (tmp_path / "outside").exists()


def test_a_line_of_progress_without_its_facts_is_done_again(tmp_path):
    (tmp_path / "f.blogmel").write_text("a-1-1\n1 2\n3 5\n.\n")
    before = content(prepare(tmp_path / "f.blogmel", tmp_path / "out"))
    (tmp_path / "out/lengths.pkl").unlink()
    (tmp_path / "out/progress.jsonl").write_text('{"id": "a-1-1", "frames": 2}\n')
    assert content(prepare(tmp_path / "f.blogmel", tmp_path / "out")) == before


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_raw_frames_that_an_earlier_version_left_are_removed_when_the_job_is_done(tmp_path, options):
    (tmp_path / "f.blogmel").write_text("a-1-1\n1 2\n3 5\n.\n")
    out = prepare(tmp_path / "f.blogmel", tmp_path / "out", "--norm", "global")
    before = content(out)
    if not options:
        (out / "lengths.pkl").unlink()
    (out / ".raw").mkdir()
    (out / ".raw/a-1-1.npy").write_bytes(b"frames")
    assert content(prepare(tmp_path / "f.blogmel", out, "--norm", "global", *options)) == before
