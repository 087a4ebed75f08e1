"""Classifiers on frozen features: softmax regression, and perceptrons of one and three hidden layers.

Adam minimises the cross entropy of standardised inputs. The learning rate is halved after each epoch without a lower
error on dev, and training stops after a few of them. One seed determines the initial weights and the order of the data.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

HIDDEN_LAYERS = {"linear": 0, "mlp1": 1, "mlp3": 3}
CLASSIFIERS = tuple(HIDDEN_LAYERS)
MIN_STD = 1e-5  # of an input; one that is constant becomes zero
EVAL_ROWS = 16384  # in a batch
MIN_STEPS = 50  # of an epoch, approximately: small sets get smaller batches


class ProbeOptions(NamedTuple):
    """The settings of training a probe."""

    hidden_size: int = 512  # of mlp1 and mlp3
    learning_rate: float = 2e-3  # of the first epoch
    batch_size: int = 2048  # rows, at most
    max_epochs: int = 30
    patience: int = 3  # epochs without a lower error on dev after which training stops


class Rows(Protocol):
    """A matrix, float32 (rows, size), whose rows are read when asked for: a tensor, or features in a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice | torch.Tensor) -> torch.Tensor: ...


class Labelled(NamedTuple):
    """Rows of features and their classes, int64 (rows,)."""

    features: Rows
    classes: torch.Tensor

    def in_order(self) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Batches from the first row to the last: their row numbers, features and classes."""
        for start in range(0, len(self.classes), EVAL_ROWS):
            rows = slice(start, start + EVAL_ROWS)
            yield rows, self.features[rows], self.classes[rows]


class Probe(nn.Module):
    """[standardise, (Linear, ReLU) x hidden layers, Linear]."""

    def __init__(
        self, mean: torch.Tensor, std: torch.Tensor, num_classes: int, num_hidden: int, hidden_size: int
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)  # (size,)
        self.register_buffer("scale", torch.where(std > MIN_STD, 1 / std, 0.0))  # (size,)
        sizes = [len(mean)] + [hidden_size] * num_hidden
        layers = [nn.Sequential(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-1], num_classes))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(rows, size) on any device -> logits (rows, num_classes) on that of the probe."""
        return self.layers((features.to(self.mean.device) - self.mean) * self.scale)

    @torch.no_grad()
    def log_posteriors(self, features: torch.Tensor) -> torch.Tensor:
        """(rows, size) -> (rows, num_classes), on the CPU."""
        return F.log_softmax(self(features), 1).cpu()

    @torch.no_grad()
    def error(self, data: Labelled) -> float:
        """The fraction of rows that are classified wrongly."""
        wrong = sum(int((self(features).argmax(1).cpu() != classes).sum()) for _, features, classes in data.in_order())
        return wrong / len(data.classes)


def make_probe(train: Labelled, num_classes: int, classifier: str, seed: int, hidden_size: int) -> Probe:
    """An untrained probe, which standardises by the mean and standard deviation of the training set."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler()
    for _, features, _ in train.in_order():
        scaler.partial_fit(features.numpy())
    mean, std = (torch.from_numpy(moment).float() for moment in (scaler.mean_, np.sqrt(scaler.var_)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Probe(mean, std, num_classes, HIDDEN_LAYERS[classifier], hidden_size)


def train_probe(
    train: Labelled,
    dev: Labelled,
    num_classes: int,
    classifier: str,
    seed: int,
    options: ProbeOptions,
    device: torch.device | str = "cpu",
) -> tuple[Probe, float, int]:
    """Train with early stopping on dev; return the probe of the best epoch, its error on dev, and that epoch."""
    probe = make_probe(train, num_classes, classifier, seed, options.hidden_size).to(device)
    optimizer = torch.optim.Adam(probe.parameters(), lr=options.learning_rate, fused=True)
    random = torch.Generator().manual_seed(seed)
    batch_size = min(options.batch_size, max(1, len(train.classes) // MIN_STEPS))
    best_error, best_epoch, best_weights = float("inf"), 0, probe.state_dict()
    for epoch in range(1, options.max_epochs + 1):
        order = torch.randperm(len(train.classes), generator=random)
        for rows in order.split(batch_size):
            loss = F.cross_entropy(probe(train.features[rows]), train.classes[rows].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        error = probe.error(dev)
        if error < best_error:
            best_error, best_epoch, best_weights = error, epoch, copy.deepcopy(probe.state_dict())
        elif epoch - best_epoch >= options.patience:
            break
        else:
            for group in optimizer.param_groups:
                group["lr"] /= 2
    probe.load_state_dict(best_weights)
    return probe, best_error, best_epoch
