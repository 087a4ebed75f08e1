"""Train an APC model on prepared utterances.

    python train_apc.py                                        n = 1, no residual connections, on LibriSpeech
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3
    python train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume

On 8 GPUs of one machine; on 2 machines of 8, the same on both (the first one's address, any free port):

    torchrun --nproc_per_node=8 train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume
    torchrun --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d --rdzv_endpoint=ADDRESS:PORT --rdzv_id=ts3 \
        train_apc.py --rnn_residual --time_shift 3 --experiment_name ts3 --resume

Writes logs/<experiment_name>.dir/ (see utils/training/experiment.py). Can be killed at any moment: the same command
with --resume continues and ends with the same weights, bit for bit on the same machine's CPU with as many processes.
"""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

import argparse
import logging
import math
from contextlib import ExitStack, closing, nullcontext
from typing import Any

import torch
from torch import nn

from apc_model import APCModel
from datasets import BatchOrder, BatchReader, Sets, load_sets
from utils import PrenetConfig, RNNConfig
from utils.corpus.batch_reader import Batch, Share
from utils.corpus.frame_spec import UNKNOWN, FrameSpec
from utils.rnn.precision import describe_precision, scales_gradients
from utils.system.errors import InputError, Stopped, run_script
from utils.system.memory import reuse_freed_memory
from utils.system.signals import StopRequest
from utils.training.arguments import MAY_DIFFER, make_config, may_change, parse_arguments
from utils.training.checkpointing import Checkpointer, Diverged
from utils.training.checkpoints import load_weights, read_checkpoint
from utils.training.distributed import Ranks
from utils.training.experiment import Experiment, NullExperiment
from utils.training.figures import draw_epoch
from utils.training.metrics import EpochBar
from utils.training.objective import Objective
from utils.training.optimization import LearningRate, NonfiniteGuard, make_optimizer, seed_step
from utils.training.progress import Progress
from utils.training.validation import ALL_SPLITS, validation_losses

log = logging.getLogger("apc")


class Trainer:
    """Trains a model and keeps an experiment's directory up to date with it.

    Every process runs the same code on its share of each batch. Losses and gradients are summed over the processes,
    which end together; only the first one's experiment is written.
    """

    def __init__(
        self, args: argparse.Namespace, experiment: Experiment, sets: Sets, reader: BatchReader, ranks: Ranks
    ) -> None:
        self.args, self.experiment, self.reader, self.ranks = args, experiment, reader, ranks
        self.train_set, self.val_set = sets
        self.device = ranks.device
        reader.pin_memory = self.device.type == "cuda"
        torch.manual_seed(args.seed)
        self.model = build_model(args)
        if args.init_from:
            load_weights(self.model, read_checkpoint(args.init_from, args.rnn_residual).weights, args.init_from)
        self.model.time_shift, self.model.frame_spec = args.time_shift, self.train_set.frame_spec
        self.model.to(self.device)
        self.objective = Objective(self.model, args.time_shift, args.loss, args.precision)
        self.parallel = ranks.parallel(self.objective)
        self.optimizer = make_optimizer(args.optimizer, self.model.parameters(), args.learning_rate)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=scales_gradients(args.precision, self.device))
        self.order = BatchOrder(self.train_set.lengths, args.batch_size, args.seed, args.bucketing)
        self.learning_rate = LearningRate(self.optimizer, args, len(self.order))
        self.progress = Progress()
        self.guard = NonfiniteGuard(args.on_nonfinite, self.progress, self.scaler, ranks)
        parts = self.progress, self.model, self.optimizer, self.scaler
        self.checkpointer = Checkpointer(experiment, ranks, args.save_every, args.keep, *parts)

    def run(self, stop: StopRequest) -> None:
        """Train from the last saved state to the end, or until a signal comes.

        Raises:
            Stopped: a signal came; the state is saved.
            InputError: data are damaged, or a loss is not finite; the last good state is saved.
        """
        self.checkpointer.restore()
        if self.progress.is_done(self.args):
            log.info("nothing is left to do: give more --epochs or --max_steps, or more --patience")
        try:
            if self.progress.step == 0:
                self.begin(stop)
            elif self.progress.batch == 0:
                self.draw()  # opening the curves discarded the figures of their last step
            while not self.progress.is_done(self.args):
                self.train_epoch(stop)
        except Diverged:
            raise
        except (InputError, Stopped) as ending:
            self.checkpointer.save_if_finite()
            ending.args = (f"{ending}; continue with the same command and --resume",)
            raise

    def begin(self, stop: StopRequest) -> None:
        """Write the weights and the validation loss before training."""
        self.checkpointer.save_weights("epoch_0")
        if not self.experiment.curves.state_dict():  # resumed before the first step
            val_losses = self.validate(stop)
            self.experiment.curves.add_validation(val_losses, {}, 0, 0)
            log.info("before training: validation loss %.4f", val_losses[ALL_SPLITS])
        self.draw()

    def train_epoch(self, stop: StopRequest) -> None:
        """Train on the remaining batches of an epoch, validate and save."""
        progress, order, args, ranks = self.progress, self.order, self.args, self.ranks
        steps_left = math.inf if args.max_steps is None else max(args.max_steps - progress.step, 0)
        order.epoch, order.first_batch = progress.epoch, progress.batch
        order.end_batch = min(progress.batch + steps_left, len(order))
        shares = self.reader.shares(self.train_set, order, ranks.rank, ranks.size, args.grad_accumulation)
        self.bar = EpochBar(progress.epoch, progress.batch, len(order), ranks.is_first)
        with self.bar, closing(shares):
            for share in ranks.synchronized(shares, stop):
                self.train_step(share)
                if self.checkpointer.is_due() and progress.batch < len(order):  # the epoch's end saves too
                    self.checkpointer.save()
        self.checkpointer.check_weights()
        if progress.batch == len(order):
            self.end_epoch(stop)
        else:
            log.info("epoch %d: stopped by --max_steps after %d steps", progress.epoch, progress.step)
            self.checkpointer.save_weights(f"epoch_{progress.epoch}")
            progress.closed_at = progress.step
        self.checkpointer.save()

    def train_step(self, share: Share) -> None:
        """One step of the optimizer, skipped where the loss or the gradient is not finite."""
        progress = self.progress
        seed_step(self.args.seed, progress.step, self.ranks.rank)  # dropout
        lengths = torch.tensor([self.train_set.lengths[index] for index in share.indices])  # of the whole batch
        num_targets = self.objective.num_targets(lengths, self.train_set.max_seq_len)
        loss = self.compute_gradients(share.parts, num_targets)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.args.clip_thresh)
        loss, norm = torch.stack([loss, norm]).tolist()  # waits for the device
        self.scaler.update()
        speed, points = self.bar.update(loss, int(lengths.sum())), {}
        if self.guard.allows(loss, norm, [self.train_set.utterance(index) for index in share.indices]):
            learning_rate = self.learning_rate.set(progress.step, progress.rate_scale)
            self.optimizer.step()
            progress.add_loss(loss, num_targets)
            points = {"loss": loss, "gradient_norm": norm, "learning_rate": learning_rate, "frames_per_second": speed}
        progress.add_batch()
        self.experiment.curves.add("step", points, progress.step, progress.epoch)

    def compute_gradients(self, parts: list[Batch], num_targets: int) -> torch.Tensor:
        """Compute the gradients of the mean loss over all target frames of a batch, given this process's parts of it.

        Returns:
            That mean, a scalar.
        """
        max_seq_len, loss = self.train_set.max_seq_len, torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for number, part in enumerate(parts, start=1):
            is_last = number == len(parts) or self.ranks.size == 1
            with nullcontext() if is_last else self.parallel.no_sync():  # gradients are summed over ranks once per step
                inputs = part.inputs.to(self.device, non_blocking=True)  # (batch, longest, mel_dim)
                weight = self.objective.num_targets(part.lengths, max_seq_len) / num_targets
                part_loss = weight * self.parallel(inputs, part.lengths, max_seq_len)
                self.scaler.scale(part_loss * self.ranks.size).backward()  # DistributedDataParallel takes the mean
            loss += part_loss.detach()
        self.scaler.unscale_(self.optimizer)
        return self.ranks.sum(loss)

    def end_epoch(self, stop: StopRequest) -> None:
        """Validate, log and write the epoch's weights."""
        progress, epoch = self.progress, self.progress.epoch
        val_losses = self.validate(stop)
        val_loss, train_loss = val_losses[ALL_SPLITS], progress.mean_loss
        results = {"train_loss": train_loss, "best_val_loss": min(val_loss, progress.best_val_loss)}
        by_split = self.experiment.curves.add_validation(val_losses, results, progress.step, epoch)
        self.draw()
        if progress.end_epoch(val_loss, lowers_rate=self.args.lr_schedule == "plateau"):
            self.checkpointer.save_weights("best")
        path = self.checkpointer.save_weights(f"epoch_{epoch}")
        losses = f"training loss {train_loss:.4f}, validation loss {val_loss:.4f} (best {progress.best_val_loss:.4f})"
        log.info("epoch %d: %s, step %d, %s", epoch, losses, progress.step, path)
        if by_split:
            log.info("epoch %d: %s", epoch, ", ".join(f"{curve} {loss:.4f}" for curve, loss in by_split.items()))
        if progress.is_out_of_patience(self.args.patience):
            log.info("no better validation loss since epoch %d: stopped by --patience", progress.best_epoch)

    def validate(self, stop: StopRequest) -> dict[str, float]:
        """The validation loss of each split by name, and of ALL_SPLITS."""
        return validation_losses(self.objective, self.val_set, self.reader, self.ranks, stop)

    def draw(self) -> None:
        """Draw what the model predicts."""
        writer = self.experiment.curves.writer
        draw_epoch(writer, self.model, self.val_set, self.args.time_shift, self.progress.step)


def build_model(args: argparse.Namespace) -> APCModel:
    """The model that the options describe, with fresh weights."""
    mel_dim, hidden_size = args.feature_dim, args.rnn_hidden_size
    prenet = None
    if args.prenet_num_layers:
        prenet = PrenetConfig(mel_dim, hidden_size, args.prenet_num_layers, args.prenet_dropout)
    sizes = hidden_size if prenet else mel_dim, hidden_size, args.rnn_num_layers
    return APCModel(mel_dim, prenet, RNNConfig(*sizes, args.rnn_dropout, args.rnn_residual, args.rnn_type))


def init_frames(args: argparse.Namespace) -> FrameSpec:
    """How the frames of --init_from were made. Raises InputError where its weights do not fit the options."""
    if not args.init_from:
        return UNKNOWN
    checkpoint = read_checkpoint(args.init_from, args.rnn_residual)
    with torch.device("meta"):
        load_weights(build_model(args), checkpoint.weights, args.init_from)
    return checkpoint.frame_spec


def make_experiment(args: argparse.Namespace, config: dict[str, Any], is_first: bool) -> Experiment:
    """The experiment of the first process, or that of another one, which writes nothing."""
    if not is_first:
        return NullExperiment()
    names = args.store_path, args.experiment_name
    return Experiment(*names, config, args.resume, args.overwrite, may_change(args))


def describe(trainer: Trainer) -> None:
    """Log what trains, on what."""
    args, size, device = trainer.args, trainer.ranks.size, trainer.device
    log.info("training set: %s", trainer.train_set)
    log.info("validation set: %s", trainer.val_set)
    log.info("frames: %s", trainer.model.frame_spec.describe())
    start = f" from {args.init_from}" if args.init_from else ""
    precision = describe_precision(args.precision, device)
    processes = f"{size} process{'es' if size > 1 else ''} on {device}"
    log.info("%d parameters%s, %s, %s", sum(p.numel() for p in trainer.model.parameters()), start, precision, processes)


def main() -> None:
    """Train."""
    args = parse_arguments()
    reuse_freed_memory()
    with torch.device("meta"):
        build_model(args)  # options that do not fit together are refused before anything is written
    # The reader first: its workers are forked, and the ranks have threads
    with BatchReader(args.load_data_workers) as reader, Ranks(args.device) as ranks:
        sets = ranks.run_on_all(load_sets, args, ranks.run_on_all(init_frames, args))
        config = make_config(args, sets, ranks.size)
        of_all = {key: value for key, value in config.items() if key not in MAY_DIFFER}
        ranks.check_same_config(of_all | {"device": ranks.device.type})  # auto may find another one
        experiment = ranks.run_on_all(make_experiment, args, config, ranks.is_first)
        with StopRequest(patience=ranks.patience) as stop, ExitStack() as stack:
            ranks.run_on_all(stack.enter_context, experiment)
            trainer = Trainer(args, experiment, sets, reader, ranks)
            describe(trainer)
            trainer.run(stop)
            log.info("done: %d steps; checkpoints are in %s", trainer.progress.step, experiment.path)


if __name__ == "__main__":
    run_script(main)
