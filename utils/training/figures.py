"""TensorBoard's figures of a model after each epoch, from a few fixed validation utterances.

    prediction/<utterance>   true log Mel above, and below it what was predicted n frames before
    epoch/l1_by_mel_bin      the L1 error by mel bin: a bin of the histogram is a mel bin
    features/layer_i         histograms of each layer's hidden states

Nothing here draws from a random generator or changes the model, and no error but that of a full disk ends a training.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from utils.system.errors import one_line
from utils.system.files import naming_file

if TYPE_CHECKING:
    from datasets import LibriSpeech

PICTURES = 2  # utterances that are drawn
UTTERANCES = 4  # that errors and histograms are of
MAX_FRAMES = 400  # of an utterance: 4 s
GAP = 4  # rows between true and predicted
PIXELS = 2  # a mel bin's height and a frame's width
LIMITS = (0.01, 0.99)  # quantiles of the true log Mel that are drawn black and white

log = logging.getLogger("apc")


def draw_epoch(
    writer: SummaryWriter | None, model: torch.nn.Module, val_set: "LibriSpeech", time_shift: int, step: int
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
def _draw(writer: SummaryWriter, model: torch.nn.Module, val_set: "LibriSpeech", time_shift: int, step: int) -> None:
    count = min(UTTERANCES, len(val_set))
    indices = [number * len(val_set) // count for number in range(count)]
    frames = [x[: min(length, MAX_FRAMES + time_shift)] for x, length in (val_set[index] for index in indices)]
    lengths = [len(x) for x in frames]
    inputs = torch.nn.utils.rnn.pad_sequence(frames, batch_first=True)  # (count, longest, mel_dim)
    predicted, feats = model.forward(inputs.to(next(model.parameters()).device), lengths)
    predicted, feats = predicted.float().cpu(), feats.float().cpu()
    pairs = [(x[time_shift:], y[: n - time_shift]) for x, y, n in zip(inputs, predicted, lengths, strict=True)]
    pairs = [(x[: len(y)], y) for x, y in pairs]  # each (frames - n, mel_dim), true and predicted
    for index, (true, of_frame) in list(zip(indices, pairs, strict=True))[:PICTURES]:
        writer.add_image(f"prediction/{val_set.utterance(index)}", _picture(true, of_frame), step)
    errors = torch.cat([(true - of_frame).abs() for true, of_frame in pairs]).mean(0)  # (mel_dim,)
    _add_bars(writer, "epoch/l1_by_mel_bin", errors.numpy(), step)
    is_true = torch.arange(inputs.size(1)) < torch.tensor(lengths)[:, None]  # (count, longest)
    for layer, of_layer in enumerate(feats):
        writer.add_histogram(f"features/layer_{layer}", of_layer[is_true], step)


def _picture(true: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Two (frames, mel_dim) as one picture, (1, height, width) in [0, 1], low frequencies below."""
    low, high = (true.quantile(limit).item() for limit in LIMITS)
    rows = [((x - low) / max(high - low, 1e-6)).clamp(0, 1).T.flip(0) for x in (true, predicted)]  # (mel_dim, frames)
    picture = torch.cat([rows[0], torch.ones(GAP, len(true)), rows[1]])
    return picture.repeat_interleave(PIXELS, 0).repeat_interleave(PIXELS, 1)[None]


def _add_bars(writer: SummaryWriter, tag: str, values: np.ndarray, step: int) -> None:
    """A histogram whose bin i is as high as values[i]."""
    edges = np.arange(1.0, len(values) + 1)
    num = float(len(values))
    totals = {"num": num, "sum": float(values.sum()), "sum_squares": float(np.square(values).sum())}
    bars = {"bucket_limits": edges.tolist(), "bucket_counts": values.tolist()}
    writer.add_histogram_raw(tag, min=0.0, max=num, **totals, **bars, global_step=step)
