"""Facts about the record of how frames were made: it goes from prepared data into models, and wherever these go."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from preparing_runs import prepare, prepare_audio
from test_apc_model import make_batch, make_models
from test_load_pretrained import s3prl_names
from training_runs import train

from apc_model import APCModel
from datasets import LibriSpeech
from export import export_model
from load_pretrained_model import features, load_pretrained, main
from utils import RNNConfig
from utils.audio.front_ends import FRONT_ENDS
from utils.corpus.frame_spec import FrameSpec, common
from utils.corpus.prepared import load_tensor
from utils.system.errors import InputError
from utils.system.files import read_json
from utils.training.s3prl_frames import options_of

RELEASED, HIRES, S3PRL = (FrameSpec.of_front_end(FRONT_ENDS[name]) for name in ("released", "kaldi-hires", "s3prl"))
OPTIONS = (
    "--rnn_hidden_size 8 --rnn_num_layers 1 --batch_size 2 --epochs 1 --load_data_workers 0 --librispeech_path . "
    "--train_split train --val_split dev"
)
ALL = (
    *((name, ()) for name in FRONT_ENDS),
    *(("released", ("--norm", norm)) for norm in ("none", "utterance-mean", "global", "global-mean")),
)
SAMPLE = Path(__file__).parent.parent / "librispeech_data" / "sample"


@pytest.fixture
def splits(tmp_path, monkeypatch):
    """A function that prepares real speech as train and dev, here."""
    monkeypatch.chdir(tmp_path)

    def make(*options, names=("train", "dev")):
        for name in names:
            prepare_audio(SAMPLE / "audio" / name, Path(name), "--max_seq_len", 100, *options)

    return make


def trained(monkeypatch, *options):
    """The experiment directory of a short training."""
    train(monkeypatch, *options, base=OPTIONS)
    return Path("logs/foo.dir")


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_what_preparing_records_is_in_every_file_of_the_model(splits, monkeypatch, tmp_path, name):
    splits("--front_end", name, "--dither", 2)
    expected = {"front_end": name, "dither": 2, "norm": FRONT_ENDS[name].norm}
    experiment = trained(monkeypatch)
    assert read_json(experiment / "config.json")["frames"] == expected
    files = [tmp_path / "moved.pt", tmp_path / "moved.state", tmp_path / "moved.safetensors"]
    files[0].write_bytes((experiment / "foo__epoch_1.model").read_bytes())  # away from config.json
    files[1].write_bytes(next(experiment.glob("*.state")).read_bytes())
    export_model.main(["--checkpoint", str(files[0]), "--save", str(files[2])])
    for file in files:
        model = load_pretrained(file)
        assert model.frame_spec.to_json() == expected and not model.frame_spec.is_assumed
        assert model.time_shift == 1 and model.rnn_config.residual is False
    assert f"residual: False, time shift: 1, frames: front end {name} with dither 2, norm" in repr(model)


def test_a_models_file_stays_a_bare_state_dict_that_any_load_state_dict_takes(splits, monkeypatch):
    splits()
    state = torch.load(trained(monkeypatch) / "foo__epoch_1.model", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    APCModel(80, None, RNNConfig(80, 8, 1, 0.0, False)).load_state_dict(state)


def test_the_statistics_of_a_global_mode_travel_with_the_model(splits, monkeypatch):
    splits("--norm", "global", names=["train"])
    splits("--norm_from", "train", names=["dev"])
    normalizer = load_pretrained(trained(monkeypatch) / "foo__best.model").frame_spec.normalizer
    raw = np.random.default_rng(0).normal(size=(5, 80)).astype(np.float32)
    content = read_json(Path("train/normalization.json"))["statistics"]["all speakers"]
    expected = (raw - np.array(content["mean"])) / np.array(content["std"])
    np.testing.assert_allclose(normalizer.apply(raw), expected, rtol=1e-5)


@pytest.mark.parametrize("options, said", [
    (("--front_end", "s3prl", "--norm", "speaker"), "dev differs from train: front end s3prl, not kaldi-hires;"),
    (("--front_end", "kaldi-hires", "--norm", "none"), "dev differs from train: norm none, not speaker;"),
    (("--front_end", "kaldi-hires", "--dither", "1"), "dev differs from train: dither 1, not 0;"),
])  # fmt: skip
def test_splits_of_different_frames_are_not_mixed_unless_told_to(splits, monkeypatch, options, said):
    splits("--front_end", "kaldi-hires", names=["train"])
    splits(*options, names=["dev"])
    with pytest.raises(InputError, match=f"{said}.*--any_frames"):
        trained(monkeypatch)
    assert not Path("logs").exists()
    trained(monkeypatch, "--any_frames")


def test_splits_scaled_by_other_statistics_are_not_mixed(splits, monkeypatch):
    splits("--norm", "global")
    with pytest.raises(InputError, match=r"norm global by another mean and variance.*--norm_from"):
        trained(monkeypatch)


def test_training_goes_on_from_a_model_of_the_same_frames_only(splits, monkeypatch, tmp_path):
    splits("--front_end", "kaldi-hires")
    start = tmp_path / "bs32-rhl1-rhs8-rd0-adam-ts1.pt"
    torch.save(APCModel(80, None, RNNConfig(80, 8, 1, 0.0, False)).state_dict(), start)
    with pytest.raises(InputError, match=r"bs32.*front end released, not kaldi-hires.*--any_frames"):
        trained(monkeypatch, "--init_from", start)
    trained(monkeypatch, "--init_from", start, "--any_frames")


def test_released_and_s3prls_checkpoints_want_their_own_and_old_ones_kaldi_hires(tmp_path):
    model, _ = make_models()
    files = {"bs32-rhl3-rhs512-rd0-adam-res-ts3.pt": RELEASED, "x.pt": FrameSpec()}
    for name, expected in files.items():
        torch.save(model.state_dict(), tmp_path / name)
        assert load_pretrained(tmp_path / name, residual=True).frame_spec == expected
    torch.save({"model": s3prl_names(model), "config": {"residual": True}}, tmp_path / "apc.ckpt")
    assert load_pretrained(tmp_path / "apc.ckpt").frame_spec == S3PRL
    (tmp_path / "config.json").write_text(json.dumps({"experiment_name": "foo", "rnn_residual": True}))
    for name in ("foo__epoch_3.model", "bar__best.model"):
        torch.save(model.state_dict(), tmp_path / name)
        loaded = load_pretrained(tmp_path / name, residual=True)
        assert loaded.frame_spec.to_json() == HIRES.to_json() and "assumed" in loaded.frame_spec.describe()
        torch.testing.assert_close(loaded(*make_batch()), model(*make_batch()))


def test_a_prepared_directory_says_how_its_frames_were_made(splits, tmp_path):
    splits("--front_end", "released", names=["train"])
    assert LibriSpeech("train").frame_spec == RELEASED
    made_from = read_json(Path("train/made_from.json"))
    old = {key: value for key, value in made_from.items() if key not in ("front_end", "dither")}
    Path("train/made_from.json").write_text(json.dumps(old))
    assert "front end kaldi-hires" in LibriSpeech("train").frame_spec.describe()
    archives = {"dev-clean-hires-norm.blogmel": RELEASED, "mine.blogmel": FrameSpec()}
    for name, expected in archives.items():
        (tmp_path / name).write_text("a-b-c\n1 2\n3 5\n.\n")
        out = prepare(tmp_path / name, tmp_path / f"of-{name}")
        assert FrameSpec.of_directory(out) == expected
    scaled = prepare(tmp_path / "mine.blogmel", tmp_path / "scaled", "--norm", "speaker")
    assert FrameSpec.of_directory(scaled) == FrameSpec(norm="speaker")
    (tmp_path / "train-clean-360-hires-norm.blogmel").mkdir()  # the released script's, without any record
    assert FrameSpec.of_directory(tmp_path / "train-clean-360-hires-norm.blogmel") == RELEASED


@pytest.mark.parametrize("content", [
    3, {"front_end": "htk"}, {"front_end": 3}, {"norm": "speakers"}, {"dither": "1"}, {"normalization": {"mode": 1}},
])  # fmt: skip
def test_a_damaged_record_is_refused(content):
    with pytest.raises(InputError, match=r"^config\.json"):
        FrameSpec.from_json(content, "config.json")


def extract(checkpoint, data, *options):
    """The features of a directory of audio or a prepared one, by utterance."""
    main(["--checkpoint", str(checkpoint), "--data", str(data), "--save_dir", "feats", "--load_data_workers", "0",
          "--overwrite", *options])  # fmt: skip
    return {path.stem: load_tensor(path) for path in sorted(Path("feats").glob("*.pt"))}


@pytest.mark.parametrize("front_end, norm", ALL)
def test_audio_is_read_as_the_models_training_data_were(splits, monkeypatch, front_end, norm, capsys):
    splits("--front_end", front_end, "--max_seq_len", 800, *norm, names=["train"])
    norm = norm if norm[1:] == ("none",) else ("--norm_from", "train")
    splits("--front_end", front_end, "--max_seq_len", 800, *norm, names=["dev"])
    checkpoint = trained(monkeypatch) / "foo__best.model"
    from_audio, from_tensors = extract(checkpoint, SAMPLE / "audio" / "train"), extract(checkpoint, "train")
    assert len(from_audio) == 4 and from_audio.keys() == from_tensors.keys()
    for utterance, feats in from_audio.items():
        torch.testing.assert_close(feats, from_tensors[utterance])
    assert "not known" not in capsys.readouterr().out
    if "speaker" not in load_pretrained(checkpoint).frame_spec.norm:
        model = load_pretrained(checkpoint)
        waveform, rate = soundfile.read(SAMPLE / "audio" / "train" / f"{utterance}.flac", dtype="int16")
        torch.testing.assert_close(features(model, waveform, rate, seed=utterance)[-1], feats)


def test_frames_that_are_not_the_models_are_refused_before_anything_is_written(splits, monkeypatch, tmp_path, capsys):
    splits("--front_end", "kaldi-hires", "--norm", "global", names=["train"])
    splits("--front_end", "kaldi-hires", "--norm_from", "train", names=["dev"])
    checkpoint = trained(monkeypatch) / "foo__best.model"
    prepare_audio(SAMPLE / "audio" / "dev", tmp_path / "mel", "--front_end", "released")
    prepare_audio(SAMPLE / "audio" / "dev", tmp_path / "own", "--front_end", "kaldi-hires", "--norm", "global")
    audio = SAMPLE / "audio" / "dev"
    for data, options, said in (
        ("mel", (), "front end released, not kaldi-hires; norm speaker-mean, not global"),
        ("own", (), "norm global by another mean and variance"),
        (audio, ("--norm", "speaker"), "norm speaker, not global"),
        (audio, ("--norm", "global"), "norm global by another mean and variance"),
        (audio, ("--front_end", "s3prl"), "front end s3prl, not kaldi-hires"),
        (audio, ("--dither", "1"), "dither 1, not 0"),
    ):
        with pytest.raises(InputError, match=f"^frames of .* differ from those .*: {said}.*--any_frames"):
            extract(checkpoint, data, *options)
        assert not Path("feats").exists()
    capsys.readouterr()
    assert extract(checkpoint, "mel", "--any_frames")
    assert "differ from those that the model was trained on: front end released, not kald" in capsys.readouterr().out


def test_splits_that_differ_in_dither_alone_leave_it_unknown():
    mixed = common([S3PRL, replace(S3PRL, dither=1.0)])
    assert mixed.dither is None and mixed.describe() == S3PRL.describe()
    assert options_of(mixed) == options_of(S3PRL)


def test_a_waveform_scaled_by_itself_in_place_of_lost_statistics_is_told():
    spec = FrameSpec(front_end="released", dither=0.0, norm="global")
    with pytest.warns(UserWarning, match="this waveform's mean and variance: the model has no others"):
        spec.make_frames(np.random.default_rng(0).normal(0, 0.1, 16000), 16000)


def test_what_is_not_known_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(APCModel(80, None, RNNConfig(80, 8, 1, 0.0, False)).state_dict(), "old__best.model")
    archive = SAMPLE / "sample-dev.blogmel.xz"
    assert extract("old__best.model", archive)
    said = capsys.readouterr().out
    assert "front end kaldi-hires, norm speaker (assumed: it was not recorded)" in said
    assert "unknown front end, unknown norm; the model's: " in said and "whether they fit is not known" in said
    prepare(archive, Path("known"), "--front_end", "released")
    assert FrameSpec.of_directory(Path("known")) == RELEASED
    assert extract("old__best.model", "known")
    assert "differ from those that the model was trained on: front end released, not" in capsys.readouterr().out


def test_frames_that_are_scaled_already_are_scaled_again_only_when_told(splits, tmp_path):
    archive = tmp_path / "dev-clean-hires-norm.blogmel"
    archive.write_text("a-b-c\n1 2\n3 5\n.\n")
    with pytest.raises(InputError, match=r"dev-clean-hires-norm.blogmel are normalised already.*--any_frames"):
        prepare(archive, tmp_path / "out", "--norm", "speaker")
    assert not (tmp_path / "out").exists()
    prepare(archive, tmp_path / "out", "--norm", "speaker", "--any_frames")


WAVEFORM = np.random.default_rng(0).normal(0, 0.1, 16000)


@pytest.mark.parametrize("waveform, rate", [
    (WAVEFORM.astype(np.float32), 16000), (torch.from_numpy(WAVEFORM).float()[None].requires_grad_(), 16000),
    (np.round(WAVEFORM * 32768).astype(np.int16), 16000), (np.repeat(WAVEFORM, 2), 32000),
])  # fmt: skip
def test_features_of_a_waveform_of_any_kind(tmp_path, waveform, rate):
    torch.save(
        APCModel(80, None, RNNConfig(80, 8, 2, 0.0, True)).state_dict(), tmp_path / "bs1-rhl2-rhs8-rd0-adam-res-ts1.pt"
    )
    model = load_pretrained(tmp_path / "bs1-rhl2-rhs8-rd0-adam-res-ts1.pt")
    feats = features(model, waveform, rate)
    assert feats.shape == (2, 98, 8) and feats.isfinite().all() and not feats.requires_grad
    if rate == 16000:
        torch.testing.assert_close(feats, features(model, WAVEFORM, 16000), atol=0.02, rtol=0.02)


def test_a_waveform_of_a_lower_rate_or_a_model_of_unknown_frames_is_told(tmp_path):
    torch.save(APCModel(80, None, RNNConfig(80, 8, 1, 0.0, False)).state_dict(), tmp_path / "x.pt")
    model = load_pretrained(tmp_path / "x.pt")
    with pytest.warns(UserWarning, match="front end released, norm speaker-mean, is not known"):
        features(model, WAVEFORM, 16000)
    model.frame_spec = RELEASED
    with pytest.raises(InputError, match="8000 Hz"):
        features(model, WAVEFORM, 8000)


def test_a_waveform_of_another_rate_may_be_of_any_floating_type():
    model = APCModel(80, None, RNNConfig(80, 8, 1, 0.0, True)).eval()
    waveform = np.random.default_rng(0).normal(0, 0.1, 44100)
    found, expected = (features(model, waveform.astype(kind), 44100) for kind in (np.float16, np.float32))
    assert found.shape == expected.shape == (1, 98, 8)
    with pytest.raises(InputError, match="or int16, not int64"):
        features(model, waveform.astype(np.int64), 44100)
