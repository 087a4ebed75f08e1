"""Several things at once, in processes of their own: trainings, and functions."""

import os
import shlex
import signal
import time

import pytest
import torch
from training_runs import SMALL

from downstream.probing.training import Training, train
from utils.system.errors import InputError
from utils.system.workers import call_all, can_fork

FORKS = can_fork()  # otherwise functions are called in this process


def test_trainings_at_once_all_end_and_one_that_fails_says_why(workplace, capfd):
    options = shlex.split(SMALL.replace("--epochs 3", ""))
    one, two = (Training(workplace / "models", name, 1, options) for name in ("one", "two"))
    with pytest.raises(InputError, match="training bad ended with exit code 2; the reason is above"):
        train([one, Training(workplace / "models", "bad", 1, [*options, "--train_split", "nowhere"])], at_once=2)
    assert "nowhere" in capfd.readouterr().err
    train([one, two], at_once=2)
    assert one.epochs_done == two.epochs_done == 1
    assert one.checkpoint().read_bytes() == two.checkpoint().read_bytes()


def test_functions_are_called_in_processes_of_one_thread_and_answer_in_order():
    weight = torch.ones(3, requires_grad=True)
    (weight * 2).sum().backward()  # this process has used autograd before it forks

    def gradient(number):
        time.sleep(0.1 * (number == 0))
        (weight * number).sum().backward()
        return os.getpid(), torch.get_num_threads(), (weight.grad[0] - 2).item()

    found = call_all([lambda number=number: gradient(number) for number in range(4)], 4)
    if FORKS:
        assert os.getpid() not in {pid for pid, *_ in found} and {threads for _, threads, _ in found} == {1}
        assert weight.grad[0] == 2
    assert found[0][2] == 0
    assert [pid for pid, *_ in call_all([lambda: (os.getpid(),)] * 2, 1)] == [os.getpid()] * 2
    assert call_all([], 2) == []


def fail():
    raise InputError("utterance a: too short")


def be_killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("end", "message"),
    [(fail, "utterance a: too short")] + [(be_killed, "a process was killed, .* OMP_NUM_THREADS")] * FORKS,
)
def test_where_a_function_fails_the_others_do_not_go_on(end, message):
    start = time.monotonic()
    with pytest.raises(InputError, match=message):
        call_all([end, lambda: time.sleep(60)], 2)
    assert time.monotonic() - start < 20
