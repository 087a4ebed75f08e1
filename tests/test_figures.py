"""Facts about what TensorBoard shows of each epoch: it is there, and training does not feel it."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_prepared
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter
from training_runs import MEL, SEQ
from training_runs import train as run_training

import train_apc
from apc_model import APCModel
from datasets import LibriSpeech
from downstream.probing import plots
from downstream.probing.plan import Best, Plan
from downstream.probing.plots import phone_label
from utils import RNNConfig
from utils.system.figures import COLOURS, legend_beside, line_style, new_figure, save_figure
from utils.training.figures import draw_epoch, prediction_figure

OPTIONS = (
    f"--feature_dim {MEL} --rnn_hidden_size 8 --rnn_num_layers 2 --rnn_dropout 0.5 --batch_size 4 "
    "--epochs 2 --load_data_workers 0 --librispeech_path data --train_split train --val_split dev --time_shift 2"
)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with prepared splits."""
    monkeypatch.chdir(tmp_path)
    make_prepared(tmp_path / "data/train", [30, 17, 25, 8, 29, 12], SEQ, MEL)
    make_prepared(tmp_path / "data/dev", [30, 12, 4, 9, 21, 15], SEQ, MEL, seed=1)
    return tmp_path


def train(monkeypatch, name):
    """Run train_apc.py in this process, and return the experiment's directory."""
    run_training(monkeypatch, "--experiment_name", name, base=OPTIONS)
    return f"logs/{name}.dir"


def test_the_start_and_every_epoch_show_predictions_errors_by_mel_bin_and_features(workplace, monkeypatch):
    events = EventAccumulator(f"{train(monkeypatch, 'drawn')}/drawn.tb_log", size_guidance={"images": 0}).Reload()
    pictures = events.Tags()["images"]
    assert pictures == [
        "prediction/spk0-0000",
        "prediction/spk1-0001",
        "epoch/l1_by_mel_bin",
    ]
    assert [event.step for event in events.Images(pictures[0])] == [0, 2, 4]
    assert events.Tags()["histograms"] == ["features/layer_0", "features/layer_1"]
    page = (Path(__file__).parent.parent / "docs/training.md").read_text(encoding="utf-8")
    assert all(
        f"`{tag}" in page for tag in ("prediction/", "epoch/l1_by_mel_bin", "features/layer_", "step/", "epoch/")
    )
    assert events.Histograms("features/layer_1")[0].histogram_value.num == (30 + 12 + 9 + 21) * 8  # true frames only


def test_the_prediction_is_drawn_over_seconds_in_the_place_of_what_it_predicts():
    log_mel, predicted = torch.randn(30, MEL), torch.randn(30, MEL)
    figure = prediction_figure(log_mel, predicted, time_shift=3)
    panels = [axes for axes in figure.axes if axes.images]
    titles = ["log Mel", "predicted 30 ms ahead", "difference (predicted - log Mel)"]
    assert [axes.get_title() for axes in panels] == titles
    assert len(figure.axes) == 6 and panels[-1].get_xlabel() == "time (s)"  # each panel has a colour bar
    assert panels[0].images[0].get_extent() == [0, 0.3, 0, MEL]
    shown = [axes.images[0].get_array() for axes in panels]  # each (mel_dim, frames)
    assert np.array_equal(shown[0], log_mel.T) and np.array_equal(shown[1][:, 3:], predicted[:27].T)
    assert shown[1][:, :3].mask.all() and np.allclose(shown[2][:, 3:], (predicted[:27] - log_mel[3:]).T)


def test_the_error_of_a_mel_bin_is_the_mean_over_the_frames_of_four_utterances(workplace, monkeypatch):
    drawn = []
    monkeypatch.setattr("utils.training.figures._error_figure", lambda errors: drawn.append(errors) or Figure())
    dataset, writer = LibriSpeech("data/dev", longer_than=2), SummaryWriter("curves")
    model = APCModel(MEL, None, RNNConfig(MEL, 8, 2, 0.0, True))
    draw_epoch(writer, model, dataset, time_shift=2, step=1)
    errors = []
    for index in (0, 1, 3, 4):  # four of six, spread over the set
        x, length = dataset[index]
        with torch.no_grad():
            predicted, _ = model(x[None, :length], [length])
        errors.append((predicted[0, : length - 2] - x[2:length]).abs())
    torch.testing.assert_close(drawn[0], torch.cat(errors).mean(0))


def test_weights_are_the_same_bits_with_and_without_figures(workplace, monkeypatch):
    drawn = train(monkeypatch, "drawn")
    monkeypatch.setattr(train_apc, "draw_epoch", lambda *_: None)
    plain = train(monkeypatch, "plain")
    first, second = (torch.load(f"{path}/{name}__epoch_2.model") for path, name in ((drawn, "drawn"), (plain, "plain")))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_figure_that_cannot_be_drawn_is_a_warning(workplace, monkeypatch):
    def fail(*_):
        raise MemoryError("no room for a picture")

    monkeypatch.setattr("utils.training.figures.prediction_figure", fail)
    directory = train(monkeypatch, "drawn")
    log = (workplace / directory / "drawn.log").read_text()
    assert "no figures of step 0: no room for a picture" in log and "done: 4 steps" in log


def test_nothing_random_is_drawn_and_the_model_stays_in_its_mode(workplace):
    class Writer:
        """Takes anything."""

        log_dir = "curves"

        def __getattr__(self, _):
            return lambda *_, **__: None

    model = APCModel(MEL, None, RNNConfig(MEL, 8, 2, 0.5, True)).train()
    torch.manual_seed(3)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    draw_epoch(Writer(), model, LibriSpeech("data/dev", longer_than=2), 2, 1)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_lines_are_told_apart_without_colour_and_the_legend_lists_them_from_the_top_beside_the_data():
    assert len({line_style(number)["marker"] for number in range(7)}) == 7 and "#0072B2" in COLOURS
    figure = new_figure(6, 3)
    axes = figure.subplots()
    axes.errorbar([1, 3], [99, 10], yerr=[1, 1], label="below", **line_style(0))
    axes.axhline(20, label="line", **line_style(1))
    axes.plot([1, 2, 3], [5, 6, 30], label="above", **line_style(2))
    legend_beside(axes)
    figure.draw_without_rendering()
    legend = axes.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["above", "line", "below"]
    assert legend.get_window_extent().x0 >= axes.get_window_extent().x1
    assert legend.get_window_extent().x1 <= figure.bbox.x1


def test_a_legend_of_many_lines_has_room():
    figure = new_figure(6.8, 7.2)
    panels = figure.subplots(2, 1)
    for axes in panels:
        for number in range(30):
            axes.plot([1, 2, 3], [5, 6, number], label=f"APC, time shift {number}", **line_style(number))
        legend_beside(axes)
    figure.draw_without_rendering()
    upper, lower = (axes.get_legend().get_window_extent() for axes in panels)
    assert figure.bbox.y1 > upper.y1 > upper.y0 > lower.y1 > lower.y0 > figure.bbox.y0
    assert panels[0].get_window_extent().height > 300


def test_a_figure_is_saved_at_200_dots_an_inch_and_to_print_with_text_as_text(tmp_path):
    figure = new_figure(2, 1)
    figure.subplots().set_xlabel("\u0395")
    save_figure(figure, tmp_path / "f.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.pdf", "f.png"]
    assert Image.open(tmp_path / "f.png").size == (400, 200)
    pdf = (tmp_path / "f.pdf").read_bytes()
    assert b"/Type3" not in pdf and b"/CIDFontType2" in pdf and b"CreationDate" not in pdf


def test_phones_that_look_alike_are_named_by_their_letters():
    labels = [phone_label(phone) for phone in ("E", "\u0395", "\u0388", "\xc1", "t\u0283\u02d0", "\u0303", "SIL")]
    named = ["\u0395 (Greek epsilon)", "\u0388 (Greek epsilon with tonos)", "\xc1 (a with acute)"]
    named += ["t\u0283\u02d0 (esh, triangular colon)", "\u0303 (combining tilde)"]
    assert labels == ["E", *named, "SIL"]


def test_the_report_draws_whole_epochs_and_phones_with_their_names(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, _: drawn.append(figure))
    study = SimpleNamespace(
        errors=lambda *_, **__: [0.4, 0.5],
        dev_error=lambda *_: 0.4,
        runs=lambda *_: [{"confusion": [[3, 1], [0, 0]]}],
        corpus=SimpleNamespace(labels=SimpleNamespace(phones=["E", "\u0395"])),
    )
    plan, best = Plan([1], 3, [0], 5, [1.0]), Best(1, 0)
    plots.plot_epochs(study, plan, best, tmp_path)
    plots.plot_confusion(study, plan, best, tmp_path)
    epochs, confusion = (figure.axes[0] for figure in drawn)
    assert all(tick == round(tick) for tick in epochs.get_xticks())
    assert [label.get_text() for label in confusion.get_xticklabels()] == ["E", "\u0395 (Greek epsilon)"]
    assert [label.get_text() for label in confusion.get_yticklabels()] == ["E"]  # the other is not in the test set
    assert confusion.images[0].get_array().tolist() == [[75, 25]]
