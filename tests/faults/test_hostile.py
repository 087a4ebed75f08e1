"""Facts about files that someone made to do harm: they can do no more than be refused."""

import io
import json
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from preparing_runs import prepare
from refusals import RunsCode, read_archive, refused

import train_apc
from apc_model import APCModel
from datasets import LibriSpeech
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.corpus.normalization import Normalizer
from utils.corpus.output_directory import OutputDirectory
from utils.corpus.prepared import load_lengths, load_tensor, save_lengths, save_tensor
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError
from utils.system.files import read_json
from utils.training.arguments import SaveInterval
from utils.training.checkpointing import Checkpointer, load_last_state
from utils.training.distributed import Ranks
from utils.training.experiment import Experiment
from utils.training.progress import Progress

GOOD = "a-1-1\n1 2\n3 4\n.\nb-1-1\n5 6\n.\n"


def small_model():
    return APCModel(3, None, RNNConfig(3, 4, 2, 0.0, True))


READ_AS_PICKLE = {
    "a.pt": load_tensor,
    "foo__epoch_1.model": load_pretrained,
    "lengths.pkl": lambda path: load_lengths(path.parent),
    "foo.dir/foo__step_3.state": lambda path: load_last_state(Experiment(path.parent.parent, "foo", {})),
}


@pytest.mark.parametrize("form", ["zip", "before 1.6", "plain pickle", "protocol 0", "in a dict", "tar"])
@pytest.mark.parametrize("name", READ_AS_PICKLE)
def test_a_pickle_that_calls_os_system_is_refused_and_nothing_runs(name, form, tmp_path):
    path, proof = tmp_path / name, tmp_path / "proof"
    path.parent.mkdir(exist_ok=True)
    value = {"model": {"a": RunsCode(proof)}} if form == "in a dict" else RunsCode(proof)
    if form in ("zip", "in a dict", "before 1.6"):
        torch.save(value, path, _use_new_zipfile_serialization=form != "before 1.6")
    elif form == "tar":
        path.write_bytes(b"storages".ljust(512, b"\0") + pickle.dumps(value))
    else:
        path.write_bytes(pickle.dumps(value, 0 if form == "protocol 0" else 4))
    refused(READ_AS_PICKLE[name], path, match=r"foo\.dir" if "state" in name else Path(name).name.replace(".", r"\."))
    assert not proof.exists()
    if form == "plain pickle":  # it does what it claims where one is careless
        pickle.loads(path.read_bytes())
        assert proof.exists()


@pytest.mark.parametrize("depth", [2000, 1_000_000])
@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_json_nested_deeply_is_refused(opening, depth, tmp_path):
    for name in ("config.json", "made_from.json", "normalization.json"):
        (tmp_path / name).write_text(opening * depth)
        refused(read_json, tmp_path / name, match=rf"{name} is damaged")
    refused(Normalizer.load, tmp_path)
    closed = opening * depth + "1" + ("]" if opening == "[" else "}") * depth
    (tmp_path / "made_from.json").write_text(closed)
    refused(lambda: OutputDirectory(tmp_path, {"a": 1}).__enter__(), match=r"made_from|was made (with|from)")


@pytest.mark.parametrize(
    "content", ["[1]", "1", '"a"', "null", "9" * 5000, '{"statistics": ', "\ud800".encode("utf-8", "surrogatepass")]
)
def test_json_of_another_form_is_refused(content, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(read_json, path, match=r"config\.json is damaged")


def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path):
    for name, read in {
        **READ_AS_PICKLE,
        "a.blogmel": read_archive,
        "config.json": read_json,
        "a.scp": read_archive,
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        os.mkfifo(path)
        refused(read, path)
    (tmp_path / "endless.pt").symlink_to("/dev/zero")
    refused(load_tensor, tmp_path / "endless.pt")


def test_links_in_a_directory_never_lead_a_write_outside_it(tmp_path):
    (tmp_path / "f.blogmel").write_text(GOOD)
    out, treasure = tmp_path / "out", tmp_path / "treasure"
    prepare(tmp_path / "f.blogmel", out, "--norm", "global")
    normal = {path.name: path.read_bytes() for path in out.iterdir()}
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a-1-1.npy").write_text("months of work")
    for name in ("a-1-1.pt", "lengths.pkl", "normalization.json", "progress.jsonl", "skipped.txt", ".lock", ".raw"):
        for left in out.iterdir():
            if left.name not in ("made_from.json", ".lock"):
                left.unlink()
        treasure.write_text("years of work")
        (out / name).unlink(missing_ok=True)
        (out / name).symlink_to(tmp_path / "folder" if name == ".raw" else treasure)
        try:
            prepare(tmp_path / "f.blogmel", out, "--norm", "global")
            assert name in (".lock", "lengths.pkl") or {p.name: p.read_bytes() for p in out.iterdir()} == normal
        except (InputError, OSError):
            pass
        assert treasure.read_text() == "years of work", name
        assert [path.read_text() for path in (tmp_path / "folder").iterdir()] == ["months of work"], name
        (out / name).unlink(missing_ok=True)


def test_links_in_an_experiment_never_lead_a_write_outside_it(tmp_path):
    treasure, written = tmp_path / "treasure", []
    for name in ("foo.log", "config.json", "foo__epoch_0.model", "foo__step_1.state", ".lock"):
        treasure.write_text("years of work")
        path = tmp_path / "foo.dir" / name
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.mkdir()
        (path.parent / "config.json").write_text("{}")
        path.unlink(missing_ok=True)
        path.symlink_to(treasure)
        try:
            with Experiment(tmp_path, "foo", {}, resume=True) as experiment:
                experiment.curves.open(1, 0)
                model = small_model()
                parts = Progress(step=1), model, torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu")
                checkpointer = Checkpointer(experiment, Ranks("cpu"), SaveInterval("10m"), None, *parts)
                checkpointer.save_weights("epoch_0")
                checkpointer.save()
            written.append(name)
        except (InputError, OSError):
            pass
        assert treasure.read_text() == "years of work", name
    assert {"foo__epoch_0.model", "foo__step_1.state"} <= set(written)  # over the link, not through it


@pytest.mark.parametrize("mean, std", [(-1e300, 1.0), (0.0, 1e-300), (1e308, 1e-308), (3e38, 1e-10)])
def test_statistics_that_would_make_infinite_frames_are_refused(mean, std, tmp_path):
    (tmp_path / "f.blogmel").write_text(GOOD)
    Normalizer("global", "", {"all speakers": (np.full(2, mean), np.full(2, std))}).save(tmp_path / "n.json")
    refused(prepare, tmp_path / "f.blogmel", tmp_path / "out", "--norm_from", str(tmp_path / "n.json"), match="a-1-1")


def hostile_states(state):
    """Saved states that are whole files and yet none of this experiment."""
    yield []
    yield {}
    yield state | {"progress": {"steps": 3}}
    yield state | {"progress": {"step": "three"}}
    yield state | {"progress": 7}
    yield state | {"model": {}}
    yield state | {"model": {name: weight * float("nan") for name, weight in state["model"].items()}}
    yield state | {"model": dict(APCModel(3, None, RNNConfig(3, 5, 2, 0.0, True)).state_dict())}
    yield state | {"optimizer": {}}
    yield state | {"optimizer": {"state": {}, "param_groups": [{"params": [0, 1], "lr": 1.0}]}}
    first = state["optimizer"]["state"][0]
    for kept in ({"exp_avg": torch.zeros(7)}, {"step": torch.zeros(2, 2)}, {"other": torch.zeros(())}):
        yield state | {"optimizer": state["optimizer"] | {"state": {**state["optimizer"]["state"], 0: first | kept}}}
    yield state | {"scaler": 7}
    yield state | {"scaler": {"scale": "large"}}
    yield state | {"points": {"step/loss": "low"}}
    yield state | {"points": {7: 7.0}}


def test_a_state_of_something_else_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split in ("train", "dev"):
        (tmp_path / split).mkdir()
        save_tensor(tmp_path / split / "a.pt", torch.rand(5, 3))
        save_lengths(tmp_path / split, {"a": 5})
    options = "--feature_dim 3 --rnn_hidden_size 4 --rnn_num_layers 2 --epochs 2 --load_data_workers 0 --resume"
    arguments = [*options.split(), "--librispeech_path", ".", "--train_split", "train", "--val_split", "dev"]
    monkeypatch.setattr(sys, "argv", ["train_apc.py", *arguments, "--max_steps", "1"])
    train_apc.main()
    (path,) = Path("logs/foo.dir").glob("*.state")
    for hostile in hostile_states(torch.load(io.BytesIO(path.read_bytes()), weights_only=True)):
        torch.save(hostile, path)
        refused(train_apc.main, match=r"logs/foo\.dir: the last saved state is not of this training")


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def allocate(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 80000000 bytes.")

    save_tensor(tmp_path / "a.pt", torch.rand(5, 3))
    monkeypatch.setattr("torch.load", allocate)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        load_tensor(tmp_path / "a.pt")


def test_names_in_files_never_leave_the_directory(tmp_path):
    write_ark(tmp_path / "a.ark", [("a-1-1", np.ones((2, 2), np.float32))])
    for name in ("../x", "/etc/x", "a\0b", "..", ".hidden", "a/b"):
        (tmp_path / "bad.scp").write_bytes(f"{name} {tmp_path / 'a.ark'}:6\n".encode())
        (tmp_path / "bad.ark").write_bytes(f"{name} ".encode() + (tmp_path / "a.ark").read_bytes()[6:])
        (tmp_path / "lengths.pkl").write_bytes(pickle.dumps({f"{name}.pt": 3}))
        for source in ("bad.scp", "bad.ark"):
            refused(prepare, tmp_path / source, tmp_path / "out", "--overwrite", "--on_error", "skip", match="refused")
        refused(LibriSpeech, tmp_path, match="refused")
    assert {path.name for path in tmp_path.rglob("*.pt")} == set()


@pytest.mark.parametrize(
    "place", ["touch proof |", "| touch proof", "cat a.ark|", "-", "`touch proof`|", "x; touch proof |"]
)
def test_an_scp_runs_no_command(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.scp").write_text(f"a-1-1 {place}\n")
    refused(prepare, "a.scp", "out", "--on_error", "skip", match=r"a\.scp:1.*a-1-1.*is a command or a pipe")
    assert not Path("proof").exists()


def test_config_beside_a_checkpoint_may_hold_anything_and_is_read_or_refused(tmp_path):
    path = tmp_path / "foo__epoch_1.model"
    torch.save(small_model().state_dict(), path)
    for value in ("yes", 1, [True], {"a": 1}, 1e308, None):
        config = {"experiment_name": "foo", "rnn_residual": value, "time_shift": 1}
        (tmp_path / "config.json").write_text(json.dumps(config))
        refused(load_pretrained, path)
