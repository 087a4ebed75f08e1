"""Facts about the schedules of the learning rate, early stopping and the best epoch's weights."""

import signal
from pathlib import Path

import pytest
from training_runs import curves, made, stop_at, train, weights

import train_apc
from utils.system.errors import InputError, Stopped
from utils.training.optimization import lr_factor
from utils.training.progress import PLATEAU_EPOCHS, Progress

LOGS = Path("logs")


def rates(name="foo"):
    """The learning rate of each step."""
    return [rate for _, rate in curves(LOGS / f"{name}.dir")["step/learning_rate"]]


def test_the_rate_rises_linearly_and_falls_along_a_cosine_to_zero():
    shares = [lr_factor(step, "cosine", 4, 20) for step in range(20)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0] and shares[4] == 1.0
    assert shares[12] == pytest.approx(0.5) and 0 < shares[19] < 0.02
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert lr_factor(20, "cosine", 4, 20) == pytest.approx(0, abs=1e-9)
    assert [lr_factor(step) for step in (0, 10**6)] == [1.0, 1.0]


def test_a_plateau_halves_the_rate_after_some_epochs_without_a_better_loss():
    progress, scales = Progress(), []
    for loss in [1.0, *[1.5] * (2 * PLATEAU_EPOCHS), 0.5, *[1.5] * PLATEAU_EPOCHS]:
        progress.end_epoch(loss, lowers_rate=True)
        scales.append(progress.rate_scale)
    n = PLATEAU_EPOCHS
    assert scales == [*[1.0] * n, *[0.5] * n, *[0.25] * (1 + n), 0.125]


@pytest.mark.parametrize("schedule", ["cosine", "plateau", "constant"])
def test_a_schedule_goes_on_bit_for_bit_where_it_was_stopped(workplace, monkeypatch, schedule):
    """At a rate that is too high, so that there are plateaus."""
    monkeypatch.setattr("utils.training.progress.PLATEAU_EPOCHS", 1)
    options = ("--lr_schedule", schedule, "--warmup_steps", 3, "--epochs", 8, "--patience", 7, "--learning_rate", 0.3)
    train(monkeypatch, *options, "--experiment_name", "whole")
    for step in (2, 10, 25):
        with monkeypatch.context() as patch:
            stop_at(patch, step, lambda: signal.raise_signal(signal.SIGTERM))
            with pytest.raises(Stopped):
                train(patch, *options, "--experiment_name", "cut", "--resume")
    train(monkeypatch, *options, "--experiment_name", "cut", "--resume")
    assert made("whole") == made("cut")
    assert rates("whole")[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert rates("whole")[-1] == pytest.approx(0.3) if schedule == "constant" else rates("whole")[-1] < 0.2


def test_a_cosine_is_not_stretched_when_resuming(workplace, monkeypatch):
    train(monkeypatch, "--lr_schedule", "cosine", "--epochs", 1)
    assert rates()[-1] < 0.1 * rates()[0]
    with pytest.raises(InputError, match="epochs was 1 and is now 2"):
        train(monkeypatch, "--lr_schedule", "cosine", "--epochs", 2, "--resume")


def test_patience_ends_training_and_the_best_epochs_weights_are_kept(workplace, monkeypatch):
    options = ("--epochs", 50, "--learning_rate", 0.3)
    train(monkeypatch, *options, "--patience", 3)
    losses = [loss for _, loss in curves(LOGS / "foo.dir")["epoch/val_loss"]][1:]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 3 < 50
    files = weights(LOGS / "foo.dir")
    assert files["best.model"] == files[f"epoch_{best}.model"]
    train(monkeypatch, *options, "--patience", 3, "--resume")
    assert weights(LOGS / "foo.dir") == files
    train(monkeypatch, *options, "--patience", 4, "--resume")
    assert len(curves(LOGS / "foo.dir")["epoch/val_loss"]) > len(losses)


def test_an_epochs_points_are_never_there_twice(workplace, monkeypatch):
    """A signal while validating saves a step without its epoch's points; then a kill comes between those and a save."""
    train(monkeypatch, "--experiment_name", "whole")
    validate = train_apc.Trainer.validate

    def stop_after_validation(self, stop):
        signal.raise_signal(signal.SIGTERM)
        return validate(self, stop)

    def crash(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(train_apc.Trainer, "validate", stop_after_validation)
        with pytest.raises(Stopped):
            train(patch, "--experiment_name", "cut")
    with monkeypatch.context() as patch:
        patch.setattr(train_apc.Checkpointer, "save", crash)
        with pytest.raises(ZeroDivisionError):
            train(patch, "--experiment_name", "cut", "--resume")
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert curves(LOGS / "whole.dir") == curves(LOGS / "cut.dir")
