"""Several adapters on one base, asked over HTTP, and the merged model beside them."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import uvicorn
from chats import write_chats
from safetensors.torch import load_file, save_file

from bloomery.components.core import artifact
from bloomery.components.core.config import parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft
from bloomery.monitoring.champion import Champion
from bloomery.monitoring.engine import Row, Served, decode
from bloomery.monitoring.prediction_log import PredictionLog, Reading
from bloomery.monitoring.serving import Server, serve
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.monitoring.vllm_engine import _of_adapters
from bloomery.pipelines.cli_serve import named_adapters

LEARNT = {"shout": {"say ab": "AAAAAAAA", "say cd": "AAAAAAAA"}, "turn": {"say ab": "bbbbbbbb", "say cd": "bbbbbbbb"}}


@pytest.fixture(scope="module")
def trained(tiny_model, tmp_path_factory):
    """The stages' models by name: `base`, which the others have learnt from."""
    folder = tmp_path_factory.mktemp("adapters")
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "tasks.json").write_text("{}")
    from bloomery.components.core.records import Prompt

    artifact.write_rows(tasks, "prompt/2", Prompt.table([]))
    artifact.seal(tasks, "tasks/1")
    for name, pairs in LEARNT.items():
        chats = write_chats(folder / f"{name}-chats", list(pairs.items()))
        given = {"learning_rate": 2e-2, "epochs": 20, "batch_size": 2, "max_length": 64, "num_validations": 0}
        config = parse(SftConfig, {**given, "adapter": {"rank": 4 if name == "shout" else 12}}, where="sft")
        inputs = {"base_model": artifact.read_manifest(tiny_model).digest}
        with artifact.lineage("sft", {}, inputs):
            sft(config, chats=chats, tasks=tasks, base_model=tiny_model, model=folder / name)
    return {"base": tiny_model, **{name: folder / name for name in LEARNT}}


@pytest.fixture(scope="module")
def url(trained, tmp_path_factory):
    """Of a server of the base with both adapters: one found in the stage's model, one as the folder of PEFT."""
    config = ServingConfig(max_batch=8)
    given = {"shout": trained["shout"], "turn": trained["turn"] / "adapter"}
    log = PredictionLog(str(tmp_path_factory.mktemp("log")))
    app = Server(Champion("m", config, given, trained["base"]), log, config).app()
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
    log.close()
    names = {row.model_name for _, row in Reading(log.uri)}
    assert names == {"m", *LEARNT}  # each answer stands in the log under the name of what gave it


def ask(url, model, prompt="say ab"):
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "model": model, "logprobs": True}
    return requests.post(f"{url}/v1/chat/completions", json=body, timeout=60)


def answer(url, model, prompt="say ab"):
    body = ask(url, model, prompt).json()
    return body["choices"][0]["message"]["content"], [
        token["logprob"] for token in body["choices"][0]["logprobs"]["content"]
    ]


def test_an_adapter_on_the_base_answers_as_the_merged_model_does(url, trained):
    texts = {}
    for name in (*LEARNT, "base"):
        served = Served(*checkpoints.load(trained[name]), name, "1")
        row = Row(served, served.prompt_tokens(chat("say ab")), max_new_tokens=8)
        decode([row])
        texts[name], likely = answer(url, "m" if name == "base" else name)
        assert texts[name] == served.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()
        assert likely == pytest.approx(row.log_probabilities, abs=1e-4)
    assert set(texts["shout"]) == {"A"} and set(texts["turn"]) == {"b"} and not set(texts["base"]) & {"A", "b"}


def test_an_answer_is_the_same_alone_and_beside_those_of_others(url):
    names = [*LEARNT, "m", "shout", "turn", "m"] * 2
    alone = {name: answer(url, name) for name in set(names)}
    with ThreadPoolExecutor(len(names)) as pool:
        for name, (text, likely) in zip(names, pool.map(lambda name: answer(url, name), names), strict=True):
            assert text == alone[name][0] and likely == pytest.approx(alone[name][1], abs=1e-5)


def test_the_adapters_are_listed_and_another_name_is_not_found(url):
    listed = requests.get(f"{url}/v1/models", timeout=10).json()["data"]
    assert [(model["id"], model.get("parent")) for model in listed] == [("m", None), ("shout", "m"), ("turn", "m")]
    refused = ask(url, "whisper")
    assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"
    assert "with the adapters shout, turn" in refused.json()["error"]["message"]
    assert ask(url, "turn").json()["model"] == "turn"


def test_an_adapter_of_another_base_ends_the_start(trained, tmp_path):
    from transformers import LlamaForCausalLM

    tiny, tokenizer = checkpoints.load(trained["base"])
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    checkpoints.save(
        tmp_path / "w", LlamaForCausalLM(type(tiny.config).from_dict({**tiny.config.to_dict(), **sizes})), tokenizer
    )
    given = {"host": "127.0.0.1", "port": 0, "base": tmp_path / "w"}
    with pytest.raises(ModelError, match=r"--adapter a=.* does not fit m:w: .*size mismatch"):
        serve("m", str(tmp_path / "log"), ServingConfig(), adapters={"a": trained["turn"]}, **given)
    for name in ("m", "m:w"):
        with pytest.raises(ConfigError, match=f"--adapter {name}: that is the name of the model itself"):
            serve("m", str(tmp_path / "log"), ServingConfig(), adapters={name: trained["turn"]}, **given)


def test_an_adapter_whose_weights_are_no_numbers_ends_the_start(trained, tmp_path):
    folder = Path(shutil.copytree(trained["turn"] / "adapter", tmp_path / "a"))
    weights = load_file(folder / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    save_file({**weights, name: weights[name] * float("nan")}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="a, on .*: some weights are no numbers, and so are its answers"):
        Champion("m", ServingConfig(), {"a": folder}, trained["base"])


def test_an_adapter_that_was_trained_on_other_weights_is_warned_of(trained, caplog):
    Champion("m", ServingConfig(), {"turn": trained["turn"]}, trained["base"])
    assert "was trained on the model" not in caplog.text
    Champion("m", ServingConfig(), {"turn": trained["turn"]}, trained["shout"])
    assert "was trained on the model" in caplog.text


def test_of_a_base_without_a_manifest_the_weights_tell(trained, tmp_path, caplog):
    bare = {name: shutil.copytree(trained[name], tmp_path / name) for name in ("base", "shout")}
    for folder in bare.values():
        (folder / artifact.MANIFEST).unlink()
    Champion("m", ServingConfig(), {"turn": trained["turn"], "shout": trained["shout"]}, bare["base"])
    assert "was trained on" not in caplog.text
    Champion("m", ServingConfig(), {"turn": trained["turn"]}, bare["shout"])
    assert f"was trained on other weights than those in {bare['shout']}" in caplog.text


def test_a_checkpoint_needs_no_registry(tmp_path, monkeypatch):
    """What is wrong with this one is told, and not that no run has been here."""
    from typer.testing import CliRunner

    from bloomery.infra import surroundings
    from bloomery.pipelines.cli import app

    for name, value in surroundings.missing().items():
        monkeypatch.setenv(name, value)  # else the program, which is this test, would start again with them
    (tmp_path / "empty").mkdir()
    given = ["--workdir", str(tmp_path / "fresh"), "--port", "0"]
    told = CliRunner().invoke(app, ["serve", "quickstart", *given, "--base", str(tmp_path / "empty")]).exception
    assert isinstance(told, ModelError) and "config.json" in str(told)
    told = CliRunner().invoke(app, ["serve", "quickstart", *given]).exception
    assert isinstance(told, ConfigError) and "no MLflow database there" in str(told)


def test_what_vllm_is_told_of_adapters(trained, tmp_path):
    shutil.copytree(trained["turn"] / "adapter", tmp_path / "a")
    settings = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert settings["r"] == 12
    given = [("given_0", trained["shout"] / "adapter"), ("given_1", tmp_path / "a")]
    told = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "16", "--lora-modules"]
    assert _of_adapters(given) == [*told, f"given_0={trained['shout'] / 'adapter'}", f"given_1={tmp_path / 'a'}"]
    assert _of_adapters([]) == []


@pytest.mark.parametrize("given", [["law"], ["=x"], ["law="], ["law=a", "law=b"]])
def test_an_adapter_without_name_or_path_is_refused(given):
    with pytest.raises(ConfigError, match="give each adapter a name of its own and its folder"):
        named_adapters(given)
