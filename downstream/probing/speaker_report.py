"""The part of the report about unseen speakers."""

from downstream.probing.markdown import table
from downstream.probing.plan import Plan
from downstream.probing.scoring import verdict
from downstream.probing.speaker_study import FIRST_LAYER, SCORES, Rate, SpeakerStudy
from downstream.probing.speakers import DRAWS, MIN_LDA_SPEAKERS, repeats
from downstream.probing.splits import SETS, TRAIN
from downstream.probing.study import RANDOM
from utils.audio.frames import frames_to_minutes

COLUMNS = ("features", "layer", "EER, cosine", "EER, LDA")


def speaker_lines(study: SpeakerStudy, plan: Plan) -> list[str]:
    """The corpus and the method, a table of every system, and the claims."""
    lines = ["## Unseen speakers\n", *_corpus_lines(study)]
    rows = []
    for name, system, layers in _systems(plan):
        for layer in layers:
            rates = [study.rate(system, layer, score) for score in SCORES]
            shown = "" if system == "log_mel" else str(layer)
            rows.append([name, shown, *("" if rate is None else str(rate) for rate in rates)])
    lines += table(COLUMNS, rows)
    for score in SCORES:
        if study.rate("log_mel", 0, score):
            lines += ["", f"By {SCORES[score]}, over all time shifts:\n"]
            lines += _claim_lines(study, plan, score)
    return [*lines, ""]


def _systems(plan: Plan) -> list[tuple[str, str, list[int]]]:
    """The name, the system and the layers of everything that is compared."""
    trained = [(f"APC, time shift {n}", plan.trained(n), plan.layers) for n in plan.time_shifts]
    return [("log Mel", "log_mel", [0]), ("random APC", RANDOM, plan.layers), *trained]


def _corpus_lines(study: SpeakerStudy) -> list[str]:
    corpus, sizes = study.corpus, []
    for name in SETS:
        speakers = corpus.speakers_of(name)
        minutes = frames_to_minutes(int(corpus.sets[name].log_mel.lengths.sum()))
        sizes.append(f"{len(speakers)} utterances of {len(set(speakers))} speakers, {minutes:.1f} minutes")
    return [
        f"The models are trained on {sizes[0]}, and validated on {sizes[1]}. The trials are "
        f"{len(study.trials.is_same)} pairs of {sizes[2]}, none of whom is in training; two utterances of one "
        f"recording also share its conditions. Speakers are identified by {corpus.speakers_from}. "
        "Features are averaged over each utterance, less the mean of training. "
        f"Equal error rates (EER) in %, with 95 % intervals from {DRAWS} draws of the speakers; random APC: the mean "
        f"over {len(study.seeds)} networks. LDA learns from {lda_speakers(study)}; draws do not repeat it.\n"
    ]


def lda_speakers(study: SpeakerStudy) -> str:
    """Whose utterances LDA learns from, in words."""
    if len(repeats(study.corpus.speakers_of(TRAIN))) < MIN_LDA_SPEAKERS:
        return "the test speakers who are not in the trial, as too few training speakers have two utterances"
    return "the training speakers who have two utterances or more"


def _claim_lines(study: SpeakerStudy, plan: Plan, score: str) -> list[str]:
    """The first layer against the last, and all layers against log Mel and random networks; nothing is chosen."""

    def mean(systems: list[str], layers: list[int]) -> Rate:
        """The mean rate of layers of systems."""
        return Rate.mean(study.rate(system, layer, score) for system in systems for layer in layers)

    trained = [plan.trained(n) for n in plan.time_shifts]
    first, last, every = (mean(trained, layers) for layers in (plan.layers[:1], plan.layers[-1:], plan.layers))
    log_mel, untrained = mean(["log_mel"], [0]), mean([RANDOM], plan.layers)
    return [
        _claim(FIRST_LAYER, first, last),
        _claim("APC (mean over layers) tells speakers apart better than log Mel", every, log_mel),
        _claim("APC (mean over layers) tells speakers apart better than random networks", every, untrained),
    ]


def _claim(sentence: str, better: Rate, other: Rate) -> str:
    """A claim, whether it holds, and its figures."""
    difference = other - better
    words = verdict(*difference.interval)
    return f"- {words}: {sentence}. EER {better} against {other}; the difference is {difference}."
