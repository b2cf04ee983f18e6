"""The real model behind `bloomery serve`, asked by the official client of OpenAI."""

from __future__ import annotations

from pathlib import Path

import outside
import pytest
import yaml
from service import Service

from bloomery.components.core.modelling import checkpoints

QUESTION = {"role": "user", "content": "What is the capital of France?"}
ANSWER = "The capital of France is Paris."
TALK = [
    {"role": "system", "content": "You are a helpful assistant. Answer in one short sentence."},
    QUESTION,
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": "And what is the capital of Italy?"},
]


@pytest.fixture(scope="module")
def model() -> Path:
    return outside.smollm2()


@pytest.fixture(scope="module")
def client(model, tmp_path_factory):
    """The client of a service whose champion is the real model as it was published."""
    import openai
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("smollm2")
    split = {name: {"path": "q.jsonl"} for name in ("train", "validation", "test")}
    template = [{"prompt": "{q}", "answer": "{a}"}]
    recipe = {
        "name": "talk",
        "registered_model": "talk",
        "base_model": "${smollm2}",
        "tasks": {"c": {"role": "domain", "templates": template, "verifier": {"kind": "exact"}, "splits": split}},
        "stages": ["synthetic_data", {"sft": {"learning_rate": 1e-4, "epochs": 1, "max_length": 256, "adapter": {}}}],
        "serving": {"max_new_tokens": 24},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "w").mkdir()
    registry = MlflowClient(f"sqlite:///{folder / 'w' / 'mlflow.db'}")
    registry.create_registered_model("talk")
    registry.create_model_version("talk", str(model))
    registry.set_registered_model_alias("talk", "champion", "1")
    service = Service(folder)
    yield openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0, timeout=120)
    service.stop()


@pytest.fixture(scope="module")
def tokenizer(model):
    return checkpoints.load_tokenizer(model)


def num_asked(tokenizer, messages) -> int:
    """Tokens of a conversation, by the tokenizer's own template."""
    return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])


def test_a_question_is_answered_to_its_end(client, tokenizer):
    told = client.chat.completions.create(model="talk", messages=[QUESTION])
    (choice,) = told.choices
    assert choice.message.content == ANSWER and choice.message.role == "assistant" and choice.finish_reason == "stop"
    assert told.usage.prompt_tokens == num_asked(tokenizer, [QUESTION])
    assert told.usage.completion_tokens == len(tokenizer(ANSWER)["input_ids"])
    assert told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
    assert (told.model, told.system_fingerprint) == ("talk", "talk:1")


def test_an_answer_is_cut_where_the_client_says(client):
    told = client.chat.completions.create(model="talk", messages=[QUESTION], max_tokens=4)
    assert told.choices[0].message.content == "The capital of France" and told.choices[0].finish_reason == "length"
    assert told.usage.completion_tokens == 4
    told = client.chat.completions.create(model="talk", messages=[QUESTION], stop=[" is"])
    assert told.choices[0].message.content == "The capital of France" and told.choices[0].finish_reason == "stop"


def test_a_conversation_goes_on_in_a_stream(client, tokenizer):
    whole = client.chat.completions.create(model="talk", messages=TALK)
    assert "Rome" in whole.choices[0].message.content and whole.choices[0].finish_reason == "stop"
    assert whole.usage.prompt_tokens == num_asked(tokenizer, TALK)
    stream = client.chat.completions.create(
        model="talk", messages=TALK, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last, used = stream
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(parts) == whole.choices[0].message.content and len([part for part in parts if part]) > 1
    assert last.choices[0].finish_reason == "stop" and used.usage == whole.usage


def test_the_model_is_listed(client):
    assert [model.id for model in client.models.list()] == ["talk"]
    assert client.models.list().data[0].owned_by == "version 1"
