"""The results page: the main systems in a table, and the claims of the two papers, each with figures and an interval.

A difference of errors has an interval of two standard deviations on each side, over seeds; of recognition, whose seeds
draw the same speech for all systems, that of the differences by seed. One of equal error rates has a 95 % interval by
the bootstrap, over speakers. A claim holds where the whole interval is above 0.
"""

from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from downstream.probing.abx import ABX_TASKS
from downstream.probing.markdown import table
from downstream.probing.plan import (
    Best,
    Plan,
    Row,
    baseline_rows,
    choose_best,
    paired_errors,
    recognition_errors,
    recognition_rows,
    trainings_row,
)
from downstream.probing.scoring import Difference, percent, verdict
from downstream.probing.speaker_report import lda_speakers
from downstream.probing.speaker_study import FIRST_LAYER, SCORES, Rate, SpeakerStudy
from downstream.probing.study import LINEAR, RANDOM, TRAININGS, Study
from utils.system.files import atomic_write

PAPERS = """2019: Chung et al., "An Unsupervised Autoregressive Model for Speech Representation Learning", Interspeech.
2020: Chung and Glass, "Generative Pre-Training for Speech with Autoregressive Predictive Coding", ICASSP.
"""
SMALL_SHARE = 1 / 16  # of the labels


class Errors(NamedTuple):
    """A system in words, and its errors (fractions), one for each seed."""

    name: str
    values: list[float]

    def __str__(self) -> str:
        return f"{percent(self.values)} % ({self.name})"


def write_summary(study: Study, plan: Plan, directory: Path, speakers: SpeakerStudy | None = None) -> Path:
    """Write summary.md into a directory, from the results that are there; return its path."""
    best = choose_best(study, plan)
    lines = ["# Results\n", *_table_lines(study, plan, best, speakers), ""]
    lines += [*_method_lines(study, plan, best, speakers), ""]
    lines += ["## Claims\n", PAPERS, *_phone_claims(study, plan, best), *_layer_claims(study, plan, best)]
    lines += [*speaker_claims(plan, speakers), *_recognition_claims(study, plan, best), ""]
    with atomic_write(directory / "summary.md") as file:
        file.write("\n".join(lines).encode())
    return directory / "summary.md"


def share_name(fraction: float) -> str:
    """A share of the labels in words."""
    return "all labels" if fraction == 1 else f"{Fraction(fraction).limit_denominator(1000)} of the labels"


def _shares(plan: Plan) -> list[float]:
    """The largest share of the labels, and 1/16 or else the smallest; none where nothing was recognised."""
    if not plan.fractions:
        return []
    small = SMALL_SHARE if SMALL_SHARE in plan.fractions else plan.fractions[-1]
    return list(dict.fromkeys([plan.fractions[0], small]))


def _table_lines(study: Study, plan: Plan, best: Best, speakers: SpeakerStudy | None) -> list[str]:
    """The Markdown table, a row for each system."""
    shares = [f"phone error rate, {share_name(fraction)}" for fraction in _shares(plan)]
    columns = ["features", "layer", "trainings", "frame error", "phone error", "ABX within speakers", "ABX across"]
    columns += [*shares, "EER of unseen speakers, cosine", "EER, LDA"]
    rows = []
    read = recognition_rows(study, plan, best)
    mlp3, *stacks, _ = baseline_rows(study, plan)
    for row in (read.log_mel, mlp3, *stacks, read.random, read.frozen, *([read.fine_tuned] if plan.fractions else [])):
        is_linear, is_trained = row.classifier == LINEAR, TRAININGS in row.system
        name = row.name if is_linear else f"{row.name}, {row.classifier}"
        cells = [name, str(row.layer) if row.shows_layer else "", str(len(study.training_seeds)) if is_trained else ""]
        values = [study.errors(*row.result, key) for key in ("frame_error", "segment_error")]
        values += [study.abx(row.system, row.layer, task) if is_linear else [] for task in ABX_TASKS]
        values += [recognition_errors(study, row, fraction) if is_linear else [] for fraction in _shares(plan)]
        cells += [percent(of_seeds) if of_seeds else "" for of_seeds in values]
        rates = [_rate(plan, best, row, score, speakers) for score in SCORES]
        rows.append([*cells, *("" if rate is None else str(rate) for rate in rates)])
    return table(columns, rows)


def _rate(plan: Plan, best: Best, row: Row, score: str, speakers: SpeakerStudy | None) -> Rate | None:
    """The equal error rate of unseen speakers of a row; None where it was not measured."""
    system = plan.trained(best.time_shift) if row.system.endswith(TRAININGS) else row.system
    if speakers is None or row.classifier != LINEAR or system not in ("log_mel", RANDOM, plan.trained(best.time_shift)):
        return None
    return speakers.rate(system, row.layer, score)


def _method_lines(study: Study, plan: Plan, best: Best, speakers: SpeakerStudy | None) -> list[str]:
    """What the figures are."""
    trainings, seeds = len(study.training_seeds), len(study.seeds)
    read = "probes and recognisers" if plan.fractions else "probes"
    chosen = f"The layers were chosen on dev; the time shift ({best.time_shift}) was given"
    if len(plan.time_shifts) > 1:
        shifts = ", ".join(map(str, plan.time_shifts))
        chosen = f"The layers and the time shift ({best.time_shift}, out of {shifts}) were chosen on dev"
    new, of_new, of_recognition = "", "", ""
    if plan.fractions:
        of_recognition = " Those of recognition are of the differences by seed, which draws the same speech for all."
    if speakers:
        new = " Unseen speakers: one training, on another corpus, 95 % intervals over speakers, not over trainings"
        has_lda = speakers.rate("log_mel", 0, "lda") is not None
        new += f"; LDA learns from {lda_speakers(speakers)}." if has_lda else "."
        of_new = "; of unseen speakers 95 %, over speakers"
    return [
        f"Errors on test in %, mean ± standard deviation. {chosen}. APC was trained {trainings} times with that "
        f"time shift, and probed once each time; there are {seeds} random networks, and {seeds} {read} "
        f"of log Mel. Probes are linear but for mlp3, a perceptron of three hidden layers.{new} report.md has every "
        "layer and time shift.\n",
        "Differences below are in percentage points. Their intervals are two standard deviations on each side, over "
        f"trainings, random networks and probes, not over utterances of test{of_new}.{of_recognition}",
    ]


def _claim(sentence: str, lower: Errors, higher: Errors, difference: Difference | None = None) -> str:
    """A claim that some errors are lower than others, whether it holds, and its figures."""
    difference = difference or Difference.between(lower.values, higher.values)
    return f"- {difference.verdict}: {sentence}: {lower} against {higher}; lower by {difference}."


def _frame_errors(study: Study, row: Row) -> Errors:
    return Errors(row.label, study.errors(*row.result))


def _phone_claims(study: Study, plan: Plan, best: Best) -> list[str]:
    """APC against the perceptron, and against random networks."""
    trained = _frame_errors(study, trainings_row(study, plan, best))
    mlp3, *_, random = (_frame_errors(study, row) for row in baseline_rows(study, plan))
    lines = [
        _claim("A linear classifier of phones on APC beats a perceptron on log Mel (2019), frame error", trained, mlp3),
        _claim("APC beats random networks, frame error", trained, random),
    ]
    read = recognition_rows(study, plan, best)
    for fraction in _shares(plan):
        sentence = f"APC beats random networks, phone error rate with {share_name(fraction)}"
        errors, others = paired_errors(study, read.frozen, read.random, fraction)
        systems = Errors(read.frozen.name, errors), Errors(read.random.name, others)
        lines.append(_claim(sentence, *systems, Difference.by_seed(errors, others)))
    return lines


def _layer_claims(study: Study, plan: Plan, best: Best) -> list[str]:
    """The last layer against the first; no claim about a single layer."""
    if len(plan.layers) == 1:
        return []
    row = trainings_row(study, plan, best)
    last, first = (_frame_errors(study, row._replace(layer=layer)) for layer in (plan.layers[-1], plan.layers[0]))
    return [
        _claim("The last layer carries more information about phones than the first (2019), frame error", last, first)
    ]


def speaker_claims(plan: Plan, speakers: SpeakerStudy | None) -> list[str]:
    """The first layer against the last, over all time shifts; no claim about a single layer."""
    if len(plan.layers) == 1:
        return []
    if speakers is None:
        return [f"- **not tested**: {FIRST_LAYER}: give speakers who are not in training by --speaker_data."]
    systems, lines = [plan.trained(n) for n in plan.time_shifts], []
    for score in SCORES:
        if speakers.rate("log_mel", 0, score) is not None:
            rates = [Rate.mean(speakers.rate(system, layer, score) for system in systems) for layer in plan.layers]
            difference, name = rates[-1] - rates[0], SCORES[score]
            over = f", means over {len(systems)} time shifts" if len(systems) > 1 else ""
            lines.append(
                f"- {verdict(*difference.interval)}: {FIRST_LAYER}, equal error rate of unseen speakers by {name}: "
                f"{', '.join(map(str, rates))} % by layer{over}; the last minus the first: {difference}."
            )
    return lines


def _recognition_claims(study: Study, plan: Plan, best: Best) -> list[str]:
    """APC against log Mel from each share of the labels, and whether the gain grows as they become fewer."""
    read = recognition_rows(study, plan, best)
    lines, gains = [], {}
    for fraction in plan.fractions:
        errors, others = paired_errors(study, read.frozen, read.log_mel, fraction)
        systems = Errors(read.frozen.name, errors), Errors(read.log_mel.name, others)
        gains[fraction] = [b - a for a, b in zip(errors, others, strict=True)]
        sentence = f"Recognition from APC beats log Mel with {share_name(fraction)} (2020), phone error rate"
        lines.append(_claim(sentence, *systems, Difference.by_seed(errors, others)))
    if len(gains) > 1:
        most, fewest = plan.fractions[0], plan.fractions[-1]
        growth = Difference.by_seed(gains[most], gains[fewest])
        lines.append(
            f"- {growth.verdict}: The fewer labels, the more recognition gains by APC (2020): "
            f"{percent(gains[fewest])} points with {share_name(fewest)}, {percent(gains[most])} with "
            f"{share_name(most)}; difference of the gains: {growth}."
        )
    return lines
