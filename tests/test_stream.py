"""Facts about streams: features come as frames come, and are those of the whole utterance."""

import importlib.util
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from test_apc_model import HIDDEN, MEL, make_models

from apc_model import APCModel
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.audio.front_ends import FRONT_ENDS
from utils.audio.log_mel import OnlineLogMel, log_mel
from utils.audio.waveforms import read_waveform
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.normalization import Normalizer
from utils.system.errors import InputError
from utils.training.checkpoints import state_with_config

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "stream_microphone.py"
SPEECH = ROOT / "librispeech_data" / "sample" / "audio" / "dev" / "austen-ss01-0890.flac"


def streamed(model, frames, cuts, state=None):
    """Features of frames (batch, seq_len, mel_dim) that come in pieces of these sizes, and the state after them."""
    feats = []
    for piece in frames.split(cuts, dim=1):
        of_piece, state = model.stream(piece, state)
        feats.append(of_piece)
    return torch.cat(feats, dim=2), state


def offline(model, frames):
    with torch.no_grad():
        return model(frames, [frames.size(1)] * len(frames))[1]


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
@pytest.mark.parametrize("prenet_layers", [0, 2])
@pytest.mark.parametrize("residual", [False, True])
def test_features_are_those_of_the_whole_however_the_stream_is_cut(rnn_type, prenet_layers, residual):
    model = make_models(rnn_type, prenet_layers, residual, hidden=MEL)[0].eval()
    frames = torch.randn(3, 23, MEL)
    expected = offline(model, frames)
    for cuts in ([23], [1] * 23, [1, 1, 20, 1], [7, 16], [22, 1]):
        feats, state = streamed(model, frames, cuts)
        assert feats.shape == (3 + (prenet_layers > 0), 3, 23, MEL)
        torch.testing.assert_close(feats, expected)
        assert [part.shape for part in state] == [(3, 3, MEL)] * (2 if rnn_type == "lstm" else 1)


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
@pytest.mark.parametrize("batch", [1, 8])
def test_a_stream_may_be_under_autocast(rnn_type, batch):
    model, frames = make_models(rnn_type)[0].eval(), torch.randn(batch, 9, MEL)
    with torch.autocast("cpu", torch.bfloat16):
        feats, _ = streamed(model, frames, [3, 1, 1, 4])
    torch.testing.assert_close(feats.float(), offline(model, frames), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("rnn_type", ["gru", "lstm"])
def test_a_state_can_be_saved_and_gone_back_to(rnn_type):
    model = make_models(rnn_type)[0].eval()
    frames = torch.randn(2, 20, MEL)
    _, state = streamed(model, frames[:, :9], [4, 5])
    file = io.BytesIO()
    torch.save(state, file)
    first, _ = streamed(model, frames[:, 9:], [1, 10], state)
    loaded = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    again, _ = streamed(model, frames[:, 9:], [1, 10], loaded)
    assert torch.equal(first, again)
    torch.testing.assert_close(first, offline(model, frames)[:, :, 9:])


@pytest.mark.parametrize("shape, message", [
    ((1, 0, MEL), "an empty stream chunk: 0 frames"), ((0, 3, MEL), "an empty stream chunk: 3 frames of 0 streams"),
    ((1, 3, MEL + 1), rf"\(1, 3, {MEL + 1}\).*{MEL}"), ((3, MEL), rf"\(3, {MEL}\)"),
])  # fmt: skip
def test_a_piece_that_is_none_is_refused_naming_the_sizes(shape, message):
    model = make_models()[0].eval()
    with pytest.raises(ValueError, match=message):
        model.stream(torch.zeros(shape))


def states_of_others():
    """States that do not belong to a GRU of 3 x HIDDEN with a batch of 2, and what the refusal names."""

    def state(rnn_type="gru", layers=3, hidden=HIDDEN, batch=2):
        other = APCModel(MEL, None, RNNConfig(MEL, hidden, layers, 0.0, True, rnn_type)).eval()
        return other.stream(torch.zeros(batch, 1, MEL))[1]

    yield state(batch=3), rf"\(3, 3, {HIDDEN}\).*\(3, 2, {HIDDEN}\): is it of another batch size or model"
    yield state(hidden=HIDDEN + 1), rf"\(3, 2, {HIDDEN + 1}\)"
    yield state(layers=2), rf"\(2, 2, {HIDDEN}\)"
    yield state("lstm"), rf"\(3, 2, {HIDDEN}\), \(3, 2, {HIDDEN}\), but"
    yield (), "holds nothing"
    yield state()[0], "tuple of tensors"
    yield ("h",), "tuple of tensors"


@pytest.mark.parametrize("state, message", list(states_of_others()))
def test_a_state_of_another_batch_or_model_is_refused(state, message):
    model = make_models()[0].eval()
    with pytest.raises(InputError, match=message):
        model.stream(torch.zeros(2, 1, MEL), state)


def test_a_model_in_training_mode_does_not_stream():
    with pytest.raises(InputError, match=r"model\.eval\(\)"):
        make_models()[0].train().stream(torch.zeros(1, 1, MEL))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_log_mel_frames_are_bit_for_bit_those_of_the_whole_however_the_waveform_is_cut(dtype):
    samples, _ = soundfile.read(SPEECH, dtype="int16" if dtype == np.int16 else "float32")
    samples, expected = samples[:30000], log_mel(samples[:30000])
    for pieces in ([160] * 300, [1, 399, 1, 159, 0, 1, 10000], [30000], np.random.default_rng(0).integers(0, 900, 99)):
        online = OnlineLogMel()
        frames = [online.accept(piece) for piece in np.split(samples, np.cumsum(pieces))]
        assert all(x.dtype == np.float32 and x.shape[1:] == (80,) for x in frames)
        assert np.array_equal(np.concatenate(frames), expected)


def test_a_frame_comes_with_its_last_sample_and_not_later():
    online = OnlineLogMel()
    assert len(online.accept(np.zeros(399, np.int16))) == 0
    assert len(online.accept(np.zeros(1, np.int16))) == 1
    assert len(online.accept(np.zeros(159, np.int16))) == 0
    assert len(online.accept(np.zeros(1, np.int16))) == 1


@pytest.mark.parametrize("waveform", [np.zeros((2, 2)), np.zeros(3, np.int32), np.full(3, np.nan)])
def test_samples_that_are_none_are_refused(waveform):
    with pytest.raises(InputError):
        OnlineLogMel().accept(waveform)


@pytest.fixture(scope="module")
def example():
    """The example, as a module."""
    spec = importlib.util.spec_from_file_location("stream_microphone", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = torch.get_num_threads()
    yield module
    torch.set_num_threads(before)  # the example has set it for the whole process


@pytest.fixture
def listening(tmp_path):
    """A checkpoint that brings its normalisation along, and the features of real speech by it, computed offline."""
    torch.manual_seed(0)
    model = APCModel(80, None, RNNConfig(80, 16, 2, 0.0, True)).eval()
    checkpoint, norm = tmp_path / "foo__best.model", tmp_path / "normalization.json"
    frames = log_mel(read_waveform(SPEECH), front_end=FRONT_ENDS["kaldi-hires"])
    mean, std = frames.mean(0, np.float64), frames.std(0, dtype=np.float64)
    normalizer = Normalizer("global", "", {"all speakers": (mean, std)})
    normalizer.save(norm)
    model.frame_spec = FrameSpec.of_front_end(FRONT_ENDS["kaldi-hires"]).scaled_by(normalizer)
    torch.save(state_with_config(model), checkpoint)
    expected = offline(model, torch.from_numpy(normalizer.apply(frames))[None])[-1, 0].numpy()
    return ["--checkpoint", str(checkpoint)], expected


@pytest.mark.parametrize("piece_ms", [10, 37])
def test_a_file_played_as_if_live_gives_the_features_of_the_file_and_tells_the_latency(
    piece_ms, listening, example, tmp_path, capsys
):
    options, expected = listening
    save = tmp_path / "live.npy"
    example.main([*options, "--wav", str(SPEECH), "--no-realtime", "--piece_ms", str(piece_ms), "--save", str(save)])
    np.testing.assert_allclose(np.load(save), expected, atol=1e-5)
    assert f"{len(expected)} frames, {piece_ms} ms at a time: latency" in (out := capsys.readouterr().out)
    assert "99th percentile" in out


def test_a_file_is_followed_by_the_front_end_that_is_asked_for_and_the_dither_is_told(
    listening, example, tmp_path, capsys
):
    options, _ = listening
    model = load_pretrained(options[1])
    normalizer = model.frame_spec.normalizer
    frames = log_mel(read_waveform(SPEECH), front_end=FRONT_ENDS["released"], seed=SPEECH.stem)
    expected = offline(model, torch.from_numpy(normalizer.apply(frames))[None])[-1, 0].numpy()
    play = [*options, "--wav", str(SPEECH), "--no-realtime", "--front_end", "released"]
    with pytest.raises(InputError, match="front end released, not kaldi-hires; --any_frames"):
        example.main(play)
    play.append("--any_frames")
    example.main([*play, "--save", str(tmp_path / "live.npy")])
    np.testing.assert_allclose(np.load(tmp_path / "live.npy"), expected, atol=1e-5)
    assert "dither 1: noise by the file's utterance id" in capsys.readouterr().out


def test_one_channel_of_a_file_is_followed(listening, example, tmp_path):
    options, expected = listening
    samples, rate = soundfile.read(SPEECH)
    soundfile.write(tmp_path / "stereo.wav", np.stack([0 * samples, samples], axis=1), rate)
    play = [*options, "--wav", str(tmp_path / "stereo.wav"), "--no-realtime"]
    with pytest.raises(InputError, match="--channel takes one of them"):
        example.main(play)
    example.main([*play, "--channel", "1", "--save", str(tmp_path / "new" / "live.npy")])
    np.testing.assert_allclose(np.load(tmp_path / "new" / "live.npy"), expected, atol=1e-5)


def test_a_file_of_another_rate_is_converted_when_asked(listening, example, tmp_path, capsys):
    soundfile.write(tmp_path / "slow.wav", soundfile.read(SPEECH)[0][::2], 8000)
    play = [*listening[0], "--wav", str(tmp_path / "slow.wav"), "--no-realtime"]
    with pytest.raises(InputError, match="8000 Hz, not 16000 Hz; --resample converts it"):
        example.main(play)
    example.main([*play, "--resample"])
    assert f"{len(listening[1])} frames" in capsys.readouterr().out


def test_a_microphones_samples_come_by_stdin(listening, tmp_path):
    options, expected = listening
    samples, _ = soundfile.read(SPEECH, dtype="int16")
    command = [sys.executable, SCRIPT, *options, "--save", tmp_path / "live.npy"]
    result = subprocess.run(command, input=samples.tobytes(), capture_output=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / "live.npy"), expected, atol=1e-5)


def test_options_of_a_file_are_refused_for_a_microphone(listening, example, capsys):
    for option in (["--channel", "0"], ["--resample"]):
        with pytest.raises(SystemExit):
            example.main([*listening[0], *option])
        assert "--channel and --resample are for --wav" in capsys.readouterr().err


def test_what_cannot_be_followed_live_is_refused(listening, example, tmp_path):
    options, _ = listening
    live = [*options[:2], "--wav", str(SPEECH), "--no-realtime", "--norm_from", str(tmp_path / "other.json")]
    Normalizer("utterance").save(tmp_path / "other.json")
    with pytest.raises(InputError, match="before it ends"):
        example.main(live)
    Normalizer("utterance-mean").save(tmp_path / "other.json")
    with pytest.raises(InputError, match=r"before it ends.*--norm global-mean"):
        example.main(live)
    Normalizer("speaker", "", {"ann": (np.zeros(80), np.ones(80))}).save(tmp_path / "other.json")
    with pytest.raises(InputError, match="speakers, not for ben: choose one with --speaker"):
        example.main([*live, "--speaker", "ben"])
    with pytest.raises(InputError, match=r"none\.wav"):
        example.main([*options, "--wav", str(tmp_path / "none.wav")])


def test_a_model_of_speakers_means_needs_those_of_the_speaker_or_is_told_to_do_without(listening, example, tmp_path):
    model = load_pretrained(listening[0][1])
    released = tmp_path / "bs32-rhl2-rhs16-rd0-adam-res-ts3.pt"
    torch.save(model.state_dict(), released)
    live = ["--checkpoint", str(released), "--wav", str(SPEECH), "--no-realtime", "--save", str(tmp_path / "x.npy")]
    with pytest.raises(InputError, match=r"frames of norm speaker-mean.*--norm_from, --speaker.*--any_frames"):
        example.main(live)
    frames = log_mel(read_waveform(SPEECH), front_end=FRONT_ENDS["released"], seed=SPEECH.stem)
    mean = frames.mean(0, np.float64)
    Normalizer("speaker-mean", "", {"ann": (mean, np.ones(80))}).save(tmp_path / "normalization.json")
    for options, expected in (
        (["--norm_from", str(tmp_path), "--speaker", "ann"], frames - mean),
        (["--norm_from", str(tmp_path)], frames - mean),  # the only one
        (["--any_frames"], frames),
    ):  # fmt: skip
        example.main([*live, *options])
        feats = offline(model, torch.from_numpy(expected.astype(np.float32))[None])[-1, 0].numpy()
        np.testing.assert_allclose(np.load(tmp_path / "x.npy"), feats, atol=1e-5)
