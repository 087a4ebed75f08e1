"""A corpus ready for probes: its prepared sets, the phone of every frame, the speaker of every utterance.

DIR/audio/{train,dev,test}/...   audio files (splits.py says what holds where there is no test), or where there is no
DIR/{train,dev,test}             DIR/audio, Kaldi data directories of audio or log-Mel features, or manifests: *.tsv
DIR/phones.ctm                   phone alignments, or the file that --labels names
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from apc_model import APCModel
from downstream.probing.features import FeatureSets, Utterances, model_features, read_utterances
from downstream.probing.labels import NO_LABELS, PhoneLabels, read_labels
from downstream.probing.splits import SETS, TRAIN, Splits, find_speaker_splits, find_splits
from load_pretrained_model import load_pretrained
from utils.corpus.arguments import archives_of, check_frames, front_end_of
from utils.corpus.audio_source import AudioOptions
from utils.corpus.frame_spec import UNKNOWN, FrameSpec, check_fit
from utils.corpus.normalization import Normalizer, scope
from utils.corpus.output_directory import SKIPPED_FILE
from utils.corpus.preparation import MAX_SEQ_LEN, prepare
from utils.corpus.scaling import Scaling
from utils.corpus.sources import closing_lines
from utils.corpus.speakers import BY_MAP, Speakers
from utils.features.extraction import ALL_LAYERS, MEAN_OF_LAYERS, pick_layers
from utils.features.job import check_frame_size
from utils.system.device import pick_device
from utils.system.errors import InputError
from utils.system.files import read_json, write_json
from utils.system.memory import reuse_freed_memory
from utils.training.checkpoints import read_checkpoint

CORPUS_FILE = "corpus.json"
DEFAULT_NORM = "global"  # of log Mel: keeps the differences between speakers


class Corpus(NamedTuple):
    """A corpus that has been prepared."""

    prepared: Path  # holds the prepared directories train, dev and test
    sets: dict[str, Utterances]  # 'train', 'dev' and 'test'
    labels: PhoneLabels
    speakers: dict[str, str]  # by utterance id
    speakers_from: str = ""  # the rule that gave them, in words

    @property
    def mel_dim(self) -> int:
        """The size of a frame of log Mel."""
        return self.sets[TRAIN].log_mel.file.size

    def speakers_of(self, name: str) -> list[str]:
        """The speaker of each utterance of a set."""
        return [self.speakers[utterance] for utterance in self.sets[name].ids]

    def log_mel(self, context: tuple[int, int] = (0, 0)) -> FeatureSets:
        """Log Mel, with this many frames before and after each."""
        return {name: utterances.log_mel.with_context(*context) for name, utterances in self.sets.items()}

    def hidden_states(self, model: APCModel, device: torch.device, layers: Sequence[int]) -> dict[int, FeatureSets]:
        """The features of layers of a model."""
        by_set = {
            name: model_features(model, utterances, device, layers, self.prepared)
            for name, utterances in self.sets.items()
        }
        return {layer: {name: by_layer[layer] for name, by_layer in by_set.items()} for layer in layers}


def load_corpus(args: argparse.Namespace) -> Corpus:
    """Prepare what is not yet prepared below save_dir, and read it.

    Raises:
        InputError: audio or labels are missing or damaged, or save_dir is another corpus's.
        Stopped: a signal came; the same call continues.
    """
    reuse_freed_memory()
    audio = args.data / "audio" if (args.data / "audio").is_dir() else args.data
    model = read_checkpoint(args.checkpoint, args.residual) if args.checkpoint else None
    spec = model.frame_spec if model else UNKNOWN
    options = audio_options(args, spec)
    splits = find_splits(audio, args.held_out_speakers, options)
    if model:
        check_frame_size(splits.sources[TRAIN], model.mel_dim)
    scaling = choose_scaling(args, splits, spec)
    labels = read_labels(args.labels or args.data / "phones.ctm", args.label_shift or 0.0)
    of_model = f"-{options.front_end.name}-{scaling.norm}" if args.checkpoint else ""
    return _prepare_and_read(splits, labels, args.save_dir / f"prepared{of_model}", args, scaling)


def load_speaker_corpus(args: argparse.Namespace) -> Corpus:
    """The corpus of --speaker_data, without phones, prepared below save_dir/speakers. Raises as `load_corpus`."""
    splits = find_speaker_splits(args.speaker_data, audio_options(args, UNKNOWN))
    scaling = choose_scaling(args, splits, UNKNOWN)
    return _prepare_and_read(splits, NO_LABELS, args.save_dir / "speakers" / "prepared", args, scaling)


def record_corpus(directory: Path, corpus: Corpus) -> None:
    """Record which corpus a directory's models and results belong to: every utterance, its speaker and its frames.

    Raises:
        InputError: they belong to another corpus.
    """
    spoken = {name: [*zip(corpus.sets[name].ids, corpus.speakers_of(name), strict=True)] for name in SETS}
    content = json.dumps([spoken, [corpus.sets[name].sha256 for name in SETS]])
    now, path = {"sha256": hashlib.sha256(content.encode()).hexdigest()}, directory / CORPUS_FILE
    if not path.exists():
        write_json(path, now)
    elif read_json(path) != now:
        raise InputError(
            f"{directory} holds models and results of other utterances, speakers or frames; "
            "remove it, or give another --save_dir"
        )


def audio_options(args: argparse.Namespace, spec: FrameSpec) -> AudioOptions:
    """How audio is read: as the options say, or else as a checkpoint's frames were made."""
    front_end = front_end_of(args, spec)
    return AudioOptions(skip_errors=args.on_error == "skip", front_end=front_end, archives_of=archives_of(args))


def _prepare_and_read(
    splits: Splits, labels: PhoneLabels, prepared: Path, args: argparse.Namespace, scaling: Scaling
) -> Corpus:
    for name in SETS:
        prepare_set(splits, name, prepared, args, scaling)
    sets = {name: read_utterances(prepared / name, labels) for name in SETS}
    sizes = {name: utterances.log_mel.file.size for name, utterances in sets.items()}
    if other := next((name for name in SETS if sizes[name] != sizes[TRAIN]), None):
        raise InputError(f"frames of {other} have size {sizes[other]}, but those of train {sizes[TRAIN]}")
    corpus = Corpus(prepared, sets, labels, splits.speakers, splits.speakers_from)
    counts = ", ".join(f"{len(set(corpus.speakers_of(name)))} in {name}" for name in SETS)
    print(f"{prepared}: speakers by {splits.speakers_from}: {counts}")
    return corpus


def choose_scaling(args: argparse.Namespace, splits: Splits, spec: FrameSpec) -> Scaling:
    """How log Mel is scaled: by default over train, but with a checkpoint audio as its frames are, features not.

    Raises:
        InputError: the options ask for other frames than the checkpoint's, or for what the sets do not allow.
    """
    train = splits.sources[TRAIN]
    is_models = args.checkpoint and not args.norm
    check_frames(args, train, for_audio=args.dither is not None, scales=not is_models and args.norm != "none")
    scaling = Scaling.of_model(spec, train) if is_models else Scaling(args.norm or DEFAULT_NORM)
    if spec.normalization and args.norm == spec.norm:
        scaling = Scaling.by(spec.normalizer)  # the model's mean and variance
    for line in check_fit(scaling.frame_spec(train), train, spec, args.any_frames) if args.checkpoint else ():
        print(line)
    return scaling._replace(speakers=Speakers(BY_MAP, splits.speakers, splits.speakers_from))


def prepare_set(splits: Splits, name: str, prepared: Path, args: argparse.Namespace, scaling: Scaling) -> None:
    """Prepare one set, in a global mode by the statistics of train, and print what was not read."""
    if scope(scaling.norm) == "global" and name != TRAIN and not scaling.given:
        scaling = scaling._replace(given=Normalizer.load(prepared / TRAIN))
    source, directory = splits.sources[name], prepared / name
    settings = {"num_workers": args.num_workers, "skip_errors": args.on_error == "skip"}
    done = prepare(source, directory, scaling, **settings)
    lines = [f"{done.skipped} utterances skipped: {directory / SKIPPED_FILE} lists them"] if done.skipped else []
    if done.truncated:
        lines.append(f"{done.truncated} utterances cut to their first {MAX_SEQ_LEN} frames")
    for line in lines + closing_lines(source, directory):
        print(f"{name}: {line}")


def chosen_features(
    corpus: Corpus, args: argparse.Namespace, context: tuple[int, int] = (0, 0)
) -> dict[str, FeatureSets]:
    """The features that the options choose, by name: log Mel, or one or each layer of a checkpoint."""
    if args.checkpoint is None:
        around = f", {context[0]} frames before and {context[1]} after" if any(context) else ""
        return {f"log Mel{around}": corpus.log_mel(context)}
    device = pick_device(args.device)
    model = load_pretrained(args.checkpoint, device, args.residual)
    by_layer = corpus.hidden_states(model, device, chosen_layers(args, model))
    return {f"layer {layer}": features for layer, features in by_layer.items()}


def chosen_layers(args: argparse.Namespace, model: APCModel) -> list[int]:
    """The layers that --layer names. Raises InputError for their mean, or where there is no such layer."""
    if args.layer == MEAN_OF_LAYERS:
        raise InputError(f"--layer {MEAN_OF_LAYERS}: probes read one layer; give a number, or {ALL_LAYERS} for each")
    return pick_layers(args.layer, model.num_feats)
