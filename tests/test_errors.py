"""Facts about how a script ends."""

import errno

import pytest
import torch

from utils.system.device import pick_device
from utils.system.errors import InputError, describe_changes, run_script
from utils.system.reading import reading


def on_a_gpu():
    """As cuDNN fails there."""
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("take", [lambda: bytearray(1 << 60), lambda: torch.empty(1 << 50), on_a_gpu])
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


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM])
def test_a_file_is_not_blamed_for_the_limits_of_the_process(number):
    with pytest.raises(OSError) as found, reading("a.flac"):
        raise OSError(number, "too many or too much")
    assert not isinstance(found.value, InputError)


def test_a_gpu_computes_in_float32_whatever_the_script(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = True
        assert pick_device("auto").type == "cuda" and not any(library.allow_tf32 for library in libraries)
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed
