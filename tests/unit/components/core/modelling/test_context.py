"""What is asked of a conversation that does not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from chats import preference_row

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import checkpoints, templates
from bloomery.components.core.modelling.context import check_positions, fitting


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def test_the_last_turn_loses_its_beginning_and_nothing_else(tokenizer) -> None:
    # user, 2 bytes, assistant, 2 bytes and the end, user, 4 bytes, assistant: 13 tokens
    messages = [*chat("ab", "cd"), *chat("efgh")]
    assert len(templates.prompt_tokens(tokenizer, messages)) == 13
    assert fitting(tokenizer, [messages], [""], 13, "error", "here") == [messages]
    assert fitting(tokenizer, [messages], [""], 11, "truncate_left", "here") == [[*messages[:2], *chat("gh")]]
    short = chat("ab")
    # The turns before it fill the room alone.
    assert fitting(tokenizer, [messages, short], ["", ""], 9, "truncate_left", "here") == [None, short]
    assert fitting(tokenizer, [messages, short], ["", ""], 12, "drop", "here") == [None, short]
    with pytest.raises(DataError, match="^here: 1 of 2 questions do not fit: the longest has 13 tokens.*leaves 12 "):
        fitting(tokenizer, [messages, short], ["", ""], 12, "error", "here")
    with pytest.raises(DataError, match="1 of 1"):
        fitting(tokenizer, [messages], [""], 12, "drop", "here")


def test_a_sign_of_several_tokens_that_is_cut_in_two_still_fits(tokenizer) -> None:
    # 4 signs of 3 bytes; 8 tokens leave 6 for the text: two signs
    (cut,) = fitting(tokenizer, [chat("가나다라")], [""], 8, "truncate_left", "here")
    assert cut == chat("다라")
    (cut,) = fitting(tokenizer, [chat("가나다라")], [""], 7, "truncate_left", "here")
    assert cut and len(templates.prompt_tokens(tokenizer, cut)) <= 7 and cut[0]["content"].endswith("라")


def test_rows_beyond_the_positions_of_a_model_are_refused(tiny_model: Path) -> None:
    from transformers import AutoConfig, GPT2Config, MambaConfig

    for config, known in ((AutoConfig.from_pretrained(tiny_model), 256), (GPT2Config(n_positions=64), 64)):
        check_positions(config, known, "sft")
        with pytest.raises(ConfigError, match=f"sft: rows have up to {known + 1} tokens and the model knows {known} "):
            check_positions(config, known + 1, "sft")
    check_positions(MambaConfig(), 10**6, "sft")


def test_a_token_without_an_embedding_is_told_wherever_text_is_read(tiny_model: Path, tmp_path: Path) -> None:
    from bloomery.components.core.modelling.generation import Generator
    from bloomery.components.core.modelling.preference_rows import check_readable, usable_pairs
    from bloomery.components.core.records import Preference
    from bloomery.components.dpo.config import DpoConfig
    from bloomery.monitoring.engine import Served

    model, tokenizer = checkpoints.load(tiny_model)
    tokenizer.add_tokens(["<|new|>"])
    plain, odd = chat("say ab"), chat("say <|new|>")
    told = "found '<|new|>', which is token 260, and the model has embeddings for 260; leave out what names it"
    assert Generator(model, tokenizer).generate([plain], max_new_tokens=1)
    served = Served(model, tokenizer, "one", "1")
    assert served.prompt_tokens(plain)

    def read_pairs(*prompts: str) -> None:
        rows = [preference_row(prompt, "a", "b") for prompt in prompts]
        artifact.write_rows(tmp_path / f"{len(rows)}", "preference/3", Preference.table(rows))
        config = DpoConfig(learning_rate=1e-4, epochs=1, max_length=64)
        with usable_pairs(tokenizer, tmp_path / f"{len(rows)}", config, "dpo") as (kept, held_out, _):
            check_readable(model, tokenizer, (kept, held_out), "dpo")

    read_pairs("say ab")
    for where, read in (
        ("prompts", lambda: Generator(model, tokenizer).generate([plain, odd], max_new_tokens=1)),
        ("messages", lambda: served.prompt_tokens(odd)),
        ("dpo", lambda: read_pairs("say ab", "say <|new|>")),
    ):
        with pytest.raises(DataError, match=f"^{where}: {re.escape(told)}$"):
            read()
