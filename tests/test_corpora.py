"""Facts about training on other corpora: from a checkpoint, on part of the data, validated split by split."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_prepared
from training_runs import MEL, SEQ, curves, train

from datasets import BatchReader, LibriSpeech
from load_pretrained_model import load_pretrained
from utils.corpus.prepared import load_lengths, save_lengths
from utils.system.errors import InputError

LOGS = Path("logs")
LOG, CONFIG = LOGS / "foo.dir/foo.log", LOGS / "foo.dir/config.json"


def test_training_starts_from_a_checkpoint_and_takes_its_sizes(workplace, monkeypatch):
    small = "--load_data_workers 0 --batch_size 4 --librispeech_path data --train_split train --val_split dev"
    train(monkeypatch, "--epochs", 2)
    released = Path("bs4-rhl2-rhs8-rd0-adam-res-ts1.pt")
    released.write_bytes((LOGS / "foo.dir/foo__best.model").read_bytes())
    further = ("--init_from", released, "--time_shift", 2, "--epochs", 1)
    train(monkeypatch, *further, "--experiment_name", "further", base=small)
    start, further_start = load_pretrained(released), load_pretrained(LOGS / "further.dir/further__epoch_0.model")
    torch.testing.assert_close(further_start.state_dict(), start.state_dict(), rtol=0, atol=0)
    config = json.loads((LOGS / "further.dir/config.json").read_text())
    assert config["rnn_residual"] and config["rnn_hidden_size"] == 8 and config["time_shift"] == 2
    train(monkeypatch, *further, "--experiment_name", "further", "--resume", base=small)
    with pytest.raises(InputError, match=r"another model: --rnn_num_layers is 2 there, not 1; --rnn_hidden_size is 8"):
        train(monkeypatch, *further, "--rnn_hidden_size", 9, "--rnn_num_layers", 1, base=small)
    with pytest.raises(InputError, match="another model: --rnn_residual is True there, not False"):
        train(monkeypatch, *further, "--no-rnn_residual", base=small)
    with pytest.raises(InputError, match=r"nothing\.pt does not exist"):
        train(monkeypatch, "--init_from", "nothing.pt", base=small)


def test_a_checkpoint_that_does_not_fit_starts_no_experiment(workplace, monkeypatch):
    train(monkeypatch, "--epochs", 0)
    state = torch.load(LOGS / "foo.dir/foo__epoch_0.model")
    torch.save({key: value for key, value in state.items() if "postnet" not in key}, "encoder.pt")
    with pytest.raises(InputError, match=r"encoder\.pt: postnet\..* is nothing in the checkpoint"):
        train(monkeypatch, "--init_from", "encoder.pt", "--residual", "--experiment_name", "bar",
              base="--librispeech_path data --train_split train --val_split dev")  # fmt: skip
    assert not (LOGS / "bar.dir").exists()


def test_of_a_checkpoint_that_does_not_tell_the_residual_is_asked_for(workplace, monkeypatch):
    train(monkeypatch, "--epochs", 0)
    torch.save(dict(torch.load(LOGS / "foo.dir/foo__epoch_0.model")), "model.pt")  # without its configuration
    with pytest.raises(InputError, match="do not show whether layers have residual connections"):
        train(monkeypatch, "--init_from", "model.pt", "--experiment_name", "bar", base="--librispeech_path data")
    for flag in ("--residual", "--no-rnn_residual"):
        train(monkeypatch, "--init_from", "model.pt", flag, "--epochs", 0, "--experiment_name", f"bar{flag}",
              base="--librispeech_path data --train_split train --val_split dev")  # fmt: skip
        config = json.loads((LOGS / f"bar{flag}.dir/config.json").read_text())
        assert config["rnn_residual"] == (flag == "--residual")


def drawn(paths, fraction, seed=0):
    """The files of a fraction of a set."""
    return set(LibriSpeech(paths, fraction=fraction, seed=seed).files)


def test_a_fraction_is_a_fixed_subset_whatever_the_order(tmp_path):
    one = make_prepared(tmp_path / "one", [9] * 40, 10, MEL)
    two = tmp_path / "two"
    two.mkdir()
    for utterance in load_lengths(one):
        (one / f"{utterance}.pt").rename(two / f"other-{utterance}.pt")
    save_lengths(two, {f"other-{utterance}": 9 for utterance in reversed(load_lengths(one))})
    shutil.rmtree(one)
    make_prepared(one, [9] * 40, 10, MEL)
    tenth = drawn([one, two], 0.1)
    assert len(tenth) == 8 and tenth == drawn([two, one], 0.1) and tenth < drawn([one, two], 0.5)
    assert tenth != drawn([one, two], 0.1, seed=1)
    assert len(drawn(one, 1e-9)) == 1 and len(drawn([one, two], 1.0)) == 80


def test_a_fraction_is_said_in_log_and_config(workplace, monkeypatch):
    train(monkeypatch, "--train_fraction", 0.5)
    assert (
        "8 utterances, 0.00 hours, 1 skipped (of 1 frames or fewer), 9 not drawn (0.5 are, by seed 0)"
        in LOG.read_text()
    )
    assert json.loads(CONFIG.read_text())["train_fraction"] == 0.5
    with pytest.raises(InputError, match=r"train_fraction was 0\.5 and is now 0\.4"):
        train(monkeypatch, "--train_fraction", 0.4, "--resume")


def test_segments_are_all_the_frames_of_the_utterances_in_order(tmp_path):
    lengths = [9, 10, 11, 25]
    whole = LibriSpeech(make_prepared(tmp_path / "one", lengths, 30, MEL))
    cut = LibriSpeech(tmp_path / "one", segment_frames=10)
    assert sorted(cut.lengths) == [5, 6, 8, 8, 9, 9, 10]
    assert str(cut).startswith("4 utterances in 7 segments")
    with BatchReader() as reader:
        batches = [*reader.batches(cut, [[index] for index in range(len(cut))])]
    of_items, of_batches = {}, {}
    for index, batch in enumerate(batches):
        x, length = cut[index]
        assert x.shape == (10, MEL) and x[length:].abs().sum() == 0 and batch.lengths.tolist() == [length]
        of_items.setdefault(cut.utterance(index), []).append(x[:length])
        of_batches.setdefault(cut.utterance(index), []).append(batch.inputs[0])
    for index in range(len(whole)):
        x, length = whole[index]
        for parts in of_items, of_batches:
            torch.testing.assert_close(torch.cat(parts[whole.utterance(index)]), x[:length], rtol=0, atol=0)


def test_segments_make_more_steps_of_training_and_none_of_validation(workplace, monkeypatch):
    train(monkeypatch)
    train(monkeypatch, "--segment_frames", 10, "--experiment_name", "cut")
    found, cut = curves(LOGS / "foo.dir"), curves(LOGS / "cut.dir")
    assert len(cut["step/loss"]) > len(found["step/loss"])
    assert cut["epoch/val_loss"][0][1] == found["epoch/val_loss"][0][1]
    with pytest.raises(InputError, match=r"segment_frames was 10 and is now 11"):
        train(monkeypatch, "--segment_frames", 11, "--experiment_name", "cut", "--resume")
    with pytest.raises(InputError, match=r"--segment_frames is 6, not above twice --time_shift 3"):
        train(monkeypatch, "--segment_frames", 6, "--time_shift", 3, "--experiment_name", "short")


def test_each_split_is_validated_by_itself_too(workplace, monkeypatch):
    make_prepared(workplace / "data/other", [SEQ, 9, 9], SEQ, MEL, seed=3)
    train(monkeypatch, "--val_split", "dev", "other")
    found, frames = curves(LOGS / "foo.dir"), {"dev": 30 + 12 + 4 + 9 + 21 - 5, "other": SEQ + 9 + 9 - 3}
    for split in frames:
        train(monkeypatch, "--val_split", split, "--experiment_name", split)
        alone = [loss for _, loss in curves(LOGS / f"{split}.dir")["epoch/val_loss"]]
        assert [loss for _, loss in found[f"epoch/val_loss/{split}"]] == pytest.approx(alone, rel=1e-5)
    for number, (_, loss) in enumerate(found["epoch/val_loss"]):
        sums = [found[f"epoch/val_loss/{split}"][number][1] * count for split, count in frames.items()]
        assert loss == pytest.approx(sum(sums) / sum(frames.values()), rel=1e-5)
    assert "epoch 3: val_loss/dev 0." in LOG.read_text()
