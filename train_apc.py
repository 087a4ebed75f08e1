"""Train an APC model on prepared utterances.

    python train_apc.py                                        the papers' model but for --rnn_residual, on LibriSpeech
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume

Writes logs/<experiment_name>.dir/ (see utils/experiment.py). Can be killed at any moment: the same command with
--resume goes on and ends with the same weights, bit for bit, on the same machine.
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import logging
import math
import time
from contextlib import closing
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from apc_model import APCModel
from datasets import Batch, BatchOrder, LibriSpeech, batches, dead_worker, load_split, make_loader
from utils import PrenetConfig, RNNConfig
from utils.errors import InputError, Stopped, run_script
from utils.experiment import Experiment
from utils.memory import reuse_freed_memory
from utils.objective import apc_loss, count_targets
from utils.optimizers import make_optimizer, step_if_finite
from utils.options import MAY_CHANGE, parse_training_options, pick_device
from utils.progress import Progress, Unread
from utils.signals import StopRequest
from utils.training_state import restore_training, training_state

READ_EVERY = {"cpu": 1, "cuda": 50}  # steps between two readings of losses from the device: each one waits for it
MAX_SKIPPED_IN_A_ROW = 5
VALIDATION_FRAMES = 100_000  # padded frames in a validation batch: no gradients, so far more than in training
LINE_EVERY_S = 60  # between lines on progress where there is no terminal for a bar
FRAMES_PER_HOUR = 360_000  # of 10 ms

log = logging.getLogger("apc")


class Trainer:
    """Trains a model and keeps an experiment's directory up to date with it."""

    def __init__(
        self, options: argparse.Namespace, experiment: Experiment, sets: tuple[LibriSpeech, LibriSpeech]
    ) -> None:
        self.options = options
        self.experiment = experiment
        self.train_set, self.val_set = sets
        self.device = pick_device(options.device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.allow_tf32 = False  # float32 products, as on a CPU and in the released code's day
        torch.manual_seed(options.seed)
        self.model = build_model(options).to(self.device)
        self.optimizer = make_optimizer(options.optimizer, self.model.parameters(), options.learning_rate)
        self.order = BatchOrder(self.train_set.lengths, options.batch_size, options.seed, options.bucketing)
        self.progress = Progress()
        self.unread: list[Unread] = []
        self.last_save = self.last_read = self.last_line = time.monotonic()
        self.last_saved_step = 0
        self.is_good = True  # whether the weights are worth saving
        self.bar = tqdm(disable=True)

    def run(self, stop: StopRequest) -> None:
        """Train from where the experiment stands to its end, or until a signal comes.

        Raises:
            Stopped: a signal came; the state is saved.
            InputError: data are damaged, or a loss is not finite; the last good state is saved.
        """
        self.restore()
        self.experiment.open_curves(self.progress.step + 1)
        if self.progress.step == 0:
            self.experiment.save_weights(self.model, 0)
        if self.is_done():
            log.info("nothing is left to do: give more --epochs or --max_steps")
        try:
            while not self.is_done():
                self.train_epoch(stop)
        except (InputError, Stopped) as ending:
            self.save_what_is_good()
            ending.args = (f"{ending}; continue with the same command and --resume",)
            raise
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            # PyTorch raises this wherever the main process happens to be, perhaps within a step: nothing is saved
            raise InputError(f"{dead_worker(error)}; continue with the same command and --resume") from error

    def train_epoch(self, stop: StopRequest) -> None:
        """What is left of an epoch: its batches, validation, checkpoint."""
        progress = self.progress
        self.order.epoch, self.order.first_batch = progress.epoch, progress.batch
        if self.is_out_of_steps():  # a run that was stopped between its last step and the epoch's end
            self.order.first_batch = len(self.order)
        loader = make_loader(self.train_set, self.order, self.options.load_data_workers, self.device.type == "cuda")
        self.last_read = time.monotonic()
        self.bar = tqdm(total=len(self.order), initial=progress.batch, desc=f"epoch {progress.epoch}", disable=None)
        with self.bar, closing(batches(loader)) as epoch_batches:
            for batch in epoch_batches:
                self.train_step(batch)
                if len(self.unread) >= READ_EVERY[self.device.type]:
                    self.read_losses()
                self.bar.update()
                stop.check()
                is_last = progress.batch == len(self.order)
                if self.is_out_of_steps() and not is_last:
                    break
                if self.is_save_due() and not is_last:  # the epoch's end saves too, after its points on the curves
                    self.read_losses()
                    self.save()
            self.read_losses()
        if progress.batch == len(self.order):
            self.end_epoch(stop)
        else:
            log.info("epoch %d: stopped by --max_steps after %d steps", progress.epoch, progress.step)
            self.check_weights()
            self.experiment.save_weights(self.model, progress.epoch)
            progress.closed_at = progress.step
            self.save()

    def train_step(self, batch: Batch) -> None:
        """One step of the optimizer, left out where the loss or the gradient is not finite."""
        inputs = batch.inputs.to(self.device, non_blocking=True)  # (batch, longest, mel_dim)
        loss = self.loss(inputs, batch.lengths, self.train_set.max_seq_len)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_thresh)
        values = torch.stack([loss.detach(), norm])
        step_if_finite(self.optimizer, values)
        self.progress.step += 1
        self.progress.batch += 1
        targets = count_targets(batch.lengths, self.options.time_shift, self.options.loss, self.train_set.max_seq_len)
        self.unread.append(Unread(self.progress.step, batch.indices, int(batch.lengths.sum()), targets, values))

    def loss(self, inputs: torch.Tensor, lengths: torch.Tensor, max_seq_len: int) -> torch.Tensor:
        """The objective that the options name; inputs (batch, longest, mel_dim), lengths (batch,) on the CPU."""
        return apc_loss(self.model, inputs, lengths, self.options.time_shift, self.options.loss, max_seq_len)

    def read_losses(self) -> None:
        """Read the losses of the steps since the last reading, add them up and put them on the curves."""
        if not self.unread:
            return
        values = torch.stack([step.values for step in self.unread]).tolist()  # waits for the device, once
        seconds = time.monotonic() - self.last_read
        speed = sum(step.frames for step in self.unread) / max(seconds, 1e-9)
        steps, self.unread = self.unread, []
        for step, (loss, norm) in zip(steps, values, strict=True):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.leave_out(step, loss, norm)
                continue
            self.progress.skipped_in_a_row = 0
            self.progress.loss_sum += loss * step.targets
            self.progress.targets += step.targets
            points = {"loss": loss, "gradient_norm": norm, "learning_rate": self.options.learning_rate}
            for curve, value in (points | {"frames_per_second": speed}).items():
                self.experiment.add_point(f"step/{curve}", value, step.step)
        self.last_read = time.monotonic()
        self.bar.set_postfix_str(f"loss {values[-1][0]:.4f}, {speed:,.0f} frames/s", refresh=False)
        if self.bar.disable and self.last_read - self.last_line > LINE_EVERY_S:
            self.last_line = self.last_read
            log.info("epoch %d: batch %d of %d, %s", self.progress.epoch, self.progress.batch, len(self.order),
                     f"loss {values[-1][0]:.4f}, {speed:,.0f} frames/s")  # fmt: skip

    def leave_out(self, step: Unread, loss: float, norm: float) -> None:
        """Deal with a step whose loss or gradient was not finite: its update was not made.

        Raises:
            InputError: --on_nonfinite stop, or too many in a row.
        """
        progress = self.progress
        progress.skipped_in_a_row += 1
        names = " ".join(self.train_set.utterance(index) for index in step.indices)
        found = f"step {step.step}: loss {loss}, gradient norm {norm}; its batch: {names}"
        if self.options.on_nonfinite == "skip" and progress.skipped_in_a_row <= MAX_SKIPPED_IN_A_ROW:
            log.warning("left out %s", found)
            return
        self.is_good = step.step == progress.step  # else later steps were taken on top: the last save stays the last
        progress.step, progress.batch = progress.step - 1, progress.batch - 1  # resuming meets the batch again
        in_a_row, progress.skipped_in_a_row = progress.skipped_in_a_row, 0
        raise InputError(f"{found}; left out {in_a_row} in a row, --on_nonfinite skip allows {MAX_SKIPPED_IN_A_ROW}")

    def end_epoch(self, stop: StopRequest) -> None:
        """Validate, log, write the epoch's weights and save."""
        progress, epoch = self.progress, self.progress.epoch
        self.check_weights()
        val_loss = self.validate(stop)
        train_loss = progress.loss_sum / max(progress.targets, 1)
        progress.best_val_loss = min(progress.best_val_loss, val_loss)
        self.experiment.add_point("epoch/train_loss", train_loss, progress.step)
        self.experiment.add_point("epoch/val_loss", val_loss, progress.step)
        path = self.experiment.save_weights(self.model, epoch)
        log.info("epoch %d: training loss %.4f, validation loss %.4f (best %.4f), step %d, %s",
                 epoch, train_loss, val_loss, progress.best_val_loss, progress.step, path)  # fmt: skip
        progress.epoch, progress.batch, progress.loss_sum, progress.targets = epoch + 1, 0, 0.0, 0
        self.save()

    @torch.no_grad()
    def validate(self, stop: StopRequest) -> float:
        """The loss over the validation set, in the largest batches that fit."""
        batch_size = max(1, VALIDATION_FRAMES // max(self.val_set.lengths))
        self.model.eval()
        try:
            while True:
                try:
                    return self.mean_loss(batch_size, stop)
                except torch.OutOfMemoryError:
                    if batch_size == 1:
                        raise
                    batch_size //= 2
        finally:
            self.model.train()

    def mean_loss(self, batch_size: int, stop: StopRequest) -> float:
        """The loss over the validation set in batches of a size."""
        order = BatchOrder(self.val_set.lengths, batch_size, bucketing=True)
        loss_sum, targets = torch.zeros((), device=self.device), 0
        loader = make_loader(self.val_set, order, self.options.load_data_workers, self.device.type == "cuda")
        with closing(batches(loader)) as val_batches:
            for batch in val_batches:
                inputs = batch.inputs.to(self.device, non_blocking=True)
                max_seq_len = self.val_set.max_seq_len
                count = count_targets(batch.lengths, self.options.time_shift, self.options.loss, max_seq_len)
                loss_sum += count * self.loss(inputs, batch.lengths, max_seq_len)
                targets += count
                stop.check()
        if not loss_sum.isfinite():
            names = [self.val_set.utterance(i) for i, (x, n) in enumerate(self.val_set) if not x[:n].isfinite().all()]
            raise InputError(
                f"the validation loss is {loss_sum.item()}; not finite in the data: {' '.join(names) or 'none'}"
            )
        return loss_sum.item() / targets

    def is_done(self) -> bool:
        """Whether every epoch, or --max_steps, is reached and its weights are written."""
        is_closed = self.progress.batch == 0 or self.progress.closed_at == self.progress.step
        return self.progress.epoch > self.options.epochs or (self.is_out_of_steps() and is_closed)

    def is_out_of_steps(self) -> bool:
        """Whether --max_steps is reached."""
        return self.options.max_steps is not None and self.progress.step >= self.options.max_steps

    def is_save_due(self) -> bool:
        """Whether --save_every has passed since the last save."""
        steps = self.progress.step - self.last_saved_step
        return self.options.save_every.is_due(steps, time.monotonic() - self.last_save)

    def check_weights(self) -> None:
        """Raise InputError where a step has made the weights NaN or infinite."""
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            self.is_good = False
            raise InputError(f"step {self.progress.step} or one shortly before made the weights NaN or infinite; "
                             "lower --learning_rate")  # fmt: skip

    def save_what_is_good(self) -> None:
        """Save at the end of a run that was stopped, unless what is there now is worse than the last save."""
        try:
            self.read_losses()
        except InputError as error:
            log.warning("%s", error)
        if self.is_good:
            try:
                self.save()
            except InputError as error:  # the weights are not finite
                log.warning("%s", error)

    def save(self) -> None:
        """Save all that resuming needs."""
        self.check_weights()
        self.experiment.save_state(training_state(self.progress, self.model, self.optimizer), self.progress.step)
        self.last_save, self.last_saved_step = time.monotonic(), self.progress.step

    def restore(self) -> None:
        """Take up the experiment's last saved state, if it has one."""
        state = self.experiment.load_state()
        if state is None:
            return
        try:
            self.progress = restore_training(state, self.model, self.optimizer)
        except InputError as error:
            raise InputError(f"{self.experiment.path}: {error}; --overwrite the experiment") from error
        self.last_saved_step = self.progress.step
        log.info("epoch %d, batch %d, step %d", self.progress.epoch, self.progress.batch, self.progress.step)


def build_model(options: argparse.Namespace) -> APCModel:
    """The model that the options describe, with fresh weights."""
    mel_dim, hidden_size = options.feature_dim, options.rnn_hidden_size
    prenet = None
    if options.prenet_num_layers:
        prenet = PrenetConfig(mel_dim, hidden_size, options.prenet_num_layers, options.prenet_dropout)
    rnn_input_size = hidden_size if prenet else mel_dim
    rnn = RNNConfig(rnn_input_size, hidden_size, options.rnn_num_layers, options.rnn_dropout, options.rnn_residual,
                    options.rnn_type)  # fmt: skip
    return APCModel(mel_dim, prenet, rnn)


def load_sets(options: argparse.Namespace) -> tuple[LibriSpeech, LibriSpeech]:
    """The training and the validation set."""
    root, mel_dim, time_shift = options.librispeech_path, options.feature_dim, options.time_shift
    return tuple(load_split(root, names, mel_dim, time_shift) for names in (options.train_split, options.val_split))


def make_config(options: argparse.Namespace, sets: tuple[LibriSpeech, LibriSpeech]) -> dict[str, Any]:
    """What config.json holds: every option, and digests of the data, so that a run can be made again."""
    config = {**vars(options), "save_every": options.save_every.text}
    return config | {"train_data": sets[0].fingerprint(), "val_data": sets[1].fingerprint(), "torch": torch.__version__}


def main() -> None:
    """Train."""
    options = parse_training_options()
    reuse_freed_memory()
    pick_device(options.device)
    with torch.device("meta"):
        build_model(options)  # options that do not fit together are refused before anything is written
    sets = load_sets(options)
    experiment = Experiment(options.store_path, options.experiment_name, make_config(options, sets),
                            options.resume, options.overwrite, MAY_CHANGE)  # fmt: skip
    with StopRequest() as stop, experiment:
        trainer = Trainer(options, experiment, sets)
        for name, dataset in zip(("training", "validation"), sets, strict=True):
            log.info("%s set: %d utterances, %.2f hours, %d left out (of %d frames or fewer), %s", name, len(dataset),
                     sum(dataset.lengths) / FRAMES_PER_HOUR, dataset.left_out, options.time_shift,
                     ", ".join(map(str, dataset.paths)))  # fmt: skip
        log.info("%d parameters, on %s; curves: tensorboard --logdir %s",
                 sum(p.numel() for p in trainer.model.parameters()), trainer.device, experiment.path)  # fmt: skip
        trainer.run(stop)
        log.info("done: %d steps; checkpoints are in %s", trainer.progress.step, experiment.path)


if __name__ == "__main__":
    run_script(main)
