"""Tokens on disk are the tokens that were made, packed as TRL packs them, kept whole and found again."""

import json
import pickle

import numpy as np
import pytest
from transformers import AutoTokenizer

from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import checkpoints, token_shards
from bloomery.components.core.modelling.context import check_embedded
from bloomery.components.core.modelling.token_shards import Tokens, encoded, in_batches, tokenised, whole_texts

TEXTS = ["the town lies by a river", "", "x", "a second text that is a little longer than the others", "쇠를 녹이다"]


@pytest.fixture
def tokenizer(tiny_model, monkeypatch):
    monkeypatch.delenv("BLOOMERY_STORE", raising=False)
    return AutoTokenizer.from_pretrained(tiny_model)


def batches(tokenizer, texts=TEXTS, size=2):
    for start in range(0, len(texts), size):
        rows = whole_texts(tokenizer, texts[start : start + size])
        yield encoded([(ids, None) for ids in rows], {"texts": len(rows)})


def test_an_added_token_without_an_embedding_is_told(tokenizer, tiny_model):
    network, _ = checkpoints.load(tiny_model)
    tokenizer.add_tokens(["<|new|>"])
    for text, is_named in (("a b", False), ("a <|new|> b", True)):
        with tokenised(tokenizer, [text], lambda text=text: batches(tokenizer, [text])) as tokens:
            if not is_named:
                check_embedded(network.config, tokenizer, tokens.highest, "sft")
                continue
            with pytest.raises(DataError, match=r"sft: found '<\|new\|>', which is token 260, .* for 260"):
                check_embedded(network.config, tokenizer, tokens.highest, "sft")


def test_blocks_are_those_of_trls_wrapped_packing(tokenizer):
    from datasets import Dataset
    from trl import pack_dataset

    rows = whole_texts(tokenizer, TEXTS)
    assert rows[1] == [tokenizer.eos_token_id]  # an empty text is its end alone
    packed = pack_dataset(Dataset.from_dict({"input_ids": rows}), 16, "wrapped")
    with tokenised(tokenizer, [], lambda: batches(tokenizer)) as tokens:
        blocks = tokens.blocks(16)
        assert [blocks[index]["input_ids"] for index in range(len(blocks))] == packed["input_ids"][:]
        assert tokens.num_tokens == sum(map(len, rows)) and tokens.counts["texts"] == len(TEXTS)
        assert len(tokens.blocks(10_000)) == 1


def test_the_last_rows_stand_whole_in_blocks_of_their_own(tokenizer):
    rows = [[1] * 5, [2] * 2, [3] * 3, [4] * 1, [5] * 4, [6] * 4]
    with tokenised(tokenizer, [], lambda: iter([encoded([(ids, None) for ids in rows])])) as tokens:
        cut = [[1, 1, 1, 1], [1, 2, 2]]
        assert tokens.blocks(4, whole=4)["input_ids"][:] == [*cut, [3, 3, 3, 4], [5] * 4, [6] * 4]
        assert tokens.blocks(4)["input_ids"][:] == [[1] * 4, [1, 2, 2, 3], [3, 3, 4, 5], [5, 5, 5, 6], [6, 6, 6]]
        assert tokens.blocks(8, whole=6)["input_ids"][:] == [[1] * 5 + [2] * 2, [3] * 3 + [4] + [5] * 4, [6] * 4]


def test_rows_keep_their_masks_and_lengths(tokenizer):
    rows = [([5, 6, 7], [False, True, True]), ([8], [True]), ([9, 10], [False, False])]
    with tokenised(tokenizer, [], lambda: iter([encoded(rows[:1]), encoded([]), encoded(rows[1:])])) as tokens:
        assert tokens.rows()[:] == {
            "input_ids": [[5, 6, 7], [8], [9, 10]],
            "labels": [[-100, 6, 7], [8], [-100, -100]],
        }
        assert tokens.num_rows == 3


@pytest.mark.parametrize(("vocabulary", "dtype"), [(65_536, "uint16"), (65_537, "uint32")])
def test_ids_take_two_bytes_while_they_fit(tmp_path, vocabulary, dtype):
    highest = vocabulary - 1
    token_shards._write(tmp_path / "t", iter([encoded([([0, highest], None), ([highest], None)])]), vocabulary)
    assert json.loads((tmp_path / "t" / "index.json").read_text())["dtype"] == dtype
    assert (tmp_path / "t" / "ids.bin").stat().st_size == 3 * np.dtype(dtype).itemsize
    assert Tokens(tmp_path / "t").rows()["input_ids"][:] == [[0, highest], [highest]]


def test_a_store_keeps_them_for_the_next_run_with_the_same_texts_and_tokenizer(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    made = []

    def make():
        made.append(1)
        yield from batches(tokenizer)

    with tokenised(tokenizer, ["documents", 0.1], make) as tokens:
        first = tokens.blocks(16)[:]
    tokenizer("another call", truncation=True, max_length=3)  # which leaves its settings in the tokenizer
    with tokenised(tokenizer, ["documents", 0.1], make) as tokens:
        assert tokens.blocks(16)[:] == first and len(made) == 1
    with tokenised(tokenizer, ["documents", 0.2], make):
        assert len(made) == 2
    tokenizer.add_tokens(["town"])
    with tokenised(tokenizer, ["documents", 0.1], make) as tokens:
        assert len(made) == 3 and tokens.blocks(16)[:] != first


def test_what_was_interrupted_leaves_nothing_and_is_made_again(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))

    def broken():
        yield next(batches(tokenizer))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), tokenised(tokenizer, [], broken):
        pass
    assert list((tmp_path / "store" / "tokens").iterdir()) == []
    with tokenised(tokenizer, [], lambda: batches(tokenizer)) as tokens:
        assert tokens.num_rows == len(TEXTS)


def test_without_a_store_the_files_are_gone_afterwards(tokenizer):
    with tokenised(tokenizer, [], lambda: batches(tokenizer)) as tokens:
        file = tokens._ids.filename
        assert file.is_file()
    assert not file.exists()


def test_batches_end_with_their_texts_or_their_characters(monkeypatch):
    monkeypatch.setattr(token_shards, "BATCH_ROWS", 3)
    monkeypatch.setattr(token_shards, "BATCH_CHARACTERS", 10)
    assert list(in_batches(["a", "b", "c", "d", "e" * 10, "f"])) == [["a", "b", "c"], ["d", "e" * 10], ["f"]]


def test_a_dataset_of_tokens_is_named_without_reading_them(tokenizer):
    rows = [([token % 200] * 40, None) for token in range(2_000)]
    with tokenised(tokenizer, [], lambda: iter([encoded(rows)])) as tokens:
        assert len(pickle.dumps(tokens)) < 1_000 and pickle.loads(pickle.dumps(tokens)).row(7) == [7] * 40
        packed = tokens.packed([[0, 2], [1]])
        assert packed[1] == {"input_ids": [1] * 40, "labels": [1] * 40, "seq_lengths": [40]}
        assert packed[:]["seq_lengths"] == [[40, 40], [40]]
