"""Facts about training in several processes: they do what one does, they end together, and nothing is lost."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_prepared
from fault_runs import Ended, experiment, runs
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.batch_order import BatchOrder, deal
from utils.prepared import load_tensor, save_tensor

ROOT = Path(__file__).parent.parent
MEL, SEQ = 5, 30
EPOCHS = 4  # of 5 steps: 20 steps, of which every fifth has a batch of one utterance
OPTIONS = (
    f"--feature_dim {MEL} --rnn_hidden_size 8 --rnn_num_layers 2 --rnn_residual --batch_size 4 --epochs {EPOCHS} "
    "--load_data_workers 0 --learning_rate 1e-2 --librispeech_path . --train_split train --val_split dev other --resume"
)
DROPOUT = f"{OPTIONS} --rnn_dropout 0.3 --prenet_num_layers 1 --prenet_dropout 0.2 --save_every 2"


def make_workplace(directory):
    """17 utterances that can be trained on, of 2 to 30 frames, and two splits to validate on."""
    make_prepared(directory / "train", [30, 3, 17, 25, 8, 1, 29, 12, 20, 5, 9, 14, 2, 30, 22, 11, 7, 19], SEQ, MEL)
    make_prepared(directory / "dev", [30, 12, 4, 9, 21], SEQ, MEL, seed=1)
    make_prepared(directory / "other", [8, 27, 2], SEQ, MEL, seed=2)
    return directory


def start(size, options, directory, faults=None):
    """Start a training of so many processes, as torchrun does; their process ids."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    return [
        runs().start("train_apc", options[rank] if isinstance(options, list) else options.split(), directory,
                     (faults or {}).get(rank), address | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(size)
    ]  # fmt: skip


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
    made = experiment(directory / "logs/foo.dir")
    curves = {name: points for name, points in made.items() if isinstance(points, list)}
    return curves, torch.load(directory / f"logs/foo.dir/foo__epoch_{EPOCHS}.model", weights_only=True)


def assert_alike(found, expected):
    """Equal to float precision, after 20 steps."""
    (curves, weights), (expected_curves, expected_weights) = found, expected
    assert curves.keys() == expected_curves.keys()
    for name, points in expected_curves.items():
        assert [step for step, _ in curves[name]] == [step for step, _ in points], name
        values = [value for _, value in points]
        assert [value for _, value in curves[name]] == pytest.approx(values, rel=1e-4), name
    for name, value in expected_weights.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module", params=["masked", "padded"])
def alone(request, tmp_path_factory):
    """The options of a training, and what it makes in one process."""
    options = f"{OPTIONS} --loss {request.param}"
    return options, trained(1, options, tmp_path_factory.mktemp("alone"))


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What a training with dropout makes in three processes, which add up gradients in an order that matters."""
    directory = tmp_path_factory.mktemp("together")
    trained(3, DROPOUT, directory)
    return experiment(directory / "logs/foo.dir")


@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_make_the_same_losses_and_weights_as_one(alone, size, tmp_path):
    options, expected = alone
    assert_alike(trained(size, options, tmp_path), expected)
    assert set(expected[0]) > {"epoch/val_loss", "epoch/val_loss/dev", "epoch/val_loss/other"}


def test_a_batch_in_several_parts_makes_the_same_losses_and_weights_as_in_one(alone, tmp_path):
    options, expected = alone
    assert_alike(trained(1, f"{options} --grad_accumulation 3", tmp_path / "one"), expected)
    assert_alike(trained(2, f"{options} --grad_accumulation 2", tmp_path / "two"), expected)


def test_resumed_by_another_number_of_processes_it_goes_on_the_same(alone, tmp_path):
    options, expected = alone
    make_workplace(tmp_path)
    for size, steps in ((2, 3), (1, 7), (3, 14)):
        assert_done(train(size, f"{options} --max_steps {steps}", tmp_path))
    assert_done(train(2, options, tmp_path))
    assert_alike(what_is_in(tmp_path), expected)
    assert json.loads((tmp_path / "logs/foo.dir/config.json").read_text())["num_processes"] == 2


def test_a_signal_to_any_process_stops_all_after_the_same_step_and_they_resume_bit_for_bit(together, tmp_path):
    make_workplace(tmp_path)
    stopped = 0
    for rank, at in ((1, 60_000), (2, 90_000), (0, 20_000)):
        fault = {"moments": "calls", "at": at, "action": f"signal {signal.SIGTERM:d}"}
        first, *others = train(3, DROPOUT, tmp_path, {rank: fault})
        if first.code == 128 + signal.SIGTERM:
            stopped += 1
            assert re.search(r"train_apc.py: stopped by SIGTERM; .*--resume\n$", first.errors), first.errors
            assert all((ended.code, ended.errors) == (first.code, "") for ended in others), others
    assert stopped == 3
    assert_done(train(3, DROPOUT, tmp_path))
    assert experiment(tmp_path / "logs/foo.dir") == together


@pytest.mark.parametrize("rank", [0, 2])
def test_a_process_that_dies_ends_all_of_them_and_they_resume_bit_for_bit(together, rank, tmp_path):
    make_workplace(tmp_path)
    ended = train(3, DROPOUT, tmp_path, {rank: {"moments": "calls", "at": 70_000, "action": "kill"}})
    assert ended.pop(rank).code == -signal.SIGKILL
    for other in ended:
        assert other.code == 2 and "Traceback" not in other.errors, other.errors
        assert "has lost another one" in other.errors and "--resume" in other.errors.splitlines()[-1]
    assert list((tmp_path / "logs/foo.dir").glob("*.state"))
    assert_done(train(3, DROPOUT, tmp_path))
    assert experiment(tmp_path / "logs/foo.dir") == together


def test_an_error_of_one_process_is_told_once_and_costs_no_step(together, tmp_path):
    make_workplace(tmp_path)
    path = tmp_path / "train/spk0-0006.pt"
    good = load_tensor(path)
    for bad, told in ((None, r"spk0-0006\.pt is missing"), (float("nan"), r"loss nan.*spk0-0006")):
        path.unlink() if bad is None else save_tensor(path, good.index_fill(0, torch.tensor(3), bad))
        first, *others = train(3, DROPOUT, tmp_path)
        if bad is None:  # noticed before training starts
            assert first.code == 2 and re.search(f"error: .*{told}", first.errors), first.errors
        else:
            assert first.code == 2 and re.search(f"error: .*{told}.*--resume", first.errors), first.errors
            assert list((tmp_path / "logs/foo.dir").glob("*.state"))
        assert all((ended.code, ended.errors) == (2, "") for ended in others), others
    path.write_bytes(b"damaged")
    first, *others = train(3, DROPOUT, tmp_path)
    assert first.code == 2 and "spk0-0006.pt" in first.errors and not any(ended.errors for ended in others)
    save_tensor(path, good)
    assert_done(train(3, DROPOUT, tmp_path))
    assert experiment(tmp_path / "logs/foo.dir") == together


def test_what_cannot_be_trained_is_refused_by_all_in_one_line(tmp_path):
    make_workplace(tmp_path)
    for options, told in (
        ([OPTIONS.split(), [*OPTIONS.split(), "--learning_rate", "1"]], "learning_rate is 1.0, and 0.01 on the first"),
        (f"{OPTIONS} --val_split nowhere", "split nowhere"),
    ):
        first, other = train(2, options, tmp_path)
        assert (first.code, other.code, other.errors) == (2, 2, "") and first.errors.count("\n") == 1
        assert told in first.errors
    assert not (tmp_path / "logs").exists()
    assert_done(train(2, f"{OPTIONS} --max_steps 1", tmp_path))
    first, other = train(2, OPTIONS.replace("--resume", ""), tmp_path)
    assert (first.code, other.code, other.errors) == (2, 2, "") and "already holds an experiment" in first.errors


def test_torchrun_is_all_it_takes(tmp_path):
    make_workplace(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", ROOT / "train_apc.py"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, *OPTIONS.split()], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    log = (tmp_path / "logs/foo.dir/foo.log").read_text()
    assert "2 processes on cpu" in log and log.count("epoch 1: training loss") == 1
    shutil.rmtree(tmp_path / "train")
    ran = subprocess.run([*command, *OPTIONS.split()], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 1 and ran.stderr.count("train_apc.py: error: split train:") == 1


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
