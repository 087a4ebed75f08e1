"""Facts about training in several processes: they do what one does, they end together, and nothing is lost."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import make_prepared, make_splits
from fault_runs import Ended, experiment, runs
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.cuda._utils import _get_device_index
from training_runs import MEL, SEQ, TOO_LARGE, curves
from training_runs import train as train_here

from apc_model import APCModel
from datasets import BatchReader, LibriSpeech
from utils import RNNConfig
from utils.corpus.batch_order import BatchOrder, deal
from utils.corpus.prepared import load_tensor, save_tensor
from utils.training.distributed import Ranks
from utils.training.objective import Objective
from utils.training.validation import _sums

ROOT = Path(__file__).parent.parent
EPOCHS = 4  # of 5 steps: 20 steps, of which every fifth has a batch of one utterance
OPTIONS = (
    f"--feature_dim {MEL} --rnn_hidden_size 8 --rnn_num_layers 2 --rnn_residual --batch_size 4 --epochs {EPOCHS} "
    "--load_data_workers 0 --learning_rate 1e-2 --librispeech_path . --train_split train --val_split dev other --resume"
)
CALLS = 45_000  # of functions, after which a fault strikes: some steps after the start
DROPOUT = f"{OPTIONS} --rnn_dropout 0.3 --prenet_num_layers 1 --prenet_dropout 0.2 --save_every 2"


def make_workplace(directory):
    """17 utterances that can be trained on, of 2 to 30 frames, and two splits to validate on."""
    make_splits(directory)
    make_prepared(directory / "other", [8, 27, 2], SEQ, MEL, seed=2)
    return directory


def start(size, options, directory, faults=None):
    """Start a training of so many processes, as torchrun does; their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    pids = []
    for rank in range(size):
        arguments = options[rank] if isinstance(options, list) else options.split()
        environment = address | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        pids.append(runs().start("train_apc", arguments, directory, (faults or {}).get(rank), environment))
    return pids


def train(size, options, directory, faults=None) -> list[Ended]:
    """Train, and what came of each process."""
    return [runs().wait(pid) for pid in start(size, options, directory, faults)]


def assert_done(training):
    """Every process has ended well."""
    assert [ended.code for ended in training] == [0] * len(training), [ended.errors for ended in training]


def trained(size, options, directory):
    """What a training that nothing disturbs makes: (curves, weights after the last epoch)."""
    assert_done(train(size, options, make_workplace(directory)))
    return what_is_in(directory)


def what_is_in(directory):
    """Curves, and weights after the last epoch."""
    made = directory / "logs/foo.dir"
    return curves(made), torch.load(made / f"foo__epoch_{EPOCHS}.model", weights_only=True)


def assert_alike(found, expected):
    """Equal to float precision, after 20 steps."""
    (found_curves, weights), (expected_curves, expected_weights) = found, expected
    assert found_curves.keys() == expected_curves.keys()
    for name, points in expected_curves.items():
        assert [step for step, _ in found_curves[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in found_curves[name]] == pytest.approx(values, rel=1e-4), name
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a training makes in one process."""
    return trained(1, OPTIONS, tmp_path_factory.mktemp("alone"))


def test_two_processes_make_the_same_losses_and_weights_as_one(alone, tmp_path):
    found = trained(2, OPTIONS, tmp_path)
    assert_alike(found, alone)
    assert set(found[0]) > {"epoch/val_loss", "epoch/val_loss/dev", "epoch/val_loss/other"}


def test_two_processes_make_the_same_padded_losses_as_one(tmp_path):
    options = f"{OPTIONS} --loss padded"
    assert_alike(trained(2, options, tmp_path / "two"), trained(1, options, tmp_path / "one"))


def test_shares_done_in_parts_make_the_same_losses_and_weights(alone, tmp_path):
    assert_alike(trained(1, f"{OPTIONS} --grad_accumulation 3", tmp_path / "one"), alone)
    assert_alike(trained(3, f"{OPTIONS} --grad_accumulation 2", tmp_path / "three"), alone)


def test_resumed_by_another_number_of_processes_it_goes_on_the_same(alone, tmp_path):
    make_workplace(tmp_path)
    for size, options in ((2, f"{OPTIONS} --max_steps 3"), (1, f"{OPTIONS} --max_steps 7"), (3, OPTIONS)):
        assert_done(train(size, options, tmp_path))
    assert_alike(what_is_in(tmp_path), alone)
    assert json.loads((tmp_path / "logs/foo.dir/config.json").read_text())["num_processes"] == 3


def test_processes_with_batches_of_other_sizes_validate_every_utterance_once(tmp_path):
    """As where one of several GPUs has less memory left."""
    dev = LibriSpeech(make_prepared(tmp_path / "dev", [30, 12, 4, 9, 21, 8, 27, 16, 2], SEQ, MEL))
    objective = Objective(APCModel(MEL, None, RNNConfig(MEL, 8, 1, 0.0, True)), 1, "masked").eval()

    def sums(rank, size, batch_size):
        ranks = SimpleNamespace(rank=rank, size=size, device=torch.device("cpu"))
        with BatchReader() as reader, torch.no_grad():
            return _sums(objective, dev, reader, ranks, SimpleNamespace(signum=None), batch_size)

    torch.testing.assert_close(sums(0, 2, 4) + sums(1, 2, 1), sums(0, 1, 4))


def assert_stopped(first, *others):
    """A signal to any ends all: the first says so, and its state is saved."""
    assert re.search(r"train_apc.py: stopped by SIGTERM; .*--resume\n$", first.errors), first.errors
    assert first.code == 128 + signal.SIGTERM
    assert all((ended.code, ended.errors) == (first.code, "") for ended in others), others


def assert_lost(killed, *others):
    """The death of one ends all: each says that it has lost another."""
    assert killed.code == -signal.SIGKILL
    for ended in others:
        assert ended.code == 2 and "Traceback" not in ended.errors, ended.errors
        assert re.search(r"error: process . of 3 has lost another one.*--resume\n$", ended.errors), ended.errors


def assert_reported(message, first, *others):
    """An error of one is an error of all, which the first reports."""
    assert first.code == 2 and re.search(f"error: .*{message}.*--resume\n$", first.errors), first.errors
    assert all((ended.code, ended.errors) == (2, "") for ended in others), others


def test_whatever_strikes_one_process_ends_all_and_they_resume_bit_for_bit(tmp_path):
    """With dropout, in three processes: they add up gradients in an order that matters."""
    trained(3, DROPOUT, tmp_path / "whole")
    cut = make_workplace(tmp_path / "cut")
    file = cut / "train/spk0-0006.pt"
    good = load_tensor(file)
    kill, stop = ({"moments": "calls", "at": CALLS, "action": action} for action in ("kill", "signal 15"))
    assert_stopped(*train(3, DROPOUT, cut, {1: stop}))
    killed, *others = reversed(train(3, DROPOUT, cut, {2: kill}))
    assert_lost(killed, *others)
    file.write_bytes(b"damaged")
    assert_reported("spk0-0006.pt is damaged", *train(3, DROPOUT, cut))
    save_tensor(file, good.index_fill(0, torch.tensor(3), TOO_LARGE))
    assert_reported("loss inf.*spk0-0006", *train(3, DROPOUT, cut))
    save_tensor(file, good)
    assert_lost(*train(3, DROPOUT, cut, {0: kill}))
    assert_done(train(3, DROPOUT, cut))
    whole, cut = (experiment(directory / "logs/foo.dir") for directory in (tmp_path / "whole", cut))
    assert cut == whole


def test_what_cannot_be_trained_is_refused_by_all_in_one_line(tmp_path):
    make_workplace(tmp_path)
    for options, message in (
        ([OPTIONS.split(), [*OPTIONS.split(), "--learning_rate", "1"]], "learning_rate is 1.0, and 0.01 on the first"),
        ([OPTIONS.split(), [*OPTIONS.split(), "--val_split", "nowhere"]], "split nowhere"),
    ):
        first, other = train(2, options, tmp_path)
        assert (first.code, other.code, other.errors) == (2, 2, "") and first.errors.count("\n") == 1
        assert message in first.errors
    assert not (tmp_path / "logs").exists()


def test_a_process_without_the_others_says_so(tmp_path):
    make_workplace(tmp_path)
    pid = runs().start("train_apc", OPTIONS.split(), tmp_path, environment={"RANK": "0", "WORLD_SIZE": "2"})
    ended = runs().wait(pid)
    assert ended.code == 2 and ended.errors.count("\n") == 1
    assert "process 0 of 2 cannot meet the others" in ended.errors and "torchrun" in ended.errors


def test_torchrun_is_all_it_takes(tmp_path):
    make_workplace(tmp_path)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, ROOT / "train_apc.py", *OPTIONS.split(), "--max_steps", "6"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    log = (tmp_path / "logs/foo.dir/foo.log").read_text()
    assert "2 processes on cpu" in log and log.count("epoch 1: training loss") == 1


@pytest.mark.parametrize(("device", "size", "current"), [("auto", 1, []), ("cuda:1", 1, [1]), ("auto", 2, [1])])
def test_each_process_makes_current_the_gpu_that_is_given_or_its_own(monkeypatch, device, size, current):
    made_current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: made_current.append(_get_device_index(device)))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: None)
    monkeypatch.setattr(Ranks, "__exit__", lambda *error: None)
    for name, value in {"RANK": 1, "WORLD_SIZE": size, "LOCAL_RANK": 1}.items():
        monkeypatch.setenv(name, str(value))
    with Ranks(device) as ranks:
        assert ranks.device.type == "cuda" and made_current == current


def test_no_process_is_forked_once_the_ranks_have_threads(workplace, monkeypatch):
    """A process forked beside a thread that holds a lock waits for it for ever."""
    enter = Ranks.__enter__

    def enter_and_forbid(self):
        monkeypatch.setattr(os, "fork", lambda: pytest.fail("forked"))
        return enter(self)

    monkeypatch.setattr(Ranks, "__enter__", enter_and_forbid)
    train_here(monkeypatch, "--load_data_workers", 2)


def test_a_rank_ends_with_its_code_and_without_the_interpreters_finalisation():
    """Threads of a process group abort in it."""
    for end, code in (("pass", 0), ("raise InputError('bad')", 2), ("sys.exit(7)", 7), ("1 / 0", 1)):
        script = f"def main():\n print('done', end='')\n {end}\nrun_script(main)"
        head = (
            "import atexit, sys\nfrom utils.system.errors import InputError, run_script\n"
            "atexit.register(print, 'finalised')\n"
        )
        environment = os.environ | {"WORLD_SIZE": "2"}
        ran = subprocess.run([sys.executable, "-c", head + script], cwd=ROOT, env=environment, capture_output=True)
        assert (ran.stdout, ran.returncode) == (b"done", code), ran.stderr


def test_struck_trainings_of_torchrun_never_hang_and_end_with_the_same_weights():
    """The short form of soak.py: the seed kills the launcher in the first second of training."""
    command = [sys.executable, ROOT / "tests/faults/soak.py", "--minutes", "0", "--processes", "2", "--workers", "2"]
    ran = subprocess.run([*command, "--epochs", "6", "--strikes", "1", "--seed", "15"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(1, 1600), min_size=1, max_size=80),
    batch_size=st.integers(1, 40),
    size=st.sampled_from([1, 2, 3, 7]),
    parts=st.integers(1, 3),
    bucketing=st.booleans(),
)
def test_an_epochs_shares_are_every_utterance_once_and_balanced(lengths, batch_size, size, parts, bucketing):
    seen = []
    for batch in BatchOrder(lengths, batch_size, 0, bucketing):
        shares = deal(batch, lengths, size * parts)
        counts, frames = [len(share) for share in shares], [sum(lengths[i] for i in share) for share in shares]
        assert max(counts) - min(counts) <= 1
        assert max(frames) - min(frames) <= max(lengths[i] for i in batch)
        seen += [index for share in shares for index in share]
        assert shares == [batch] or len(shares) > 1
    assert sorted(seen) == list(range(len(lengths)))
