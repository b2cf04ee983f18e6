"""`bloomery serve` as its users meet it: a process, HTTP, a registry in SQLite, and the log it leaves."""

from __future__ import annotations

import json
import math
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml
from service import Service

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, MissingExtraError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.monitoring.prediction_log import Reading
from bloomery.monitoring.serving import serve
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.monitoring.vllm_engine import INTERPRETER

PROMPTS = ["How many orders?", "주문은 몇 건이야?", "x", "List the customers of Busan by name, please."]


ENGINES = [
    "transformers",
    pytest.param("vllm", marks=pytest.mark.skipif(INTERPRETER not in os.environ, reason=f"no {INTERPRETER}")),
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    return request.param


@pytest.fixture(scope="module")
def project(tmp_path_factory, tiny_model, engine):
    """A recipe, and a registry with two versions that answer differently, the first of them champion."""
    import torch
    from mlflow import MlflowClient
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("serving")
    split = {name: {"path": "q.jsonl"} for name in ("train", "validation", "test")}
    template = [{"prompt": "{q}", "answer": "{a}"}]
    recipe = {
        "name": "colours",
        "registered_model": "colours",
        "base_model": "base",
        "tasks": {"c": {"role": "domain", "templates": template, "verifier": {"kind": "exact"}, "splits": split}},
        "stages": ["synthetic_data", {"sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}}],
        "serving": {"engine": engine, "vllm_arguments": ["--enforce-eager"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    tiny, tokenizer = checkpoints.load(tiny_model)
    model = LlamaForCausalLM(LlamaConfig.from_dict({**tiny.config.to_dict(), "hidden_size": 64, "head_dim": 32}))
    for seed, name in enumerate(("first", "second")):
        torch.manual_seed(seed)
        for weight in model.parameters():
            weight.data = torch.randn_like(weight) * 0.3
        checkpoints.save(folder / name, model, tokenizer)
    (folder / "w").mkdir()
    client = MlflowClient(f"sqlite:///{folder / 'w' / 'mlflow.db'}")
    client.create_registered_model("colours")
    for name in ("first", "second", "missing"):
        client.create_model_version("colours", str(folder / name))
    client.set_registered_model_alias("colours", "champion", "1")
    return folder, client


@pytest.fixture(scope="module")
def service(project):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; else most of the memory, and two models share it for a while
        running = Service(project[0])
    yield running
    if running.process.poll() is None:
        running.process.kill()


def test_a_greedy_answer_is_the_one_that_evaluation_saw(service, project):
    generator = Generator.load(project[0] / "first")
    expected = [answers[0] for answers in generator.generate([*map(chat, PROMPTS)], max_new_tokens=16)]
    assert all(expected)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(service.answer, PROMPTS)) == expected
    body = service.ask(PROMPTS[0], model="colours", logprobs=True).json()
    choice = body["choices"][0]
    assert body["object"] == "chat.completion" and body["system_fingerprint"] == "colours:1"
    assert choice["finish_reason"] == "length" and choice["message"]["role"] == "assistant"
    assert body["usage"] == {"prompt_tokens": 18, "completion_tokens": 16, "total_tokens": 34}
    assert len(choice["logprobs"]["content"]) == 16
    assert all(token["logprob"] <= 0 for token in choice["logprobs"]["content"])


def test_rows_of_a_batch_sample_each_by_its_own_settings(service):
    greedy = service.answer("x")
    asked = [{"temperature": 1.5, "seed": 3}, {}, {"temperature": 1.5, "seed": 4}, {"temperature": 1.5, "seed": 3}]
    with ThreadPoolExecutor(4) as pool:
        first, second, third, fourth = pool.map(lambda fields: service.answer("x", **fields), asked)
    assert second == greedy and first == fourth and len({first, second, third}) == 3
    assert service.answer("x", temperature=1.5, top_p=1e-6, seed=1) == greedy
    several = service.ask("x", n=3, temperature=1.5, seed=3).json()
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    assert several["choices"][0]["message"]["content"] == first
    assert len({choice["message"]["content"] for choice in several["choices"]}) == 3


def test_a_stream_adds_up_to_the_answer(service):
    for fields in ({}, {"stop": "zzz"}):
        whole = service.answer(PROMPTS[1], **fields)
        events = [
            line.removeprefix("data: ")
            for line in service.ask(PROMPTS[1], stream=True, stream_options={"include_usage": True}, **fields)
            .content.decode()
            .split("\n\n")
            if line
        ]
        assert events[-1] == "[DONE]"
        *chunks, last, used = [json.loads(event) for event in events[:-1]]
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == whole
        assert last["choices"][0]["finish_reason"] == "length" and used["usage"]["completion_tokens"] == 16


def test_a_stop_text_ends_the_answer_before_it(service):
    whole = service.answer("x", max_tokens=40)
    stop = whole[3:5]
    body = service.ask("x", max_tokens=40, stop=[stop, "never there"]).json()
    assert body["choices"][0]["message"]["content"] == whole[: whole.index(stop)].strip()
    assert body["choices"][0]["finish_reason"] == "stop" and body["usage"]["completion_tokens"] < 40


def test_the_official_client_asks_and_goes_on_from_the_answer(service):
    import openai

    client = openai.OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
    question = {"role": "user", "content": "x"}
    settings = {"model": "colours", "max_tokens": 16, "tool_choice": "none", "response_format": {"type": "text"}}
    answer = client.chat.completions.create(messages=[question], n=1, stop=None, tools=[], **settings)
    assert answer.choices[0].message.content == service.answer("x")
    turns = [question, answer.choices[0].message.model_dump(), question]
    stream = client.chat.completions.create(messages=turns, stream=True, extra_body={"top_k": -1}, **settings)
    further = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    plain = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    assert further == service.answer("", messages=plain)
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        client.chat.completions.create(model="colours", messages=[question], reasoning_effort="low")


@pytest.mark.parametrize(
    ("fields", "status", "told"),
    [
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, 400, "messages.0.role"),
        ({"temperature": 3}, 400, "temperature: found 3"),
        ({"temprature": 1}, 400, "did you mean 'temperature'?"),
        ({"tools": [{"type": "function"}]}, 400, "tools: found"),
        ({"model": "gpt"}, 404, "served is colours:1"),
        ({"max_tokens": 1000}, 400, "the context is 256 tokens"),
        ({"messages": [{"role": "user", "content": "x" * 300}]}, 400, "shorten the messages"),
        ({"messages": [{"role": "user", "content": "x" * 5_000_000}]}, 413, "larger than"),
    ],
)
def test_a_mistake_is_told_in_the_form_of_openai(service, fields, status, told):
    response = service.ask("x", **fields)
    error = response.json()["error"]
    assert response.status_code == status and told in error["message"] and error["type"] == "invalid_request_error"


def test_other_routes_answer_too(service):
    assert requests.get(f"{service.url}/v1/models").json()["data"][0]["id"] == "colours"
    assert "not JSON" in requests.post(f"{service.url}/v1/chat/completions", data=b"{").json()["error"]["message"]
    missing = requests.get(f"{service.url}/v1/nothing")
    assert missing.status_code == 404 and "/v1/nothing" in missing.json()["error"]["message"]
    health = service.health()
    assert (health["model"], health["version"], health["problem"], health["waiting"]) == ("colours", "1", "", 0)


def test_a_new_champion_answers_and_no_request_fails(service, project):
    folder, client = project
    checkpoints = (folder / "first", folder / "second")
    old, new = (Generator.load(path).generate([chat("x")], max_new_tokens=16)[0][0] for path in checkpoints)
    assert old != new
    seen, failures, done = [], [], threading.Event()

    def keep_asking(_):
        while not done.is_set():
            response = service.ask("x")
            if response.status_code != 200:
                failures.append(response.text)
                continue
            body = response.json()
            seen.append((body["system_fingerprint"], body["choices"][0]["message"]["content"]))

    with ThreadPoolExecutor(8) as pool:
        asking = [pool.submit(keep_asking, index) for index in range(8)]
        client.set_registered_model_alias("colours", "champion", "2")
        deadline = time.monotonic() + 300  # vLLM takes one to two minutes to load a model on two cores
        while service.health()["version"] != "2" and time.monotonic() < deadline:
            time.sleep(0.05)
        enough = len(seen) + 16
        while len(seen) < enough and time.monotonic() < deadline:
            time.sleep(0.05)
        done.set()
    assert [future.result() for future in asking] == [None] * 8 and not failures
    assert set(seen) == {("colours:1", old), ("colours:2", new)}
    client.set_registered_model_alias("colours", "champion", "3")
    while not service.health()["problem"]:
        time.sleep(0.05)
    assert "the checkpoint is not there" in service.health()["problem"]
    assert service.answer("x") == new
    client.set_registered_model_alias("colours", "champion", "1")
    while service.health()["version"] != "1" or service.health()["problem"]:
        time.sleep(0.05)


def test_a_client_that_goes_away_leaves_no_row_behind(service):
    with service.ask("x", stream=True, max_tokens=200) as response:
        next(response.iter_content(1))
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{service.url}/v1/chat/completions",
            json={"messages": [{"role": "user", "content": "x"}], "max_tokens": 230},
            timeout=0.05,
        )
    deadline = time.monotonic() + 20
    while service.health()["running"] and time.monotonic() < deadline:
        time.sleep(0.05)
    assert service.health()["running"] == 0


def test_more_than_may_wait_is_refused(service):
    with ThreadPoolExecutor(12) as pool:
        responses = list(pool.map(lambda _: service.ask("x", n=8, max_tokens=100), range(12)))
    assert {response.status_code for response in responses} == {200, 503}
    refused = next(response for response in responses if response.status_code == 503)
    assert refused.json()["error"]["type"] == "server_error" and refused.headers["Retry-After"] == "1"


def test_the_log_holds_what_was_asked_masked_with_what_became_known(service, engine):
    prompt = "mail kim@shop.kr, 주민번호 900101-1234568로"
    body = service.ask(prompt).json()
    told = {"id": body["id"], "feedback": 1.0, "label": "call kim@shop.kr"}
    assert requests.post(f"{service.url}/v1/feedback", json=told).status_code == 202
    assert requests.post(f"{service.url}/v1/feedback", json={"id": body["id"]}).status_code == 400
    chat = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    second = service.ask("", messages=chat, n=2).json()
    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(service.ask, "the end", max_tokens=200) for _ in range(4)]
        while service.health()["running"] + service.health()["waiting"] < 4:
            time.sleep(0.005)
        service.stop()
        last = [future.result().json()["id"] for future in asking]
    rows = {row.id: row for _, row in Reading(service.log)}
    assert set(last) <= set(rows)
    row = rows[body["id"]]
    assert row.prompt == "mail [EMAIL], 주민번호 [RRN]로" and (row.label, row.feedback) == ("call [EMAIL]", 1.0)
    assert (row.model_name, row.model_version, row.response_tokens) == ("colours", "1", 16)
    assert row.prompt_tokens == body["usage"]["prompt_tokens"] and row.latency_seconds > 0
    assert row.mean_log_probability < 0
    assert row.mean_entropy is None if engine == "vllm" else 0 < row.mean_entropy < math.log(260)
    assert rows[second["id"]].prompt == "system: be brief\nuser: hi" and f"{second['id']}-1" in rows
    assert json.loads(rows[second["id"]].messages)[0] == {"role": "system", "content": "be brief"}
    assert {row.model_version for row in rows.values()} == {"1", "2"}
    assert not any(b"kim@shop.kr" in file.read_bytes() for file in Path(service.log).rglob("*.parquet"))


def test_without_a_champion_there_is_nothing_to_serve(project, monkeypatch, tmp_path):
    folder, client = project
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'w' / 'mlflow.db'}")
    client.delete_registered_model_alias("colours", "champion")
    with pytest.raises(ConfigError, match="colours: no champion to serve"):
        serve("colours", str(tmp_path), ServingConfig(), host="127.0.0.1", port=0)


def test_an_engine_that_is_not_installed_says_how_to_get_it(project, monkeypatch, tmp_path):
    folder, client = project
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'w' / 'mlflow.db'}")
    monkeypatch.setenv(INTERPRETER, str(tmp_path / "python"))
    client.set_registered_model_alias("colours", "champion", "1")
    with pytest.raises(MissingExtraError, match="pip install vllm, then set BLOOMERY_VLLM"):
        serve("colours", str(tmp_path), ServingConfig(engine="vllm"), host="127.0.0.1", port=0)
