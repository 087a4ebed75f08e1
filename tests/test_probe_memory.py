"""Facts about features in files: they are those of whole arrays in memory, and never in memory as a whole."""

import numpy as np
import pytest
import torch

from downstream.probing import frame_file, probes
from downstream.probing.features import Features, LabelledFrames, stack_context
from downstream.probing.frame_file import FrameFile
from downstream.probing.probes import Labelled, ProbeOptions, train_probe

LENGTHS = np.array([40, 1, 3, 25, 7, 60])
SIZE = 6
CONTEXTS = [(0, 0), (2, 2), (4, 0), (0, 3)]


@pytest.fixture(params=["mapped", "half mapped", "read by row"])
def features(tmp_path, monkeypatch, request):
    """Random features of six utterances, of which 136, 60 or no frames are mapped into memory."""
    mapped_frames = {"mapped": 136, "half mapped": 60, "read by row": 0}[request.param]
    monkeypatch.setattr(frame_file, "MAX_MAPPED_BYTES", mapped_frames * SIZE * 4)
    file = FrameFile(tmp_path, SIZE)
    file.write(0, torch.randn(int(LENGTHS.sum()), SIZE, generator=torch.Generator().manual_seed(0)))
    return Features(file, LENGTHS)


@pytest.mark.parametrize("context", CONTEXTS)
def test_frames_are_those_of_the_whole_array(features, context):
    whole = torch.cat([stack_context(frames, *context) for frames in features])
    assert whole.shape == (136, SIZE * (1 + sum(context)))
    labelled = np.flatnonzero(np.arange(136) % 5)  # every fifth frame has no phone
    rows = LabelledFrames(features.with_context(*context), labelled)
    order = torch.randperm(len(labelled), generator=torch.Generator().manual_seed(1))
    assert torch.equal(rows[order], whole[labelled][order])
    assert torch.equal(rows[10:90], whole[labelled][10:90])
    assert torch.equal(torch.cat(list(features.with_context(*context))), whole)
    assert torch.equal(features.pooled, torch.stack([frames.mean(0) for frames in features]))


def test_a_probe_is_the_same_from_a_file_as_from_memory(features):
    rows = LabelledFrames(features.with_context(2, 1), np.arange(136))
    classes = torch.randint(3, (136,), generator=torch.Generator().manual_seed(2))
    options = ProbeOptions(hidden_size=8, max_epochs=5)
    probe, error, epoch = train_probe(Labelled(rows, classes), Labelled(rows, classes), 3, "mlp1", 0, options)
    in_memory = Labelled(rows[:], classes)
    other, *others = train_probe(in_memory, in_memory, 3, "mlp1", 0, options)
    assert (error, epoch) == tuple(others)
    assert torch.equal(probe.log_posteriors(rows[:]), other.log_posteriors(rows[:]))


def test_a_probe_never_asks_for_more_than_a_batch(monkeypatch):
    monkeypatch.setattr(probes, "EVAL_ROWS", 32)
    asked = []

    class Recorded:
        def __len__(self):
            return 500

        def __getitem__(self, rows):
            number = torch.arange(500)[rows]
            asked.append(len(number))
            return torch.stack([number.float(), number.float() % 7], 1)

    data = Labelled(Recorded(), torch.arange(500) % 2)
    probe, *_ = train_probe(data, data, 2, "linear", 0, ProbeOptions(batch_size=20, max_epochs=2))
    assert probe.error(data) <= 1 and sum(asked) == (1 + 2 * 2 + 1) * 500 and max(asked) == 32


def test_little_of_a_file_is_mapped_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(frame_file, "MAX_MAPPED_BYTES", 1000)
    file = FrameFile(tmp_path, 10)
    file.write(100_000, torch.ones(1, 10))
    windows = file.windows(100_001, width=3)
    assert len(windows._mapped) == 25  # of 40 bytes
    assert windows[np.array([0, 24, 25, 99_999])].sum(1).tolist() == [0, 0, 0, 10]
    assert not list(tmp_path.iterdir())  # the file has no name
