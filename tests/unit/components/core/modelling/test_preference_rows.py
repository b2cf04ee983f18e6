"""Preference rows on disk: three rows of tokens each, found again by the number of their row, kept for other runs."""

import pickle
from functools import partial

import pyarrow as pa
import pytest
from chats import preference_row

from bloomery.components.core import artifact
from bloomery.components.core.modelling import checkpoints, preference_rows
from bloomery.components.core.modelling.preference_pairs import Pair, pair_of
from bloomery.components.core.modelling.preference_rows import usable_pairs
from bloomery.components.core.records import Preference
from bloomery.components.dpo.config import DpoConfig

ROWS = [
    preference_row("p", "same", "same"),
    preference_row("q", "ab", "c"),
    preference_row("r", "x" * 80, "y"),
    {**preference_row("s", "good", "good"), "rejected": []},
    preference_row("t", "d", "efg"),
]


@pytest.fixture
def tokenizer(tiny_model):
    return checkpoints.load_tokenizer(tiny_model)


@pytest.fixture
def preferences(tmp_path):
    artifact.write_rows(tmp_path / "p", "preference/3", Preference.table(ROWS))
    return tmp_path / "p"


def config(**more):
    return DpoConfig(**{"learning_rate": 1e-4, "epochs": 1, "max_length": 64, "validation_share": 1e-9, **more})


def test_a_pair_is_read_from_disk_and_what_is_left_out_is_empty_there(tokenizer, preferences):
    with usable_pairs(tokenizer, preferences, config(), "dpo") as (kept, held_out, told):
        assert list(kept) == [pair_of(tokenizer, ROWS[1])[0], pair_of(tokenizer, ROWS[4])[0]]
        assert kept[-1] == kept[1] and kept.numbers_N.tolist() == [1, 4] and len(held_out) == 0
        # <|user|>, a letter and <|assistant|>; letters and their end.
        assert kept.lengths_N3.tolist() == [[3, 3, 2], [3, 2, 4]] and kept.longest == 7 and held_out.longest == 0
        assert kept.tokens.lengths.tolist() == [0, 0, 0, 3, 3, 2, 0, 0, 0, 0, 0, 0, 3, 2, 4]
        expected = {"too_long": 1, "too_long_fraction": 0.2}
        assert told == {**expected, "dropped_identical": 1, "dropped_too_long": 1, "dropped_unpaired": 1}
    single = config(loss="kto", validation_share=1 - 1e-9)
    with usable_pairs(tokenizer, preferences, single, "dpo") as (kept, held_out, _):
        assert not kept and [len(pair.rejected) for pair in held_out] == [2, 0, 4]


def test_a_worker_makes_of_rows_what_the_step_itself_would(tokenizer):
    made = partial(preference_rows._made, partial(pair_of, tokenizer), config(), "dpo", "preference pair")
    here, there = made(ROWS), pickle.loads(pickle.dumps(made))(ROWS)
    assert here.ids.tolist() == there.ids.tolist() and here.counts == there.counts and here.counts["read"] == 5
    assert here.groups.tolist() == [2] * 3 + [0] * 3 + [2] * 6 + [0] * 3


def test_a_store_keeps_them_for_a_run_with_another_training(tokenizer, preferences, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    with usable_pairs(tokenizer, preferences, config(), "dpo") as (kept, _, told):
        first = list(kept)
    part = preferences / "part-00000.parquet"
    part.write_bytes(bytes(part.stat().st_size))  # whoever reads the rows fails
    other = config(learning_rate=1e-5, beta=0.5, loss="ipo")
    with usable_pairs(tokenizer, preferences, other, "reward_model") as (kept, _, again):
        assert list(kept) == first and isinstance(first[0], Pair) and again == told
    for changed in (config(max_length=32), config(loss="kto"), config(validation_share=0.5)):
        with pytest.raises(pa.ArrowInvalid), usable_pairs(tokenizer, preferences, changed, "dpo"):
            pass
