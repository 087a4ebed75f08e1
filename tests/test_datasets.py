"""Facts about prepared utterances and the batches made of them."""

import json
import pickle

import pytest
import torch
from conftest import make_prepared
from refusals import RunsCode

from datasets import BatchOrder, BatchReader, LibriSpeech, find_split
from utils.corpus.normalization import Normalizer
from utils.corpus.prepared import load_lengths, load_tensor, save_tensor
from utils.system.errors import InputError


def read(dataset, order, workers):
    """The batches of one pass."""
    with BatchReader(workers) as reader:
        return list(reader.batches(dataset, order))


def test_an_item_is_a_padded_tensor_and_its_true_length(prepared):
    x, length = LibriSpeech(prepared)[2]
    assert x.shape == (40, 6) and x.dtype == torch.float32 and length == 17 and type(length) is int
    assert x[:17].abs().sum() > 0 and x[17:].abs().sum() == 0


def test_directories_of_the_released_script_load(tmp_path):
    """The released script pickles {'<id>.pt': length} with Python's default and saves with PyTorch 1.0's format."""
    torch.save(torch.ones(40, 6), tmp_path / "84-1-0000.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "lengths.pkl").write_bytes(pickle.dumps({"84-1-0000.pt": 7}))
    x, length = LibriSpeech(tmp_path)[0]
    assert x.shape == (40, 6) and torch.equal(x[:7], torch.ones(7, 6)) and not x[7:].any() and length == 7


def test_tensors_of_features_are_as_long_as_their_utterances(tmp_path):
    for name, length in (("a", 7), ("b", 12)):
        save_tensor(tmp_path / f"{name}.pt", torch.ones(length, 6))
    (tmp_path / "lengths.pkl").write_bytes(pickle.dumps({"a.pt": 7, "b.pt": 12}))
    dataset = LibriSpeech(tmp_path)
    assert dataset.max_seq_len == 12 and dataset[0][0].shape == (12, 6)
    x, length = dataset[1]
    assert length == 12 and torch.equal(x, torch.ones(12, 6))
    (tmp_path / "more").mkdir()
    save_tensor(tmp_path / "more" / "c.pt", torch.ones(9, 6))
    (tmp_path / "more" / "lengths.pkl").write_bytes(pickle.dumps({"c.pt": 9}))
    assert LibriSpeech([tmp_path, tmp_path / "more"]).max_seq_len == 12


@pytest.mark.parametrize("tensor", [0, 1])
def test_without_shared_memory_for_a_batch_reading_ends(prepared, tensor, monkeypatch):
    """As in a container with 64 MB of it: PyTorch's queue would print a traceback, drop the batch and wait for ever."""
    share = torch.Tensor.share_memory_
    calls = []

    def full(self):
        calls.append(self)
        if len(calls) > tensor:
            raise RuntimeError(
                "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"
            )
        return share(self)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    dataset = LibriSpeech(prepared)
    with pytest.raises(InputError, match=r"no shared memory for a batch of 0 MB: .*No space left.*--shm-size"):
        read(dataset, BatchOrder(dataset.lengths, 4), 1)


def test_lengths_written_here_read_with_plain_pickle(prepared):
    plain = pickle.loads((prepared / "lengths.pkl").read_bytes())
    assert {name.removesuffix(".pt"): n for name, n in plain.items()} == load_lengths(prepared)


def test_several_directories_are_one_set(prepared, tmp_path):
    more = make_prepared(tmp_path / "more", [9, 11], seed=1)
    both = LibriSpeech([prepared, more])
    assert len(both) == 12 and both.lengths[10:] == [9, 11]
    assert torch.equal(both[11][0], LibriSpeech(more)[1][0])


def test_directories_that_were_prepared_otherwise_are_not_one_set(prepared, tmp_path):
    for sizes in ({"max_seq_len": 50}, {"mel_dim": 7}):
        other = make_prepared(tmp_path / next(iter(sizes)), [9, 11], **sizes)
        with pytest.raises(InputError, match=r"tensors of \(.*prepare both alike"):
            LibriSpeech([prepared, other])
    full = make_prepared(tmp_path / "full", [45, 9], max_seq_len=45)  # its first utterance is not padded
    with pytest.raises(InputError, match=r"tensors of \(45, .* of \(40, .*prepare both alike"):
        LibriSpeech([prepared, full])
    with pytest.raises(InputError, match="given twice"):
        LibriSpeech([prepared, prepared])


def test_a_set_is_told_from_others_and_is_the_same_when_made_again(tmp_path):
    lengths = [5, 9, 14, 7] * 5

    def fingerprint(name, lengths=lengths, **options):
        return LibriSpeech(make_prepared(tmp_path / name, lengths, **options)).fingerprint()

    others = [fingerprint("first"), fingerprint("more", [*lengths, 8])]
    others += [fingerprint("seed", seed=1), fingerprint("long", max_seq_len=50)]  # without a record, of other tensors
    path = make_prepared(tmp_path / "recorded", lengths)
    for norm in ("global", "speaker"):
        (path / "made_from.json").write_text(json.dumps({"audio": {"sha256": "of times"}, "norm": norm}))
        others.append(LibriSpeech(path).fingerprint())
    (path / "made_from.json").write_text(json.dumps({"audio": {"sha256": "of others"}, "norm": "speaker"}))
    assert LibriSpeech(path).fingerprint() == others[-1]
    (path / "normalization.json").write_text(json.dumps(Normalizer("none").to_json()))  # of other audio
    others.append(LibriSpeech(path).fingerprint())
    save_tensor(path / "spk0-0000.pt", torch.zeros(40, 6))  # of audio that gave the same statistics
    others.append(LibriSpeech(path).fingerprint())
    assert len(set(others)) == 8


def test_a_directory_of_which_every_utterance_is_skipped_is_no_error(prepared, tmp_path):
    both = LibriSpeech([make_prepared(tmp_path / "short", [3, 4]), prepared], longer_than=4)
    assert both.fingerprint() and both.max_seq_len == 40 and both.num_skipped >= 2


def test_utterances_too_short_to_train_on_are_skipped_and_counted(prepared):
    dataset = LibriSpeech(prepared, longer_than=5)
    assert dataset.num_skipped == 3 and min(dataset.lengths) == 8
    with pytest.raises(InputError, match="no utterance of more than 40 frames"):
        LibriSpeech(prepared, longer_than=40)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bucketing", [False, True])
def test_every_utterance_comes_once_an_epoch_trimmed_to_the_longest_of_its_batch(prepared, workers, bucketing):
    dataset = LibriSpeech(prepared)
    seen = []
    for batch in read(dataset, BatchOrder(dataset.lengths, 4, 0, bucketing), workers):
        assert batch.inputs.shape == (len(batch.indices), max(batch.lengths), 6)
        for x, length, index in zip(batch.inputs, batch.lengths, batch.indices, strict=True):
            full, true_length = dataset[index]
            assert length == true_length and torch.equal(x, full[: len(x)])
        seen += batch.indices
    assert sorted(seen) == list(range(10))


def test_the_order_is_fixed_by_seed_and_epoch():
    lengths = list(range(1, 200))

    def order(seed, epoch, first=0):
        batch_order = BatchOrder(lengths, 8, seed, bucketing=True)
        batch_order.epoch, batch_order.first_batch = epoch, first
        return list(batch_order)

    assert order(1, 3) == order(1, 3)
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)
    assert order(1, 3, first=5) == order(1, 3)[5:]


def test_bucketing_wastes_fewer_frames_on_padding():
    lengths = torch.randint(1, 1600, (2000,), generator=torch.Generator().manual_seed(0)).tolist()

    def padded(bucketing):
        return sum(max(lengths[i] for i in b) * len(b) for b in BatchOrder(lengths, 32, 0, bucketing))

    assert padded(True) < 0.6 * padded(False)


def test_a_tensor_that_requires_gradients_is_read_without(prepared):
    path = prepared / "spk1-0004.pt"
    frames = load_tensor(path)
    torch.save(frames.clone().requires_grad_(), path)
    assert torch.equal(load_tensor(path), frames) and not load_tensor(path).requires_grad


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "code", "float64", "short", "wide", "text"])
def test_a_bad_tensor_is_refused_by_name(prepared, tmp_path, damage, workers):
    path, proof = prepared / "spk1-0004.pt", tmp_path / "proof"
    dataset = LibriSpeech(prepared)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-100])
    elif damage == "flipped":
        where = content.index(dataset[4][0].numpy().tobytes()) + 5
        path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
    elif damage == "code":
        torch.save(RunsCode(proof), path)
    elif damage == "text":
        path.write_text("hello")
    else:
        bad = {"float64": torch.ones(40, 6).double(), "short": torch.ones(7, 6), "wide": torch.ones(40, 7)}
        save_tensor(path, bad[damage])
    with pytest.raises(InputError, match=r"spk1-0004\.pt"):
        read(dataset, BatchOrder(dataset.lengths, 4), workers)
    assert not proof.exists()


def test_a_missing_tensor_is_refused_before_training_starts(prepared):
    (prepared / "spk1-0004.pt").unlink()
    with pytest.raises(InputError, match=r"spk1-0004\.pt is missing"):
        LibriSpeech(prepared)


def bad_lengths(proof):
    """Contents that lengths.pkl must not have."""
    yield pickle.dumps(RunsCode(proof))
    yield pickle.dumps({"a.pt": RunsCode(proof)})
    yield from map(pickle.dumps, [["a.pt"], {"a.pt": 1.5}, {"a.pt": True}, {"a.pt": 0}, {"a": 5}, {5: 5}, {"a.pt": -1}])
    yield from map(pickle.dumps, [{"../a.pt": 5}, {"/etc/a.pt": 5}, {"a\0.pt": 5}, {".pt": 5}])
    yield pickle.dumps({"a.pt": 5})[:-3]
    yield from map(pickle.dumps, [{"a.pt": 2**70}, {"a.pt": 2**20000}, {"a.pt": {}}, {"a.pt": {"b.pt": 5}}])
    yield b"\x80\x04" + b"}X\x04\0\0\0a.pt" * 100_000 + b"s" * 100_000 + b"."  # dicts in dicts
    yield b"(" * 100_000 + b"."
    yield b""
    yield b"\x80\x04r\xff\xff\xff\x7f."  # a memo of two thousand million entries
    yield b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f"  # a string of 2^63 bytes


@pytest.mark.parametrize("number", range(23))
def test_bad_lengths_are_refused_and_run_nothing(tmp_path, number):
    proof = tmp_path / "proof"
    (tmp_path / "lengths.pkl").write_bytes(list(bad_lengths(proof))[number])
    with pytest.raises(InputError, match=r"lengths\.pkl"):
        load_lengths(tmp_path)
    assert not proof.exists()


def test_a_directory_that_is_not_prepared_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"has no lengths\.pkl"):
        LibriSpeech(tmp_path)


def test_a_split_is_a_directory_of_its_name_or_the_only_one_that_starts_with_it(tmp_path):
    for name in ("train-clean-360-hires-norm.blogmel", "dev-clean-hires-norm-blogmel", "dev-clean-2", "dev"):
        (tmp_path / name).mkdir()
    assert find_split(tmp_path, "train-clean-360").name == "train-clean-360-hires-norm.blogmel"
    assert find_split(tmp_path, "dev").name == "dev"
    with pytest.raises(InputError, match="dev-clean-2 and dev-clean-hires-norm-blogmel start with it"):
        find_split(tmp_path, "dev-clean")
    with pytest.raises(InputError, match=r"no directory starts with it; .* holds dev, dev-clean-2"):
        find_split(tmp_path, "test")
