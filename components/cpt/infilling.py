"""Infilling (FIM, arXiv 2207.14255): a document cut into three, of which the middle comes last, so that a model learns
to fill a gap between what stands before and after it."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import adapters
from bloomery.components.cpt.config import CptConfig

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


def marks(tokenizer: Any, network: Any, config: CptConfig) -> Marks:
    """The marks of the model, or new ones, which are added to `tokenizer` and `network`; their embeddings begin as the
    mean of all others.

    Raises: ConfigError if new ones would stay that mean, as `config` leaves the embeddings as they are.
    """
    known = tokenizer.get_vocab()
    for names in KNOWN:
        if all(name in known for name in names):
            return Marks(*(known[name] for name in names))
    if not adapters.embeddings_learn(network, config.adapter, config.trained):
        told = "an adapter" if config.adapter else f"trained: {config.trained}"
        raise ConfigError(
            f"cpt.infilling_share: found {config.infilling_share:g}, and the model has no tokens for it; their "
            f"embeddings would be learnt, which {told} leaves as they are, so that all three stayed the same. Train "
            "all weights, take a model that has such tokens, or set infilling_share to 0"
        )
    tokenizer.add_special_tokens({"additional_special_tokens": list(KNOWN[0])}, replace_extra_special_tokens=False)
    added = Marks(*tokenizer.convert_tokens_to_ids(list(KNOWN[0])))
    rows = network.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        network.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for table in {network.get_input_embeddings().weight, network.get_output_embeddings().weight}:
        mean = table.data[: min(rows, *added)].mean(0)
        table.data[rows:] = mean
        table.data[list(added)] = mean  # of embeddings that are padded to more rows than there were tokens, too
    logger.info("infilling: the model has no tokens for it; added are %s", ", ".join(KNOWN[0]))
    return added


def infilled(ids: Sequence[int], share: float, found: Marks, seed: int, bos: int | None = None) -> list[int]:
    """The tokens of a document, a `share` of documents rearranged for infilling, half of those with the suffix first
    (the paper's PSM and SPM, section 3). What becomes of a document follows from its tokens and `seed`.

    The last token, its end, stays the last, and a first `bos` the first: so the tokenizer writes a prompt with marks.
    """
    chance = random.Random(zlib.crc32(repr(list(ids)).encode(), seed))
    start = [token for token in ids[:1] if token == bos]
    *text, end = ids[len(start) :]
    if len(text) < 3 or chance.random() >= share:
        return list(ids)
    first, second = sorted(chance.randint(0, len(text)) for _ in range(2))
    prefix, middle, suffix = text[:first], text[first:second], text[second:]
    if chance.random() < 0.5:
        return [*start, found.prefix, *prefix, found.suffix, *suffix, found.middle, *middle, end]
    return [*start, found.prefix, found.suffix, *suffix, found.middle, *prefix, *middle, end]
