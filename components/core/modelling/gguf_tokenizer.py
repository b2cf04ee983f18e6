"""The tokenizer inside a GGUF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bloomery.components.core import repository_code


def load(file: Path) -> Any:
    """The tokenizer in a GGUF, which cuts text as llama.cpp does by what the file says.

    transformers 5.24 takes `smollm` for GPT-2's way. There each digit stands alone, so that white space before a number
    is cut otherwise: two line ends before `1.` are one token.
    """
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    trust = repository_code.allowed(file.parent)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, **trust)
    way = GGUFReader(file).get_field("tokenizer.ggml.pre")
    if way is not None and way.contents() == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        as_gpt_2 = tokenizer.backend_tokenizer.pre_tokenizer
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, as_gpt_2])
    return tokenizer
