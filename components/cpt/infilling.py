"""Infilling (FIM, arXiv 2207.14255): a document cut into three, of which the middle comes last, so that a model learns
to fill a gap between what stands before and after it."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)


class Marks(NamedTuple):
    """Token ids that stand before the beginning, the end and the middle of a document."""

    prefix: int
    suffix: int
    middle: int


KNOWN = (
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Granite
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("▁<PRE>", "▁<SUF>", "▁<MID>"),  # Code Llama
)
"""What published models call them; the first are ours where a model has none."""


def marks(tokenizer: Any, network: Any) -> Marks:
    """The marks of the model, or new ones, which are added to `tokenizer` and `network`; their embeddings begin as the
    mean of all others."""
    known = tokenizer.get_vocab()
    for names in KNOWN:
        if all(name in known for name in names):
            return Marks(*(known[name] for name in names))
    tokenizer.add_special_tokens({"additional_special_tokens": list(KNOWN[0])}, replace_extra_special_tokens=False)
    if len(tokenizer) > network.get_input_embeddings().weight.shape[0]:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for table in {network.get_input_embeddings().weight, network.get_output_embeddings().weight}:
            table.data[len(known) :] = table.data[: len(known)].mean(0)
    logger.info("infilling: the model has no tokens for it; added are %s", ", ".join(KNOWN[0]))
    return Marks(*(tokenizer.convert_tokens_to_ids(list(KNOWN[0]))))


def infilled(ids: Sequence[int], share: float, found: Marks, seed: int) -> list[int]:
    """The tokens of a document, a `share` of documents rearranged for infilling, half of those with the suffix first
    (the paper's PSM and SPM, section 3). What becomes of a document follows from its tokens and `seed`.

    The last token, its end, stays the last.
    """
    chance = random.Random(zlib.crc32(repr(list(ids)).encode(), seed))
    if len(ids) < 4 or chance.random() >= share:
        return list(ids)
    *text, end = ids
    first, second = sorted(chance.randint(0, len(text)) for _ in range(2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if chance.random() < 0.5:
        return [found.prefix, *prefix, found.suffix, *suffix, found.middle, *middle, end]
    return [found.prefix, found.suffix, *suffix, found.middle, *prefix, *middle, end]
