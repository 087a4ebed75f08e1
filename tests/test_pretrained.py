"""Facts about the model in pretrained/: small, of 16-bit weights, complete, and it has learnt to predict speech."""

from pathlib import Path

import soundfile
import torch
from safetensors.torch import load_file

from load_pretrained_model import BUNDLED, load_pretrained

SAMPLE = Path(__file__).parent.parent / "librispeech_data" / "sample" / "audio"
MAX_BYTES = 2_500_000


def test_it_is_small_and_knows_how_its_frames_are_made():
    assert BUNDLED.stat().st_size <= MAX_BYTES and BUNDLED.with_name("README.md").exists()
    assert {weight.dtype for weight in load_file(BUNDLED).values()} == {torch.float16}
    model = load_pretrained()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert (model.rnn_config.num_layers, model.rnn_config.hidden_size) == (3, 256) and model.time_shift
    assert (model.frame_spec.front_end, model.frame_spec.norm) == ("released", "speaker-mean")


def test_it_predicts_speech_better_than_the_present_frame_does():
    model = load_pretrained()
    for path in sorted(SAMPLE.rglob("*.flac")):
        frames = torch.from_numpy(model.frame_spec.make_frames(*soundfile.read(path, dtype="int16"), path.stem))
        with torch.no_grad():
            predicted, _ = model(frames[None], [len(frames)])
        n = model.time_shift
        loss, persistence = ((frames[n:] - guess[:-n]).abs().mean() for guess in (predicted[0], frames))
        assert loss < 0.9 * persistence
