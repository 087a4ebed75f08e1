"""Compare this project's models with the same checkpoints inside s3prl: the hidden states of a real utterance.

s3prl is in an environment of its own, made at the root of this repository by

    python -m venv s3prl-env
    s3prl-env/bin/pip install -r requirements.txt -c constraints.txt s3prl==0.4.18
    s3prl-env/bin/pip install --no-deps torchaudio==2.11.0
    rm s3prl-env/lib/python3*/site-packages/torchaudio/lib/*.so
    s3prl-env/bin/python benchmarks/compare_s3prl.py

(The fourth line removes what is compiled for another PyTorch; torchaudio's log Mel is Python.) Prints the largest
difference of a hidden state for models written here and loaded there, and for models written there and loaded here.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from apc_model import APCModel
from apc_upstream import Upstream
from export.s3prl_checkpoint import to_s3prl
from load_pretrained_model import load_pretrained
from utils import RNNConfig
from utils.audio.waveforms import read_waveform
from utils.corpus.frame_spec import FrameSpec
from utils.training.s3prl_frames import NORMS

ROOT = Path(__file__).resolve().parent.parent
LAYERS, HIDDEN_SIZE, MEL_DIM = 3, 512, 80


def written_here(path: Path, residual: bool, norm: str) -> None:
    """A checkpoint of random weights, exported."""
    model = APCModel(MEL_DIM, None, RNNConfig(MEL_DIM, HIDDEN_SIZE, LAYERS, 0.0, residual))
    model.frame_spec = FrameSpec().changed("s3prl", norm=norm)
    path.write_bytes(to_s3prl(model))


def written_there(path: Path, residual: bool, norm: str) -> None:
    """A checkpoint of random weights as s3prl writes it."""
    from s3prl.upstream.apc.apc import APC

    sizes = {"hidden_size": HIDDEN_SIZE, "num_layers": LAYERS, "dropout": 0.1, "residual": residual}
    audio = {"feat_type": "fbank", "feat_dim": MEL_DIM, "frame_length": 25, "frame_shift": 10, "decode_wav": False}
    config = {"data": {"audio": audio | NORMS[norm]}, "model": {"paras": sizes}, "task": {"n_future": 5}}
    torch.save({"model": APC(MEL_DIM, **sizes).state_dict(), "config": config}, path)


@torch.no_grad()
def largest_differences(checkpoint: Path, waveform: torch.Tensor) -> tuple[float, float]:
    """Of the hidden states of s3prl and of this project: from s3prl's frames, and from the waveform."""
    from s3prl.upstream.apc.hubconf import apc_local

    theirs, ours = apc_local(str(checkpoint)).eval(), Upstream(load_pretrained(checkpoint))
    expected = theirs([waveform])["hidden_states"]  # of each layer (1, frames, hidden_size)
    frames = theirs.preprocessor(waveform[None])  # (frames, 80)
    _, from_frames = ours.model(frames[None], [len(frames)])
    from_waveform = ours([waveform])["hidden_states"]
    return tuple(
        max(float((x - y).abs().max()) for x, y in zip(expected, feats, strict=True))
        for feats in (from_frames, from_waveform)
    )


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sample = ROOT / "librispeech_data" / "sample" / "audio" / "dev" / "austen-ss01-0890.flac"
    parser.add_argument("--wav", type=Path, default=sample, metavar="FILE", help="The utterance, of 16 kHz.")
    waveform = torch.from_numpy(read_waveform(parser.parse_args().wav))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / "apc.ckpt"
        for write in (written_here, written_there):
            for residual in (True, False):
                for norm in NORMS:
                    write(checkpoint, residual, norm)
                    from_frames, from_waveform = largest_differences(checkpoint, waveform)
                    kind = f"{write.__name__}, {'residual' if residual else 'not residual'}, norm {norm}"
                    print(f"{kind}: from frames {from_frames:.1e}, from the waveform {from_waveform:.1e}")


if __name__ == "__main__":
    main()
