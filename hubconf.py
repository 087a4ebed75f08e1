"""The model in one line, for torch.hub.

model = torch.hub.load("path/to/this/repository", "apc", source="local", checkpoint="foo__epoch_100.model")
"""

from typing import Any

from apc_model import APCModel
from load_pretrained_model import load_pretrained

dependencies = [
    "torch",
    "numpy",
    "tqdm",
    "kaldi_native_fbank",
    "kaldiio",
    "soundfile",
    "soxr",
    "simdjson",
    "safetensors",
]


def apc(checkpoint: str, **options: Any) -> APCModel:
    """An APC model in eval mode, from any checkpoint that `load_pretrained` reads.

    Args:
        checkpoint: the file.
        options: those of `load_pretrained`: device, residual, time_shift.
    """
    return load_pretrained(checkpoint, **options)
