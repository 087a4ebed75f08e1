"""Facts about files of features that are written piece by piece: they are what PyTorch, NumPy and Kaldi would write."""

import kaldiio
import numpy as np
import pytest
import torch

from utils.corpus.output_directory import OutputDirectory
from utils.corpus.prepared import load_tensor
from utils.features.feature_files import KaldiArchive, Spool, write_npy, write_pt


def test_what_is_written_piece_by_piece_is_what_torch_and_numpy_would_write(tmp_path):
    features = np.random.default_rng(0).normal(size=(2, 9000, 300)).astype(np.float32)  # more than is kept in memory
    spool = Spool(tmp_path, 2, 300, np.float32)
    for start in range(0, 9000, 700):
        spool.append(features[:, start : start + 700])
    for path, write in ((tmp_path / "x.pt", write_pt), (tmp_path / "x.npy", write_npy)):
        with path.open("wb") as file:
            write(file, spool, features.shape)
    spool.close()
    assert np.array_equal(load_tensor(tmp_path / "x.pt", dims=3).numpy(), features)
    assert np.array_equal(torch.load(tmp_path / "x.pt", weights_only=True, mmap=True).numpy(), features)
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), features)
    np.save(tmp_path / "theirs.npy", features)
    assert (tmp_path / "theirs.npy").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs.npy", "x.npy", "x.pt"]


def filled_archive(directory, utterances=("a", "b")):
    """An archive of utterances that is not whole."""
    with OutputDirectory(directory, {}) as out:
        archive = KaldiArchive(out, half=False)
        for number, utterance in enumerate(utterances):
            spool = archive.spool(1, 2)
            spool.append(np.full((1, 3, 2), number, np.float32))
            out.record(utterance, **archive.save(utterance, spool))
        archive.close()


@pytest.mark.parametrize("change, left", [
    (lambda content: content + b"c \0BFM half of", ["a", "b"]), (lambda content: content[:-1], ["a"]),
    (lambda content: b"", []), (lambda content: content, ["a", "b"]),
])  # fmt: skip
def test_an_archive_goes_on_behind_what_is_surely_in_it(change, left, tmp_path):
    filled_archive(tmp_path)
    path = tmp_path / "feats.ark.partial"
    path.write_bytes(change(path.read_bytes()))
    with OutputDirectory(tmp_path, {}) as out:
        archive = KaldiArchive(out, half=False)
        assert [utterance for utterance in ("a", "b") if archive.has(utterance)] == left
        assert len(path.read_bytes()) == max((facts["end"] for facts in out.done.values()), default=0)
        archive.finish(left)
        archive.close()
    assert [name for name, _ in kaldiio.load_ark(str(tmp_path / "feats.ark"))] == left


def test_what_an_archive_has_lost_is_not_found_in_the_place_of_another(tmp_path):
    filled_archive(tmp_path)
    (tmp_path / "feats.ark.partial").unlink()
    filled_archive(tmp_path, ["c", "d"])
    with OutputDirectory(tmp_path, {}) as out:
        archive = KaldiArchive(out, half=False)
        assert [utterance for utterance in "abcd" if archive.has(utterance)] == ["c", "d"]
        archive.close()
