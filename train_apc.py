"""Train an APC model on prepared utterances.

    python train_apc.py                                        the papers' model but for --rnn_residual, on LibriSpeech
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume

On 8 GPUs of one machine; on 2 machines of 8, the same on both (the first one's address, any free port):

    torchrun --nproc_per_node=8 train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=ADDRESS:PORT --rdzv_id=ts3 \
        train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume

Writes logs/<experiment_name>.dir/ (see utils/training/experiment.py). Can be killed at any moment: the same command
with --resume continues and ends with the same weights, bit for bit, on the same machine with as many processes.
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import torch
from torch import nn

from apc_model import APCModel
from datasets import Batch, BatchOrder, BatchReader, LibriSpeech, Share, load_split, shares
from utils import PrenetConfig, RNNConfig
from utils.system.errors import InputError, Stopped, one_line, run_script
from utils.system.memory import reuse_freed_memory
from utils.system.signals import StopRequest
from utils.training.arguments import MAY_DIFFER, may_change, parse_training_options
from utils.training.checkpoints import load_weights, read_checkpoint
from utils.training.distributed import Ranks
from utils.training.experiment import Bystander, Experiment
from utils.training.figures import draw_epoch
from utils.training.metrics import StepLog, Unread
from utils.training.objective import Objective
from utils.training.optimizers import make_optimizer, step_if_finite
from utils.training.progress import Progress
from utils.training.saves import Saves
from utils.training.schedules import rate_share
from utils.training.training_state import seed_step
from utils.training.validation import validation_losses

READ_EVERY = {"cpu": 1, "cuda": 50}  # steps between two readings of losses from the device: each one waits for it
MAX_SKIPPED_IN_A_ROW = 5
NAMES_CHARACTERS = 80  # of a batch's utterances in an error message

log = logging.getLogger("apc")


class Trainer:
    """Trains a model and keeps an experiment's directory up to date with it.

    Every process runs the same code on its share of each batch: what they add up (`ranks.sum`, the gradients) and what
    they end by (`ranks.in_step`, `ranks.ending`) keeps them alike. Only the first one's experiment is written.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        experiment: Experiment,
        sets: tuple[LibriSpeech, LibriSpeech],
        reader: BatchReader,
        ranks: Ranks,
    ) -> None:
        self.options, self.experiment, self.reader, self.ranks = options, experiment, reader, ranks
        self.train_set, self.val_set = sets
        self.device = ranks.device
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.backends.cudnn.allow_tf32 = False  # float32 products, as on a CPU and in the released code's day
        torch.manual_seed(options.seed)
        self.model = build_model(options)
        if options.init_from:
            checkpoint = read_checkpoint(options.init_from, options.rnn_residual)
            load_weights(self.model, checkpoint.weights, options.init_from)
        self.model.to(self.device)
        self.objective = Objective(self.model, options.time_shift, options.loss, options.precision)
        nothing = torch.zeros(0, 0, self.model.mel_dim, device=self.device), torch.zeros(0, dtype=torch.int64), 0
        self.parallel = ranks.parallel(self.objective, *nothing)
        self.optimizer = make_optimizer(options.optimizer, self.model.parameters(), options.learning_rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=options.precision == "fp16")
        self.order = BatchOrder(self.train_set.lengths, options.batch_size, options.seed, options.bucketing)
        self.total_steps = min(options.epochs * len(self.order), options.max_steps or math.inf)
        self.steps = StepLog()
        self.saves = Saves(experiment, ranks, options.save_every, self.model, self.optimizer, self.scaler)
        self.progress = Progress()

    def run(self, stop: StopRequest) -> None:
        """Train from where the experiment stands to its end, or until a signal comes.

        Raises:
            Stopped: a signal came; the state is saved.
            InputError: data are damaged, or a loss is not finite; the last good state is saved.
        """
        self.progress = self.saves.restore()
        if self.progress.step == 0:
            self.experiment.save_weights(self.model, 0)
        elif self.progress.batch == 0:
            self.draw()  # opening the curves has made void what is at their last step
        if self.is_done():
            log.info("nothing is left to do: give more --epochs or --max_steps, or more --patience")
        try:
            while not self.is_done():
                self.train_epoch(stop)
        except (InputError, Stopped) as ending:
            self.save_what_is_good()
            ending.args = (f"{ending}; continue with the same command and --resume",)
            raise

    def train_epoch(self, stop: StopRequest) -> None:
        """What is left of an epoch: its batches, validation, checkpoint."""
        progress, order, options = self.progress, self.order, self.options
        steps_left = math.inf if options.max_steps is None else max(options.max_steps - progress.step, 0)
        order.epoch, order.first_batch = progress.epoch, progress.batch
        order.end_batch = min(progress.batch + steps_left, len(order))
        read = shares(self.reader, self.train_set, order, self.ranks.rank, self.ranks.size, options.grad_accumulation,
                      self.device.type == "cuda")  # fmt: skip
        bar = self.steps.start_epoch(progress.epoch, progress.batch, len(order), self.ranks.is_first)
        with bar, closing(read):
            for batch in self.ranks.in_step(read, stop):
                self.train_step(batch)
                if len(self.steps.unread) >= READ_EVERY[self.device.type]:
                    self.read_losses()
                if self.saves.is_due(progress) and progress.batch < len(order):  # the epoch's end saves too
                    self.read_losses()
                    self.saves.save(progress)
            self.read_losses()
        if progress.batch == len(order):
            self.end_epoch(stop)
        else:
            log.info("epoch %d: stopped by --max_steps after %d steps", progress.epoch, progress.step)
            self.saves.check_weights(progress)
            self.experiment.save_weights(self.model, progress.epoch)
            progress.closed_at = progress.step
            self.saves.save(progress)

    def train_step(self, batch: Share) -> None:
        """One step of the optimizer, left out where the loss or the gradient is not finite."""
        progress = self.progress
        seed_step(self.options.seed, progress.step, self.ranks.rank)  # dropout
        lengths = torch.tensor([self.train_set.lengths[index] for index in batch.indices])  # of the whole batch
        targets = self.objective.count(lengths, self.train_set.max_seq_len)
        loss = self.compute_gradients(batch.parts, targets)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip_thresh)
        values = torch.stack([loss, norm])
        learning_rate = self.set_learning_rate()
        step_if_finite(self.optimizer, values)
        self.scaler.update()
        progress.step += 1
        progress.batch += 1
        frames = int(lengths.sum())
        self.steps.add(Unread(progress.step, batch.indices, frames, targets, learning_rate, values))

    def compute_gradients(self, parts: list[Batch], targets: int) -> torch.Tensor:
        """The gradients of the mean loss over all target frames of a batch, of which this process has some parts.

        Returns:
            That mean, a scalar.
        """
        max_seq_len, loss = self.train_set.max_seq_len, torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts) or self.ranks.size == 1
            with nullcontext() if is_last else self.parallel.no_sync():  # ranks add up their gradients once a step
                inputs = part.inputs.to(self.device, non_blocking=True)  # (batch, longest, mel_dim)
                share = self.objective.count(part.lengths, max_seq_len) / targets
                part_loss = share * self.parallel(inputs, part.lengths, max_seq_len)
                self.scaler.scale(part_loss * self.ranks.size).backward()  # they take the mean over ranks
            loss += part_loss.detach()
        self.scaler.unscale_(self.optimizer)
        return self.ranks.sum(loss)

    def set_learning_rate(self) -> float:
        """Set the optimizer's learning rate to that of the step under way, and return it."""
        options, progress = self.options, self.progress
        share = rate_share(progress.step, options.lr_schedule, options.warmup_steps, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * progress.rate_scale * share
        return group["lr"]

    def read_losses(self) -> None:
        """Read the losses of the steps since the last reading, add them up and put them on the curves."""
        for step, loss, norm in self.steps.read():
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self.leave_out(step, loss, norm)
                continue
            self.progress.add_loss(loss, step.targets)
            points = {"loss": loss, "gradient_norm": norm, "learning_rate": step.learning_rate}
            self.experiment.add_points("step", points | {"frames_per_second": self.steps.speed}, step.step)

    def leave_out(self, step: Unread, loss: float, norm: float) -> None:
        """Deal with a step whose loss or gradient was not finite: its update was not made.

        Raises:
            InputError: --on_nonfinite stop, or too many in a row.
        """
        progress = self.progress
        if math.isfinite(loss) and self.scaler.is_enabled() and self.scaler.get_scale() >= 1:
            return  # the gradient scaler tried out too large a scale, and has lowered it
        progress.skipped_in_a_row += 1
        names = [self.train_set.utterance(index) for index in step.indices]
        found = f"step {step.step}: loss {loss}, gradient norm {norm}; its batch of {len(names)}:"
        log.warning("left out %s %s", found, " ".join(names))
        if self.options.on_nonfinite == "skip" and progress.skipped_in_a_row <= MAX_SKIPPED_IN_A_ROW:
            return
        self.saves.is_good = step.step == progress.step  # else later steps came on top: the last save stays the last
        progress.step, progress.batch = progress.step - 1, progress.batch - 1  # resuming meets the batch again
        in_a_row, progress.skipped_in_a_row = progress.skipped_in_a_row, 0
        raise self.ranks.ending(
            InputError(
                f"{found} {one_line(' '.join(names), NAMES_CHARACTERS)} (the log has all); left out {in_a_row} "
                f"in a row, --on_nonfinite skip allows {MAX_SKIPPED_IN_A_ROW}"
            )
        )

    def end_epoch(self, stop: StopRequest) -> None:
        """Validate, log, write the epoch's weights and save."""
        progress, epoch = self.progress, self.progress.epoch
        self.saves.check_weights(progress)
        val_losses = self.validate(stop)
        val_loss, train_loss = val_losses[""], progress.mean_loss
        if progress.note_validation(val_loss, cuts_rate=self.options.lr_schedule == "plateau"):
            self.experiment.save_weights(self.model, None)
        points = {"train_loss": train_loss, "val_loss": val_loss}
        by_split = {f"val_loss/{split}": loss for split, loss in val_losses.items() if split and len(val_losses) > 2}
        self.experiment.add_points("epoch", points | by_split, progress.step)
        self.draw()
        path = self.experiment.save_weights(self.model, epoch)
        log.info("epoch %d: training loss %.4f, validation loss %.4f (best %.4f), step %d, %s",
                 epoch, train_loss, val_loss, progress.best_val_loss, progress.step, path)  # fmt: skip
        if by_split:
            log.info("epoch %d: %s", epoch, ", ".join(f"{curve} {loss:.4f}" for curve, loss in by_split.items()))
        progress.next_epoch()
        if progress.is_out_of_patience(self.options.patience):
            log.info("no better validation loss since epoch %d: stopped by --patience", progress.best_epoch)
        self.saves.save(progress)

    def draw(self) -> None:
        """Put pictures of what the model predicts beside the curves."""
        if self.ranks.is_first:
            draw_epoch(self.experiment.writer, self.model, self.val_set, self.options.time_shift, self.progress.step)

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """The validation loss of each split by name, and of all of them under the name ''."""

        def load(order: Iterable[list[int]]) -> Iterator[Batch]:
            return self.reader.batches(self.val_set, order, self.device.type == "cuda")

        return validation_losses(self.objective, self.val_set, load, self.ranks, stop)

    def save_what_is_good(self) -> None:
        """Save at the end of a run that was stopped, unless what is there now is worse than the last save."""
        try:
            self.read_losses()
        except InputError as error:  # one that was not read before is not finite
            log.warning("%s", error)
        self.saves.save_if_good(self.progress)

    def is_done(self) -> bool:
        """Whether every epoch, --max_steps or --patience is reached and the weights are written."""
        return self.progress.is_done(self.options.epochs, self.options.max_steps, self.options.patience)


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
    train_set = load_split(root, options.train_split, mel_dim, time_shift, options.train_fraction, options.seed)
    return train_set, load_split(root, options.val_split, mel_dim, time_shift)


def make_config(options: argparse.Namespace, sets: tuple[LibriSpeech, LibriSpeech], ranks: Ranks) -> dict[str, Any]:
    """What config.json holds: every option, and digests of the data, so that a run can be made again."""
    config = {**vars(options), "save_every": options.save_every.text, "num_processes": ranks.size}
    return config | {"train_data": sets[0].fingerprint(), "val_data": sets[1].fingerprint(), "torch": torch.__version__}


def describe(trainer: Trainer) -> None:
    """Log what trains, on what."""
    options, ranks = trainer.options, trainer.ranks
    log.info("training set: %s", trainer.train_set)
    log.info("validation set: %s", trainer.val_set)
    precision = f"{options.precision}{' (TF32 off)' if trainer.device.type == 'cuda' else ''}"
    log.info("%d parameters%s, %s, %d process%s on %s; curves: tensorboard --logdir %s",
             sum(p.numel() for p in trainer.model.parameters()), f" from {options.init_from}" * bool(options.init_from),
             precision, ranks.size, "es" * (ranks.size > 1), trainer.device, trainer.experiment.path)  # fmt: skip
    if options.batch_size < ranks.size * options.grad_accumulation:
        log.warning("--batch_size %d is shared out over %d processes in %d parts: some have nothing to do",
                    options.batch_size, ranks.size, options.grad_accumulation)  # fmt: skip


def main() -> None:
    """Train."""
    options = parse_training_options()
    reuse_freed_memory()
    with torch.device("meta"):
        build_model(options)  # options that do not fit together are refused before anything is written
    # The reader first: its workers are forked, and the ranks have threads
    with BatchReader(options.load_data_workers) as reader, Ranks(options.device) as ranks:
        sets = ranks.together(load_sets, options)
        config = make_config(options, sets, ranks)
        ranks.check_alike({key: value for key, value in config.items() if key not in MAY_DIFFER})
        experiment = Experiment(options.store_path, options.experiment_name, config, options.resume, options.overwrite,
                                may_change(options)) if ranks.is_first else Bystander()  # fmt: skip
        with StopRequest(patience=ranks.patience) as stop, ExitStack() as stack:
            ranks.together(stack.enter_context, experiment)
            trainer = Trainer(options, experiment, sets, reader, ranks)
            describe(trainer)
            trainer.run(stop)
            log.info("done: %d steps; checkpoints are in %s", trainer.progress.step, experiment.path)


if __name__ == "__main__":
    run_script(main)
