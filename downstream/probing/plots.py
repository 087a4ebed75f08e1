"""The figures of the report, each as a PNG and as a PDF."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from apc_model import APCModel
from downstream.probing.plan import Best, Plan, baseline_rows, labelled_minutes, recognition_errors, recognition_rows
from downstream.probing.scoring import mean_and_deviation
from downstream.probing.splits import TEST
from downstream.probing.study import RANDOM, Study
from utils.system.figures import Style, legend_beside, line_style, new_figure, reference_style, save_figure
from utils.training.figures import MAX_FRAMES, prediction_figure

FIGURES = {
    "layers.png": "Error by layer",
    "time_shifts.png": "Frame error by time shift",
    "epochs.png": "Frame error by epochs of training",
    "recognition.png": "Phone error rate by minutes of labelled speech",
    "confusion.png": "Which phones are taken for which",
    "prediction.png": "Log Mel, what was predicted of it, and the difference",
}
LAYERS, TIME_SHIFTS, EPOCHS, RECOGNITION, CONFUSION, PREDICTION = FIGURES
PANEL = (6.8, 3.6)  # inches, with the legend
LETTER = re.compile(r"(?P<script>\w+) (?:SMALL |CAPITAL )?LETTER (?P<letter>.+)")  # the name of a character
MAX_NAME = 30
MAX_INCHES = 40  # of the phones of a confusion matrix: images have a limit


def plot_layers(study: Study, plan: Plan, directory: Path) -> None:
    """Plot the errors of phones and speakers by layer: a line for each time shift, and for the random networks."""
    panels = 1 if study.no_speakers else 2
    figure = new_figure(PANEL[0], PANEL[1] * panels)
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    systems = {f"APC, time shift {n}": plan.trained(n) for n in plan.time_shifts} | {"random APC": RANDOM}
    for number, (label, system) in enumerate(systems.items()):
        style = line_style(number) | ({"color": "black"} if system == RANDOM else {})
        _error_line(axes[0], plan.layers, [study.errors(system, layer) for layer in plan.layers], label, style)
        if panels == 2:
            rates = [100 * study.speakers(system, layer)["cosine"] for layer in plan.layers]
            axes[1].plot(plan.layers, rates, label=label, **style)
    _finish(axes[0], study, plan, "layer", xticks=plan.layers)
    if panels == 2:
        axes[0].set_title("phones", fontsize=10)
        axes[1].set_title("speakers", fontsize=10)
        log_mel = 100 * study.speakers("log_mel", 0)["cosine"]
        axes[1].axhline(log_mel, label="log Mel, averaged", **reference_style(0))
        axes[1].set(xlabel="layer", ylabel="equal error rate, cosine (%)", xticks=plan.layers)
        legend_beside(axes[1])
    save_figure(figure, directory / LAYERS)


def plot_time_shifts(study: Study, plan: Plan, directory: Path) -> None:
    """Plot the frame error by time shift: a line for each layer."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    for number, layer in enumerate(plan.layers):
        errors = [study.errors(plan.trained(n), layer) for n in plan.time_shifts]
        _error_line(axes, plan.time_shifts, errors, f"APC, layer {layer}", line_style(number))
    _finish(axes, study, plan, "time shift (frames)", xticks=plan.time_shifts)
    save_figure(figure, directory / TIME_SHIFTS)


def plot_epochs(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the frame error of the best layer by epochs of training."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    epochs = [*plan.curve_epochs(), plan.epochs]
    errors = [study.errors(plan.trained(best.time_shift, epoch), best.layer) for epoch in epochs]
    _error_line(axes, epochs, errors, f"APC, time shift {best.time_shift}, layer {best.layer}", line_style(0))
    _finish(axes, study, plan, "epochs of training (0: random weights)")
    axes.xaxis.set_major_locator(MaxNLocator(steps=[1, 2, 5, 10], integer=True))
    save_figure(figure, directory / EPOCHS)


def plot_recognition(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the phone error rate by minutes of labelled speech: a line for each kind of features."""
    figure = new_figure(*PANEL)
    axes = figure.subplots()
    rows, fractions = recognition_rows(study, plan, best), sorted(plan.fractions)
    minutes = [labelled_minutes(study, rows.log_mel, fraction) for fraction in fractions]
    for number, row in enumerate(rows):
        errors = [recognition_errors(study, row, fraction) for fraction in fractions]
        label = f"{row.name}, layer {row.layer}" if row.shows_layer else row.name
        _error_line(axes, minutes, errors, label, line_style(number))
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{number:.1f}" for number in minutes])
    axes.minorticks_off()
    axes.set(xlabel="minutes of labelled speech", ylabel="phone error rate (%)")
    legend_beside(axes)
    save_figure(figure, directory / RECOGNITION)


def plot_confusion(study: Study, plan: Plan, best: Best, directory: Path) -> None:
    """Plot the confusion matrix of the best layer, normalised by true phone, over all seeds."""
    runs = study.runs(plan.trained(best.time_shift), best.layer)
    frames = np.sum([run["confusion"] for run in runs], axis=0)  # (phones, phones)
    phones = [phone_label(phone) for phone in study.corpus.labels.phones]
    in_test = np.flatnonzero(frames.sum(1))  # a phone may not be in the test set
    shares = frames[in_test] / frames[in_test].sum(1, keepdims=True)
    inches = min(0.16, MAX_INCHES / len(phones))  # of a phone
    figure = new_figure(3.2 + inches * len(phones), 2.2 + inches * len(in_test))
    axes = figure.subplots()
    image = axes.imshow(100 * shares, vmin=0, vmax=100, cmap="Blues")
    axes.set_xticks(range(len(phones)), phones, fontsize=50 * inches, rotation=90)
    axes.set_yticks(range(len(in_test)), [phones[index] for index in in_test], fontsize=50 * inches)
    title = f"linear classifier on APC, time shift {best.time_shift}, layer {best.layer}"
    axes.set(xlabel="classified as", ylabel="true phone")
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, label="frames of the true phone (%)", shrink=0.7)
    save_figure(figure, directory / CONFUSION)


def phone_label(phone: str) -> str:
    """A phone with the names of its letters beyond ASCII, many of which look like others: 'Ε (Greek epsilon)'."""
    names = ", ".join(_letter_name(character) for character in phone if not character.isascii())
    if not names:
        return phone
    return f"{phone} ({names if len(names) <= MAX_NAME else names[: MAX_NAME - 1] + '…'})"


def _letter_name(character: str) -> str:
    name = unicodedata.name(character, f"U+{ord(character):04X}")
    found = LETTER.fullmatch(name)
    if not found:
        return name.lower()
    letter = found["letter"].lower()
    return letter if found["script"] in ("LATIN", "MODIFIER") else f"{found['script'].capitalize()} {letter}"


def plot_prediction(study: Study, model: APCModel, directory: Path) -> None:
    """Plot log Mel of the test utterance of median length, and its prediction."""
    utterances = study.corpus.sets[TEST]
    order = np.argsort(utterances.log_mel.lengths, kind="stable")
    chosen = int(order[len(order) // 2])
    log_mel = utterances.log_mel[chosen][:MAX_FRAMES]  # (frames, mel_dim)
    device = model.postnet.layer.bias.device
    with torch.no_grad():
        predicted = model.forward(log_mel[None].to(device), [len(log_mel)])[0][0].cpu()  # (frames, mel_dim)
    figure = prediction_figure(log_mel, predicted, model.time_shift or 1, utterances.ids[chosen])
    save_figure(figure, directory / PREDICTION)


def _error_line(axes: Axes, x: Sequence[float], errors: list[list[float]], label: str, style: Style) -> None:
    """Plot a line of mean errors, with the standard deviation over seeds at each point."""
    means, deviations = zip(*(mean_and_deviation(of_point) for of_point in errors), strict=True)
    percent = [[100 * value for value in values] for values in (means, deviations)]
    axes.errorbar(x, percent[0], yerr=percent[1], capsize=3, label=label, **style)


def _finish(axes: Axes, study: Study, plan: Plan, xlabel: str, **settings: object) -> None:
    """Add a horizontal line for each baseline, labels and a legend to a plot of frame errors."""
    for number, row in enumerate([plan.rows()[0], *baseline_rows(study, plan)]):
        error = mean_and_deviation(study.errors(*row.result))[0]
        axes.axhline(100 * error, label=row.label, zorder=1, **reference_style(number))
    axes.set(xlabel=xlabel, ylabel="frame error (%)", **settings)
    legend_beside(axes)
