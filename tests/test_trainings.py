"""Several trainings at once, in processes of their own."""

import shlex

import pytest
from training_runs import SMALL

from downstream.probing.training import Training, train
from utils.system.errors import InputError


def test_trainings_at_once_all_end_and_one_that_fails_says_why(workplace, capfd):
    options = shlex.split(SMALL.replace("--epochs 3", ""))
    one, two = (Training(workplace / "models", name, 1, options) for name in ("one", "two"))
    with pytest.raises(InputError, match="training bad ended with exit code 2; the reason is above"):
        train([one, Training(workplace / "models", "bad", 1, [*options, "--train_split", "nowhere"])], at_once=2)
    assert "nowhere" in capfd.readouterr().err
    train([one, two], at_once=2)
    assert one.epochs_done == two.epochs_done == 1
    assert one.checkpoint().read_bytes() == two.checkpoint().read_bytes()
