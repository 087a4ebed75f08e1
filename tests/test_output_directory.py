"""Facts about directories that long jobs fill."""

import subprocess
import sys

import pytest
import torch

from utils.errors import InputError
from utils.files import atomic_write, check_utterance_id, lock_directory
from utils.output_directory import OutputDirectory
from utils.prepared import load_lengths, save_tensor

JOB = {"source": "a.blogmel", "max_seq_len": 4}


def fill(directory, utterances, made_from=JOB, finish=True, **options):
    with OutputDirectory(directory, made_from, **options) as out:
        for utterance in utterances:
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
    code = "import sys, pathlib, utils.files as f\nwith f.lock_directory(pathlib.Path(sys.argv[1]), 'x'): pass"
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
