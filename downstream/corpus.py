"""A corpus ready for probes: its prepared sets, the phone of every frame, the speaker of every utterance.

DIR/audio/{train,dev,test}/...   audio files (splits.py says what holds where there is no test)
DIR/phones.ctm                   phone alignments, or the file that --labels names
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from downstream.features import Utterances, read_utterances
from downstream.labels import PhoneLabels, read_labels
from downstream.splits import SETS, TRAIN, Splits, find_splits
from utils.normalization import BY_MAP, Speakers
from utils.preparing import Options, prepare

NORMS = ("global", "speaker", "utterance")
MAX_SEQ_LEN = 1600  # frames, as prepare_data.py has it


class Corpus(NamedTuple):
    """A corpus in memory.

    Attributes:
        prepared: the directory that holds the prepared directories train, dev and test.
        sets: the utterances of each.
        labels: the phones.
        speakers: who speaks in each utterance.
    """

    prepared: Path
    sets: dict[str, Utterances]
    labels: PhoneLabels
    speakers: dict[str, str]

    def speakers_of(self, name: str) -> list[str]:
        """The speaker of each utterance of a set."""
        return [self.speakers[utterance] for utterance in self.sets[name].ids]


def add_corpus_options(parser: argparse.ArgumentParser) -> None:
    """The options that say what corpus, how it is split, and how it is normalised."""
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="DIR",
        help="The corpus: audio/{train,dev,test} and phones.ctm are in this directory.")  # fmt: skip
    add("--labels", type=Path, metavar="FILE",
        help="Phone labels elsewhere: a CTM (.ctm), or lines of `utterance label label ...` at 100 Hz.")  # fmt: skip
    add("--label_shift", type=float, metavar="MS",
        help="Take the labels this much earlier: the alignments of some corpora are late by a constant.")  # fmt: skip
    add("--held_out_speakers", nargs="+", metavar="SPEAKER",
        help="Test on these speakers and train on the others, instead of testing on audio/test.")  # fmt: skip
    add("--norm", choices=NORMS, default=NORMS[0],
        help="Scale log Mel to zero mean and unit variance by train's statistics, or by each speaker's or "
        "utterance's own (by which speakers are harder to tell apart).")  # fmt: skip
    add("--num_workers", type=int, default=2, metavar="N", help="Prepare in this many processes.")


def load_corpus(options: argparse.Namespace, save_dir: Path) -> Corpus:
    """Prepare what is not prepared yet below save_dir/prepared, and read it.

    Raises:
        InputError: audio or labels are missing or damaged, or save_dir is another corpus's.
        Stopped: a signal came; the same call continues.
    """
    splits = find_splits(options.data / "audio", options.held_out_speakers)
    labels = read_labels(options.labels or options.data / "phones.ctm", options.label_shift or 0.0)
    prepared = save_dir / "prepared"
    for name in SETS:
        prepare_set(splits, name, prepared, options)
    sets = {name: read_utterances(prepared / name, labels) for name in SETS}
    return Corpus(prepared, sets, labels, splits.speakers)


def prepare_set(splits: Splits, name: str, prepared: Path, options: argparse.Namespace) -> None:
    """Prepare one set; with --norm global, by the statistics of train."""
    is_like_train = options.norm == "global" and name != TRAIN
    rule = Speakers(BY_MAP, splits.speakers, splits.speakers_from)
    prepare(
        splits.sources[name],
        prepared / name,
        Options(MAX_SEQ_LEN, options.num_workers, norm=options.norm, speakers=rule,
                norm_from=prepared / TRAIN if is_like_train else None),
    )  # fmt: skip
