"""Facts about the upstream: waveforms become hidden states as s3prl's tools expect them, by the model's own frames."""

import warnings
from pathlib import Path

import pytest
import torch
from test_s3prl import make_model

from apc_upstream import Upstream
from utils.audio.front_ends import find_front_end
from utils.audio.log_mel import log_mel
from utils.audio.waveforms import read_waveform
from utils.corpus.frame_spec import FrameSpec
from utils.corpus.normalization import Normalizer
from utils.system.errors import InputError

SPEECH = Path(__file__).parent.parent / "librispeech_data" / "sample" / "audio" / "dev" / "austen-ss01-0890.flac"
SAMPLES = (40000, 400, 16159)  # 248, 1 and 99 frames


@pytest.fixture(scope="module")
def waveforms():
    speech = torch.from_numpy(read_waveform(SPEECH))
    return [speech[10000 : 10000 + samples] for samples in SAMPLES]


@pytest.mark.parametrize("front_end, norm", [("s3prl", None), ("released", "none"), ("kaldi-hires", "utterance-mean")])
def test_hidden_states_are_the_features_of_each_utterance_by_itself(front_end, norm, waveforms):
    model = make_model(front_end, norm)
    front_end, waveforms = find_front_end(front_end), [waveforms[0], waveforms[2]]
    result = Upstream(model)(waveforms)
    assert result["lengths"].tolist() == [248, 99] and len(result["hidden_states"]) == 3
    assert torch.equal(result["last_hidden_state"], result["hidden_states"][-1])
    for number, waveform in enumerate(waveforms):
        frames = Normalizer(model.frame_spec.norm).apply(log_mel(waveform.numpy(), front_end=front_end))
        _, feats = model(torch.from_numpy(frames)[None], [len(frames)])
        for layer, hidden in enumerate(result["hidden_states"]):
            torch.testing.assert_close(hidden[number, : len(frames)], feats[layer, 0], rtol=1e-4, atol=1e-5)
            assert hidden.shape == (2, 248, 12) and not hidden[number, len(frames) :].any()


def test_it_counts_frames_exactly_and_names_the_step_between_them(waveforms):
    upstream = Upstream(make_model(), norm="none")
    assert upstream(waveforms)["lengths"].tolist() == [248, 1, 99]
    assert upstream.get_downsample_rates("hidden_states") == 160
    with pytest.raises(InputError, match="399 samples are shorter than a window of 400"):
        upstream([waveforms[0], waveforms[0][:399]])


def test_it_can_be_fine_tuned(waveforms):
    upstream = Upstream(make_model()).train()
    upstream([waveforms[0], waveforms[2]])["last_hidden_state"].square().mean().backward()
    learnt = {name for name, parameter in upstream.named_parameters() if parameter.grad is not None}
    assert learnt == {name for name, _ in upstream.named_parameters() if "postnet" not in name}


def test_speakers_are_unknown_so_each_utterance_is_normalised_by_itself_and_this_is_said(waveforms):
    model = make_model("released")
    with pytest.warns(UserWarning, match="normalised by speaker-mean in training, here by utterance-mean"):
        expected = Upstream(model)(waveforms)["last_hidden_state"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Upstream(model, norm="utterance-mean")(waveforms)["last_hidden_state"], expected)


def test_a_model_of_unknown_frames_needs_to_be_told(waveforms):
    model = make_model()
    expected = Upstream(model)(waveforms[:1])["last_hidden_state"]
    model.frame_spec = FrameSpec()
    with pytest.raises(InputError, match="unknown front end, unknown norm: give front_end and norm"):
        Upstream(model)
    assert torch.equal(Upstream(model, front_end="s3prl")(waveforms[:1])["last_hidden_state"], expected)
    with pytest.raises(InputError, match="no front end is named 'htk'"):
        Upstream(model, front_end="htk")
    with pytest.raises(InputError, match="no norm is named 'some'"):
        Upstream(model, norm="some")
    with pytest.raises(InputError, match="frames of 40, but log Mel has 80"):
        Upstream(make_model(mel_dim=40))
