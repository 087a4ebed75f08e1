"""Facts about probing a corpus of features: they are read and scaled as prepare_data.py does, and refused as there."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
from preparing_runs import content, prepare

from downstream import phone_classification, run_all, speaker_verification
from downstream.probing.corpus import load_corpus
from downstream.probing.splits import SETS, find_speaker_splits, find_splits
from downstream.run_all import random_model
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.prepared import load_lengths
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError
from utils.training.checkpoints import state_with_config

COUNTS = {"train": 6, "dev": 1, "test": 2}  # utterances of each speaker
PHONES, MEL = 3, 6


def add_features(directory, frames):
    """Make a data directory of frames by utterance id; `ann_1` is spoken by xann."""
    directory.mkdir(parents=True, exist_ok=True)
    write_ark(directory / "feats.ark", frames.items())
    (directory / "utt2spk").write_text("".join(f"{u} x{u.partition('_')[0]}\n" for u in frames))


@pytest.fixture
def corpus(tmp_path):
    """Three speakers of three phones that are easy to tell apart: CORPUS/{train,dev,test} and CORPUS/phones.ctm."""
    rng, lines = np.random.default_rng(0), []
    for name, count in COUNTS.items():
        frames = {}
        for utterance in (f"{speaker}_{name}{number}" for speaker in ("ann", "bob", "cid") for number in range(count)):
            phones = np.append(rng.permutation(PHONES), 0)
            lines += [f"{utterance} 1 {0.1 * i:.2f} 0.1 p{phone}\n" for i, phone in enumerate(phones)]
            frames[utterance] = rng.normal(20 + 5 * np.eye(MEL)[phones.repeat(10)], 1).astype(np.float32)
        add_features(tmp_path / "corpus" / name, frames)
    (tmp_path / "corpus" / "phones.ctm").write_text("".join(lines))
    return tmp_path / "corpus"


@pytest.fixture
def checkpoint(tmp_path):
    """A network that is named as the authors' are, whose frames are known."""
    path = tmp_path / "bs8-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(random_model(RNNConfig(MEL, 16, 2, 0.0, True), 0).state_dict(), path)
    return path


def probe(corpus, out, *more, script=phone_classification):
    """What a probe of a corpus finds; it prepares below out."""
    quick = "--seeds", "1", "--probe_epochs", "3", "--probe_batch_size", "32", "--probe_learning_rate", "0.1"
    options = ["--data", corpus, "--save_dir", out, "--num_workers", "0", "--save", out.with_suffix(".json"), *more]
    script.main([*map(str, options), *(quick if script is phone_classification else ())])
    return json.loads(out.with_suffix(".json").read_text())


def tensors(directory):
    """The tensors of a prepared directory, and lengths.pkl."""
    return {name: data for name, data in content(directory).items() if name.endswith((".pt", ".pkl"))}


@pytest.mark.parametrize("norm", [None, "global", "speaker", "utterance-mean", "none"])
def test_frames_are_those_of_prepare_data_and_a_probe_learns_from_them(corpus, tmp_path, norm):
    found = probe(corpus, tmp_path / "out", *(["--norm", norm] if norm else []))
    assert found["runs"]["log Mel"][0]["segment_error"] < 0.2
    for name in SETS:
        options = ["--norm", norm or "global"]
        if "global" in options and name != "train":
            options = ["--norm_from", tmp_path / "train"]
        prepare(corpus / name, tmp_path / name, *options, option="--data")
        assert tensors(tmp_path / "out/prepared" / name) == tensors(tmp_path / name)


def ids(splits):
    """The utterance ids of each set."""
    return {name: [utterance.id for utterance in splits.sources[name].utterances()] for name in SETS}


def test_held_out_speakers_of_utt2spk_are_tested_from_all_sets(corpus, tmp_path):
    found = probe(corpus, tmp_path / "out", "--held_out_speakers", "xbob", "xcid", script=speaker_verification)
    assert found["log Mel"]["lda"] is None  # one speaker is left to learn from
    lengths = {name: load_lengths(tmp_path / "out/prepared" / name) for name in SETS}
    assert len(lengths["test"]) == 2 * sum(COUNTS.values()) and all(u[:3] in ("bob", "cid") for u in lengths["test"])
    assert set(lengths["train"]) == {f"ann_train{n}" for n in range(6)}
    with pytest.raises(InputError, match="prepared/train was made from other utterances; give another directory"):
        probe(corpus, tmp_path / "out")


def test_without_a_test_set_and_for_new_speakers_a_part_of_train_chooses(corpus):
    whole = ids(find_splits(corpus))
    shutil.rmtree(corpus / "test")
    found = ids(find_splits(corpus))
    assert found["test"] == whole["dev"] and found["dev"] == whole["train"][::5]
    assert sorted(found["train"] + found["dev"]) == whole["train"]
    with pytest.raises(InputError, match="speaker xann is in train as well"):
        (corpus / "dev").rename(corpus / "test")
        find_speaker_splits(corpus)
    add_features(corpus / "test", {"eve_1": np.ones((9, MEL), np.float32)})
    splits = find_speaker_splits(corpus)
    assert ids(splits)["test"] == ["eve_1"] and ids(splits)["dev"] == whole["train"][:1]
    assert splits.speakers["eve_1"] == "xeve"


def test_ids_of_librispeech_tell_speakers_where_no_map_does(tmp_path):
    for name in SETS:
        add_features(tmp_path / name, {f"s{n}-c-{name}": np.ones((9, MEL), np.float32) for n in range(2)})
        (tmp_path / name / "utt2spk").unlink()
    assert find_splits(tmp_path).speakers["s1-c-dev"] == "s1"


def test_with_a_checkpoint_frames_stay_as_they_are_unless_told(corpus, checkpoint, tmp_path, capsys):
    assert list(probe(corpus, tmp_path / "out", "--checkpoint", checkpoint)["runs"]) == ["layer 1"]
    said = "train/feats.scp, ...: unknown front end, unknown norm; the model's: front end released, norm speaker-mean"
    assert f"{said}: whether they fit is not known" in capsys.readouterr().out
    prepare(corpus / "dev", tmp_path / "dev", option="--data")
    assert tensors(tmp_path / "out/prepared-released-none/dev") == tensors(tmp_path / "dev")
    with pytest.raises(InputError, match="norm global, not speaker-mean; --any_frames"):
        probe(corpus, tmp_path / "out", "--checkpoint", checkpoint, "--norm", "global")
    with pytest.raises(InputError, match="front end kaldi-hires, not released"):
        probe(corpus, tmp_path / "out", "--checkpoint", checkpoint, "--front_end", "kaldi-hires")


def test_the_models_mean_and_variance_scale_where_its_norm_is_asked_for(corpus, tmp_path):
    whole = prepare(corpus / "train", tmp_path / "whole", "--norm", "global", option="--data")
    model = random_model(RNNConfig(MEL, 16, 2, 0.0, True), 0)
    model.frame_spec = FrameSpec.of_directory(whole)
    torch.save(state_with_config(model), tmp_path / "own.model")
    shutil.rmtree(corpus / "test")  # a part of train is dev, which gives it other statistics
    probe(corpus, tmp_path / "out", "--checkpoint", tmp_path / "own.model", "--norm", "global", "--residual")
    found = tensors(tmp_path / "out/prepared-released-global/dev")
    assert found.keys() < tensors(whole).keys() | {"lengths.pkl"}
    assert all(tensors(whole)[name] == found[name] for name in found if name.endswith(".pt"))


def test_models_are_trained_on_frames_of_any_size(corpus, tmp_path):
    command = f"--data {corpus} --save_dir {tmp_path / 'out'} --quick --time_shifts 1 --epochs 1 --hidden_size 8"
    args = run_all.parse_arguments(f"{command} --num_layers 1 --num_workers 0".split())
    loaded, plan = load_corpus(args), run_all.Plan([1], 1, [0], 5, [])
    training = run_all.train_time_shifts(args, plan, args.save_dir, loaded, torch.device("cpu"))[1]
    assert load_pretrained(training.checkpoint()).mel_dim == MEL


def test_utterances_that_are_cut_are_counted(corpus, tmp_path, capsys):
    add_features(corpus / "dev", {"ann_dev0": np.ones((1601, MEL), np.float32)})
    load_corpus(run_all.parse_arguments(["--data", str(corpus), "--save_dir", str(tmp_path / "out")]))
    assert "dev: 1 utterances cut to their first 1600 frames\n" in capsys.readouterr().out


def test_a_directory_in_which_nothing_was_done_takes_other_options(corpus, tmp_path):
    command = ["--data", str(corpus), "--save_dir", str(tmp_path / "out"), "--quick"]
    for speaker in ("nobody", "noone"):
        with pytest.raises(InputError, match=f"there is no speaker {speaker}"):
            run_all.main([*command, "--held_out_speakers", speaker])
    (corpus / "train/feats.ark").write_bytes(b"damaged")
    for norm in ("global", "speaker"):
        with pytest.raises(InputError, match=r"--on_error skip"):
            run_all.main([*command, "--norm", norm])


def test_segments_too_short_for_a_time_shift_are_refused_before_the_work(corpus, capsys):
    with pytest.raises(SystemExit):
        run_all.parse_arguments(["--data", str(corpus), "--time_shifts", "3", "5", "--segment_frames", "10"])
    assert "--segment_frames is 10, not above twice the highest of --time_shifts: 10" in capsys.readouterr().err


def no_utt2spk(corpus):
    (corpus / "dev/utt2spk").unlink()


def one_set_with_ids_that_tell_speakers(corpus):
    add_features(corpus / "dev", {"1-2-3": np.ones((9, MEL), np.float32)})
    no_utt2spk(corpus)


def one_set_of_audio(corpus):
    soundfile.write(corpus / "dev/a.wav", np.zeros(8000), 16000)
    (corpus / "dev/wav.scp").write_text(f"ann_1 {corpus / 'dev/a.wav'}\n")


def one_set_prepared(corpus):
    prepare(corpus / "dev", corpus / "prepared", option="--data")
    shutil.rmtree(corpus / "dev")
    (corpus / "prepared").rename(corpus / "dev")


def one_utterance_in_two_sets(corpus):
    add_features(corpus / "dev", {"ann_train0": np.ones((9, MEL), np.float32)})


@pytest.mark.parametrize("change, options, told", [
    (no_utt2spk, (), "dev has no utt2spk"),
    (one_set_with_ids_that_tell_speakers, (), r"feats\.scp and other sets identify speakers in different ways"),
    (one_set_of_audio, (), "train, .*dev, .*test must all hold audio, or all be data directories of features"),
    (one_set_prepared, (), "dev, .*test must all .* not yet prepared"),
    (one_utterance_in_two_sets, (), r"dev/feats\.scp:1: utterance ann_train0 is in train as well"),
    (None, ("--dither", 1), "--dither are for audio"),
    (None, ("--front_end", "kaldi-hires"), r"normalised already \(norm speaker\): .*--any_frames"),
    (None, ("--held_out_speakers", "bob"), "there is no speaker bob, but xann, xbob, xcid"),
])  # fmt: skip
def test_what_cannot_be_probed_is_refused_and_nothing_is_left(corpus, tmp_path, change, options, told):
    if change:
        change(corpus)
    with pytest.raises(InputError, match=told):
        probe(corpus, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.json").exists()


def test_a_model_of_other_frames_is_refused_and_nothing_is_left(corpus, checkpoint, tmp_path):
    add_features(corpus / "train", {f"ann_train{n}": np.ones((40, MEL + 1), np.float32) for n in range(2)})
    with pytest.raises(InputError, match=rf"has frames of {MEL + 1} but the model reads {MEL}"):
        probe(corpus, tmp_path / "out", "--checkpoint", checkpoint)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=rf"frames of dev have size {MEL}, but those of train {MEL + 1}"):
        probe(corpus, tmp_path / "out", "--norm", "utterance")


def statistics_as_features(train):
    write_ark(train / "feats.ark", [("ann_train0", np.array([[8.0, 4], [16, 0]], np.float32))])


def duplicate_id(train):
    with (train / "feats.scp").open("a") as scp:
        scp.write((train / "feats.scp").read_text().splitlines()[0] + "\n")


def archive_that_is_missing(train):
    (train / "feats.ark").unlink()


@pytest.mark.parametrize("damage", [statistics_as_features, duplicate_id, archive_that_is_missing])
def test_damaged_features_get_the_line_of_prepare_data(corpus, tmp_path, damage):
    damage(corpus / "train")
    with pytest.raises(InputError) as expected:
        prepare(corpus / "train", tmp_path / "train", "--norm", "global", option="--data")
    with pytest.raises(InputError) as found:
        probe(corpus, tmp_path / "out")
    assert str(found.value) == str(expected.value)


def test_bad_utterances_are_skipped_and_other_features_are_noticed(corpus, tmp_path, capsys):
    duplicate_id(corpus / "train")
    probe(corpus, tmp_path / "out", "--on_error", "skip")
    assert "train: 1 utterances skipped" in capsys.readouterr().out
    assert len(load_lengths(tmp_path / "out/prepared/train")) == 18
    add_features(corpus / "test", {"ann_test0": np.ones((40, MEL), np.float32)})
    with pytest.raises(InputError, match="prepared/train was made from other archives"):
        probe(corpus, tmp_path / "out", "--on_error", "skip")
