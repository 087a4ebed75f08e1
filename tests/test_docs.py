"""The README and the pages of docs/ agree with the code."""

import argparse
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_prepared

from apc_model import APCModel
from utils import RNNConfig

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
SAMPLE = ROOT / "librispeech_data" / "sample"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [README, *DOCS, SAMPLE / "README.md"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(
    r"(?:\bpython |\btorchrun )(?P<launcher>(?:--\S+ )*)(?P<script>[\w/]+\.py)(?P<arguments>[^\n`|#]*)"
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FOREIGN_OPTIONS = {"--no-deps", "--no-binary", "--logdir"}  # pip, TensorBoard
RELEASED = "bs32-rhl3-rhs512-rd0-adam-res-ts3.pt"


class Parsed(BaseException):
    """A script has read its command line; it carries the parser."""


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return [code for kind, code in FENCED.findall(page.read_text(encoding="utf-8")) if kind == language]


def commands(page):
    """Each command that runs a script of the project: (script, arguments)."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    return [(found["script"], shlex.split(found["arguments"])) for found in COMMAND.finditer(text)]


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def parser_of(monkeypatch, script, arguments=None):
    """The parser of a script, once it has accepted the arguments, if there are any. Nothing is run."""
    parse_known_args = argparse.ArgumentParser.parse_known_args

    def parse_only(self, args=None, namespace=None):
        self.allow_abbrev = False
        _, unknown = parse_known_args(self, args, namespace) if arguments else (None, [])
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise Parsed(self)

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
        patch.setattr(sys, "argv", [script, *(arguments or ())])
        patch.syspath_prepend((ROOT / script).parent)
        with pytest.raises(Parsed) as parsed:
            runpy.run_path(str(ROOT / script), run_name="__main__")
    return parsed.value.args[0]


@pytest.mark.parametrize("page, most", [(README, 150), *((page, 200) for page in DOCS)], ids=str)
def test_a_page_is_short(page, most):
    assert len(page.read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page):
    links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_each_script_accepts_its_documented_commands(page, monkeypatch):
    for script, arguments in commands(page):
        if arguments != ["--help"]:
            parser_of(monkeypatch, script, arguments)


def test_a_misspelt_option_in_a_command_is_noticed(monkeypatch):
    with pytest.raises(SystemExit):
        parser_of(monkeypatch, "train_apc.py", ["--time_shif", "3"])


def test_every_option_that_a_page_mentions_exists(monkeypatch):
    known = set(FOREIGN_OPTIONS)
    for script in {script for page in PAGES for script, _ in commands(page)}:
        known |= parser_of(monkeypatch, script)._option_string_actions.keys()
    for page in PAGES:
        text = re.sub(r"torchrun (--[^\s`]+)( --[^\s`]+)*", "", page.read_text(encoding="utf-8"))
        assert set(re.findall(r"(?<![\w-])--[a-zA-Z][\w-]*", text)) <= known, page


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty directory with what the pages refer to: a released checkpoint, and the authors' archives."""
    monkeypatch.chdir(tmp_path)
    model = APCModel(80, None, RNNConfig(80, 8, 3, 0.0, residual=True))
    torch.save(model.state_dict(), RELEASED)
    for name, split in [("train-clean-360", "train"), ("dev-clean", "dev")]:
        shutil.copy(SAMPLE / f"sample-{split}.blogmel.xz", f"{name}.xz")
    shutil.copy(next((SAMPLE / "audio" / "dev").glob("*.flac")), "speech.flac")
    return tmp_path


def test_the_readme_says_how_much_is_downloaded():
    assert "train-clean-360 is an archive of 23 GB" in README.read_text(encoding="utf-8")


def test_the_readme_leads_from_archives_to_features(elsewhere, monkeypatch):
    archives, train, extract = blocks(README, "sh")[2:]
    small = " --epochs 1 --rnn_hidden_size 8 --batch_size 2 --load_data_workers 0"
    lines = [
        *archives.splitlines(),
        train.splitlines()[0] + small,
        extract.strip()
        .replace("epoch_100", "epoch_1")
        .replace("preprocessed/dev-clean", "preprocessed/dev-clean-hires-norm-blogmel"),
    ]
    for line in lines:
        if line.startswith("python "):
            monkeypatch.setattr(sys, "argv", shlex.split(line)[1:])
            monkeypatch.syspath_prepend(ROOT)
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
            assert ended.value.code == 0, line
        else:
            subprocess.run(line, shell=True, check=True)
    assert len(list(Path("librispeech_data/features/dev-clean").glob("*.pt"))) == 1


@pytest.mark.parametrize("page", [page for page in PAGES[:-1] if blocks(page, "python")], ids=name_of)
def test_the_python_code_of_a_page_runs(page, elsewhere):
    make_prepared(Path("librispeech_data/preprocessed/dev-clean"), [40, 3, 17, 25], mel_dim=80)
    code = "\n".join(blocks(page, "python"))
    code = code.replace("logs/apc-ts3.dir/apc-ts3__epoch_100.model", RELEASED).replace(
        "path/to/this/repository", str(ROOT)
    )
    names = {}
    exec(compile(code, str(page), "exec"), names)
    assert names["feats"].dim() == (3 if page == README else 4)
