"""Every script explains itself."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (".", "downstream", "export", "benchmarks", "examples")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py"))]
SCRIPTS = [path for path in FILES if "__main__" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_help_tells_what_a_script_does_and_every_default(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(script.parent)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    text = capsys.readouterr().out
    assert ended.value.code == 0
    assert text.startswith("usage: ") and "options:" in text
    assert "default: )" not in text
