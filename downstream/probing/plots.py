"""The figures of the report, small PNG files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from apc_model import APCModel
from downstream.probing.plan import Best, Plan, Row, baselines, recognised
from downstream.probing.scoring import mean_and_deviation
from downstream.probing.splits import TEST
from downstream.probing.study import RANDOM, Study
from utils.audio.frames import FRAMES_PER_SECOND
from utils.system.files import atomic_write

FIGURES = {
    "layers.png": "Error by layer",
    "time_shifts.png": "Frame error by time shift",
    "epochs.png": "Frame error by epochs of training",
    "recognition.png": "Phone error rate by minutes of labelled speech",
    "confusion.png": "Which phones are taken for which",
    "prediction.png": "Log Mel, and what was predicted of it",
}
LAYERS, TIME_SHIFTS, EPOCHS, RECOGNITION, CONFUSION, PREDICTION = FIGURES
DPI = 90
COLOURS = 128  # a palette makes a file three times smaller
LINE_STYLES = (":", "--", "-.", (0, (5, 5)), (0, (1, 4)))
RECOGNITION_STYLES = (
    {"color": "black", "linestyle": ":"},
    {"color": "gray", "linestyle": "--"},
    {"color": "tab:blue"},
    {"color": "tab:orange"},
)
MAX_PLOT_FRAMES = 400
PANEL = (5, 3.8)  # inches


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically."""
    figure.set_layout_engine("tight")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=DPI)
    with atomic_write(path) as file:
        Image.open(image).convert("RGB").quantize(COLOURS).save(file, "png", optimize=True)


def plot_layers(study: Study, plan: Plan, directory: Path) -> None:
    """Plot the errors of phones and speakers by layer: a line for each time shift, and for the random networks."""
    panels = 1 if study.no_speakers else 2
    figure = Figure(figsize=(PANEL[0] * panels, PANEL[1]))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    systems = {f"APC, time shift {n}": plan.trained(n) for n in plan.time_shifts} | {"random APC": RANDOM}
    for label, system in systems.items():
        style = {"color": "gray", "linestyle": "--"} if system == RANDOM else {}
        _error_line(axes[0], plan.layers, [study.errors(system, layer) for layer in plan.layers], label, **style)
        if panels == 2:
            rates = [100 * study.speakers(system, layer)["cosine"] for layer in plan.layers]
            axes[1].plot(plan.layers, rates, marker="o", label=label, **style)
    _finish(axes[0], study, plan, "layer", title="phones", xticks=plan.layers)
    if panels == 2:
        log_mel = 100 * study.speakers("log_mel", 0)["cosine"]
        axes[1].axhline(log_mel, color="black", linestyle=":", label="log Mel, averaged")
        axes[1].set(title="speakers", xlabel="layer", ylabel="equal error rate, cosine (%)", xticks=plan.layers)
        axes[1].legend(fontsize=7)
    save(figure, directory / LAYERS)


def plot_time_shifts(study: Study, plan: Plan, directory: Path) -> None:
    """Plot the frame error by time shift: a line for each layer."""
    figure = Figure(figsize=PANEL)
    axes = figure.subplots()
    for layer in plan.layers:
        errors = [study.errors(plan.trained(n), layer) for n in plan.time_shifts]
        _error_line(axes, plan.time_shifts, errors, f"APC, layer {layer}")
    _finish(axes, study, plan, "time shift (frames)", xticks=plan.time_shifts)
    save(figure, directory / TIME_SHIFTS)


def plot_epochs(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the frame error of the best layer by epochs of training."""
    figure = Figure(figsize=PANEL)
    axes = figure.subplots()
    epochs = [*plan.curve_epochs(), plan.epochs]
    errors = [study.errors(plan.trained(best.time_shift, epoch), best.layer) for epoch in epochs]
    _error_line(axes, epochs, errors, f"APC, time shift {best.time_shift}, layer {best.layer}")
    _finish(axes, study, plan, "epochs of training (0: random weights)")
    save(figure, directory / EPOCHS)


def recognition_errors(study: Study, row: Row, fraction: float) -> list[float]:
    """The phone error rates of recognition from a share of the training set, one for each seed."""
    return [run["error"] for run in study.recognition(row.system, row.layer, fraction)]


def labelled_minutes(study: Study, row: Row, fraction: float) -> float:
    """The minutes of a share of the training set, the mean over seeds."""
    return mean_and_deviation([run["minutes"] for run in study.recognition(row.system, row.layer, fraction)])[0]


def plot_recognition(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the phone error rate by minutes of labelled speech: a line for each kind of features."""
    figure = Figure(figsize=PANEL)
    axes = figure.subplots()
    rows = recognised(study, plan, best)
    minutes = [labelled_minutes(study, rows[0], fraction) for fraction in plan.fractions]
    for row, style in zip(rows, RECOGNITION_STYLES, strict=True):
        errors = [recognition_errors(study, row, fraction) for fraction in plan.fractions]
        label = f"{row.name}, layer {row.layer}" if row.shows_layer else row.name
        _error_line(axes, minutes, errors, label, **style)
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{number:.1f}" for number in minutes])
    axes.minorticks_off()
    axes.set(xlabel="minutes of labelled speech", ylabel="phone error rate (%)")
    axes.legend(fontsize=7)
    save(figure, directory / RECOGNITION)


def plot_confusion(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the confusion matrix of the best layer, normalised by true phone, over all seeds."""
    runs = study.runs(plan.trained(best.time_shift), best.layer)
    frames = np.sum([run["confusion"] for run in runs], axis=0)  # (phones, phones)
    phones = study.corpus.labels.phones
    in_test = np.flatnonzero(frames.sum(1))  # a phone may not be in the test set
    shares = frames[in_test] / frames[in_test].sum(1, keepdims=True)
    figure = Figure(figsize=(6.5, 6))
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(phones)), phones, fontsize=7)
    axes.set_yticks(range(len(in_test)), [phones[index] for index in in_test], fontsize=7)
    title = f"linear, APC of time shift {best.time_shift}, layer {best.layer}"
    axes.set(xlabel="phone given", ylabel="true phone", title=title)
    figure.colorbar(image, label="share of frames")
    save(figure, directory / CONFUSION)


def plot_prediction(study: Study, model: APCModel, directory: Path) -> None:
    """Plot log Mel of the test utterance of median length, and its prediction."""
    utterances = study.corpus.sets[TEST]
    order = np.argsort(utterances.log_mel.lengths, kind="stable")
    chosen = int(order[len(order) // 2])
    log_mel = utterances.log_mel[chosen]  # (frames, mel_dim)
    device = model.postnet.layer.bias.device
    with torch.no_grad():
        predicted = model.forward(log_mel[None].to(device), [len(log_mel)])[0][0].cpu()  # (frames, mel_dim)
    shift = model.time_shift or 1
    predicted = torch.cat([torch.full((shift, log_mel.size(1)), float("nan")), predicted])[: len(log_mel)]
    figure = Figure(figsize=(7, 4))
    limits = {"vmin": float(log_mel.quantile(0.01)), "vmax": float(log_mel.quantile(0.99))}
    titles = (f"log Mel of {utterances.ids[chosen]}", f"predicted {shift} frames ({10 * shift} ms) before")
    for axes, frames, title in zip(figure.subplots(2, 1, sharex=True), (log_mel, predicted), titles, strict=True):
        frames = frames[:MAX_PLOT_FRAMES]
        extent = (0, len(frames) / FRAMES_PER_SECOND, 0, frames.size(1))
        axes.imshow(frames.T.numpy(), origin="lower", aspect="auto", extent=extent, cmap="magma", **limits)
        axes.set_title(title, fontsize=8)
        axes.set_ylabel("mel bin")
    axes.set_xlabel("seconds")
    save(figure, directory / PREDICTION)


def _error_line(axes: Axes, x: Sequence[float], errors: list[list[float]], label: str, **style: str) -> None:
    """Plot a line of mean errors, with the standard deviation over seeds at each point."""
    means, deviations = zip(*(mean_and_deviation(of_point) for of_point in errors), strict=True)
    percent = [[100 * value for value in values] for values in (means, deviations)]
    axes.errorbar(x, percent[0], yerr=percent[1], marker="o", capsize=3, label=label, **style)


def _finish(axes: Axes, study: Study, plan: Plan, xlabel: str, **settings: object) -> None:
    """Add a horizontal line for each baseline, labels and a legend to a plot of frame errors."""
    for row, linestyle in zip([plan.rows()[0], *baselines(study, plan)], LINE_STYLES, strict=True):
        error = mean_and_deviation(study.errors(*row.result))[0]
        axes.axhline(100 * error, color="black", linewidth=1, linestyle=linestyle, label=row.label)
    axes.set(xlabel=xlabel, ylabel="frame error (%)", **settings)
    axes.legend(fontsize=7)
