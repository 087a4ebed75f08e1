"""Facts about how a script ends."""

import pytest
import torch

from utils.system.errors import describe_changes, run_script


@pytest.mark.parametrize("take", [lambda: bytearray(1 << 60), lambda: torch.empty(1 << 50)])
def test_too_little_memory_is_one_line(take, capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(take)
    told = capsys.readouterr().err
    assert ended.value.code == 2 and "error: too little memory" in told and told.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size of tensor"):
        run_script(lambda: torch.ones(2) + torch.ones(3))


def test_changed_settings_are_named_within_dictionaries_and_hashes_are_short():
    before = {"data": {"norm": "speaker", "files": 2}, "labels": "0123456789abcdef" * 4, "epochs": 3}
    after = {"data": {"norm": "global", "files": 2}, "labels": "fedcba9876543210" * 4, "epochs": 4}
    changes = "data.norm was speaker and is now global; labels was 01234567... and is now fedcba98..."
    assert describe_changes(before, after, ignored=["epochs"]) == changes
