"""How many rows and tokens the files of a recipe hold, before a stage has changed them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import BloomeryError, ModelError
from bloomery.pipelines.recipe import Recipe

CHARACTERS_PER_TOKEN = 4.0
"""Where the model's tokenizer is not there to be asked: English of most tokenizers."""
SAMPLE = 200
"""Chats by which the model's tokenizer and template are asked how many tokens they make of them."""


def of_files(recipe: Recipe, folder: Path) -> dict[str, tuple[int, float]]:
    """(rows, tokens of an epoch) of `documents`, `chats` and `preferences`, of a pair both chats; by the tokenizer and
    the template of the model in `folder`, where it has them."""
    from bloomery.pipelines.cli_check import own_chats, own_pairs, training_chats

    tokenizer = _tokenizer(folder, recipe.chat_template)
    found: dict[str, tuple[int, float]] = {}
    with contextlib.suppress(BloomeryError):
        chats = [*training_chats(recipe.tasks), *own_chats(recipe.chats)]
        found["chats"] = (len(chats), _num_tokens(tokenizer, chats))
    with contextlib.suppress(BloomeryError):
        pairs = own_pairs(recipe.preferences)
        answered = [
            (pair["messages"] + pair[answer], pair["tools"])
            for pair in pairs
            for answer in ("chosen", "rejected")
            if pair[answer]
        ]
        found["preferences"] = (len(pairs), _num_tokens(tokenizer, answered))
    size = sum(Path(file).stat().st_size for file in _files(recipe))
    found["documents"] = (0, size / CHARACTERS_PER_TOKEN)
    return found


def _tokenizer(folder: Path, chat_template: str) -> Any:
    from bloomery.components.core.modelling import checkpoints, inspection

    if not (folder / "tokenizer.json").is_file():
        return None
    with contextlib.suppress(BloomeryError):
        tokenizer = checkpoints.load_tokenizer(folder)
        if chat_template:
            tokenizer.chat_template = inspection.template_text(tokenizer, chat_template)
        return tokenizer
    return None


def _num_tokens(tokenizer: Any, chats: Sequence[tuple[list[dict[str, Any]], str]]) -> float:
    """Tokens of all chats, by those that each character of the first, and of others evenly, makes with its template."""
    from bloomery.components.core.modelling import templates

    lengths = [len("\n".join(f"{turn['role']} {turn.get('content') or ''}" for turn in said)) for said, _ in chats]
    sample = range(0, len(chats), max(1, len(chats) // SAMPLE))
    ratio = 1 / CHARACTERS_PER_TOKEN
    with contextlib.suppress(ModelError):  # a chat that the template refuses
        if tokenizer is not None and tokenizer.chat_template and chats:
            rows = [row for at in sample for row in templates.trained_rows(tokenizer, *chats[at])]
            ratio = sum(len(ids) for ids, _ in rows) / sum(lengths[at] for at in sample)
    return sum(lengths) * ratio


def _files(recipe: Recipe) -> list[str]:
    from bloomery.components.core.data.files import list_files
    from bloomery.components.data_curation.config import DataCurationConfig

    found: list[str] = []
    for stage in recipe.stages:
        for source in stage.config.sources if isinstance(stage.config, DataCurationConfig) else ():
            if "://" not in source.path:
                with contextlib.suppress(BloomeryError):
                    found += list_files(source.path)
    return found
