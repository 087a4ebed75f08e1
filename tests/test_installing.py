"""Facts about installing: lower bounds leave a lab's versions alone, the pins are those that the tests ran with."""

import os
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


def test_an_environment_is_made_whole_and_holds_the_present_versions(tmp_path):
    for name in ("requirements.txt", "requirements-dev.txt", "constraints.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch(0o755)  # python -m venv was interrupted
    make = tmp_path / "python"
    make.write_text(
        "#!/bin/sh\n"
        "rm -rf .venv && mkdir -p .venv/bin\n"
        'echo "VIRTUAL_ENV=$PWD/.venv PATH=$PWD/.venv/bin:$PATH" >.venv/bin/activate\n'
        "printf '#!/bin/sh\\n[ $1 = -c ] || echo \"$*\" >>installed\\n' >.venv/bin/python\n"
        "chmod +x .venv/bin/python\n"
    )
    make.chmod(0o755)

    def installs(requirements, versions):
        (tmp_path / "constraints.txt").write_text(versions)
        (tmp_path / "installed").unlink(missing_ok=True)
        script = f". {ROOT}/environment.sh; enter_environment {requirements}"
        subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=os.environ | {"PYTHON": str(make)}, check=True)
        return (tmp_path / "installed").exists()

    runs = [
        ("requirements.txt", "1"),
        ("requirements-dev.txt", "1"),
        ("requirements.txt", "1"),
        ("requirements.txt", "2"),
    ]
    runs += [("requirements-dev.txt", "1"), ("requirements-dev.txt", "1")]
    assert [installs(*run) for run in runs] == [True, True, False, True, True, False]
    activate = tmp_path / ".venv/bin/activate"  # of an environment that was somewhere else before
    activate.write_text(activate.read_text().replace(str(tmp_path), f"{tmp_path}/before"))
    assert [installs("requirements.txt", "1") for _ in range(2)] == [True, False]


def test_pip_install_is_refused_in_one_line(tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--no-index", "--target", tmp_path, "."]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode != 0 and not any(tmp_path.iterdir())
    assert "[1 lines of output]\n      nothing to install: run the scripts from this directory" in ran.stderr
