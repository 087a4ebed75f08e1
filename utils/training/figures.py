"""TensorBoard's figures of a model before training and after each epoch, from a few fixed validation utterances.

    prediction/<utterance>   true log Mel, what was predicted n frames before, and the difference
    epoch/l1_by_mel_bin      the L1 error by mel bin
    features/layer_i         histograms of each layer's hidden states

Nothing here draws from a random generator or changes the model, and no error but that of a full disk ends a training.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from utils.audio.frames import FRAMES_PER_SECOND, SHIFT_MS
from utils.system.errors import one_line
from utils.system.figures import COLOURS
from utils.system.files import naming_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

    from datasets import LibriSpeech

PICTURES = 2  # utterances that are drawn
UTTERANCES = 4  # that errors and histograms are of
MAX_FRAMES = 400  # of an utterance: 4 s
# Fixed: a layout that matplotlib computes takes longer than all the rest
MARGINS = {"left": 0.09, "right": 1.04, "top": 0.95, "bottom": 0.09, "hspace": 0.3}
LIMITS = (0.01, 0.99)  # quantiles of the true log Mel at the ends of the colour bar

log = logging.getLogger("apc")


def draw_epoch(
    writer: "SummaryWriter | None", model: torch.nn.Module, val_set: "LibriSpeech", time_shift: int, step: int
) -> None:
    """Draw what a model predicts; a failure is a warning, but for a full disk.

    Args:
        writer: TensorBoard's; where None, nothing is drawn.
        model: an APCModel; its mode is kept.
        val_set: utterances of more than `time_shift` frames; the same ones are taken each time.
        time_shift: n, in frames.
        step: the step of the figures.
    """
    if writer is None:
        return
    was_training = model.training
    model.eval()
    try:
        with naming_file(Path(writer.log_dir)):
            _draw(writer, model, val_set, time_shift, step)
    except OSError:  # the disk is full, which the curves meet as well, and which resuming can mend
        raise
    except Exception as error:  # whatever it is, weeks of training are worth more
        log.warning("TensorBoard gets no figures of step %d: %s", step, one_line(error, 200))
    finally:
        model.train(was_training)


@torch.no_grad()
def _draw(writer: "SummaryWriter", model: torch.nn.Module, val_set: "LibriSpeech", time_shift: int, step: int) -> None:
    count = min(UTTERANCES, len(val_set))
    indices = [number * len(val_set) // count for number in range(count)]
    frames = [x[: min(length, MAX_FRAMES + time_shift)] for x, length in (val_set[index] for index in indices)]
    lengths = [len(x) for x in frames]
    inputs = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)  # (count, longest, mel_dim)
    predicted, feats = model.forward(inputs.to(next(model.parameters()).device), lengths)
    predicted, feats = predicted.float().cpu(), feats.float().cpu()
    for index, true, of_frame in list(zip(indices, frames, predicted, strict=True))[:PICTURES]:
        _add_figure(
            writer, f"prediction/{val_set.utterance(index)}", prediction_figure(true, of_frame, time_shift), step
        )
    errors = [
        (x[time_shift:] - y[: len(x) - time_shift]).abs() for x, y in zip(frames, predicted, strict=True)
    ]  # each (frames - n, mel_dim)
    _add_figure(writer, "epoch/l1_by_mel_bin", _error_figure(torch.cat(errors).mean(0)), step)
    is_true = torch.arange(inputs.size(1)) < torch.tensor(lengths)[:, None]  # (count, longest)
    for layer, of_layer in enumerate(feats):
        writer.add_histogram(f"features/layer_{layer}", of_layer[is_true], step)


def prediction_figure(log_mel: torch.Tensor, predicted: torch.Tensor, time_shift: int, title: str = "") -> "Figure":
    """Draw log Mel, what was predicted of it, and the difference, over seconds and mel bins.

    Args:
        log_mel: (frames, mel_dim).
        predicted: (at least frames - n, mel_dim), at t the prediction of frame t + n.
        time_shift: n, in frames.
        title: added to that of log Mel.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.6))
    unknown = torch.full((time_shift, log_mel.size(1)), float("nan"))  # the first frames, which nothing predicts
    predicted = torch.cat([unknown, predicted[: len(log_mel) - time_shift]])
    low, high = (log_mel.quantile(limit).item() for limit in LIMITS)
    difference = predicted - log_mel
    most = difference.abs().nanquantile(LIMITS[1]).item()
    panels = (
        (f"log Mel{f' of {title}' if title else ''}", log_mel, "magma", low, high),
        (f"predicted {time_shift * SHIFT_MS} ms ahead", predicted, "magma", low, high),
        ("difference (predicted - log Mel)", difference, "RdBu_r", -most, most),
    )
    extent = (0, len(log_mel) / FRAMES_PER_SECOND, 0, log_mel.size(1))
    for axes, (name, frames, colours, least, greatest) in zip(
        figure.subplots(3, 1, sharex=True, gridspec_kw=MARGINS), panels, strict=True
    ):
        style = {"origin": "lower", "aspect": "auto", "extent": extent, "cmap": colours, "interpolation": "nearest"}
        image = axes.imshow(frames.T.numpy(), vmin=least, vmax=greatest, **style)
        axes.set_title(name, fontsize=10)
        axes.set_ylabel("mel bin")
        figure.colorbar(image, ax=axes, pad=0.02)
    axes.set_xlabel("time (s)")
    return figure


def _error_figure(errors: torch.Tensor) -> "Figure":
    """Draw the L1 error of each mel bin, (mel_dim,)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4))
    axes = figure.subplots(gridspec_kw={"left": 0.12, "right": 0.97, "top": 0.9, "bottom": 0.15})
    axes.stairs(errors.numpy(), np.arange(len(errors) + 1), color=COLOURS[0])
    axes.set(xlabel="mel bin", ylabel="L1 error", xlim=(0, len(errors)), ylim=(0, None), title="error by mel bin")
    return figure


def _add_figure(writer: "SummaryWriter", tag: str, figure: "Figure", step: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    writer.add_image(tag, np.asarray(canvas.buffer_rgba())[..., :3], step, dataformats="HWC")
