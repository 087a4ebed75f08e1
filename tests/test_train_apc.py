"""Facts about training: what it writes, that it follows the plain formulation, and that nothing is lost."""

import argparse
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_prepared
from plain_apc import PlainAPC, plain_loss
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from training_runs import MEL, SEQ, SMALL, TOO_LARGE, curves, made, stop_at, train, weights

import train_apc
from datasets import BatchOrder, LibriSpeech
from load_pretrained_model import load_pretrained
from utils.corpus import batch_reader
from utils.corpus.prepared import load_lengths, load_tensor, save_tensor
from utils.system.errors import InputError, Stopped
from utils.system.untrusted import load_untrusted
from utils.training.arguments import parse_arguments


def test_the_released_options_keep_their_names_and_defaults():
    options = vars(parse_arguments([]))
    released = {"prenet_num_layers": 0, "prenet_dropout": 0, "rnn_num_layers": 3, "rnn_hidden_size": 512}
    released |= {"rnn_dropout": 0, "rnn_residual": False, "optimizer": "adam", "batch_size": 32, "learning_rate": 1e-4}
    released |= {"epochs": 100, "time_shift": 1, "clip_thresh": 1.0, "feature_dim": 80, "load_data_workers": 2}
    released |= {"experiment_name": "foo", "store_path": "./logs"}
    released |= {"librispeech_path": "./librispeech_data/preprocessed"}
    assert released.items() <= options.items()
    assert options["train_split"] == ["train-clean-360"] and options["val_split"] == ["dev-clean"]


def test_every_option_is_explained_in_a_sentence(monkeypatch):
    described = []
    add_argument = argparse._ActionsContainer.add_argument

    def noted(self, *names, **settings):
        described.append((names, settings.get("help", "")))
        return add_argument(self, *names, **settings)

    monkeypatch.setattr(argparse._ActionsContainer, "add_argument", noted)
    parse_arguments([])
    for names, text in described:
        assert "-h" in names or (text[0].isupper() and text.endswith(".") and text.count(" ") >= 3), names


def test_without_a_split_named_it_finds_what_the_readme_prepares(workplace, monkeypatch):
    (workplace / "librispeech_data").mkdir()
    (workplace / "data").rename(workplace / "librispeech_data/preprocessed")
    for split, name in (("train", "train-clean-360-hires-norm.blogmel"), ("dev", "dev-clean-hires-norm-blogmel")):
        directory = workplace / "librispeech_data/preprocessed"
        (directory / split).rename(directory / name)
    train(monkeypatch, base=f"--feature_dim {MEL} --rnn_hidden_size 4 --epochs 1 --load_data_workers 0")
    assert (workplace / "logs/foo.dir/foo__epoch_1.model").exists()


def test_an_experiment_holds_what_others_read(workplace, monkeypatch):
    train(monkeypatch, "--time_shift", 2)
    directory = workplace / "logs/foo.dir"
    assert sorted(weights(directory)) == ["best.model", *(f"epoch_{n}.model" for n in range(4))]
    state = torch.load(directory / "foo__epoch_3.model", weights_only=True)
    assert list(state)[:2] == ["rnns.0.weight_ih_l0", "rnns.0.weight_hh_l0"] and "postnet.layer.bias" in state
    model = load_pretrained(directory / "foo__epoch_3.model")
    assert model.time_shift == 2 and model.rnn_config.residual
    config = json.loads((directory / "config.json").read_text())
    assert config["learning_rate"] == 1e-2 and config["rnn_hidden_size"] == 8
    found = curves(directory)
    assert [step for step, _ in found["step/loss"]] == list(range(1, 13))  # 12 usable utterances of more than 2 frames
    steps = ("loss", "gradient_norm", "learning_rate", "val_loss")
    epochs = ("train_loss", "val_loss", "best_val_loss")
    assert set(found) == {*(f"step/{curve}" for curve in steps), *(f"epoch/{curve}" for curve in epochs)}
    assert [epoch for epoch, _ in found["epoch/val_loss"]] == [0, 1, 2, 3]  # from before training on
    assert [epoch for epoch, _ in found["epoch/train_loss"]] == [1, 2, 3]
    assert [step for step, _ in found["step/val_loss"]] == [0, 4, 8, 12]
    assert found["epoch/best_val_loss"][-1][1] == min(loss for _, loss in found["epoch/val_loss"][1:])
    assert found["epoch/train_loss"][-1][1] < found["epoch/train_loss"][0][1]
    assert "2 skipped (of 2 frames or fewer)" in (directory / "foo.log").read_text()


def test_tensorboard_names_runs_by_experiment_and_shows_losses_in_one_chart_and_settings(workplace, monkeypatch):
    for name in ("one", "two"):
        train(monkeypatch, "--experiment_name", name, "--epochs", 1)
    assert {path.name for path in Path("logs/tensorboard").iterdir()} == {"one", "two"}
    events = EventAccumulator("logs/tensorboard/one").Reload()
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    assert ["epoch/train_loss", "epoch/val_loss"] in [list(chart.multiline.tag) for chart in layout.category[0].chart]
    plugin = [
        events.SummaryMetadata(f"_hparams_/{part}").plugin_data.content for part in ("experiment", "session_start_info")
    ]
    experiment, session = (HParamsPluginData.FromString(content) for content in plugin)
    settings = session.session_start_info.hparams
    assert settings["batch_size"].number_value == 4 and settings["rnn_type"].string_value == "gru"
    assert settings["train_split"].string_value == "train" and "epochs" not in settings
    metrics = {info.name.tag for info in experiment.experiment.metric_infos}
    assert metrics == {"epoch/train_loss", "epoch/val_loss", "epoch/best_val_loss"} <= set(events.Tags()["scalars"])
    train(monkeypatch, "--experiment_name", "one", "--epochs", 1, "--overwrite")
    assert len(EventAccumulator("logs/tensorboard/one").Reload().Tensors("custom_scalars__config__")) == 1


@pytest.mark.parametrize("loss", ["padded", "masked"])
def test_a_run_follows_the_plain_formulation_to_float_precision(workplace, monkeypatch, loss):
    """Losses, gradient norms and weights; --loss padded is the released objective, over batches of SEQ frames."""
    train(monkeypatch, "--loss", loss)
    directory = workplace / "logs/foo.dir"
    plain = PlainAPC(MEL, 8, 2, residual=True)
    plain.load_state_dict(torch.load(directory / "foo__epoch_0.model", weights_only=True))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    dataset = LibriSpeech("data/train", longer_than=1)
    losses, norms, order = [], [], BatchOrder(dataset.lengths, 4, seed=0)
    for order.epoch in (1, 2, 3):
        for indices in order:
            inputs, lengths = zip(*(dataset[i] for i in indices), strict=True)
            value = plain_loss(plain, torch.stack(inputs), torch.tensor(lengths), 1, masked=loss == "masked")
            optimizer.zero_grad()
            value.backward()
            norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0).item())
            optimizer.step()
            losses.append(value.item())
    found = curves(directory)
    assert [value for _, value in found["step/loss"]] == pytest.approx(losses, rel=1e-5)
    assert [value for _, value in found["step/gradient_norm"]] == pytest.approx(norms, rel=1e-4)
    trained = torch.load(directory / "foo__epoch_3.model", weights_only=True)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "adadelta", "sgd", "adagrad", "rmsprop"])
def test_every_optimizer_changes_the_weights_and_skips_a_bad_step(workplace, monkeypatch, optimizer):
    before = load_tensor("data/train/spk0-0000.pt")
    save_tensor(Path("data/train/spk0-0000.pt"), before.index_fill(0, torch.tensor(4), TOO_LARGE))
    train(monkeypatch, "--optimizer", optimizer, "--epochs", 1, "--on_nonfinite", "skip")
    first, last = (torch.load(f"logs/foo.dir/foo__epoch_{n}.model", weights_only=True) for n in (0, 1))
    assert all(value.isfinite().all() and not torch.equal(value, first[name]) for name, value in last.items())
    assert len(curves(workplace / "logs/foo.dir")["step/loss"]) == 4  # of 5 steps
    assert "skipped step" in Path("logs/foo.dir/foo.log").read_text()


def test_an_experiment_is_not_overwritten_unless_told(workplace, monkeypatch):
    train(monkeypatch, "--epochs", 1)
    before = weights(workplace / "logs/foo.dir")
    with pytest.raises(InputError, match=r"already holds an experiment.*--resume.*--overwrite"):
        train(monkeypatch, "--epochs", 1, "--seed", 1)
    assert weights(workplace / "logs/foo.dir") == before
    train(monkeypatch, "--epochs", 1, "--seed", 1, "--overwrite")
    assert weights(workplace / "logs/foo.dir") != before


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stops", [[1], [5], [4, 9, 13]])
def test_stopped_by_a_signal_and_resumed_equals_uninterrupted_bit_for_bit(workplace, monkeypatch, signum, stops):
    options = ("--rnn_dropout", 0.3, "--prenet_num_layers", 1, "--prenet_dropout", 0.2, "--bucketing")
    train(monkeypatch, *options, "--experiment_name", "whole")
    for step in stops:
        with monkeypatch.context() as patch:
            stop_at(patch, step, lambda: signal.raise_signal(signum))
            with pytest.raises(Stopped, match=rf"{signal.Signals(signum).name}; .*--resume") as stopped:
                train(patch, *options, "--experiment_name", "cut", "--resume")
        assert stopped.value.signum == signum
        torch.manual_seed(step)  # whatever the generators hold when a new process starts
    train(monkeypatch, *options, "--experiment_name", "cut", "--resume")
    assert made("whole") == made("cut")


def test_a_log_takes_names_that_are_no_text(workplace):
    """In a process of its own: pytest-xdist cannot send on what a test has logged of such names."""
    folder = os.fsdecode(b"caf\xe9")
    Path("data").rename(folder)
    command = [sys.executable, train_apc.__file__, *SMALL.split(), "--librispeech_path", folder, "--epochs", "0"]
    subprocess.run([*command, "--experiment_name", "foo"], check=True, capture_output=True)
    assert rb"1 skipped (of 1 frames or fewer), caf\udce9/train" in Path("logs/foo.dir/foo.log").read_bytes()


@pytest.mark.parametrize("step", [3, 7, 10, 14])  # 10: the last of an epoch
def test_a_crash_costs_the_steps_since_the_last_save_and_nothing_else(workplace, monkeypatch, step):
    def crash():
        raise ZeroDivisionError

    train(monkeypatch, "--rnn_dropout", 0.5, "--experiment_name", "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step, crash)
        with pytest.raises(ZeroDivisionError):
            train(patch, "--rnn_dropout", 0.5, "--experiment_name", "cut", "--save_every", 2)
    steps, train_step = [], train_apc.Trainer.train_step

    def recorded(self, batch):
        train_step(self, batch)
        steps.append(self.progress.step)

    monkeypatch.setattr(train_apc.Trainer, "train_step", recorded)
    train(monkeypatch, "--rnn_dropout", 0.5, "--experiment_name", "cut", "--save_every", 3, "--resume")
    assert step - 1 <= steps[0] <= step
    assert made("whole") == made("cut")
    assert len(list((workplace / "logs/cut.dir").glob("*.state"))) == 2


def test_of_many_epochs_the_last_and_the_best_are_kept(workplace, monkeypatch):
    train(monkeypatch, "--epochs", 11)
    names = weights(workplace / "logs/foo.dir")
    assert len(names) == 13  # as released: every epoch's, and the best
    Path("logs/foo.dir/foo__epoch_notes.model").touch()  # somebody else's
    train(monkeypatch, "--epochs", 12, "--resume", "--keep", 2)
    kept = weights(workplace / "logs/foo.dir")
    assert sorted(kept) == ["best.model", "epoch_11.model", "epoch_12.model", "epoch_notes.model"]
    assert kept["epoch_11.model"] == names["epoch_11.model"]
    with pytest.raises(SystemExit):
        parse_arguments(["--keep", "0"])


def test_a_damaged_last_state_falls_back_to_the_one_before(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole")
    train(monkeypatch, "--experiment_name", "cut", "--max_steps", 10, "--save_every", 3)
    last = workplace / "logs/cut.dir/cut__step_10.state"
    last.write_bytes(last.read_bytes()[:-50])
    train(monkeypatch, "--experiment_name", "cut", "--save_every", 3, "--resume")
    assert made("whole") == made("cut")
    assert "cut__step_10.state" in (workplace / "logs/cut.dir/cut.log").read_text()


def test_a_last_state_that_cannot_be_read_falls_back_to_the_one_before(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole")
    train(monkeypatch, "--experiment_name", "cut", "--max_steps", 10, "--save_every", 3)
    path_open = Path.open

    def fail(path, mode="r", *others, **more):
        if path.name == "cut__step_10.state" and "r" in mode:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return path_open(path, mode, *others, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        train(patch, "--experiment_name", "cut", "--save_every", 3, "--resume")
    assert made("whole") == made("cut")
    assert "cut__step_10.state cannot be read: Input/output error" in Path("logs/cut.dir/cut.log").read_text()


def test_without_a_saved_state_the_weights_of_later_epochs_are_not_overwritten(workplace, monkeypatch):
    train(monkeypatch)
    before = weights(Path("logs/foo.dir"))
    for path in Path("logs/foo.dir").glob("*.state"):
        path.unlink()
    with pytest.raises(InputError, match=r"foo__epoch_3\.model is there, but no saved state .*--init_from"):
        train(monkeypatch, "--resume")
    assert weights(Path("logs/foo.dir")) == before


def test_a_state_of_another_pytorch_whose_optimizer_has_more_settings_is_resumed(workplace, monkeypatch):
    train(monkeypatch)
    train(monkeypatch, "--experiment_name", "cut", "--epochs", 2)
    path = max(Path("logs/cut.dir").glob("*.state"), key=lambda path: path.stat().st_mtime)
    state = torch.load(path, weights_only=True)
    state["optimizer"]["param_groups"][0]["of_another_version"] = True
    torch.save(state, path)
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert made("cut") == made("foo")


def test_too_little_memory_while_resuming_does_not_ask_to_overwrite(workplace, monkeypatch):
    def allocate(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    train(monkeypatch, "--epochs", 2)
    monkeypatch.setattr("torch.optim.Adam.load_state_dict", allocate)
    with pytest.raises(torch.OutOfMemoryError):
        train(monkeypatch, "--resume")


def test_what_would_change_the_result_is_refused_on_resume(workplace, monkeypatch):
    train(monkeypatch, "--max_steps", 3)
    for option in (("--batch_size", 5), ("--learning_rate", 1e-3), ("--seed", 4), ("--loss", "padded")):
        with pytest.raises(InputError, match=rf"cannot be resumed.*{option[0].strip('-')} was .* is now {option[1]}"):
            train(monkeypatch, "--resume", *option)
    (workplace / "data/train").rename(workplace / "data/old")
    make_prepared(workplace / "data/train", [30, 20, 10], SEQ, MEL)
    with pytest.raises(InputError, match="train_data was"):
        train(monkeypatch, "--resume")


def test_what_would_not_change_it_may_be_changed(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole", "--epochs", 4)
    train(monkeypatch, "--experiment_name", "cut", "--max_steps", 3)
    (workplace / "data").rename(workplace / "moved")
    options = ("--epochs", 4, "--load_data_workers", 1, "--save_every", "1m", "--librispeech_path", "moved")
    train(monkeypatch, "--experiment_name", "cut", "--resume", *options)
    assert weights(workplace / "logs/whole.dir") == weights(workplace / "logs/cut.dir")


def test_a_number_that_is_not_finite_stops_before_the_step_and_names_the_batch(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole")
    path = Path("data/train/spk2-0017.pt")
    good = load_tensor(path)
    save_tensor(path, good.index_fill(0, torch.tensor(3), TOO_LARGE))
    with pytest.raises(InputError, match=r"step \d+: loss inf.*spk2-0017.*--resume"):
        train(monkeypatch, "--experiment_name", "cut")
    saved = load_untrusted(next((workplace / "logs/cut.dir").glob("*.state")))
    assert all(value.isfinite().all() for value in saved["model"].values())
    save_tensor(path, good)
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert made("whole") == made("cut")


def test_what_is_saved_when_a_loss_is_not_finite_is_the_step_before_it(workplace, monkeypatch):
    path = Path("data/train/spk2-0017.pt")
    save_tensor(path, load_tensor(path).index_fill(0, torch.tensor(3), TOO_LARGE))
    with pytest.raises(InputError, match=r"loss inf.*spk2-0017") as stopped:
        train(monkeypatch, "--save_every", 100)
    bad_step = int(re.search(r"step (\d+): loss", str(stopped.value))[1])
    steps = curves(workplace / "logs/foo.dir")["step/loss"]
    assert [step for step, _ in steps] == list(range(1, bad_step))
    assert [path.name for path in (workplace / "logs/foo.dir").glob("*.state")] == [f"foo__step_{bad_step - 1}.state"]


def test_skipping_gives_up_after_a_few_in_a_row(workplace, monkeypatch):
    for path in Path("data/train").glob("*.pt"):
        save_tensor(path, torch.full((SEQ, MEL), TOO_LARGE))
    with pytest.raises(InputError, match=r"step 6: loss .* at most 5 in a row"):
        train(monkeypatch, "--on_nonfinite", "skip", "--batch_size", 2)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("path", ["data/dev/spk0-0003.pt", "data/train/spk2-0017.pt"])
def test_data_that_are_not_finite_are_named(workplace, monkeypatch, path, number):
    save_tensor(Path(path), load_tensor(path).index_fill(0, torch.tensor([3, 5]), number))
    with pytest.raises(InputError, match=rf"{path}: frame 4 of \d+ .*NaN or infinite.*--resume"):
        train(monkeypatch, "--on_nonfinite", "skip")


def test_a_validation_loss_that_is_not_finite_stops(workplace, monkeypatch):
    save_tensor(Path("data/dev/spk0-0003.pt"), torch.full((SEQ, MEL), TOO_LARGE))
    with pytest.raises(InputError, match=r"validation loss is inf.*--resume"):
        train(monkeypatch)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_deleted_while_training_stops_clearly_and_resumably(workplace, monkeypatch, workers):
    train(monkeypatch, "--experiment_name", "whole")
    path, aside = Path("data/train/spk0-0006.pt"), workplace / "aside"
    with monkeypatch.context() as patch:
        stop_at(patch, 5, lambda: path.rename(aside))
        with pytest.raises(InputError, match=r"spk0-0006\.pt does not exist; .*--resume"):
            train(patch, "--experiment_name", "cut", "--load_data_workers", workers, "--epochs", 3)
    aside.rename(path)
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert weights(workplace / "logs/whole.dir") == weights(workplace / "logs/cut.dir")


def test_a_data_loading_process_that_dies_stops_clearly_and_resumably(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole")
    parent, load = os.getpid(), batch_reader.load_utterance

    def die(path, length):
        if os.getpid() != parent and path.stem == "spk0-0006":
            os.kill(os.getpid(), signal.SIGKILL)
        return load(path, length)

    with monkeypatch.context() as patch:
        patch.setattr(batch_reader, "load_utterance", die)
        with pytest.raises(InputError, match=r"data loading process died .*--load_data_workers.*--resume"):
            train(patch, "--experiment_name", "cut", "--load_data_workers", 1)
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert weights(workplace / "logs/whole.dir") == weights(workplace / "logs/cut.dir")


def test_sizes_that_disagree_are_named(workplace, monkeypatch):
    with pytest.raises(InputError, match=r"frames of 5 but --feature_dim is 7"):
        train(monkeypatch, "--feature_dim", 7)


def test_a_rate_that_is_too_high_leaves_no_broken_weights(workplace, monkeypatch):
    with pytest.raises(InputError, match="--resume"):
        train(monkeypatch, "--optimizer", "sgd", "--learning_rate", 1e38, "--save_every", 1)
    for path in (workplace / "logs/foo.dir").glob("*.state"):
        assert all(value.isfinite().all() for value in load_untrusted(path)["model"].values())


def test_weights_that_a_step_has_broken_are_never_saved(workplace, monkeypatch):
    train_step = train_apc.Trainer.train_step

    def broken(self, batch):
        train_step(self, batch)
        if self.progress.step == 3:
            next(self.model.parameters()).data[0] = float("inf")

    monkeypatch.setattr(train_apc.Trainer, "train_step", broken)
    with pytest.raises(InputError, match=r"step 3 .* made the weights NaN or infinite; .*--learning_rate") as error:
        train(monkeypatch, "--save_every", 1)
    assert "--resume" not in str(error.value)  # which would end there again
    saved = {path.name: load_untrusted(path) for path in (workplace / "logs/foo.dir").glob("*.state")}
    assert saved.keys() == {"foo__step_1.state", "foo__step_2.state"}
    assert all(value.isfinite().all() for state in saved.values() for value in state["model"].values())


@pytest.mark.parametrize("max_steps", [5, 3])
def test_stopped_after_the_last_of_max_steps_the_weights_are_still_written(workplace, monkeypatch, max_steps):
    train(monkeypatch, "--max_steps", max_steps, "--experiment_name", "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, max_steps, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            train(patch, "--max_steps", max_steps, "--experiment_name", "cut")
    train(monkeypatch, "--max_steps", max_steps, "--experiment_name", "cut", "--resume")
    assert weights(workplace / "logs/whole.dir") == weights(workplace / "logs/cut.dir")


def test_a_signal_during_a_bad_step_still_saves_what_is_good(workplace, monkeypatch):
    for path in Path("data/train").glob("*.pt"):
        save_tensor(path, torch.full((SEQ, MEL), TOO_LARGE))
    compute_gradients = train_apc.Trainer.compute_gradients

    def signal_first(self, *arguments):
        signal.raise_signal(signal.SIGTERM)
        return compute_gradients(self, *arguments)

    monkeypatch.setattr(train_apc.Trainer, "compute_gradients", signal_first)
    with pytest.raises(InputError, match=r"step 1: loss inf.*--resume"):
        train(monkeypatch)
    assert [path.name for path in (workplace / "logs/foo.dir").glob("*.state")] == ["foo__step_0.state"]
    with pytest.raises(Stopped):
        train(monkeypatch, "--resume", "--on_nonfinite", "skip")
    assert load_untrusted("logs/foo.dir/foo__step_1.state")["progress"]["skipped_in_a_row"] == 1


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--learning_rate", ["-1", "nan"]),
        ("--clip_thresh", ["-1", "nan"]),
        ("--seed", ["9" * 30]),
        ("--batch_size", ["0"]),
        ("--save_every", ["0"]),
        ("--time_shift", ["-3"]),
        ("--rnn_hidden_size", [1_000_000]),
        ("--feature_dim", [10**18]),
        ("--rnn_num_layers", [10**9]),
        ("--prenet_num_layers", [10**9]),
        ("--grad_accumulation", [10**12]),
        ("--load_data_workers", [10**6]),
    ],
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_written(workplace, monkeypatch, option, values):
    for value in values:
        with pytest.raises(SystemExit) as refused:
            train(monkeypatch, f"{option}={value}")
        assert refused.value.code == 2 and not (workplace / "logs").exists()


def test_options_that_do_not_fit_leave_the_name_free(workplace, monkeypatch):
    with pytest.raises(InputError, match=r"dropout is 2\.0"):
        train(monkeypatch, "--rnn_dropout", 2)
    train(monkeypatch, "--rnn_dropout", 0.2, "--epochs", 1)


@pytest.mark.parametrize("device", ["cuda:63", "tpu", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(workplace, monkeypatch, device):
    with pytest.raises(InputError, match=f"--device {device}"):
        train(monkeypatch, "--device", device)


def test_a_bad_batch_is_whole_in_the_log_and_short_in_the_error(workplace, monkeypatch):
    for path in Path("data/train").glob("*.pt"):
        save_tensor(path, torch.full((SEQ, MEL), TOO_LARGE))
    with pytest.raises(InputError, match=r"its batch of 17: .*\.\.\. .*--on_nonfinite.*--resume") as stopped:
        train(monkeypatch, "--batch_size", 17)
    assert len(str(stopped.value)) < 350
    log = Path("logs/foo.dir/foo.log").read_text()
    assert len({name for name in load_lengths("data/train") if name in log}) == 17


def test_curves_written_after_a_clock_was_set_back_are_read_last(workplace, monkeypatch):
    train(monkeypatch, "--experiment_name", "whole")
    train(monkeypatch, "--experiment_name", "cut", "--max_steps", 7)
    (events,) = Path("logs/cut.dir/cut.tb_log").iterdir()
    start, rest = events.name[: len("events.out.tfevents.")], events.name.split(".", 4)[4]
    events.rename(events.with_name(f"{start}4000000000.{rest}"))
    train(monkeypatch, "--experiment_name", "cut", "--resume")
    assert made("whole")[1] == made("cut")[1]


def test_overwriting_an_experiment_removes_its_own_files_only(workplace, monkeypatch):
    train(monkeypatch, "--epochs", 1)
    mine = [Path("logs/foo.dir") / name for name in ("foo__mine.model", "foo.tb_log/notes.txt")]
    for path in mine:
        path.write_text("years of work")
    with pytest.raises(InputError, match="is to be read"):
        train(monkeypatch, "--init_from", "logs/foo.dir/foo__epoch_1.model", "--overwrite", base=SMALL)
    train(monkeypatch, "--epochs", 1, "--overwrite")
    assert all(path.read_text() == "years of work" for path in mine)


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_released_experiment_is_not_overwritten_unless_told(workplace, monkeypatch, resume):
    Path("logs/foo.dir").mkdir(parents=True)
    Path("logs/foo.dir/foo__epoch_1.model").write_text("weeks of training")
    with pytest.raises(InputError, match=r"holds an experiment without config\.json"):
        train(monkeypatch, "--epochs", 1, *resume)
    assert [path.name for path in Path("logs/foo.dir").iterdir()] == ["foo__epoch_1.model"]
