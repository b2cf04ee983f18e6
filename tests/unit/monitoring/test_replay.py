import json

import pytest

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Template
from bloomery.monitoring.prediction_log import Reading
from bloomery.monitoring.replay import model_version_of, replay

TEMPLATE = Template(prompt="Question: {question}", answer="{sql}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An untrained model of a few thousand parameters: it answers nonsense, but it answers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from bloomery.pipelines.quickstart.base_model import train_tokenizer

    torch.manual_seed(0)
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["How many orders? 주문은 몇 건이야?", "SELECT COUNT(*) FROM orders"] * 4)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(log):
    return [row for _, row in Reading(str(log))]


def test_conversations_are_replayed_as_such(tmp_path, model):
    turns = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "How many?"}]
    row = {"time": "2025-01-06T09:00:00", "m": turns, "sql": "SELECT 1"}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "m": turns[:1]}) + "\n")
    template = Template(messages="m", answer="{sql}")
    with pytest.raises(DataError, match="t.jsonl line 2: the template 'm' does not fit the row: no_question_at_end"):
        replay(tmp_path / "t.jsonl", model, str(tmp_path / "log"), template, model_name="shop", model_version="1")
    (tmp_path / "t.jsonl").write_text(json.dumps(row))
    replay(tmp_path / "t.jsonl", model, str(tmp_path / "log"), template, model_name="shop", model_version="1")
    (found,) = read(tmp_path / "log")
    assert (found.prompt, json.loads(found.messages)) == ("system: be brief\nuser: How many?", turns)


def test_traffic_becomes_a_prediction_log(tmp_path, model):
    traffic = [
        {"time": "2025-01-06T09:00:00", "week": 1, "question": "How many orders?", "sql": "SELECT 1"},
        {"time": "2025-01-06T10:00:00", "week": 1, "question": "주문은 몇 건이야?", "sql": "SELECT 2"},
    ]
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in traffic))
    version = model_version_of(model)
    arguments = {"model_name": "shop", "model_version": version, "max_new_tokens": 4}
    assert replay(tmp_path / "traffic.jsonl", model, str(tmp_path / "log"), TEMPLATE, **arguments) == 2
    rows = read(tmp_path / "log")
    assert [row.prompt for row in rows] == ["Question: How many orders?", "Question: 주문은 몇 건이야?"]
    assert [row.label for row in rows] == ["SELECT 1", "SELECT 2"]
    assert rows[0].time == "2025-01-06T09:00:00+00:00" and rows[0].model_version == version
    assert rows[0].prompt_tokens > 0 and rows[0].latency_seconds > 0
    assert rows[0].mean_log_probability < 0 < rows[0].mean_entropy
    expected = Generator.load(model).generate([chat(row.prompt) for row in rows], max_new_tokens=4)
    assert [[row.response] for row in rows] == expected
    assert len({row.id for row in rows}) == 2

    replay(tmp_path / "traffic.jsonl", model, str(tmp_path / "again"), TEMPLATE, **arguments)
    assert [(row.id, row.response) for row in read(tmp_path / "again")] == [(row.id, row.response) for row in rows]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"time": "soon", "question": "?", "sql": ""}', "line 1: time is 'soon', expected ISO 8601"),
        ('{"time": "2025-01-06", "sql": ""}', "line 1: the template"),
        ("{", "line 1: broken_json"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, line, message):
    (tmp_path / "traffic.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        replay(
            tmp_path / "traffic.jsonl",
            tmp_path,
            str(tmp_path / "log"),
            TEMPLATE,
            model_name="shop",
            model_version="1",
        )
