"""The learning rate of each step."""

import math

SCHEDULES = ("constant", "cosine", "plateau")
PLATEAU_EPOCHS = 3  # without a better validation loss, after which --lr_schedule plateau cuts the rate
PLATEAU_FACTOR = 0.5


def rate_share(step: int, schedule: str = "constant", warmup_steps: int = 0, total_steps: float = math.inf) -> float:
    """How much of the peak learning rate a step takes; what a plateau leaves of it aside.

    Args:
        step: steps done before it.
        schedule: one of SCHEDULES. 'cosine' falls along half a cosine, from the warm-up's end to zero after the last
            step.
        warmup_steps: steps over which the rate rises linearly, from a first step that is not yet zero.
        total_steps: steps of the whole training.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule != "cosine":
        return 1.0
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
