"""Runs of train_apc.py in the process of the tests, and what they leave."""

import sys
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train_apc

MEL, SEQ = 5, 30
TOO_LARGE = 3e38  # a number of a frame that makes a loss infinite or NaN
SMALL = (
    f"--feature_dim {MEL} --rnn_hidden_size 8 --rnn_num_layers 2 --rnn_residual --batch_size 4 --epochs 3 "
    "--load_data_workers 0 --learning_rate 1e-2 --librispeech_path data --train_split train --val_split dev"
)


def train(monkeypatch, *options, base=SMALL):
    """Run train_apc.py in this process."""
    monkeypatch.setattr(sys, "argv", ["train_apc.py", *base.split(), *map(str, options)])
    train_apc.main()


def stop_at(monkeypatch, step, action):
    """Do something when a training step is done."""
    train_step = train_apc.Trainer.train_step

    def watched(self, batch):
        train_step(self, batch)
        if self.progress.step == step:
            action()

    monkeypatch.setattr(train_apc.Trainer, "train_step", watched)


def curves(experiment):
    """{curve: [(step, value)]} as TensorBoard shows them; speed aside, which no two runs share."""
    events = EventAccumulator(str(next(experiment.glob("*.tb_log"))), size_guidance={"scalars": 0}).Reload()
    names = [name for name in events.Tags()["scalars"] if not name.endswith("frames_per_second")]
    found = {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}
    # an epoch's points may be there twice, the same ones, where a kill came between them and a save
    return {name: sorted(set(points)) if name.startswith("epoch/") else points for name, points in found.items()}


def weights(experiment):
    """{file name: bytes} of an experiment's checkpoints, without the experiment's name."""
    return {path.name.split("__")[1]: path.read_bytes() for path in experiment.glob("*.model")}


def made(name):
    """All that two runs of one training must have in common: checkpoints and curves of the experiment logs/<name>."""
    experiment = Path("logs") / f"{name}.dir"
    return weights(experiment), curves(experiment)
