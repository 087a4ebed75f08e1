"""Facts about input as it is found: truncated audio, odd headers, links, and what cannot be read."""

import errno
import lzma
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from preparing_runs import content, prepare, prepare_audio

from downstream.probing.labels import read_labels
from utils.corpus.prepared import load_lengths, load_tensor
from utils.corpus.sources import ArchiveSource
from utils.kaldi.write_archives import write_ark
from utils.system.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
RATE = 16000
FORMATS = [
    ("wav", "WAV"), ("wav", "NIST"), ("sph", "NIST"), ("au", "AU"), ("aiff", "AIFF"), ("caf", "CAF"),
    ("wav", "RF64"), ("wav", "W64"), ("flac", "FLAC"), ("mp3", "MP3"), ("ogg", "OGG"), ("opus", "OGG"),
]  # fmt: skip


def write(path, seconds=3.0, form=None, seed=0):
    """Noise in an audio file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))
    is_opus = path.suffix == ".opus"
    soundfile.write(path, samples, RATE, format="OGG" if is_opus else form, subtype="OPUS" if is_opus else None)
    return path


def cut(path, num_bytes):
    path.write_bytes(path.read_bytes()[:num_bytes])


@pytest.mark.parametrize("suffix, form", FORMATS)
def test_truncated_audio_is_never_taken_for_whole(tmp_path, suffix, form):
    whole, other = write(tmp_path / "a" / f"s-1-1.{suffix}", form=form), write(tmp_path / "a" / "s-1-2.wav")
    prepare_audio(tmp_path / "a", tmp_path / "whole")
    assert len(load_lengths(tmp_path / "whole")) == 2 and not (tmp_path / "whole" / "shorter.txt").exists()
    cut(whole, whole.stat().st_size * 3 // 10)
    with pytest.raises(InputError, match=r"utterance s-1-1: .*truncated"):
        prepare_audio(tmp_path / "a", tmp_path / "out")
    prepare_audio(tmp_path / "a", tmp_path / "out", "--on_error", "skip")
    assert list(load_lengths(tmp_path / "out")) == [other.stem]
    assert (tmp_path / "out" / "skipped.txt").read_text().startswith("s-1-1\t")


@pytest.mark.parametrize("norm", ["none", "speaker"])
def test_up_to_a_second_less_than_the_header_promises_is_read_and_listed(tmp_path, capsys, norm):
    path = write(tmp_path / "a" / "s-1-1.wav")
    write(tmp_path / "a" / "s-1-2.wav")
    cut(path, path.stat().st_size - RATE)  # half a second
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", norm)
    assert load_lengths(out) == {"s-1-1": 248, "s-1-2": 298}
    assert "s-1-1.wav: shorter than its header: 0.500 s are missing" in (out / "shorter.txt").read_text()
    assert "1 files shorter than their headers" in capsys.readouterr().out
    cut(path, path.stat().st_size - RATE - 200)
    with pytest.raises(InputError, match=r"truncated file: 1\.01 s less than its header promises"):
        prepare_audio(tmp_path / "a", tmp_path / "other")


def test_a_wav_of_unknown_length_is_read_and_listed(tmp_path):
    path = write(tmp_path / "a" / "s-1-1.wav")
    content = bytearray(path.read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert load_lengths(out) == {"s-1-1": 298}
    assert "does not say how long it is" in (out / "shorter.txt").read_text()


def without_length(path, bitrate_mode):
    """Tone, then noise, in an .mp3 whose first frame does not tell the length."""
    tone = 0.1 * np.sin(np.arange(5 * RATE))
    noise = np.random.default_rng(0).normal(0, 0.1, 5 * RATE)
    soundfile.write(path, np.append(tone, noise), RATE, format="MP3", bitrate_mode=bitrate_mode, compression_level=0.5)
    content = path.read_bytes()
    start = min(place for name in (b"Info", b"Xing") if (place := content.find(name)) >= 0)
    path.write_bytes(content[:start] + bytes(4) + content[start + 4 :])


def test_an_mp3_that_records_no_length_is_listed(tmp_path):
    path = write(tmp_path / "a" / "s-1-1.mp3")
    without_length(path, bitrate_mode="CONSTANT")
    tagged = write(tmp_path / "a" / "s-1-2.mp3")
    tagged.write_bytes(b"ID3\x04\x00\x00\x00\x00\x20\x00" + bytes(4096) + tagged.read_bytes())
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert "s-1-1.mp3: its header does not say how long it is" in (out / "shorter.txt").read_text()
    lengths = load_lengths(out)
    assert "s-1-2" not in (out / "shorter.txt").read_text() and lengths["s-1-1"] >= lengths["s-1-2"]
    without_length(path, bitrate_mode="VARIABLE")
    with pytest.raises(InputError, match=r"does not say how long it is, so that only a part is read"):
        prepare_audio(tmp_path / "a", tmp_path / "other", "--norm", "none")


@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_two_ogg_files_in_one_and_a_cut_last_page_are_errors(tmp_path, suffix):
    first, second = (write(tmp_path / f"{n}.{suffix}", seed=n).read_bytes() for n in (1, 2))
    (tmp_path / "a").mkdir()
    path = tmp_path / f"a/s-1-1.{suffix}"
    path.write_bytes(first + b"TAG" + bytes(125))  # of ID3, which players ignore
    assert load_lengths(prepare_audio(tmp_path / "a", tmp_path / "tagged", "--norm", "none")) == {"s-1-1": 298}
    for stream in (first + second, first[:-100], first[:-100] + bytes(100), first[:-100] + b"TAG" + bytes(125)):
        path.write_bytes(stream)
        with pytest.raises(InputError, match="its stream does not end at the end of the file"):
            prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")


@pytest.mark.parametrize("norm", ["none", "utterance", "global"])
def test_of_a_recording_of_any_length_the_first_frames_are_taken(tmp_path, norm, monkeypatch):
    write(tmp_path / "a" / "s-1-1.wav", 70)
    options = "--norm", norm, "--max_seq_len", "300"
    whole = prepare_audio(tmp_path / "a", tmp_path / "whole", *options[:2], "--max_seq_len", "7000")
    monkeypatch.setattr("utils.audio.waveforms.MAX_SECONDS", 65)
    out = prepare_audio(tmp_path / "a", tmp_path / "out", *options)
    frames, expected = (load_tensor(directory / "s-1-1.pt") for directory in (out, whole))
    assert load_lengths(out) == {"s-1-1": 300} and torch.equal(frames, expected[:300])
    path = write(tmp_path / "b" / "s-1-1.flac", 70)
    cut(path, path.stat().st_size * 4 // 5)
    with pytest.raises(InputError, match="truncated or damaged"):
        prepare_audio(tmp_path / "b", tmp_path / "cut", *options)


def test_names_that_are_no_text_are_told_in_replacement_characters(tmp_path):
    write(tmp_path / "a" / "s-1-1.wav")
    (tmp_path / "a" / os.fsdecode(b"LEEME.espa\xf1ol")).touch()
    command = [sys.executable, "prepare_data.py", "--data", tmp_path / "a", "--save_dir", tmp_path / "out"]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    ran = subprocess.run([*command, "--norm", "none"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0 and "1 .espa\N{REPLACEMENT CHARACTER}ol" in ran.stdout, ran.stderr


def test_advice_on_one_id_of_two_files_is_what_helps(tmp_path):
    write(tmp_path / "a" / "x" / "a.wav")
    write(tmp_path / "a" / "x" / "a.flac")
    with pytest.raises(InputError, match="both utterance x-a; rename one, or give files of one format only"):
        prepare_audio(tmp_path / "a", tmp_path / "out")


def test_linked_directories_are_read_once_and_loops_end(tmp_path, capsys):
    write(tmp_path / "a" / "s" / "s-1-1.wav")
    write(tmp_path / "elsewhere" / "t" / "t-1-1.wav")
    (tmp_path / "a" / "a-link").symlink_to(tmp_path / "a" / "s")
    (tmp_path / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a" / "s" / "loop").symlink_to("..")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path)
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert list(load_lengths(out)) == ["s-1-1", "t-1-1"]
    said = capsys.readouterr().out
    assert "2 link to a directory above it" in said and "1 link to a directory that is read already" in said


def test_what_is_not_read_is_counted_by_kind(tmp_path, capsys):
    write(tmp_path / "a" / "s-1-1.wav")
    for name in ("x.txt", "y.txt", "z.m4a", ".hidden", "README"):
        (tmp_path / "a" / name).write_text("")
    (tmp_path / "a" / "s-1-2.wav").symlink_to("nowhere.wav")
    prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    said = capsys.readouterr().out
    assert "6 files not read: 2 .txt" in said and "1 broken link" in said and "1 hidden" in said
    assert "1 without suffix" in said and "1 .m4a" in said and "ffmpeg -i in.m4a -ar 16000 out.wav" in said


def test_an_unreadable_directory_is_an_error_or_counted(tmp_path, capsys, monkeypatch):
    write(tmp_path / "a" / "s-1-1.wav")
    write(tmp_path / "a" / "locked" / "s-1-2.wav")
    scandir = os.scandir

    def refuse(folder):
        if os.fspath(folder).endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr("utils.audio.waveforms.os.scandir", refuse)
    with pytest.raises(InputError, match=r"locked cannot be read: Permission denied; --on_error skip"):
        prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert not (tmp_path / "out").exists()
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none", "--on_error", "skip")
    assert list(load_lengths(out)) == ["s-1-1"] and "1 unreadable directory" in capsys.readouterr().out


def test_all_clashes_and_bad_names_are_listed_at_once(tmp_path):
    for name in ("1/x.wav", "2/x.wav", "1/y.wav", "2/y.wav", "1/my file.wav"):
        write(tmp_path / "a" / name, 0.1)
    with pytest.raises(InputError) as refusal:
        prepare_audio(tmp_path / "a", tmp_path / "out", "--utterance_id", "name")
    details = "\n".join(refusal.value.details)
    assert "both utterance x" in details and "both utterance y" in details and "'my file' holds a space" in details
    assert not (tmp_path / "out").exists()


def test_audio_replaced_by_a_file_of_its_size_is_not_taken_for_it(tmp_path):
    path = write(tmp_path / "a" / "s-1-1.wav")
    before = content(prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none"))
    size = path.stat().st_size
    write(path, seed=1)
    assert path.stat().st_size == size
    with pytest.raises(InputError, match=r"other audio, by the names, .*; give another directory, or --overwrite$"):
        prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("target", ["/proc/self/mem", "x" * 300])
def test_an_utterance_that_cannot_be_read_is_named_or_skipped(tmp_path, target):
    write_ark(tmp_path / "f.ark", [("a-1-1", np.ones((3, 2), np.float32))])
    scp = tmp_path / "f.scp"
    scp.write_text(f"{scp.read_text()}b-1-1 {target}:5\n")
    with pytest.raises(InputError, match=r"f\.scp:2: utterance b-1-1.* cannot be read"):
        prepare(scp, tmp_path / "out")
    prepare(scp, tmp_path / "out", "--on_error", "skip")
    assert list(load_lengths(tmp_path / "out")) == ["a-1-1"]
    (tmp_path / "mem.blogmel").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"mem\.blogmel cannot be read: Input/output error"):
        prepare(tmp_path / "mem.blogmel", tmp_path / "mem")


def test_unreadable_audio_is_skipped(tmp_path):
    write(tmp_path / "a" / "s-1-1.wav")
    (tmp_path / "a" / "s-1-2.wav").symlink_to("/proc/self/mem")
    with pytest.raises(InputError, match=r"utterance s-1-2"):
        prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none")
    out = prepare_audio(tmp_path / "a", tmp_path / "out", "--norm", "none", "--on_error", "skip")
    assert list(load_lengths(out)) == ["s-1-1"]


@pytest.mark.parametrize("utterance", ["a ", " a", "a b"])
def test_an_archive_never_gets_an_id_with_a_space(tmp_path, utterance):
    with pytest.raises(InputError, match="holds a space"):
        write_ark(tmp_path / "f.ark", [(utterance, np.ones((3, 2), np.float32))])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("padding", [4, 8, 2 << 20])
def test_xz_padding_between_and_behind_streams_is_skipped(tmp_path, padding):
    streams = [lzma.compress(text) for text in (b"a\n1 2\n.\n", b"b\n3 4\n.\n")]
    (tmp_path / "f.blogmel.xz").write_bytes(b"".join(stream + bytes(padding) for stream in streams))
    source = ArchiveSource([tmp_path / "f.blogmel.xz"])
    assert [found.load().tolist() for found in source.utterances()] == [
        [[1, 2]],
        [[3, 4]],
    ]


def test_blank_lines_at_the_end_of_a_blogmel_are_no_utterance(tmp_path):
    (tmp_path / "f.blogmel").write_text("a\n1 2\n.\n\n \n\n")
    assert [found.id for found in ArchiveSource([tmp_path / "f.blogmel"]).utterances()] == ["a"]


def test_a_segment_goes_on_behind_a_shorter_one_inside_it(tmp_path):
    (tmp_path / "p.ctm").write_text("a 1 0 0.10 X\na 1 0.03 0.02 Y\na 1 0.06 0 Z\n")
    labels = read_labels(tmp_path / "p.ctm")
    assert [labels.phones[phone] for phone in labels.of("a", 8).phones] == list("XXYYXXXX")
