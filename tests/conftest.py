"""What the tests share: small prepared directories of generated frames."""

import utils.openmp  # noqa: F401  # isort: skip  # before PyTorch

from pathlib import Path

import pytest
import torch
from training_runs import MEL, SEQ

from utils.corpus.prepared import save_lengths, save_tensor
from utils.training import figures


def make_prepared(directory: Path, lengths: list[int], max_seq_len: int = 40, mel_dim: int = 6, seed: int = 0) -> Path:
    """A prepared directory of random frames."""
    directory.mkdir(parents=True)
    random = torch.Generator().manual_seed(seed)
    named = {f"spk{i % 3}-{i:04d}": length for i, length in enumerate(lengths)}
    for utterance, length in named.items():
        frames = torch.zeros(max_seq_len, mel_dim)
        frames[:length] = torch.randn(length, mel_dim, generator=random)
        save_tensor(directory / f"{utterance}.pt", frames)
    save_lengths(directory, named)
    return directory


def make_splits(directory: Path) -> Path:
    """Prepared splits: 18 utterances to train on, of which one has a single frame (5 batches), 5 to validate on."""
    lengths = [30, 3, 17, 25, 8, 1, 29, 12, 20, 5, 9, 14, 2, 30, 22, 11, 7, 19]
    make_prepared(directory / "train", lengths, SEQ, MEL)
    make_prepared(directory / "dev", [30, 12, 4, 9, 21], SEQ, MEL, seed=1)
    return directory


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch, request):
    """Trainings of a second draw no pictures, each of which takes a tenth of it; tests of figures do."""
    if request.module.__name__ != "test_figures":
        monkeypatch.setattr(figures, "PICTURES", 0)


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A prepared directory of 10 utterances of 6-dim frames, padded to 40."""
    return make_prepared(tmp_path / "prepared", [40, 3, 17, 25, 8, 1, 33, 12, 20, 5])


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with prepared splits in data/."""
    monkeypatch.chdir(tmp_path)
    make_splits(tmp_path / "data")
    return tmp_path
