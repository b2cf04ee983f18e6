"""Whether this machine has the memory that the recipe's trainings want: a guess, which warns and refuses nothing."""

from __future__ import annotations

import logging
from pathlib import Path

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import cards, fixes, plan, shapes
from bloomery.components.preflight.config import PreflightConfig

logger = logging.getLogger(__name__)


def warn_of_memory(config: PreflightConfig, model: Path) -> None:
    """Warn of each training that is planned to take more memory than there is, with the cheapest change that fits.

    Says nothing where the trainings are for an accelerator and this machine has none: they run elsewhere.
    """
    machine = cards.here()
    if not config.trainings or (config.on_accelerator and not machine.is_gpu) or not model.is_dir():
        return
    try:
        shape = shapes.read(model)
    except ModelError as error:
        logger.info("memory is not planned: %s", error)
        return
    for name, training in config.trainings.items():
        need = plan.of_training(shape, training, machine)
        if need.peak > machine.memory_bytes:
            fix = fixes.cheapest(shape, training, machine)
            logger.warning(
                "%s: some %.1f GB of memory are planned, and %s has %.1f; %s",
                name,
                need.peak / 1e9,
                machine.name,
                machine.memory_bytes / 1e9,
                f"what would fit: {fixes.as_settings(fix[0])}" if fix else "no change that is known would fit",
            )
