"""The figures of the report: small PNGs."""

import io
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from apc_model import APCModel
from downstream.probing.plan import RANDOM, Best, Plan, best_random_layer
from downstream.probing.probes import CLASSIFIERS
from downstream.probing.scoring import mean_and_deviation
from downstream.probing.splits import TEST
from downstream.probing.study import LINEAR, Study
from utils.audio.frames import FRAMES_PER_SECOND
from utils.system.files import atomic_write

FIGURES = {
    "layers.png": "Error by layer",
    "time_shifts.png": "Frame error by time shift",
    "epochs.png": "Frame error by epochs of training",
    "confusion.png": "Which phones are taken for which",
    "prediction.png": "Log Mel, and what was predicted of it",
}
LAYERS, TIME_SHIFTS, EPOCHS, CONFUSION, PREDICTION = FIGURES
DPI = 90
COLOURS = 128  # a palette of so many takes a third of the space
LINE_STYLES = (":", "--", "-.", (0, (5, 5)), (0, (1, 4)))
MAX_PLOT_FRAMES = 400
FRAME_ERROR = "frame error (%)"


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all."""
    figure.set_layout_engine("tight")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    with atomic_write(path) as file:
        Image.open(drawn).convert("RGB").quantize(COLOURS).save(file, "png", optimize=True)


def plot_layers(study: Study, plan: Plan, directory: Path) -> None:
    """Phones and speakers by layer: a line for each time shift, and for the random networks."""
    panels = 1 if study.no_speakers else 2
    figure = Figure(figsize=(5 * panels, 3.8))
    axes = figure.subplots(1, panels, squeeze=False)[0]
    systems = {f"APC, time shift {n}": plan.trained(n) for n in plan.time_shifts} | {"random APC": RANDOM}
    for label, system in systems.items():
        style = {"color": "gray", "linestyle": "--"} if system == RANDOM else {}
        _error_line(axes[0], plan.layers, [study.errors(system, layer) for layer in plan.layers], label, **style)
        if panels == 2:
            rates = [100 * study.speakers(system, layer)["cosine"] for layer in plan.layers]
            axes[1].plot(plan.layers, rates, marker="o", label=label, **style)
    _baseline_lines(axes[0], study, plan)
    titles = zip(axes, ("phones", "speakers"), (FRAME_ERROR, "equal error rate, cosine (%)"), strict=False)
    for panel, title, what in titles:
        panel.set(title=title, xlabel="layer", ylabel=what, xticks=plan.layers)
    if panels == 2:
        log_mel = 100 * study.speakers("log_mel", 0)["cosine"]
        axes[1].axhline(log_mel, color="black", linestyle=":", label="log Mel, averaged")
    for panel in axes:
        panel.legend(fontsize=7)
    save(figure, directory / LAYERS)


def plot_time_shifts(study: Study, plan: Plan, directory: Path) -> None:
    """The frame error by time shift: a line for each layer."""
    figure = Figure(figsize=(5, 3.8))
    axes = figure.subplots()
    for layer in plan.layers:
        errors = [study.errors(plan.trained(n), layer) for n in plan.time_shifts]
        _error_line(axes, plan.time_shifts, errors, f"APC, layer {layer}")
    _baseline_lines(axes, study, plan)
    axes.set(xlabel="time shift (frames)", ylabel=FRAME_ERROR, xticks=plan.time_shifts)
    axes.legend(fontsize=7)
    save(figure, directory / TIME_SHIFTS)


def plot_epochs(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """How the frame error of the best layer falls while its model is trained."""
    figure = Figure(figsize=(5, 3.8))
    axes = figure.subplots()
    epochs = [*plan.curve_epochs(), plan.epochs]
    errors = [study.errors(plan.trained(best.time_shift, epoch), best.layer) for epoch in epochs]
    _error_line(axes, epochs, errors, f"APC, time shift {best.time_shift}, layer {best.layer}")
    _baseline_lines(axes, study, plan)
    axes.set(xlabel="epochs of training (0: random weights)", ylabel=FRAME_ERROR)
    axes.legend(fontsize=7)
    save(figure, directory / EPOCHS)


def plot_confusion(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """The share of each phone's frames that each phone was given, over all seeds."""
    runs = study.runs(plan.trained(best.time_shift), best.layer)
    frames = np.sum([run["confusion"] for run in runs], axis=0)  # (phones, phones)
    there = frames.sum(1) > 0  # a phone may not be in the test set
    shares = frames[there] / frames[there].sum(1, keepdims=True)
    phones = study.corpus.labels.phones
    figure = Figure(figsize=(6.5, 6))
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(phones)), phones, fontsize=7)
    axes.set_yticks(range(int(there.sum())), [p for p, is_there in zip(phones, there, strict=True) if is_there],
                    fontsize=7)  # fmt: skip
    axes.set(xlabel="phone given", ylabel="true phone",
             title=f"linear, APC of time shift {best.time_shift}, layer {best.layer}")  # fmt: skip
    figure.colorbar(image, label="share of frames")
    save(figure, directory / CONFUSION)


def plot_prediction(study: Study, model: APCModel, directory: Path) -> None:
    """Log Mel of a test utterance of middle length, and the prediction of each of its frames."""
    utterances = study.corpus.sets[TEST]
    order = sorted(range(len(utterances.ids)), key=lambda i: len(utterances.log_mel[i]))
    chosen = order[len(order) // 2]
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


def _error_line(axes: Axes, x: list[int], errors: list[list[float]], label: str, **style: str) -> None:
    """A line of mean errors, with the deviation over seeds at each point."""
    means, deviations = zip(*(mean_and_deviation(of_point) for of_point in errors), strict=True)
    percent = [[100 * value for value in values] for values in (means, deviations)]
    axes.errorbar(x, percent[0], yerr=percent[1], marker="o", capsize=3, label=label, **style)


def _baseline_lines(axes: Axes, study: Study, plan: Plan) -> None:
    """Horizontal lines for what is to be beaten."""
    layer = best_random_layer(study, plan)
    baselines = {f"{c}, log Mel": ("log_mel", 0, c) for c in (LINEAR, CLASSIFIERS[-1])}
    baselines |= {
        f"linear, log Mel, -{left}..+{right} frames": (system, 0, LINEAR)
        for system, (left, right) in plan.contexts.items()
    }
    baselines[f"linear, random APC, layer {layer}"] = (RANDOM, layer, LINEAR)
    for number, (label, (system, of_layer, classifier)) in enumerate(baselines.items()):
        error = mean_and_deviation(study.errors(system, of_layer, classifier))[0]
        axes.axhline(100 * error, color="black", linewidth=1, linestyle=LINE_STYLES[number], label=label)
