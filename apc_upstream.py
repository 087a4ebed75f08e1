"""An upstream of s3prl's interface: waveforms in, the hidden states of every layer out.

upstream = torch.hub.load("path/to/this/repository", "apc_upstream", source="local", checkpoint="foo__epoch_100.model")
hidden_states = upstream([torch.randn(16000), torch.randn(12000)])["hidden_states"]
"""

import warnings
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from apc_model import APCModel
from load_pretrained_model import to_array
from utils.audio.frames import NUM_MEL_BINS, SAMPLE_RATE, SHIFT_SAMPLES
from utils.system.errors import InputError


class Upstream(nn.Module):
    """A model that computes its frames, too. The log Mel passes no gradient on to the waveform; the model learns,
    on a GPU only after `.train()`.

    Args:
        model: any that reads log Mel.
        front_end, dither, norm: how frames are made; where None, as those that the model was trained on. In place of
            a normalisation by speaker, which an upstream cannot know, each utterance is normalised by itself.

    Raises:
        InputError: the front end or the normalisation is unknown, or the model does not read its frames.
    """

    def __init__(
        self, model: APCModel, front_end: str | None = None, dither: float | None = None, norm: str | None = None
    ) -> None:
        super().__init__()
        frames = model.frame_spec.changed(front_end, dither, norm)
        if not frames.is_known:
            raise InputError(f"the model reads frames of {frames.describe()}: give front_end and norm")
        if frames.normalizer is None:
            by_utterance = frames.norm.replace("speaker", "utterance").replace("global", "utterance")
            warnings.warn(f"frames were normalised by {frames.norm} in training, here by {by_utterance}", stacklevel=2)
        if model.mel_dim != NUM_MEL_BINS:
            raise InputError(f"the model reads frames of {model.mel_dim}, but log Mel has {NUM_MEL_BINS}")
        self.model, self.frame_spec = model, frames

    def get_downsample_rates(self, key: str = "hidden_states") -> int:
        """Samples at 16 kHz from one frame to the next."""
        return SHIFT_SAMPLES

    def forward(self, wavs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Compute the features of utterances.

        Args:
            wavs: each (samples,), 16 kHz, floating point in [-1, 1], 400 samples or more.

        Returns:
            hidden_states: of each layer (batch, frames, hidden_size), padded at the end; n samples give
                1 + (n - 400) // 160 frames.
            last_hidden_state: of the last layer.
            lengths: (batch,), the true frames of each utterance.
        """
        frames = [torch.from_numpy(self.frame_spec.make_frames(to_array(wav), SAMPLE_RATE)) for wav in wavs]
        lengths = torch.tensor([len(x) for x in frames])
        inputs = pad_sequence(frames, batch_first=True).to(next(self.model.parameters()).device)
        _, feats = self.model(inputs, lengths)  # (num_layers, batch, frames, hidden_size)
        return {"hidden_states": feats.unbind(), "last_hidden_state": feats[-1], "lengths": lengths}
