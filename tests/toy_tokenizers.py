"""Small tokenizers for chat templates, bytes and what in a template looks like a token; and what is trained."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

WORD = re.compile(r"<\|?[^<>\s'\"{}]{1,40}?\|?>|\[/?[A-Z_]+\]|<｜[^｜]*｜>")


def tokenizer_for(template: str, *, eos: str, bos: str | None = None, writes_bos: bool = False, **more: Any) -> Any:
    """A byte-level tokenizer with `template`; what looks like `<|…|>`, and EOS and BOS, is special, `<tag>` is not."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    found = sorted({*WORD.findall(template), eos, *([bos] if bos else [])})
    special = [token for token in found if token.startswith(("<|", "<｜")) or token in (eos, bos) or "turn" in token]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*found, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens([token for token in found if token not in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if writes_bos:
        tokenizer.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=eos, bos_token=bos, chat_template=template, **more
    )


def runs(tokenizer: Any, rows: Sequence[tuple[Sequence[int], Sequence[Any]]]) -> list[list[str]]:
    """The trained tokens of each row as texts, a run a turn."""
    return [
        [
            tokenizer.decode([token for token, _ in run])
            for trained, run in itertools.groupby(zip(*row, strict=True), key=lambda pair: bool(pair[1]))
            if trained
        ]
        for row in rows
    ]
