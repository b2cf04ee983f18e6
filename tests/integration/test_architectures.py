"""Architectures that are built unlike Llama: trained whole and by an adapter, quantised, reloaded and asked."""

from pathlib import Path

import pytest
import torch
from chats import write_chats
from toy_tokenizers import tokenizer_for

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.modelling import checkpoints, faults, templates
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.latency import latency
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft
from bloomery.monitoring.engine import Row, Served, decode

TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{#<|user|><|assistant|>#}"
)
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
PAIRS = [(f"colour of {thing}?", "red") for thing in ("cup", "hat", "문", "lamp")]
# By architecture: in which way it differs, and whether torchao's int8 can hold its layers.
KINDS = {
    "qwen2": True,  # biases in linear layers
    "gpt2": True,  # Conv1D for linear layers, embeddings of another name
    "mixtral": True,  # experts, whose router TRL balances
    "mamba": False,  # states instead of keys and values, in 32 bits
    "falcon": False,  # a linear layer of its own
}


def architecture(kind, ids):
    import transformers as t

    if kind == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**SIZES, **ids))
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=256, **ids))
    if kind == "mixtral":
        return t.MixtralForCausalLM(t.MixtralConfig(**SIZES, **ids, num_local_experts=4))
    if kind == "mamba":
        return t.MambaForCausalLM(t.MambaConfig(hidden_size=32, num_hidden_layers=2, state_size=4, **ids))
    return t.FalconForCausalLM(t.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, **ids))


@pytest.fixture(params=KINDS)
def published(request, tmp_path):
    """(kind, folder) of a bfloat16 checkpoint."""
    tokenizer = tokenizer_for(TEMPLATE, eos="<|endoftext|>")
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    network = architecture(request.param, {"vocab_size": len(tokenizer), **ids}).to(torch.bfloat16)
    network.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    artifact.seal(tmp_path / "base", "model/1")
    return request.param, tmp_path / "base"


def answers(folder: Path) -> list[str]:
    """Answers of the checkpoint to questions of different length, the same in evaluation, and served at once or not."""
    model, tokenizer = checkpoints.load(folder)
    served = Served(model, tokenizer, "m", "1")
    asked = [chat(question) for question, _ in PAIRS] + [chat("a much longer question of another kind?")]
    batch = [Row(served, served.prompt_tokens(messages), max_new_tokens=6) for messages in asked]
    decode(batch)
    for messages, row in zip(asked, batch, strict=True):
        alone = Row(served, served.prompt_tokens(messages), max_new_tokens=6)
        decode([alone])
        assert alone.tokens == row.tokens
    found = [templates.answer_text(tokenizer, row.tokens) for row in batch]
    assert [said[0] for said in Generator(model, tokenizer).generate(asked, max_new_tokens=6)] == found
    assert all(sums < 0 for sums, _ in Generator(model, tokenizer).log_likelihood(["some text", "more"], max_length=64))
    return found


def test_it_is_trained_quantised_and_asked(published, make_tasks, tmp_path):
    kind, base = published
    chats, tasks = write_chats(tmp_path / "chats", PAIRS), make_tasks(TASK, [])
    settings = {"learning_rate": 1e-3, "epochs": 2, "batch_size": 2, "max_length": 256, "num_validations": 0}
    for name, more in (("whole", {}), ("adapted", {"adapter": {}})):
        sft(SftConfig(**settings, **more), chats=chats, tasks=tasks, base_model=base, model=tmp_path / name)
        before, after = faults.tensors(base), faults.tensors(tmp_path / name)
        assert before == after  # the same weights, in the dtypes of the base model
        assert len(answers(tmp_path / name)) == len(PAIRS) + 1
    measured = latency(Generator.load(tmp_path / "whole"), [[5, 6, 7]])
    assert (measured["kv_cache_bytes_per_token"] == 0) is (kind == "mamba") and measured["prefill_tokens"] == 3
    for scheme in ("int8_weight_only", "int8_dynamic_activation", "float8_weight_only"):
        quantised(kind, scheme, tmp_path, chats)


def quantised(kind: str, scheme: str, tmp_path: Path, chats: Path) -> None:
    config, target = QuantisationConfig(scheme=scheme), tmp_path / scheme
    if not KINDS[kind]:
        with pytest.raises(CannotRun, match=f"the layers of {kind} do not take torchao's weights"):
            export(config, tmp_path / "whole", chats, target)
        return
    export(config, tmp_path / "whole", chats, target)
    artifact.seal(target, "model/1")
    assert checkpoints.num_bytes(target) < checkpoints.num_bytes(tmp_path / "whole")
    assert len(answers(target)) == len(PAIRS) + 1
