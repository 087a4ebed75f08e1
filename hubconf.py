"""The model in one line, for torch.hub: of log-Mel frames (apc), or of waveforms (apc_upstream).

model = torch.hub.load("path/to/this/repository", "apc", source="local", checkpoint="foo__epoch_100.model")
"""

import sys
from pathlib import Path
from typing import Any

_utils = sys.modules.get("utils")  # a name that others use, too
_path = Path(getattr(_utils, "__file__", None) or "/").resolve()
if _utils is not None and Path(__file__).resolve().parent not in _path.parents:
    raise ImportError(f"another package named utils is loaded ({_utils}): load this repository before it")

import torch  # noqa: E402

from apc_model import APCModel  # noqa: E402
from load_pretrained_model import BUNDLED, load_pretrained  # noqa: E402

dependencies = ["torch", "numpy", "safetensors"]


def apc(checkpoint: str | Path = BUNDLED, **options: Any) -> APCModel:
    """Load an APC model in eval mode, by default the small one in pretrained/.

    The options are those of `load_pretrained`: device, residual, time_shift.
    """
    return load_pretrained(checkpoint, **options)


def apc_upstream(
    checkpoint: str | Path = BUNDLED,
    front_end: str | None = None,
    dither: float | None = None,
    norm: str | None = None,
    **options: Any,
) -> torch.nn.Module:
    """Load an upstream of s3prl's interface, `apc_upstream.Upstream`; other options are those of `load_pretrained`."""
    from apc_upstream import Upstream  # needs kaldi-native-fbank

    return Upstream(load_pretrained(checkpoint, **options), front_end, dither, norm)
