"""Facts about what imports cost: a notebook that loads a model imports PyTorch and NumPy alone."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "kaldiio", "soundfile", "soxr", "simdjson", "kaldi_native_fbank", "safetensors", "sklearn", "matplotlib",
    "tensorboard", "rapidfuzz",
}  # fmt: skip


@pytest.mark.parametrize("statement, allowed", [
    ("import apc_model", set()),
    ("import datasets", set()),
    ("from load_pretrained_model import load_pretrained", set()),
    ("import hubconf", set()),
    ("import train_apc", {"tensorboard"}),
])  # fmt: skip
def test_an_import_costs_no_more_than_what_is_used(statement, allowed):
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert HEAVY & set(ran.stdout.split()) <= allowed
