"""Facts about handing features on: what goes out comes back bit for bit."""

import lzma
from pathlib import Path

import kaldiio
import numpy as np
import pytest
from conftest import make_prepared
from preparing_runs import prepare, prepare_audio

from export import export_features
from utils.corpus.prepared import load_lengths, load_tensor, save_lengths, save_tensor
from utils.system.errors import InputError

AUDIO = Path(__file__).parent.parent / "librispeech_data" / "sample" / "audio" / "train"


@pytest.fixture(scope="module")
def from_audio(tmp_path_factory):
    """The sample's training audio, prepared and cut short."""
    return prepare_audio(AUDIO, tmp_path_factory.mktemp("audio") / "prepared", "--max_seq_len", 400)


def export(data, save, *options):
    export_features.main(["--data", str(data), "--save", str(save), *options])


def test_features_of_16_bits_are_exported_as_float32(tmp_path):
    features = make_prepared(tmp_path / "features", [9, 4])
    for path in features.glob("*.pt"):
        save_tensor(path, load_tensor(path).half())
    export(features, tmp_path / "f.ark")
    for utterance, frames in kaldiio.load_ark(str(tmp_path / "f.ark")):
        expected = load_tensor(features / f"{utterance}.pt", may_be_half=True)[: len(frames)]
        assert frames.dtype == np.float32 and np.array_equal(frames, expected.numpy())


@pytest.mark.parametrize("name, read", [
    ("f.blogmel", "f.blogmel"), ("f.blogmel.xz", "f.blogmel.xz"), ("f.ark", "f.ark"), ("f.ark", "f.scp"),
])  # fmt: skip
def test_audio_to_archive_to_tensors_is_audio_to_tensors(from_audio, tmp_path, name, read):
    export(from_audio, tmp_path / name)
    prepare(tmp_path / read, tmp_path / "out", "--max_seq_len", 400)
    assert (tmp_path / "out" / "lengths.pkl").read_bytes() == (from_audio / "lengths.pkl").read_bytes()
    tensors = sorted(from_audio.glob("*.pt"))
    assert len(tensors) == 4
    assert all((tmp_path / "out" / path.name).read_bytes() == path.read_bytes() for path in tensors)


def test_only_true_frames_go_out(from_audio, tmp_path):
    export(from_audio, tmp_path / "f.ark")
    lengths = load_lengths(from_audio)
    written = {name: np.array(matrix) for name, matrix in kaldiio.load_ark(str(tmp_path / "f.ark"))}
    assert {name: len(matrix) for name, matrix in written.items()} == lengths
    assert min(lengths.values()) < max(lengths.values()) == 400
    for name, matrix in written.items():
        assert np.array_equal(matrix, load_tensor(from_audio / f"{name}.pt")[: lengths[name]])


def test_decimals_round_and_make_small_files(from_audio, tmp_path):
    export(from_audio, tmp_path / "exact.blogmel.xz")
    export(from_audio, tmp_path / "small.blogmel.xz", "--decimals", "2")
    assert (tmp_path / "small.blogmel.xz").stat().st_size < (tmp_path / "exact.blogmel.xz").stat().st_size / 2
    row = lzma.decompress((tmp_path / "small.blogmel.xz").read_bytes()).decode().splitlines()[1]
    assert len(row.split(" ")) == 80 and all(len(token.split(".")[1]) == 2 for token in row.split(" "))


def test_a_length_beyond_the_tensor_is_refused_and_nothing_is_written(from_audio, tmp_path):
    directory = tmp_path / "data"
    directory.mkdir()
    tensor = sorted(from_audio.glob("*.pt"))[0]
    (directory / tensor.name).write_bytes(tensor.read_bytes())
    save_lengths(directory, {tensor.stem: 401})
    with pytest.raises(InputError, match=r"holds 400 frames, but lengths.pkl says 401"):
        export(directory, tmp_path / "f.ark")
    assert list(tmp_path.iterdir()) == [directory]


@pytest.mark.parametrize("name", ["f.ark", "f.blogmel"])
def test_features_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path, name):
    data = make_prepared(tmp_path / "data", [7, 5])
    frames = load_tensor(data / "spk1-0001.pt")
    frames[5:] = float("nan")  # padding, which is not exported
    save_tensor(data / "spk1-0001.pt", frames)
    export(data, tmp_path / "good.ark")
    frames[4, 2] = float("nan")
    save_tensor(data / "spk1-0001.pt", frames)
    with pytest.raises(InputError, match=r"spk1-0001\.pt: frame 5 of 5 .*NaN"):
        export(data, tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_array_is_exported_as_a_tensor_is(tmp_path):
    data, arrays = make_prepared(tmp_path / "data", [7, 5]), tmp_path / "arrays"
    arrays.mkdir()
    (arrays / "made_from.json").write_text('{"format": "npy"}')
    save_lengths(arrays, load_lengths(data))
    for path in data.glob("*.pt"):
        np.save(arrays / f"{path.stem}.npy", load_tensor(path).numpy())
    for directory in (data, arrays):
        export(directory, directory.with_suffix(".blogmel"))
    assert arrays.with_suffix(".blogmel").read_bytes() == data.with_suffix(".blogmel").read_bytes()
    for content in (b"", (arrays / "spk1-0001.npy").read_bytes()[:-4], np.array({"a": 1}).dumps()):
        (arrays / "spk1-0001.npy").write_bytes(content)
        with pytest.raises(InputError, match=r"spk1-0001\.npy is damaged, or no array of numbers"):
            export(arrays, tmp_path / "f.ark")


@pytest.mark.parametrize(
    "options",
    [
        ["f.txt"],
        ["f.ark", "--decimals", "2"],
        ["f.blogmel", "--decimals", "-1"],
        [".ark"],
        ["f.blogmel", "--decimals", "3000000000"],
    ],
)
def test_options_that_make_no_sense_are_refused(from_audio, tmp_path, options, capsys):
    with pytest.raises(SystemExit) as ended:
        export(from_audio, tmp_path / options[0], *options[1:])
    assert ended.value.code == 2 and "error" in capsys.readouterr().err


def test_a_directory_extracted_as_an_archive_is_refused_by_its_format(tmp_path):
    (tmp_path / "feats.ark").touch()
    with pytest.raises(InputError, match="was extracted with --format ark; this script reads --format pt"):
        export(tmp_path, tmp_path / "f.ark")
