"""Which rows share a batch, and what of them has a loss."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from chats import preference_row, write_chats

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import batches, checkpoints, token_shards
from bloomery.components.core.modelling.batches import bins, collator, grouped_by_length
from bloomery.components.core.modelling.preference_pairs import is_held_out
from bloomery.components.core.records import Document, Preference, content_id
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.step import run as cpt
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.step import run as dpo
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft


def orders(lengths, batch_size, epoch, seed=17, accumulation=1):
    trainer = grouped_by_length(SimpleNamespace, lengths, seed)()
    trainer.args = SimpleNamespace(train_batch_size=batch_size, gradient_accumulation_steps=accumulation)
    sampler = trainer._get_train_sampler()
    sampler.set_epoch(epoch)
    return list(sampler), list(sampler)


LENGTHS = [index * 7 % 100 + 1 for index in range(83)]


@pytest.mark.parametrize("rows", [83, 80, 8, 9, 3, 1])
def test_every_row_comes_once_and_the_longest_in_the_first_batch(rows):
    order, again = orders(LENGTHS[:rows], 8, epoch=0)
    assert sorted(order) == list(range(rows)) and order == again
    assert max(LENGTHS[:rows]) in [LENGTHS[row] for row in order[:8]]


def test_a_batch_holds_rows_of_like_lengths_and_batches_do_not_fall_in_length():
    order, _ = orders(LENGTHS, 8, epoch=0)
    batches = [[LENGTHS[row] for row in order[at : at + 8]] for at in range(0, 80, 8)]
    # Two megabatches of 16 rows and so on: each sorted, so a batch spans half of what one drawn at random does.
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 60
    means = [sum(batch) / 8 for batch in batches[1:]]
    assert means != sorted(means, reverse=True)


def test_an_epoch_has_its_own_order_whatever_was_before():
    first, second = orders(LENGTHS, 8, epoch=0)[0], orders(LENGTHS, 8, epoch=1)[0]
    assert first != second and orders(LENGTHS, 8, epoch=1)[0] == second
    assert orders(LENGTHS, 8, epoch=0, seed=18)[0] != first


def test_rows_are_packed_by_best_fit():
    # 6 opens a bin with 4 left, 5 one with 5 left, 4 fits best beside 6, 3 beside 5, 2 beside those.
    assert bins([2, 5, 3, 6, 4], 10, 0) == [[3, 4], [1, 2, 0]]
    lengths = [1 + index * 7919 % 97 for index in range(5_000)]
    packed = bins(lengths, 128, 0)
    assert packed == bins(lengths, 128, 0) != bins(lengths, 128, 1)
    assert sorted(row for group in packed for row in group) == list(range(5_000))
    assert max(sum(lengths[row] for row in group) for group in packed) <= 128
    assert len(packed) <= 1.02 * sum(lengths) / 128


def test_short_rows_of_all_lengths_share_a_pack():
    lengths = [1 + index % 25 for index in range(5_000)]  # none is longer than a quarter of a pack
    means = [sum(lengths[row] for row in group) / len(group) for group in bins(lengths, 100, 0)[:-1]]
    # By falling length the first packs would be of 25 alone, the last of 1.
    assert max(means) < 22 and min(means) > 6 and sum(means[:50]) / 50 == pytest.approx(sum(means[-50:]) / 50, rel=0.1)


ROWS = [
    {"input_ids": [5, 6, 7, 8, 9], "labels": [-100, -100, 7, 8, 9]},
    {"input_ids": [4, 3, 2], "labels": [-100, 3, 2]},
]


def test_a_batch_of_rows_and_one_of_packed_rows():
    batch = collator(0)(ROWS)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 9], [-100, 3, 2, -100, -100]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    packed = {key: ROWS[0][key] + ROWS[1][key] for key in ROWS[0]} | {"seq_lengths": [5, 3]}
    alone = {"input_ids": [2, 2], "labels": [2, 2], "seq_lengths": [2]}
    batch = collator(0)([packed, alone])
    assert "attention_mask" not in batch
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    # The first token of a row could only be learnt from another row.
    assert batch["labels"].tolist() == [[-100, -100, 7, 8, 9, -100, 3, 2], [-100, 2] + [-100] * 6]


def test_what_is_packed_sees_nothing_of_its_neighbours(tiny_model):
    network, _ = checkpoints.load(tiny_model)
    packed = {key: ROWS[0][key] + ROWS[1][key] for key in ROWS[0]} | {"seq_lengths": [5, 3]}
    batch = collator(0)([packed])
    with torch.inference_mode():
        whole = network(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        parts = [network(input_ids=torch.tensor([row["input_ids"]])).logits[0] for row in ROWS]
    torch.testing.assert_close(whole, torch.cat(parts), atol=3e-7, rtol=0)
    batches.check_packs(network)


def test_a_model_that_mixes_packed_rows_is_refused():
    from transformers import MambaConfig, MambaForCausalLM

    config = MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ConfigError, match="packing: mamba lets sequences in one row see each other"):
        batches.check_packs(_taking_positions(MambaForCausalLM(config)))


def _taking_positions(network):
    forward = network.forward
    network.forward = lambda *args, position_ids=None, **named: forward(*args, **named)
    return network


def test_weights_of_prompts_answers_and_padding():
    trainer = batches.with_prompts(SimpleNamespace, 0.25)()
    trainer.processing_class = SimpleNamespace(pad_token_id=0)
    labels, weights = trainer._weighted(collator(0)(ROWS))
    assert labels.tolist() == [[5, 6, 7, 8, 9], [4, 3, 2, -100, -100]]
    assert weights.tolist() == [[0.25, 1, 1, 1], [1, 1, 0, 0]]
    packed = {key: ROWS[0][key] + ROWS[1][key] for key in ROWS[0]} | {"seq_lengths": [5, 3]}
    labels, weights = trainer._weighted(collator(0)([packed, {**ROWS[1], "seq_lengths": [3]}]))
    assert labels.tolist() == [[-100, 6, 7, 8, 9, -100, 3, 2], [-100, 3, 2] + [-100] * 5]
    assert weights.tolist() == [[0.25, 1, 1, 1, 0, 1, 1], [1, 1] + [0] * 5]


PAIRS = [(f"say {word}", word) for word in ("ab", "cde", "fghi", "jk", "lm", "nopqr", "s", "tu")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}


@pytest.fixture
def learn(tiny_model, make_tasks, tmp_path, monkeypatch):
    """Fine-tune the tiny model on all PAIRS in steps of all rows; returns the weights and the metrics."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    artifact.seal(tiny_model, "model/1")
    tasks, chats = make_tasks(TASK, []), write_chats(tmp_path / "c", PAIRS)

    def run(**settings):
        defaults = {"learning_rate": 1e-3, "epochs": 3, "batch_size": 8, "max_length": 64, "num_validations": 0}
        config = SftConfig(**{**defaults, **settings})
        metrics = sft(config, chats=chats, tasks=tasks, base_model=tiny_model, model=tmp_path / "m")
        return dict(checkpoints.load(tmp_path / "m")[0].named_parameters()), metrics

    return run


def near(first, second) -> float:
    return max(float((weight - second[name]).detach().abs().max()) for name, weight in first.items())


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_packed_rows_train_as_rows_do(weight, learn):
    rows, told = learn(prompt_loss_weight=weight)
    # All eight rows, 90 tokens, in one row of 128 or in two of 64, which are one step either way.
    packed, as_packed = learn(packing=True, max_length=128, prompt_loss_weight=weight)
    assert as_packed["sft/loss"] == pytest.approx(told["sft/loss"], abs=1e-5)
    assert near(rows, packed) < 1e-5


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_accumulation_is_a_larger_batch(weight, learn):
    whole, _ = learn(prompt_loss_weight=weight)
    parts, _ = learn(prompt_loss_weight=weight, batch_size=2, gradient_accumulation_steps=4)
    assert near(whole, parts) < 1e-5


@pytest.fixture
def apart(tiny_model, tmp_path, monkeypatch):
    """How far two trainings by a step end apart: one in steps of 8 rows, one in steps of four passes of 2."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    artifact.seal(tiny_model, "model/1")

    def run(step, config, **given):
        learnt = []
        for size, passes in ((8, 1), (2, 4)):
            shared = {"learning_rate": 1e-3, "epochs": 3, "max_length": 64, "validation_share": 0.1}
            own = config(**shared, batch_size=size, gradient_accumulation_steps=passes)
            step(own, **given, base_model=tiny_model, model=tmp_path / f"m{size}")
            learnt.append(dict(checkpoints.load(tmp_path / f"m{size}")[0].named_parameters()))
        assert near(learnt[0], dict(checkpoints.load(tiny_model)[0].named_parameters())) > 1e-3
        return near(*learnt)

    return run


@pytest.mark.parametrize("loss", ["sigmoid", "orpo"])
def test_accumulation_is_a_larger_batch_of_pairs(loss, apart, tmp_path):
    """Chosen answers are of several lengths, and the last of the 13 pairs is a pass of its own."""
    pairs = [preference_row(f"{ask}{n}", say, f"{say[::-1]}, I say") for ask, say in PAIRS for n in range(2)][:13]
    artifact.write_rows(tmp_path / "pairs", "preference/3", Preference.table(pairs))
    assert not any(is_held_out(row, 0.1) for row in pairs)
    assert apart(dpo, partial(DpoConfig, loss=loss), preferences=tmp_path / "pairs") < 1e-5


def test_accumulation_is_a_larger_batch_of_packed_texts(apart, tmp_path):
    facts = {"source": "s:f#1", "language": "en", "general": False, "time": "", "quality": None}
    texts = [{**facts, "id": content_id(ask), "text": f"{ask}: {answer}. " * 6} for ask, answer in PAIRS]
    artifact.write_rows(tmp_path / "texts", "document/2", Document.table(texts))
    assert apart(cpt, CptConfig, documents=tmp_path / "texts") < 1e-5


def test_a_weight_of_one_is_a_loss_on_every_token(learn, tiny_model):
    _, told = learn(prompt_loss_weight=1.0, epochs=1, learning_rate=1e-9)
    network, tokenizer = checkpoints.load(tiny_model)
    texts = [f"<|user|>{prompt}<|assistant|>{answer}<|eos|>" for prompt, answer in PAIRS]
    nats = count = 0.0
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.inference_mode():
            found = network(input_ids=ids).logits[0, :-1].log_softmax(-1)
        nats -= float(found.gather(-1, ids[0, 1:, None]).sum())
        count += ids.shape[1] - 1
    assert told["sft/loss"] == pytest.approx(nats / count, abs=1e-4)


def test_packed_rows_of_a_folder_of_tokens(tmp_path, tiny_model, monkeypatch):
    monkeypatch.delenv("BLOOMERY_STORE", raising=False)
    _, tokenizer = checkpoints.load(tiny_model)
    marks = [[label != -100 for label in row["labels"]] for row in ROWS]
    rows = [(row["input_ids"], own) for row, own in zip(ROWS, marks, strict=True)]
    with token_shards.tokenised(tokenizer, ["x"], lambda: [token_shards.encoded(rows)]) as tokens:
        packed = tokens.packed([[1, 0]])
        assert len(packed) == 1
        expected = {"input_ids": [4, 3, 2, 5, 6, 7, 8, 9], "labels": [-100, 3, 2, -100, -100, 7, 8, 9]}
        assert packed[0] == {**expected, "seq_lengths": [3, 5]}


def test_training_ends_early_where_the_validation_loss_no_longer_falls(learn, tiny_model, make_tasks, tmp_path):
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a[::-1] + "!"} for p, a in PAIRS]
    tasks = make_tasks(TASK, rows, "watched")
    settings = {"learning_rate": 3e-2, "epochs": 60, "batch_size": 8, "max_length": 64, "num_validations": 30}
    found = {}
    for patience in (None, 3):
        config = SftConfig(**settings, patience=patience)
        chats = write_chats(tmp_path / f"c{patience}", PAIRS)
        target = tmp_path / f"m{patience}"
        found[patience] = sft(config, chats=chats, tasks=tasks, base_model=tiny_model, model=target)
    assert found[3]["sft/best_step"] == found[None]["sft/best_step"] < 40
    assert found[3]["sft/loss"] > found[None]["sft/loss"]
