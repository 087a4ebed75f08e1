"""The Markdown report: the corpus, the table, the claims and the figures."""

import argparse
from datetime import date
from pathlib import Path

import numpy as np

from apc_model import APCModel
from downstream.probing import plots
from downstream.probing.markdown import table
from downstream.probing.plan import (
    Best,
    Plan,
    baseline_rows,
    choose_best,
    labelled_minutes,
    paired_errors,
    recognition_errors,
    recognition_rows,
    trainings_row,
)
from downstream.probing.recognition import left_out
from downstream.probing.scoring import Difference, percent
from downstream.probing.speaker_report import speaker_lines
from downstream.probing.speaker_study import SpeakerStudy
from downstream.probing.splits import SETS, TEST, TRAIN
from downstream.probing.study import LINEAR, Study
from utils.audio.frames import frames_to_minutes
from utils.corpus.frame_spec import FrameSpec
from utils.system.errors import brief, one_line
from utils.system.files import atomic_write

PHONE_COLUMNS = {"frame error, dev": "dev_error", "frame error": "frame_error", "phone error": "segment_error"}
SPEAKER_COLUMNS = ("speaker EER, cosine", "speaker EER, LDA", "speaker identification error")
ABX_COLUMNS = {"ABX within speakers": "within", "ABX across": "across"}
COLUMNS = ("features", "layer", "classifier", *PHONE_COLUMNS, *ABX_COLUMNS, *SPEAKER_COLUMNS)
RECOGNITION = """Phone error rates (%) of a small recogniser, trained by CTC on shares of train. Each seed draws its own
shares. Fine-tuning aside, recognisers are trained for the same number of steps on all of them; all of dev determines
the epoch that is kept:
"""
CORPUS = "## Corpus and method"
MAX_COMMAND = 2000  # characters


def table_lines(study: Study, plan: Plan, best: Best) -> list[str]:
    """The Markdown table; the best trained layer is bold."""
    rows = []
    for row in [*plan.rows(), trainings_row(study, plan, best)]:
        errors = [percent(study.errors(*row.result, key)) for key in PHONE_COLUMNS.values()]
        is_linear = row.classifier == LINEAR
        abx = [study.abx(row.system, row.layer, task) if is_linear else [] for task in ABX_COLUMNS.values()]
        errors += [percent(of_task) if of_task else "" for of_task in abx]
        found = study.speakers(row.system, row.layer) if is_linear else {}
        rates = ["" if found.get(key) is None else f"{100 * found[key]:.1f}" for key in ("cosine", "lda")]
        identification = percent(found["identification"]) if "identification" in found else ""
        layer = str(row.layer) if row.shows_layer else ""
        cells = [row.name, layer, row.classifier, *errors, *rates, identification]
        if (row.system, row.layer) == (plan.trained(best.time_shift), best.layer):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        rows.append(cells)
    return table(COLUMNS, rows)


def recognition_lines(study: Study, plan: Plan, best: Best) -> list[str]:
    """The Markdown table of phone error rates, and a line for each comparison with the best trained layer."""
    rows = recognition_rows(study, plan, best)
    minutes = [labelled_minutes(study, rows.log_mel, fraction) for fraction in plan.fractions]
    cells = []
    for row in rows:
        errors = [percent(recognition_errors(study, row, fraction)) for fraction in plan.fractions]
        cells.append([row.name, str(row.layer) if row.shows_layer else "", *errors])
    lines = table(["features", "layer", *(f"{number:.1f} min" for number in minutes)], cells)
    lines += [f"\n{sentence}" for sentence in left_out(study.corpus, study.options.recognition.silence)]
    for row in (rows.log_mel, rows.random):
        lines.append(f"\nThe phone error rate of {rows.frozen.name} is lower than that of {row.name}\n")
        for fraction, number in zip(plan.fractions, minutes, strict=True):
            errors = paired_errors(study, rows.frozen, row, fraction)
            compared = _compared(*errors, Difference.by_seed(*errors))
            lines.append(f"- from {number:.1f} minutes of labelled speech: {compared}")
    return lines


def _compared(errors: list[float], others: list[float], difference: Difference) -> str:
    """The verdict on a claim that errors are lower than others, and the figures."""
    return f"{difference.verdict}, {percent(errors)} % against {percent(others)} %; lower by {difference}"


def claim_lines(study: Study, plan: Plan, best: Best) -> list[str]:
    """A line for each claim."""
    errors = study.errors(*trainings_row(study, plan, best).result)
    lines = []
    for row in baseline_rows(study, plan):
        others = study.errors(*row.result)
        lines.append(f"- than of {row.label}: {_compared(errors, others, Difference.between(errors, others))}")
    return lines


def head_lines(args: argparse.Namespace) -> list[str]:
    """The title, the date, the command and every setting."""
    settings = {name: value for name, value in sorted(vars(args).items()) if name != "command" and value is not None}
    shown = (f"{name} {brief(' '.join(map(str, v)) if isinstance(v, list) else v)}" for name, v in settings.items())
    return [
        f"# What APC learns of {args.data.resolve().name}\n",
        f"Written on {date.today().isoformat()} by\n",
        f"    {one_line(args.command, MAX_COMMAND)}\n",
        f"Settings: {', '.join(shown)}.\n",
        f"{CORPUS}\n",
    ]


def corpus_lines(study: Study, plan: Plan) -> list[str]:
    """The corpus and the method, in sentences."""
    corpus = study.corpus
    sizes = []
    for name in SETS:
        minutes = frames_to_minutes(int(corpus.sets[name].log_mel.lengths.sum()))
        speakers = len(set(corpus.speakers_of(name)))
        sizes.append(f"{name} {len(corpus.sets[name].ids)} utterances, {minutes:.1f} minutes, {speakers} speakers")
    phones = np.bincount(corpus.sets[TEST].labels.numpy(), minlength=len(corpus.labels.phones))
    common, share = corpus.labels.phones[int(phones.argmax())], 1 - phones.max() / phones.sum()
    known, tested = set(corpus.speakers_of(TRAIN)), set(corpus.speakers_of(TEST))
    are = "those of" if tested <= known else "not in" if tested.isdisjoint(known) else "partly those of"
    speakers = (
        "Speaker tasks: features averaged over each utterance; equal error rate (EER) over pairs of test utterances; "
        f"the test speakers are {are} train. The random network is that of the first seed."
    )
    if study.no_speakers:
        speakers = f"Speaker tasks: none ({study.no_speakers})."
    abx = study.options.abx
    late = f" The labels are taken {corpus.labels.late_ms:g} ms earlier." if corpus.labels.late_ms else ""
    return [
        f"{'; '.join(sizes)}, identified by {corpus.speakers_from}. {len(corpus.labels.phones)} phones; always saying "
        f"{common} is wrong in {100 * share:.1f} % of the test frames that have a phone.{late} "
        f"Frames: {FrameSpec.of_directory(corpus.prepared / TRAIN).describe()}.\n",
        f"Errors in %, mean ± standard deviation over {len(study.seeds)} seeds, or in the last row over "
        f"{len(study.training_seeds)} trainings. A seed decides a probe's first weights "
        "and its order of the data; of the random networks also their weights, and of the last row those of the whole "
        "training; the other APC are trained once. Phone error: "
        "each spoken phone is given the phone of the highest mean log posterior over its frames. Layers and the time "
        "shift are chosen on dev, the other errors are of test. APC's features are causal: at t they have seen the "
        f"frames up to t only, as log Mel with {2 * plan.context} frames before and 0 after.\n",
        f"ABX: chance is 50 %. At most {abx.max_items} tokens of each triphone per speaker are compared; across "
        f"speakers, X is of at most {abx.max_speakers} other speakers. Seed {abx.seed} draws them.\n",
        f"{speakers}\n",
    ]


def write_report(
    head: list[str], study: Study, plan: Plan, model: APCModel, directory: Path, speakers: SpeakerStudy | None = None
) -> Path:
    """Write report.md, which begins with a head, and its figures, with predictions of a model; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    best = choose_best(study, plan)
    plots.plot_layers(study, plan, directory)
    plots.plot_time_shifts(study, plan, directory)
    plots.plot_epochs(study, plan, best, directory)
    plots.plot_confusion(study, plan, best, directory)
    if plan.fractions:
        plots.plot_recognition(study, plan, best, directory)
    plots.plot_prediction(study, model, directory)
    claims = (
        f"The error per frame of a linear classifier on the best trained layer (layer {best.layer} of the model of "
        f"time shift {best.time_shift}, {plan.epochs} epochs, {len(study.training_seeds)} trainings) is lower"
    )
    lines = [*head, *corpus_lines(study, plan), *table_lines(study, plan, best), "", claims, ""]
    lines += [*claim_lines(study, plan, best), ""]
    lines += [RECOGNITION, *recognition_lines(study, plan, best), ""] if plan.fractions else []
    lines += speaker_lines(speakers, plan) if speakers else []
    lines += [
        f"![{caption}]({name})\n\n[{caption}, to print]({Path(name).with_suffix('.pdf')})\n"
        for name, caption in plots.FIGURES.items()
        if plan.fractions or name != plots.RECOGNITION
    ]
    with atomic_write(directory / "report.md") as file:
        file.write("\n".join(lines).encode())
    return directory / "report.md"
