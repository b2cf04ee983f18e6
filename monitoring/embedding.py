"""Embeddings of prompts from a checkpoint's own hidden states: nothing is downloaded, and what the model cannot tell
apart is not compared.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.registry import registry

logger = logging.getLogger(__name__)

Encoder = Callable[[Sequence[str]], Any]
"""Texts to a float array of shape [texts, dimensions]."""

MAX_TOKENS = 256
"""Tokens of a prompt that are read."""
BATCH_ROWS = 16
MAX_CHECKPOINT_BYTES = 4 * 2**30
"""A larger checkpoint is not loaded to watch drift: a check must fit in a small pod. Name a smaller encoder."""


def encoder_of(setting: str | None, champion: str) -> tuple[Encoder | None, str]:
    """(encoder, '') of `MonitoringConfig.encoder`, or (None, why there is none); the checkpoint is loaded at the first
    use.

    `champion` is `name:version`, whose checkpoint the registry knows where one is configured.
    """
    if setting == "":
        return None, ""
    try:
        folder = _folder(champion) if setting is None else Path(setting)
        if folder is None:
            return None, f"the registry does not know where the checkpoint of {champion} lies"
        checkpoints.check(folder)
    except BloomeryError as error:
        return None, str(error)
    size = checkpoints.num_bytes(folder)
    if size > MAX_CHECKPOINT_BYTES:
        return None, f"{folder} has {size / 2**30:.0f} GiB; set monitoring.encoder to a smaller checkpoint"
    return (lambda texts: mean_hidden_states(folder, texts)), ""


def mean_hidden_states(checkpoint: Path, texts: Sequence[str]) -> Any:
    """The last hidden states of each text, averaged over its first `MAX_TOKENS` tokens: float32 [texts, hidden].

    Raises: ModelError if the checkpoint does not load.
    """
    import numpy as np
    import torch

    model, tokenizer = checkpoints.load(checkpoint, on=checkpoints.device())
    vectors = np.zeros((len(texts), model.config.get_text_config().hidden_size), dtype=np.float32)
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        encoded = tokenizer(
            [texts[index] or tokenizer.eos_token for index in batch],
            add_special_tokens=False,
            truncation=True,
            max_length=MAX_TOKENS,
            padding=True,
            padding_side="right",
            return_tensors="pt",
        ).to(model.device)
        with torch.inference_mode():
            states_BLD = model(
                input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"], output_hidden_states=True
            ).hidden_states[-1]
        mask_BL1 = encoded["attention_mask"][..., None]
        means_BD = (states_BLD.float() * mask_BL1).sum(1) / mask_BL1.sum(1).clamp(min=1)
        vectors[batch] = means_BD.cpu().numpy()
    return vectors


def _folder(champion: str) -> Path | None:
    """Where the checkpoint that served lies, if this machine sees it."""
    if not registry.available():
        return None
    name, _, version = champion.rpartition(":")
    for entry in registry.versions(name):
        if entry["version"] == version:
            folder = Path(entry["source"].removeprefix("file://"))
            return folder if folder.is_dir() else None
    return None
