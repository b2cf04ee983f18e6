"""Published tokenizers and chat templates, unedited, with small random weights of their architectures: trained,
quantised, and asked in evaluation, over HTTP and in llama.cpp, with the same tokens everywhere."""

import json
import lzma
import shutil
import time
from pathlib import Path

import outside
import pytest
import torch
import yaml
from gguf_server import LlamaCpp
from service import Service

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints, inspection, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.records import Chat, Message, Preference
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.step import run as dpo
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft
from bloomery.monitoring.engine import Row, Served, decode

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.4,  # so far apart are the tokens that twenty steps teach the answers
}
CHAT = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "What is the capital of Korea?"},
    {"role": "assistant", "content": "Seoul"},
    {"role": "user", "content": "프랑스의 수도는?"},
    {"role": "assistant", "content": "파리 😀"},
]
# What is trained in CHAT, and the tokens that end an answer.
MODELS = {
    "qwen3": (
        ["<think>\n\n</think>\n\nSeoul<|im_end|>", "<think>\n\n</think>\n\n파리 😀<|im_end|>"],
        ["<|im_end|>"],
    ),
    "gptoss": (
        ["<|channel|>final<|message|>Seoul<|return|>", "<|channel|>final<|message|>파리 😀<|return|>"],
        ["<|return|>", "<|call|>"],
    ),
    "deepseek_v3": (["Seoul<｜end▁of▁sentence｜>", "파리 😀<｜end▁of▁sentence｜>"], ["<｜end▁of▁sentence｜>"]),
    "smollm2": (["Seoul<|im_end|>", "파리 😀<|im_end|>"], ["<|im_end|>"]),
}


GGUF = ("qwen3", "smollm2")
"""Those of an architecture that a GGUF is written of."""


def architecture(name, ids):
    import transformers as t

    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, **ids, head_dim=32))
    if name == "gptoss":
        experts = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 32}
        return t.GptOssForCausalLM(t.GptOssConfig(**SIZES, **ids, **experts, head_dim=8))
    if name == "deepseek_v3":
        ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
        experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
        more = {"moe_intermediate_size": 16, "first_k_dense_replace": 1, "n_shared_experts": 1}
        return t.DeepseekV3ForCausalLM(t.DeepseekV3Config(**SIZES, **ids, **ranks, **experts, **more))
    return t.LlamaForCausalLM(t.LlamaConfig(**SIZES, **ids, tie_word_embeddings=True))


@pytest.fixture(params=MODELS)
def published(request, tmp_path):
    """(name, folder) of a bfloat16 checkpoint with the published tokenizer and template."""
    source = outside.folder("BLOOMERY_DATA", "tokenizers", request.param)
    folder = tmp_path / "published"
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".xz":
            (folder / file.stem).write_bytes(lzma.decompress(file.read_bytes()))
        else:
            shutil.copyfile(file, folder / file.name)
    tokenizer = checkpoints.load_tokenizer(folder)
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    ids = {"vocab_size": max(tokenizer.get_vocab().values()) + 1, **{key: getattr(tokenizer, key) for key in names}}
    torch.manual_seed(0)
    architecture(request.param, ids).to(torch.bfloat16).save_pretrained(folder)
    artifact.seal(folder, "model/1")
    return request.param, folder


class Champions:
    """A registry, and the `bloomery serve` that answers for whichever checkpoint is its champion."""

    def __init__(self, folder: Path) -> None:
        from mlflow import MlflowClient

        split = {name: {"path": "q.jsonl"} for name in ("train", "validation", "test")}
        template = [{"prompt": "{q}", "answer": "{a}"}]
        recipe = {
            "name": "real",
            "registered_model": "real",
            "base_model": "base",
            "tasks": {"c": {"role": "domain", "templates": template, "verifier": {"kind": "exact"}, "splits": split}},
            "stages": ["synthetic_data", {"sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}}],
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        (folder / "w").mkdir()
        self.folder = folder
        self.client = MlflowClient(f"sqlite:///{folder / 'w' / 'mlflow.db'}")
        self.client.create_registered_model("real")
        self.service: Service | None = None

    def serving(self, checkpoint: Path) -> Service:
        """The service, once it answers by `checkpoint`."""
        version = self.client.create_model_version("real", str(checkpoint)).version
        self.client.set_registered_model_alias("real", "champion", version)
        self.service = self.service or Service(self.folder)
        while (health := self.service.health())["version"] != str(version):
            assert not health["problem"], health
            time.sleep(0.1)
        return self.service


@pytest.fixture(scope="module")
def champions(tmp_path_factory):
    champions = Champions(tmp_path_factory.mktemp("champions"))
    yield champions
    if champions.service:
        champions.service.stop()


def filled(*messages):
    return [{**dict.fromkeys(Message.model_fields, ""), **message} for message in messages]


def chats(folder):
    """A chat artifact of CHAT alone."""
    row = {**dict.fromkeys(Chat.model_fields, ""), "messages": filled(*CHAT)}
    artifact.write_rows(folder, Chat.SCHEMA, Chat.table([{**row, "id": "a"}]))
    return folder


def pairs(folder):
    """A preference artifact: the last answer of CHAT rather than another, to three questions."""
    rows = []
    for word in ("a", "b", "c"):
        asked = filled(*CHAT[:3], {"role": "user", "content": f"{word}?"})
        answers = {"chosen": filled(CHAT[4]), "rejected": filled({"role": "assistant", "content": "부산"})}
        rows.append({"id": word, "task": "echo", "messages": asked, "tools": "", **answers})
    artifact.write_rows(folder, Preference.SCHEMA, Preference.table(rows))
    return folder


def trained(base, rows, make_tasks, tmp_path):
    """The folder of `base` after sft and dpo; `rows` are what sft has to train of CHAT."""
    config = SftConfig(learning_rate=4e-2, epochs=20, batch_size=2, max_length=256, num_validations=0)
    metrics = sft(
        config, chats=chats(tmp_path / "c"), tasks=make_tasks(TASK, []), base_model=base, model=tmp_path / "m"
    )
    assert metrics["sft/trained_tokens"] == sum(own for row in rows for own in row[1]) and metrics["sft/loss"] > 0
    learn = DpoConfig(learning_rate=1e-4, epochs=1, batch_size=2, max_length=256, validation_share=0.01)
    told = dpo(learn, preferences=pairs(tmp_path / "p"), base_model=tmp_path / "m", model=tmp_path / "d")
    assert told["dpo/pairs"] == 3 and told["dpo/too_long"] == 0
    assert checkpoints.own_dtype(tmp_path / "d") == "bfloat16"
    return tmp_path / "d"


def asked(folder, name, champions):
    """Ask the checkpoint what it was trained to answer: in evaluation, in serving's engine, over HTTP."""
    model, tokenizer = checkpoints.load(folder)
    ids, own = templates.trained_tokens(tokenizer, CHAT, train_on="last_turn")
    prompt, (*answer, end) = ids[: own.index(True)], ids[own.index(True) :]
    stored = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stored) == MODELS[name][1] and end == stored[0]
    served = Served(model, tokenizer, "m", "1")
    assert prompt == served.prompt_tokens(CHAT[:-1]) == templates.prompt_tokens(tokenizer, CHAT[:-1])
    assert tokenizer.bos_token is None or prompt.count(tokenizer.bos_token_id) <= 1 or name == "smollm2"

    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 :]
    assert logits.argmax(-1).tolist() == [*answer, end]
    assert Generator(model, tokenizer).generate([CHAT[:-1]], max_new_tokens=16) == [["파리 😀"]]
    rows = [Row(served, prompt, max_new_tokens=16), Row(served, served.prompt_tokens(chat("?")), max_new_tokens=3)]
    for row in rows:
        decode([row])
    assert rows[0].tokens == answer and rows[0].finish_reason == "stop"
    service = champions.serving(folder)
    for row, messages in zip(rows, (CHAT[:-1], [{"role": "user", "content": "?"}]), strict=True):
        told = service.ask("", messages=messages, max_tokens=row.max_new_tokens, logprobs=True).json()
        (choice,) = told["choices"]
        counts = {"prompt_tokens": len(row.prompt), "completion_tokens": len(row.tokens)}
        assert told["usage"] == {**counts, "total_tokens": sum(counts.values())}
        assert choice["finish_reason"] == row.finish_reason
        assert choice["message"]["content"] == templates.answer_text(tokenizer, row.tokens)
        found = [(token["token"], token["logprob"]) for token in choice["logprobs"]["content"]]
        assert [token for token, _ in found] == [tokenizer.decode([token]) for token in row.tokens]
        assert [value for _, value in found] == pytest.approx(row.log_probabilities, abs=1e-3)


def asked_in_llama_cpp(folder):
    """llama.cpp renders, cuts and answers as transformers on the same checkpoint, and stops where it stops."""
    _, tokenizer = checkpoints.load(folder)
    llama_cpp = LlamaCpp(folder / "model.gguf")
    prompt = templates.prompt_tokens(tokenizer, CHAT[:-1])
    assert llama_cpp.tokens(llama_cpp.rendered(CHAT[:-1])) == prompt
    for message in CHAT:
        assert llama_cpp.tokens(message["content"]) == tokenizer(message["content"])["input_ids"]
    told = llama_cpp.ask("/v1/chat/completions", messages=CHAT[:-1], max_tokens=16, temperature=0)
    (choice,) = told["choices"]
    assert choice["message"]["content"] == "파리 😀" and choice["finish_reason"] == "stop"
    assert told["usage"]["prompt_tokens"] == len(prompt)


def test_a_published_model_is_trained_quantised_and_served(published, champions, make_tasks, tmp_path):
    name, base = published
    expected, ends = MODELS[name]
    _, tokenizer = checkpoints.load(base)
    rows = templates.trained_rows(tokenizer, CHAT)
    shown = [
        tokenizer.decode([token for token, own in zip(*row, strict=True) if own])
        for row in (*rows[:-1], templates.trained_tokens(tokenizer, CHAT, train_on="last_turn"))
    ]
    assert shown == expected if len(rows) == 2 else shown == expected[-1:]
    facts = inspection.look(base)
    assert facts["refused"] == [] and facts["ends"] == ends

    tuned = trained(base, rows, make_tasks, tmp_path)
    asked(tuned, name, champions)
    for scheme in ("int8_weight_only", "gguf_q8_0"):
        config, target = QuantisationConfig(scheme=scheme), tmp_path / scheme
        if scheme == "gguf_q8_0" and name not in GGUF:
            with pytest.raises(
                CannotRun, match="gguf_q8_0: the model is .*; a GGUF is written of llama, qwen2 and qwen3"
            ):
                export(config, tuned, tmp_path / "c", target)
            continue
        export(config, tuned, tmp_path / "c", target)
        artifact.seal(target, "model/1")
        asked(target, name, champions)
    if name in GGUF:
        asked_in_llama_cpp(tmp_path / "gguf_q8_0")
