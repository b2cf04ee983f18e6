"""The precision in which weights are trained."""

import logging

import pytest
import torch
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.modelling import adapters, checkpoints, training
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.fine_tuning import fine_tune
from bloomery.components.sft.config import SftConfig

SETTINGS = {"learning_rate": 1e-5, "epochs": 8, "batch_size": 2, "max_length": 64, "num_validations": 0}


@pytest.fixture
def in_16_bits(tiny_model, tmp_path):
    model, tokenizer = checkpoints.load(tiny_model, dtype="bfloat16")
    checkpoints.save(tmp_path / "bf16", model, tokenizer)
    return tmp_path / "bf16"


def tuned(config, base, tmp_path):
    """(model after 8 steps, share of the layers' weights that changed)."""
    network, tokenizer = training.load(config, base)
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    chats = write_chats(tmp_path / f"c-{config.precision}", [("say ab", "ab"), ("say cd", "cd")])
    network, _ = fine_tune(config, network, tokenizer, chats=chats, texts=[], watched=[], where="sft")
    layers = [(weight, before[name]) for name, weight in network.named_parameters() if "proj" in name]
    changed = sum(int((new != old).sum()) for new, old in layers) / sum(new.numel() for new, _ in layers)
    return network, tokenizer, changed


def test_all_weights_of_a_16_bit_checkpoint_learn_in_32_and_are_written_in_16(in_16_bits, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    network, tokenizer, changed = tuned(SftConfig(**SETTINGS), in_16_bits, tmp_path)
    assert changed > 0.99
    assert "bfloat16 in the checkpoint, trained as float32 and written as bfloat16" in caplog.text
    checkpoints.save(tmp_path / "m", network, tokenizer, like=in_16_bits)
    assert checkpoints.own_dtype(tmp_path / "m") == "bfloat16"
    assert {kind for kind, _ in checkpoints.faults.tensors(tmp_path / "m").values()} == {"BF16"}
    artifact.read_manifest(tmp_path / "m", "model/1")


def test_16_bits_lose_small_steps_and_are_never_trained_in_silence(in_16_bits, tmp_path, caplog):
    _, _, changed = tuned(SftConfig(**SETTINGS, precision="bf16"), in_16_bits, tmp_path)
    assert changed < 0.5
    assert "all weights are trained in bfloat16: most steps of a small learning rate are rounded away" in caplog.text


def test_where_32_bits_do_not_fit_it_is_told(in_16_bits, monkeypatch, caplog):
    monkeypatch.setattr(training, "_free_bytes", lambda: 16.0 * checkpoints.num_parameters(in_16_bits) - 1)
    assert training.weights_dtype(SftConfig(**SETTINGS), in_16_bits) == "bfloat16"
    assert "would train in 32 bits" in caplog.text and "rounded away" in caplog.text
    # Under an adapter the frozen weights alone stand in memory.
    assert training.weights_dtype(SftConfig(**SETTINGS, adapter=AdapterConfig()), in_16_bits) == "float32"


def test_an_adapter_on_16_bits_has_32(in_16_bits):
    from peft import get_peft_model

    config = SftConfig(**SETTINGS, precision="bf16", adapter=AdapterConfig(rank=2))
    network, _ = training.load(config, in_16_bits)
    network = get_peft_model(network, adapters.peft_config(config.adapter, network))
    trained = {weight.dtype for weight in network.parameters() if weight.requires_grad}
    frozen = {weight.dtype for weight in network.parameters() if not weight.requires_grad}
    assert trained == {torch.float32} and frozen == {torch.bfloat16}
