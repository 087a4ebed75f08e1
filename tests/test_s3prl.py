"""Facts about s3prl: its checkpoints and ours are the same models on the same frames; what it cannot hold is refused.

benchmarks/compare_s3prl.py compares with s3prl itself.
"""

import pytest
import torch
from test_load_pretrained import s3prl_names

from apc_model import APCModel
from export import export_model
from export.s3prl_checkpoint import to_s3prl
from load_pretrained_model import load_pretrained
from utils import PrenetConfig, RNNConfig
from utils.corpus.frame_spec import FrameSpec
from utils.system.errors import InputError

HIDDEN = 12
AUDIO = {"feat_type": "fbank", "feat_dim": 80, "frame_length": 25, "frame_shift": 10, "decode_wav": False}


def make_model(front_end="s3prl", norm=None, prenet=False, has_postnet=True, mel_dim=80, **changes):
    torch.manual_seed(0)
    rnn = RNNConfig(mel_dim, HIDDEN, 3, 0.0, True)._replace(**changes)
    config = PrenetConfig(mel_dim, rnn.hidden_size, 1, 0.0) if prenet else None
    rnn = rnn._replace(input_size=rnn.hidden_size) if prenet else rnn
    model = APCModel(mel_dim, config, rnn, has_postnet).eval()
    model.frame_spec, model.time_shift = FrameSpec().changed(front_end, norm=norm), 5
    return model


def feats_of(model):
    torch.manual_seed(1)
    return model(torch.randn(2, 9, 80), [9, 4])


@pytest.mark.parametrize("changes", [{}, {"residual": False}, {"num_layers": 4},
                                     {"hidden_size": 80, "first_residual_layer": 1}])  # fmt: skip
@pytest.mark.parametrize("norm", ["utterance-unbiased", "utterance-mean", "none"])
def test_an_exported_checkpoint_is_the_model_and_its_frames(changes, norm, tmp_path):
    model = make_model(norm=norm, **changes)
    (tmp_path / "apc.ckpt").write_bytes(to_s3prl(model))
    loaded = load_pretrained(tmp_path / "apc.ckpt")
    assert loaded.time_shift == 5 and loaded.frame_spec == model.frame_spec
    for ours, theirs in zip(feats_of(loaded), feats_of(model), strict=True):
        assert torch.equal(ours, theirs)


def test_an_exported_checkpoint_holds_what_s3prl_reads(tmp_path):
    model = make_model("released")
    torch.save(model.state_dict(), tmp_path / "bs32-rhl3-rhs12-rd0-adam-res-ts3.pt")
    export_model.main([
        "--checkpoint", str(tmp_path / "bs32-rhl3-rhs12-rd0-adam-res-ts3.pt"), "--save", str(tmp_path / "apc.ckpt"),
        "--front_end", "s3prl", "--dither", "1", "--norm", "utterance-mean",
    ])  # fmt: skip
    saved = torch.load(tmp_path / "apc.ckpt", weights_only=True)
    audio = saved["config"]["data"]["audio"]
    assert audio == AUDIO | {"cmvn": False, "subtract_mean": True, "dither": 1 / 32768}  # of samples in [-1, 1]
    sizes = {"hidden_size": 12, "num_layers": 3, "dropout": 0.0, "residual": True}
    assert saved["config"]["model"]["paras"] == sizes
    expected = {name: value.squeeze(-1) for name, value in s3prl_names(model).items()}
    assert expected["postnet.weight"].shape == (80, 12)
    torch.testing.assert_close(dict(saved["model"]), expected, rtol=0, atol=0)


@pytest.mark.parametrize("changes, reason", [
    ({"rnn_type": "lstm"}, "LSTM layers"), ({"prenet": True}, "has a prenet"),
    ({"has_postnet": False}, "no prediction layer"), ({"num_layers": 2}, "2 layers, .* of 3 or more"),
    ({"hidden_size": 80}, "connections start at layer 0, and in s3prl at layer 1"),
    ({"first_residual_layer": 2}, "start at layer 2"), ({"mel_dim": 40}, "frames of 40, not log Mel of 80 bins"),
    ({"front_end": "released"}, r"\(front end released, norm speaker-mean\); --front_end s3prl --norm utterance-mean"),
    ({"front_end": "kaldi-hires"}, r"kaldi-hires, norm speaker\); --front_end s3prl --norm utterance-unbiased"),
    ({"front_end": None}, r"\(unknown front end, unknown norm\); --front_end s3prl"),
    ({"norm": "global"}, r"\(front end s3prl, norm global\)"), ({"norm": "utterance"}, "norm utterance-unbiased has"),
])  # fmt: skip
def test_what_s3prl_cannot_hold_is_refused_with_the_reason(changes, reason):
    with pytest.raises(InputError, match=f"s3prl's APC cannot hold this model: .*{reason}"):
        to_s3prl(make_model(**changes))


@pytest.mark.parametrize("audio, front_end, norm", [
    ({}, "s3prl", "utterance-unbiased"), (AUDIO, "s3prl", "utterance-unbiased"),
    (AUDIO | {"cmvn": False}, "s3prl", "none"),
    (AUDIO | {"cmvn": False, "subtract_mean": True}, "s3prl", "utterance-mean"),
    (AUDIO | {"frame_length": 20}, None, None), (AUDIO | {"high_freq": 4000.0}, None, None),
    (AUDIO | {"feat_dim": 40}, None, None), (AUDIO | {"dither": "much"}, None, None),
    (AUDIO | {"dither": 10**400}, None, None), (AUDIO | {"feat_dim": torch.ones(2)}, None, None),
])  # fmt: skip
def test_the_frames_of_an_s3prl_checkpoint_are_those_of_its_configuration(audio, front_end, norm, tmp_path):
    saved = {"model": s3prl_names(make_model()), "config": {"data": {"audio": audio}, "residual": True}}
    torch.save(saved, tmp_path / "apc.ckpt")
    spec = load_pretrained(tmp_path / "apc.ckpt").frame_spec
    assert (spec.front_end, spec.norm) == (front_end, norm)


def altered(path, saved):
    """Ways to spoil a checkpoint of s3prl's, and what each refusal names."""
    weights, paras = saved["model"], saved["config"]["model"]["paras"]
    yield {**saved, "model": {k: v for k, v in weights.items() if "layers.2" not in k}}, "num_layers is 3 .* and 2 in"
    yield {**saved, "model": {k: v for k, v in weights.items() if k != "rnn_layers.1.bias_hh_l0"}}, "bias_hh_l0 is not"
    yield {**saved, "model": {k.replace("rnn_layers", "layers"): v for k, v in weights.items()}}, "it has no rnns"
    yield {**saved, "model": weights | {"vq_layers.0.weight": torch.ones(2)}}, "vq_layers"
    for key, value in (("hidden_size", 512), ("num_layers", [3]), ("residual", 7), ("hidden_size", torch.ones(2))):
        yield {**saved, "config": {"model": {"paras": {**paras, key: value}}}}, key
    yield {**saved, "apc_config": 7}, "its apc_config is a int"


def test_a_spoilt_checkpoint_is_refused_in_one_line(tmp_path):
    path = tmp_path / "apc.ckpt"
    path.write_bytes(content := to_s3prl(make_model()))
    for spoilt, message in altered(path, torch.load(path, weights_only=True)):
        torch.save(spoilt, path)
        with pytest.raises(InputError, match=rf"apc\.ckpt.*{message}") as refused:
            load_pretrained(path)
        assert "\n" not in str(refused.value)
    middle = len(content) // 2
    for damaged in (content[:middle], content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"apc\.ckpt is damaged"):
            load_pretrained(path)
