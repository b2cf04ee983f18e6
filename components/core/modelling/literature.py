"""What the literature supports of the settings of a training; what lies outside is warned of, with its source."""

from __future__ import annotations

import logging
import math
from typing import Any

logger = logging.getLogger(__name__)

PRETRAINING_RATE = "the rate of pre-training at this size, arXiv 2001.08361, equation D.1"
MOST_EPOCHS = {
    "cpt": (4, "repeated text is worth nearly as much as new text up to 4 epochs, arXiv 2305.16264"),
    "fine_tuning": (16, "InstructGPT, arXiv 2203.02155, section 3.5, went to 16, well past the lowest loss"),
    "preference": (3, "Zephyr, arXiv 2310.16944, section 4.4, trained for 1 to 3"),
    "reward_model": (1, "InstructGPT, arXiv 2203.02155, appendix C.2: more than one epoch quickly overfits"),
}
"""By method: the most epochs that a source reports as useful. Of reinforcement none does: its answers are new in every
epoch."""
MOST_RANK = (256, "arXiv 2405.09673, section 3, compares ranks from 16 to 256")


def warn(config: Any, num_parameters: int) -> None:
    """Warn of each setting of `config` that is outside of what its source supports for a model of this size."""
    for told in unusual(config, num_parameters):
        logger.warning("%s", told)


def unusual(config: Any, num_parameters: int) -> list[str]:
    """One sentence for each setting outside: what was found, what is supported, and who says so."""
    found = []
    most, source = most_learning_rate(config, num_parameters)
    if config.learning_rate > most:
        found.append(f"learning_rate {config.learning_rate:g} is above {most:.2g}: {source}")
    if config.learning_rate < most / 3_000:
        found.append(f"learning_rate {config.learning_rate:g} is so low that little is learnt; {most:.2g} is {source}")
    epochs, source = MOST_EPOCHS.get(config.METHOD, (math.inf, ""))
    if config.epochs > epochs:
        found.append(f"epochs {config.epochs:g} is above {epochs}: {source}")
    rank, source = MOST_RANK
    if config.adapter and config.adapter.rank > rank:
        found.append(f"adapter.rank {config.adapter.rank} is above {rank}: {source}")
    return found


def most_learning_rate(config: Any, num_parameters: int) -> tuple[float, str]:
    """(the highest learning rate that is supported for a model of this many parameters, and by what).

    Full training: that of pre-training by Kaplan et al. An adapter: ten times as much ('LoRA Without Regret', Thinking
    Machines 2025). Preference optimisation: a tenth (Zephyr, arXiv 2310.16944, used 1/40 of its fine-tuning's), and so
    reinforcement (DeepSeekMath, arXiv 2402.03300, section 4.2, used 1e-6 at 7 B). Prompt tuning: that of its paper.
    """
    if config.adapter and config.adapter.kind == "prompt":
        return 0.3, "the rate of arXiv 2104.08691, section 3, with Adafactor"
    rate = max(2e-5, 0.003239 - 0.0001395 * math.log(num_parameters))
    source = PRETRAINING_RATE
    if config.METHOD in ("preference", "reinforcement"):
        rate, source = rate / 10, f"a tenth of {source}"
    if config.adapter:
        rate, source = rate * 10, f"{source}; ten times as much for an adapter, Thinking Machines 2025"
    return rate, source
