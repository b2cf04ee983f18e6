"""Published tokenizers and chat templates, unedited, with small random weights of their architectures."""

import json
import lzma
import shutil

import outside
import pytest
import torch

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints, inspection, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.records import Chat, Message, Preference
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.dpo.step import run as dpo
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft
from bloomery.monitoring.engine import Row, Served, decode

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
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


def architecture(name, ids):
    import transformers as t

    if name == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**SIZES, **ids, head_dim=8))
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


def filled(*messages):
    return [{**dict.fromkeys(Message.model_fields, ""), **message} for message in messages]


def chats(folder):
    """A chat artifact of CHAT, twice."""
    row = {**dict.fromkeys(Chat.model_fields, ""), "messages": filled(*CHAT)}
    artifact.write_rows(folder, Chat.SCHEMA, Chat.table([{**row, "id": "a"}, {**row, "id": "b"}]))
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


def test_a_published_model_is_trained_reloaded_and_served(published, make_tasks, tmp_path):
    name, base = published
    expected, ends = MODELS[name]
    _, tokenizer = checkpoints.load(base)
    rows = templates.trained_rows(tokenizer, CHAT)
    trained = [
        tokenizer.decode([token for token, own in zip(*row, strict=True) if own])
        for row in (*rows[:-1], templates.trained_tokens(tokenizer, CHAT, train_on="last_turn"))
    ]
    assert trained == expected if len(rows) == 2 else trained == expected[-1:]
    facts = inspection.look(base)
    assert facts["refused"] == [] and facts["ends"] == ends

    config = SftConfig(learning_rate=1e-3, epochs=2, batch_size=2, max_length=256, num_validations=0)
    metrics = sft(
        config, chats=chats(tmp_path / "c"), tasks=make_tasks(TASK, []), base_model=base, model=tmp_path / "m"
    )
    counted = sum(own for row in rows for own in row[1])
    assert metrics["sft/trained_tokens"] == 2 * counted and metrics["sft/loss"] > 0

    learn = DpoConfig(learning_rate=1e-3, epochs=1, batch_size=2, max_length=256, validation_share=0.01)
    told = dpo(learn, preferences=pairs(tmp_path / "p"), base_model=tmp_path / "m", model=tmp_path / "d")
    assert told["dpo/pairs"] == 3 and told["dpo/too_long"] == 0

    model, tokenizer = checkpoints.load(tmp_path / "d")
    assert checkpoints.own_dtype(tmp_path / "d") == "bfloat16"
    stored = json.loads((tmp_path / "d" / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(stored) == ends
    served = Served(model, tokenizer, "m", "1")
    asked = served.prompt_tokens(CHAT[:4])
    assert asked == rows[-1][0][: len(asked)] == templates.prompt_tokens(tokenizer, CHAT[:-1])
    assert tokenizer.bos_token is None or asked.count(tokenizer.bos_token_id) <= 1 or name == "smollm2"
    (answer,) = Generator(model, tokenizer).generate([chat("?")], max_new_tokens=6)
    row = Row(served, served.prompt_tokens(chat("?")), max_new_tokens=6)
    decode([row])
    assert templates.answer_text(tokenizer, row.tokens) == answer[0]
