"""Facts about installing: lower bounds leave a lab's versions alone, the pins are those that the tests ran with."""

import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def requirements(name):
    """The requirements in a file, by package."""
    lines = (re.sub(r"\s*#.*|-r .*", "", line) for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    parsed = [Requirement(line) for line in lines if line]
    return {requirement.name: requirement.specifier for requirement in parsed}


def test_requirements_ask_for_lower_bounds_that_the_pinned_versions_meet():
    pins = requirements("constraints.txt")
    wanted = requirements("requirements.txt")
    assert {bound.operator for bounds in wanted.values() for bound in bounds} == {">="}
    assert pins.keys() == wanted.keys() | requirements("requirements-dev.txt").keys()
    for name, pin in pins.items():
        (bound,) = pin
        assert bound.operator == "==" and wanted.get(name, pin).contains(bound.version), name


def test_pip_install_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--target", tmp_path, "."]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode != 0 and not any(tmp_path.iterdir())
    assert "[1 lines of output]\n      nothing to install: run the scripts from this directory" in ran.stderr
