"""Facts about a feature extractor in other runtimes: the numbers are PyTorch's, for any batch and any length."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from apc_model import APCModel
from export import export_model
from load_pretrained_model import load_pretrained
from utils import PrenetConfig, RNNConfig
from utils.audio.front_ends import FRONT_ENDS
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.sources import ArchiveSource
from utils.system.errors import InputError
from utils.training import checkpoints

SAMPLE = Path(__file__).parent.parent / "librispeech_data" / "sample" / "sample-train.blogmel.xz"
MODELS = [("gru", 0), ("lstm", 0), ("gru", 2)]


def make_model(rnn_type="gru", prenet_layers=0, hidden=24, **changes):
    torch.manual_seed(0)
    prenet = PrenetConfig(80, hidden, prenet_layers, 0.0) if prenet_layers else None
    rnn = RNNConfig(hidden if prenet else 80, hidden, 3, 0.0, True, rnn_type)._replace(**changes)
    return APCModel(80, prenet, rnn).eval()


@pytest.fixture(scope="module")
def batch():
    """Real frames: (4, longest, 80), and their lengths."""
    frames = [torch.from_numpy(utterance.load()) for utterance in ArchiveSource([SAMPLE]).utterances()]
    return pad_sequence(frames, batch_first=True), torch.tensor([len(x) for x in frames])


def expected_feats(model, frames, lengths):
    """`feats`, with zeros in the padding of the prenet's output too."""
    with torch.no_grad():
        feats = model(frames, lengths)[1]
    return feats * (torch.arange(frames.size(1)) < lengths[:, None])[None, :, :, None]


@pytest.mark.parametrize("rnn_type, prenet_layers", MODELS)
def test_onnxruntime_gives_the_features_of_real_speech_for_any_batch_and_length(rnn_type, prenet_layers, batch):
    model = make_model(rnn_type, prenet_layers)
    session = onnxruntime.InferenceSession(export_model.to_onnx(model))
    for rows, longest in ((4, 700), (1, 100), (3, 1)):
        frames, lengths = batch[0][:rows, :longest], batch[1][:rows].clamp(max=longest)
        (feats,) = session.run(None, {"frames": frames.numpy(), "lengths": lengths.numpy()})
        expected = expected_feats(model, frames, lengths).numpy()
        assert feats.shape == expected.shape and feats.dtype == np.float32
        np.testing.assert_allclose(feats, expected, atol=2e-5)


@pytest.mark.parametrize("rnn_type, prenet_layers", MODELS)
def test_torchscript_gives_the_features_of_real_speech_for_any_batch_and_length(rnn_type, prenet_layers, batch):
    model = make_model(rnn_type, prenet_layers)
    script = torch.jit.load(io.BytesIO(export_model.to_torchscript(model)))
    for rows, longest in ((4, 700), (1, 100), (3, 1)):
        frames, lengths = batch[0][:rows, :longest], batch[1][:rows].clamp(max=longest)
        torch.testing.assert_close(script(frames, lengths), expected_feats(model, frames, lengths))


@pytest.mark.parametrize("wrong", [0, -1, 6])
def test_lengths_that_are_not_of_the_batch_are_refused(wrong):
    model, frames, lengths = make_model(), torch.zeros(2, 5, 80), torch.tensor([5, wrong])
    session = onnxruntime.InferenceSession(export_model.to_onnx(model))
    with pytest.raises(Exception, match="lengths_must_be_from_1_to_seq_len"):
        session.run(None, {"frames": frames.numpy(), "lengths": lengths.numpy()})
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.jit.load(io.BytesIO(export_model.to_torchscript(model)))(frames, lengths)


@pytest.mark.parametrize("changes", [{}, {"residual": False}, {"first_residual_layer": 1}, {"rnn_type": "lstm"}])
def test_safetensors_hold_the_model_whole(changes, batch, tmp_path):
    model = make_model(hidden=80, **changes)  # where layer 0 could have a residual too
    model.time_shift = 5
    path = tmp_path / "weights.safetensors"
    path.write_bytes(export_model.to_safetensors(model))
    loaded = load_pretrained(path)
    assert loaded.rnn_config == model.rnn_config and loaded.time_shift == 5
    for ours, theirs in zip(loaded(*batch), model(*batch), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("change", [
    lambda content: content[: len(content) // 2], lambda content: b"\xff" * 8 + content[8:], lambda _: b"",
    lambda content: content.replace(b'\\"residual\\": true', b'\\"residual\\": 1234'),
    lambda content: content.replace(b'{\\"mel_dim\\":', b'[\\"mel_dim\\",'),
    lambda content: content.replace(b"F32", b"F99"),
])  # fmt: skip
def test_damaged_safetensors_are_refused_by_name(change, tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(change(export_model.to_safetensors(make_model())))
    with pytest.raises(InputError, match=r"weights\.safetensors"):
        load_pretrained(path)


def test_one_command_writes_each_kind(batch, tmp_path, capsys):
    model = make_model()
    checkpoint = tmp_path / "bs32-rhl3-rhs24-rd0-adam-res-ts3.pt"
    torch.save(model.state_dict(), checkpoint)
    for suffix in export_model.EXPORTS:
        save = tmp_path / "out" / f"apc{suffix}"
        export_model.main(["--checkpoint", str(checkpoint), "--save", str(save), "--front_end", "s3prl"])
        assert str(save) in capsys.readouterr().out and save.stat().st_size > 1000
    loaded = load_pretrained(tmp_path / "out" / "apc.safetensors")
    assert loaded.time_shift == 3 and loaded.frame_spec == FrameSpec.of_front_end(FRONT_ENDS["s3prl"])
    with pytest.raises(SystemExit):
        export_model.main(["--checkpoint", str(checkpoint), "--save", str(tmp_path / "apc.bin")])


def test_16_bits_per_weight_take_half_the_bytes_and_are_loaded_as_float32(batch, tmp_path):
    model = make_model()
    torch.save(model.state_dict(), tmp_path / "bs32-rhl3-rhs24-rd0-adam-res-ts3.pt")
    command = ["--checkpoint", str(tmp_path / "bs32-rhl3-rhs24-rd0-adam-res-ts3.pt"), "--half", "--save"]
    export_model.main([*command, str(tmp_path / "half.safetensors")])
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert 2 * weights < (tmp_path / "half.safetensors").stat().st_size < 2 * weights + 4096
    loaded = load_pretrained(tmp_path / "half.safetensors")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert 0 < (loaded(*batch)[1] - model(*batch)[1]).abs().max() < 0.01
    with pytest.raises(SystemExit):
        export_model.main([*command, str(tmp_path / "half.onnx")])


def test_without_the_package_onnx_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match="pip install onnx"):
        export_model.to_onnx(make_model())


def test_the_checkpoint_is_never_written_over(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"weights")
    with pytest.raises(InputError, match="is the file to read"):
        export_model.main(["--checkpoint", str(path), "--save", str(path)])
    assert path.read_bytes() == b"weights"


def test_onnx_and_torchscript_carry_how_frames_are_made():
    model, key = make_model(), checkpoints.CONFIG_KEY
    model.frame_spec = FrameSpec.of_front_end(FRONT_ENDS["s3prl"])
    session = onnxruntime.InferenceSession(export_model.to_onnx(model))
    extra = {key: ""}
    torch.jit.load(io.BytesIO(export_model.to_torchscript(model)), _extra_files=extra)
    for text in (session.get_modelmeta().custom_metadata_map[key], extra[key]):
        frames = json.loads(text)["frames"]
        assert frames == {"front_end": "s3prl", "dither": 0, "norm": "utterance-unbiased"}
