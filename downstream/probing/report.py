"""The Markdown report: what was compared, the table, and whether the claims hold."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from apc_model import APCModel
from downstream.probing.plan import RANDOM, Best, Plan, best_random_layer, choose_best
from downstream.probing.plots import (
    FIGURES,
    plot_confusion,
    plot_epochs,
    plot_layers,
    plot_prediction,
    plot_time_shifts,
)  # fmt: skip
from downstream.probing.probes import CLASSIFIERS
from downstream.probing.scoring import mean_and_deviation, percent
from downstream.probing.splits import SETS, TEST, TRAIN
from downstream.probing.study import LINEAR, Study
from utils.audio.frames import FRAMES_PER_SECOND
from utils.system.files import atomic_write

COLUMNS = ("features", "layer", "classifier", "frame error, dev", "frame error", "phone error",
           "speaker EER, cosine", "speaker EER, LDA", "speaker identification error")  # fmt: skip
DEVIATIONS = 2  # that a difference must be larger than


class Row(NamedTuple):
    """A row of the table: a system's layer and a classifier."""

    name: str
    system: str
    layer: int
    classifier: str = LINEAR
    shows_layer: bool = True


class Claim(NamedTuple):
    """The best trained layer beside a baseline: means and deviations of frame errors on test, in shares of 1."""

    baseline: Row
    best: tuple[float, float]
    other: tuple[float, float]

    @property
    def deviations(self) -> float:
        """By how many deviations of the difference the trained layer is better."""
        difference, deviation = self.other[0] - self.best[0], math.hypot(self.best[1], self.other[1])
        return difference / deviation if deviation else math.copysign(math.inf, difference)

    @property
    def holds(self) -> bool:
        """Whether it is better beyond doubt."""
        return self.deviations > DEVIATIONS


def rows(plan: Plan) -> list[Row]:
    """The table's rows, in order."""
    table = [Row("log Mel", "log_mel", 0, classifier, False) for classifier in CLASSIFIERS]
    for system, (left, right) in plan.contexts.items():
        table.append(Row(f"log Mel, {left} before and {right} after", system, 0, LINEAR, False))
    table += [Row("random APC", RANDOM, layer) for layer in plan.layers]
    for time_shift in plan.time_shifts:
        table += [Row(f"APC, time shift {time_shift}", plan.trained(time_shift), layer) for layer in plan.layers]
    return table


def baselines(study: Study, plan: Plan) -> list[Row]:
    """What the best trained layer is to beat: mlp3 on log Mel, log Mel with neighbours, the best random layer."""
    table = rows(plan)
    layer = best_random_layer(study, plan)
    wanted = [("log_mel", 0, CLASSIFIERS[-1]), *((system, 0, LINEAR) for system in plan.contexts)]
    wanted.append((RANDOM, layer, LINEAR))
    return [next(row for row in table if row[1:4] == of_row) for of_row in wanted]


def claims(study: Study, plan: Plan, best: Best) -> list[Claim]:
    """The best trained layer beside each baseline."""
    errors = mean_and_deviation(study.errors(plan.trained(best.time_shift), best.layer))
    return [
        Claim(row, errors, mean_and_deviation(study.errors(row.system, row.layer, row.classifier)))
        for row in baselines(study, plan)
    ]


def table_lines(study: Study, plan: Plan, best: Best) -> list[str]:
    """The Markdown table; the best trained layer is bold."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    for row in rows(plan):
        errors = [
            percent(study.errors(row.system, row.layer, row.classifier, key))
            for key in ("dev_error", "frame_error", "segment_error")
        ]
        found = study.speakers(row.system, row.layer) if row.classifier == LINEAR else {}
        rates = ["" if found.get(key) is None else f"{100 * found[key]:.1f}" for key in ("cosine", "lda")]
        identification = percent(found["identification"]) if "identification" in found else ""
        layer = str(row.layer) if row.shows_layer else ""
        cells = [row.name, layer, row.classifier, *errors, *rates, identification]
        if (row.system, row.layer) == (plan.trained(best.time_shift), best.layer):
            cells = [f"**{cell}**" if cell else "" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def claim_lines(study: Study, plan: Plan, best: Best) -> list[str]:
    """Whether each claim holds, a line each."""
    lines = []
    for claim in claims(study, plan, best):
        row = claim.baseline
        layer = f", layer {row.layer}" if row.shows_layer else ""
        best_error, error = (
            f"{100 * mean:.2f} ± {100 * deviation:.2f} %" for mean, deviation in (claim.best, claim.other)
        )
        verdict = "lower" if claim.holds else "**not** clearly lower"
        lines.append(f"- {verdict} than {row.classifier} on {row.name}{layer}: {best_error} against {error} "
                     f"({claim.deviations:.1f} deviations of the difference)")  # fmt: skip
    return lines


def corpus_lines(study: Study, plan: Plan) -> list[str]:
    """What was compared on what, in sentences."""
    corpus = study.corpus
    sizes = []
    for name in SETS:
        frames = sum(len(x) for x in corpus.sets[name].log_mel)
        minutes, speakers = frames / FRAMES_PER_SECOND / 60, len(set(corpus.speakers_of(name)))
        sizes.append(f"{name} {len(corpus.sets[name].ids)} utterances, {minutes:.1f} minutes, {speakers} speakers")
    phones = np.bincount(corpus.sets[TEST].labels.numpy(), minlength=len(corpus.labels.phones))
    common, share = corpus.labels.phones[int(phones.argmax())], 1 - phones.max() / phones.sum()
    known = set(corpus.speakers_of(TEST)) <= set(corpus.speakers_of(TRAIN))
    speakers = f"Speaker tasks: none ({study.no_speakers})." if study.no_speakers else (
        "Speaker tasks: features averaged over each utterance; equal error rate (EER) over pairs of test utterances; "
        + ("the test speakers are those of train." if known else "the test speakers are not in train.")
    )  # fmt: skip
    late = f" The labels are taken {corpus.labels.late_ms:g} ms earlier." if corpus.labels.late_ms else ""
    return [
        f"{'; '.join(sizes)}. {len(corpus.labels.phones)} phones; always saying {common} is wrong in "
        f"{100 * share:.1f} % of the test frames that have a phone.{late}",
        "",
        f"Errors in %, mean ± standard deviation over {len(study.seeds)} seeds. A seed decides a probe's first weights "
        "and its order of the data; of the random networks also their weights. Each APC is trained once. Phone error: "
        "each spoken phone is given the phone of the highest mean log posterior over its frames. Layers and the time "
        "shift are chosen on dev, the other errors are of test. APC's features are causal: at t they have seen the "
        f"frames up to t only, as log Mel with {2 * plan.context} frames before and 0 after.",
        "",
        speakers,
    ]


def write_report(study: Study, plan: Plan, model: APCModel, directory: Path) -> Path:
    """Write report.md and its figures, and return its path.

    Args:
        study: holds every result.
        plan: what was compared.
        model: the best time shift's, for a look at its predictions.
        directory: made if missing.
    """
    directory.mkdir(parents=True, exist_ok=True)
    best = choose_best(study, plan)
    plot_layers(study, plan, directory)
    plot_time_shifts(study, plan, directory)
    plot_epochs(study, plan, best, directory)
    plot_confusion(study, plan, best, directory)
    plot_prediction(study, model, directory)
    lines = [
        *corpus_lines(study, plan), "", *table_lines(study, plan, best), "",
        f"The error per frame of a linear classifier on the best trained layer (layer {best.layer} of the model of "
        f"time shift {best.time_shift}, {plan.epochs} epochs) is", "",
        *claim_lines(study, plan, best), "",
        *(f"![{caption}]({name})\n" for name, caption in FIGURES.items()),
    ]  # fmt: skip
    with atomic_write(directory / "report.md") as file:
        file.write("\n".join(lines).encode())
    return directory / "report.md"
