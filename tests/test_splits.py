"""Facts about splits: no utterance, and with held-out speakers no speaker, is in two sets."""

from pathlib import Path

import pytest

from downstream.probing.splits import SETS, find_speaker_splits, find_splits
from utils.system.errors import InputError


def make_audio(root: Path, tree: dict[str, list[str]]) -> Path:
    """Empty audio files: {'train/ann': ['u1', ...]}."""
    for folder, utterances in tree.items():
        (root / folder).mkdir(parents=True)
        for utterance in utterances:
            (root / folder / f"{utterance}.flac").touch()
    return root


@pytest.fixture
def audio(tmp_path):
    """Three speakers, who are in every set but for cid, who is not in dev."""
    return make_audio(tmp_path, {
        "train/ann": ["a1", "a2", "a3"], "train/bob": ["b1", "b2"], "train/cid": ["c1"],
        "dev/ann": ["a4"], "dev/bob": ["b3"], "test/ann": ["a5"], "test/bob": ["b4"], "test/cid": ["c2", "c3"],
    })  # fmt: skip


def ids(splits):
    """The utterance ids of each set."""
    return {name: {u.id for u in splits.sources[name].utterances()} for name in SETS}


def test_the_directories_are_the_sets_and_the_folders_the_speakers(audio):
    splits = find_splits(audio)
    assert ids(splits) == {"train": {"a1", "a2", "a3", "b1", "b2", "c1"}, "dev": {"a4", "b3"},
                           "test": {"a5", "b4", "c2", "c3"}}  # fmt: skip
    assert splits.speakers["c2"] == "cid" and splits.speakers_from == "the parent directory"


def test_held_out_speakers_are_in_the_test_set_only_and_nobody_else_is(audio):
    splits = find_splits(audio, ["bob", "cid"])
    assert ids(splits) == {
        "train": {"a1", "a2", "a3"},
        "dev": {"a4"},
        "test": {"b1", "b2", "b3", "b4", "c1", "c2", "c3"},
    }
    speakers = {name: {splits.speakers[u] for u in of_set} for name, of_set in ids(splits).items()}
    assert speakers == {"train": {"ann"}, "dev": {"ann"}, "test": {"bob", "cid"}}


def test_an_utterance_in_two_sets_is_refused(audio):
    make_audio(audio, {"test/dora": ["a1"]})
    with pytest.raises(InputError, match=r"test/dora/a1\.flac: utterance a1 is in train as well"):
        find_splits(audio)


def test_without_a_test_set_dev_tests_and_a_part_of_train_chooses(tmp_path):
    splits = find_splits(make_audio(tmp_path, {"train": [f"s-c-{n}" for n in range(7)], "dev": ["s-c-8"]}))
    found = ids(splits)
    assert found["test"] == {"s-c-8"} and len(found["dev"]) == 2 and len(found["train"]) == 5
    assert not found["dev"] & found["train"]
    assert set(splits.speakers.values()) == {"s"}  # ids of LibriSpeech's form say who speaks


@pytest.mark.parametrize(
    ("held_out", "told"),
    [(["eve"], "there is no speaker eve, but ann, bob, cid"), (["ann", "bob"], "leaves no utterance in dev")],
)
def test_speakers_that_cannot_be_held_out_are_refused(audio, held_out, told):
    with pytest.raises(InputError, match=told):
        find_splits(audio, held_out)


def test_sets_may_be_data_directories_and_manifests_that_say_who_speaks(audio, tmp_path):
    trees = find_splits(audio)
    data = tmp_path / "data"
    for name in ("train", "dev"):
        (data / name).mkdir(parents=True)
        files = trees.sources[name].files
        (data / name / "wav.scp").write_text("".join(f"{file.id} {file.location}\n" for file in files))
        (data / name / "utt2spk").write_text("".join(f"{file.id} x{trees.speakers[file.id]}\n" for file in files))
    rows = [f"{file.id}\t{file.location}\t\t\txcid\n" for file in trees.sources["test"].files]
    (data / "test.tsv").write_text("".join(rows))
    splits = find_splits(data)
    assert ids(splits) == ids(trees) and splits.speakers_from.startswith("a map of speakers")
    assert splits.speakers["a1"] == "xann" and splits.speakers["a5"] == "xcid"
    (data / "train" / "utt2spk").unlink()
    with pytest.raises(InputError, match="train has no utt2spk"):
        find_splits(data)
    (data / "train" / "wav.scp").rename(data / "train" / "feats.scp")
    with pytest.raises(InputError, match="must all hold audio, or all be data directories of features"):
        find_splits(data)


def test_new_speakers_are_told_in_one_way_or_not_at_all(tmp_path):
    data = make_audio(tmp_path, {"train/1/2": ["1-2-3", "1-2-4"], "test/5/6": ["5-6-7"]})
    assert set(find_speaker_splits(data).speakers.values()) == {"1", "5"}
    (data / "train/1/2/noise.flac").touch()  # by folders, chapters would be speakers
    with pytest.raises(
        InputError, match=r"noise\.flac is not named as LibriSpeech's files are.* move it away, or give"
    ):
        find_speaker_splits(data)
    (data / "train/1/2/noise.flac").unlink()
    (data / "test/5/6/5-6-7.flac").rename(data / "test/5/6/a.flac")
    with pytest.raises(InputError, match="by the parent directory in one set and by the utterance id's first field"):
        find_speaker_splits(data)
    (data / "train/wav.scp").write_text(f"1-2-3 {data}/train/1/2/1-2-3.flac\n")  # ids tell, as in a tree
    with pytest.raises(InputError, match="by the parent directory in one set and by the utterance id's first field"):
        find_speaker_splits(data)


def test_a_missing_set_is_named(tmp_path):
    make_audio(tmp_path, {"train/ann": ["a1"]})
    with pytest.raises(InputError, match=r"dev is not a directory"):
        find_splits(tmp_path)
