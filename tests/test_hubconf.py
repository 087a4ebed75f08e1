"""A fact about torch.hub: the model is one line away, from any directory."""

import subprocess
import sys
from pathlib import Path

import torch
from test_s3prl import make_model

ROOT = Path(__file__).parent.parent
CODE = """
import sys, torch
root, checkpoint, out = sys.argv[1:]
model = torch.hub.load(root, "apc", source="local", checkpoint=checkpoint, time_shift=4)
assert not model.training and model.time_shift == 4
torch.save(model.stream(torch.ones(1, 3, 80))[0], out)
options = {"front_end": "s3prl", "norm": "none"}
upstream = torch.hub.load(root, "apc_upstream", source="local", checkpoint=checkpoint, **options)
assert upstream([torch.zeros(720)])["last_hidden_state"].shape == (1, 3, 12)
"""


def test_torch_hub_gives_the_model_ready_for_use_from_another_directory(tmp_path):
    model = make_model()
    checkpoint = tmp_path / "bs32-rhl3-rhs12-rd0-adam-res-ts3.pt"
    torch.save(model.state_dict(), checkpoint)
    link = tmp_path / "link"
    link.symlink_to(ROOT)
    code = f"import sys\nsys.path.insert(0, {str(link)!r})\nimport utils\n{CODE}"  # the same one by another path
    command = [sys.executable, "-c", code, ROOT, checkpoint, tmp_path / "feats.pt"]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    feats = torch.load(tmp_path / "feats.pt", weights_only=True)
    torch.testing.assert_close(feats, model(torch.ones(1, 3, 80), [3])[1])
