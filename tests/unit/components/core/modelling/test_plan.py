"""Plans against hand-computed numbers, and shapes against the models that transformers builds."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import get_args

import pytest
from published import LLAMA_8B

from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import adapters, cards, fixes, plan, shapes
from bloomery.components.core.modelling.adapters import SOFT, AdapterConfig
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.plan import Training
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.grpo.config import GrpoConfig
from bloomery.components.reward_model.config import RewardModelConfig

LLAMA = {**LLAMA_8B, "max_position_embeddings": 131072}
LLAMA["torch_dtype"] = LLAMA.pop("dtype")  # as configs of before transformers 5 have it
CPU = Card("CPU", math.inf, 0, 0, is_gpu=False)
H100 = cards.named("h100")


def shape_of(folder: Path, config: dict[str, object]) -> shapes.Shape:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return shapes.read(folder)


@pytest.fixture
def llama(tmp_path):
    return shape_of(tmp_path, LLAMA)


def training(**changes: object) -> Training:
    return Training.model_validate({"batch_size": 4, "max_length": 1024, **changes})


def test_the_numbers_of_a_published_model_follow_from_its_config(llama):
    assert llama.parameters == 8_030_261_248  # what its card says
    assert llama.active == 8_030_261_248 - 128_256 * 4096 - (2 * 32 + 1) * 4096  # without embeddings and norms
    assert llama.kv_numbers == 2 * 32 * 8 * 128
    assert llama.own_bytes == 2


def test_a_teacher_stands_beside_its_student(llama, tmp_path):
    """Of the recipe's it is as large as the student; from outside its files tell."""
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "model.safetensors").write_bytes(bytes(1_000))
    alone = plan.of_training(llama, training(), H100)
    beside = plan.of_training(llama, training(teachers=["", str(tmp_path / "large")]), H100)
    assert beside.parts["teacher"] == 2 * 8_030_261_248 + 1_000
    assert beside.peak - alone.peak == pytest.approx(beside.parts["teacher"]) and "teacher" not in alone.parts
    settings = {"learning_rate": 1e-4, "epochs": 1, "max_length": 64}
    for teacher, told in (({"stage": "sft"}, ""), ({"model": str(tmp_path / "large")}, str(tmp_path / "large"))):
        assert Training.of(DistillationConfig.model_validate({"teacher": teacher, **settings})).teachers == [told]


SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
}


@pytest.mark.parametrize("kind", [*shapes.LLAMAS])
def test_parameters_are_those_that_transformers_builds(kind, tmp_path):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    if kind == "qwen3_moe":
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    grouped = {"num_key_value_heads": 2, "head_dim": 16, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **SMALL, **grouped, **(experts if kind in ("mixtral", "qwen3_moe") else {}))
    for biased in ({}, {"attention_bias": True}, {"attention_bias": True, "mlp_bias": True}):
        if any(name not in config.to_dict() for name in biased):
            continue
        config.update(biased)
        with torch.device("meta"):
            built = AutoModelForCausalLM.from_config(config)
        config.save_pretrained(tmp_path)
        found = shapes.read(tmp_path)
        assert found.parameters == built.num_parameters()
        own = {name: weight.numel() for name, weight in built.named_parameters() if name.endswith("bias")}
        assert plan.trained_numbers(found, training(trained="bias")) == sum(own.values())


def _of_p_tuning(hidden):
    import torch

    from bloomery.components.core.modelling.soft_prompts import _made

    with torch.device("meta"):
        made = _made(torch.empty(20, hidden), encoded=True)
    return sum(weight.numel() for weight in made.parameters())


def test_what_is_trained_is_counted(llama):
    lora = training(adapter={"rank": 16})
    assert plan.trained_numbers(llama, lora) == 41_943_040  # as PEFT prints it for this model, all-linear
    assert plan.trained_numbers(llama, training()) == llama.parameters
    prompt = training(adapter={"kind": "prompt", "tokens": 20})
    assert plan.trained_numbers(llama, prompt) == 20 * llama.hidden
    assert plan.trained_numbers(llama, training(adapter={"kind": "p_tuning"})) == _of_p_tuning(llama.hidden)
    dora = plan.trained_numbers(llama, training(adapter={"rank": 16, "kind": "dora"}))
    # One magnitude a row: q and o 4096, k and v 1024, gate and up 14336, down 4096.
    assert dora - 41_943_040 == 32 * (4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096)


@pytest.mark.parametrize("kind", sorted({*get_args(AdapterConfig.model_fields["kind"].annotation)} - {*SOFT}))
@pytest.mark.parametrize("rank", [4, 8, 24])
def test_the_numbers_of_each_kind_of_adapter_are_those_that_peft_makes(kind, rank, tmp_path):
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    # Widths that differ, and 1 x 24 of keys and values, less than or equal to a rank.
    widths = {**SMALL, "hidden_size": 96, "intermediate_size": 168, "num_key_value_heads": 1}
    network = LlamaForCausalLM(LlamaConfig(**widths))
    network.save_pretrained(tmp_path)
    adapter = AdapterConfig.model_validate({"kind": kind, **({} if kind == "ia3" else {"rank": rank})})
    made = peft.get_peft_model(network, adapters.peft_config(adapter, network))
    learnt = sum(weight.numel() for weight in made.parameters() if weight.requires_grad)
    assert plan.trained_numbers(shapes.read(tmp_path), training(adapter=adapter.model_dump())) == learnt


def test_a_model_that_scores_has_no_logits_and_no_head_of_the_vocabulary(llama):
    scoring = Training.of(RewardModelConfig(learning_rate=1e-5, epochs=1, batch_size=2, max_length=100))
    assert scoring.tokens == 2 * 2 * 100  # a row is a pair
    need = plan.of_training(llama, scoring, H100)
    assert not llama.tied and need.trained == llama.parameters - 128_256 * 4096
    assert "logits" not in need.parts and "logits" in plan.of_training(llama, training(), H100).parts


def test_weights_gradients_and_moments_of_adamw_are_16_bytes_a_parameter(llama):
    need = plan.of_training(llama, training(precision="fp32"), CPU)
    stood = need.parts["weights"] + need.parts["gradients"] + need.parts["optimiser"]
    assert stood == 16 * llama.parameters == plan.rules(llama, training())["AdamW: 16 bytes a trained parameter"]
    assert need.dtype == "fp32"
    lion = plan.of_training(llama, training(precision="fp32", optimizer="lion"), CPU)
    assert lion.parts["optimiser"] == 4 * llama.parameters


def test_activations_are_counted_tensor_by_tensor(llama):
    # Llama in 32 bits, a token and layer: two norms keep input, normed and scaled; queries, keys, values and output
    # 4096 each, since beside padding keys and values are repeated for each head, and a row of 1,024 of the mask; gate,
    # its silu, up and their product. One row alone has no padding: keys and values are of 1024.
    numbers = 2 * 3 * 4096 + 4 * 4096 + 1024 + 4 * 14336
    alone = plan.activations(llama, training(precision="fp32", batch_size=1), CPU, 4)[0]
    assert alone == 4 * 1024 * (2 * 3 * 4096 + 2 * (4096 + 1024) + 4 * 14336)
    layer, kept = plan.activations(llama, training(precision="fp32"), CPU, 4)
    tokens = 4 * 1024
    assert layer == 4 * tokens * numbers
    assert kept == 32 * layer + 3 * 4 * tokens * 4096
    again, checkpointed = plan.activations(llama, training(precision="fp32", checkpointing=True), CPU, 4)
    assert again == layer
    assert checkpointed == layer + (32 + 3) * 4 * tokens * 4096  # one layer, and what goes into each


def test_a_frozen_model_keeps_fewer_activations_and_no_gradients(llama):
    full = plan.of_training(llama, training(precision="fp32"), CPU)
    lora = plan.of_training(llama, training(precision="fp32", adapter={}), CPU)
    assert lora.parts["gradients"] == 4 * 41_943_040
    assert lora.parts["activations"] < full.parts["activations"]


def test_a_reference_is_a_copy_of_the_weights_where_it_reads_in_every_step(llama):
    """dpo reads its own once, before the first step; grpo's stands beside the model, or is it without its adapter."""
    settings = {"learning_rate": 1e-5, "epochs": 2, "batch_size": 8, "max_length": 512, "precision": "fp32"}

    def planned(config: TrainingConfig) -> tuple[Training, dict[str, float]]:
        made = Training.of(config)
        return made, plan.of_training(llama, made, CPU).parts

    for loss, tokens in (("sigmoid", 2 * 8 * 512), ("kto", 8 * 512)):
        made, parts = planned(DpoConfig(loss=loss, **settings))
        assert made.tokens == tokens and "reference" not in parts
    assert planned(GrpoConfig(**settings))[1]["reference"] == 4 * llama.parameters
    assert "reference" not in planned(GrpoConfig(beta=0, **settings))[1]
    assert "reference" not in planned(GrpoConfig(adapter={}, **settings))[1]


def test_gradients_stand_beside_activations_only_where_they_are_collected(llama):
    at_once = plan.of_training(llama, training(precision="fp32"), CPU)
    collected = plan.of_training(llama, training(precision="fp32", accumulation=2), CPU)
    assert at_once.moment == collected.moment == "forward and backward"
    assert collected.peak - at_once.peak == 4 * llama.parameters


def test_an_adapter_over_4_bits_is_merged_into_whole_weights_beside_them(llama):
    asked = training(batch_size=1, max_length=32, adapter={"kind": "qlora"})
    need = plan.of_training(llama, asked, CPU)
    standing = sum(need.parts[name] for name in ("runtime", "weights", "optimiser"))
    assert need.moment == "merge" and need.peak == standing + 2 * llama.parameters
    on_gpu = plan.of_training(llama, asked, H100)  # where its host has them
    assert on_gpu.moment != "merge" and "holes" not in on_gpu.parts
    # Three quarters of the activations are more than six tiles of the loss, each of 32 tokens.
    assert need.parts["holes"] == 0.75 * need.parts["activations"] > 6 * 4 * 32 * 32_768


def test_a_full_training_that_does_not_fit_a_card_is_made_to_by_lora(llama):
    wanted = training(max_length=4096)
    assert plan.of_training(llama, wanted, H100).peak > H100.memory_bytes
    settings, changed, need = fixes.cheapest(llama, wanted, H100)
    assert "adapter" in settings and need.peak <= plan.ROOM * H100.memory_bytes
    assert changed.batch_size * changed.accumulation == 4


def test_cards_that_share_out_the_weights_hold_a_part_and_a_few_layers_whole(llama):
    part = plan.of_training(llama, training(shards=8, best=True), H100).parts
    assert part["weights"] == part["gradients"] == part["best"] == part["optimiser"] / 2 == 4 * 8_030_261_248 / 8
    ends = 2 * 128_256 * 4096
    layer = (8_030_261_248 - ends) / 32
    assert part["gathered"] == 2 * (ends + 3 * layer) + 4 * (layer + ends / 2) and "autocast" not in part
    whole = plan.of_training(llama, training(precision="fp32"), H100).parts
    assert whole["weights"] == 8 * part["weights"] and "gathered" not in whole
    frozen = plan.of_training(llama, training(shards=8, precision="fp32", adapter={}), H100).parts
    assert frozen["gathered"] == 4 * (ends + 3 * layer)
    assert frozen["weights"] == pytest.approx(4 * (8_030_261_248 + 41_943_040) / 8)


def test_what_samples_between_its_steps_holds_all_weights_once_meanwhile(llama):
    asked = {"shards": 8, "answers": True, "checkpointing": True, "batch_size": 1, "max_length": 128}
    need = plan.of_training(llama, training(**asked), H100)
    standing = sum(need.parts[name] for name in ("runtime", "weights", "optimiser"))
    assert need.moment == "answers" and need.peak == standing + 2 * 8_030_261_248  # computed in 16 bits
    assert "answers" != plan.of_training(llama, training(**asked | {"shards": None}), H100).moment


def test_cards_that_share_a_training_anyway_share_out_the_weights_before_it_becomes_another(llama):
    wanted = training(max_length=4096)
    settings, changed, need = fixes.cheapest(llama, wanted, H100, cards=8)
    assert settings["resources.sharding"] == "full" and "adapter" not in settings
    assert changed.shards == 8 and need.dtype == "fp32"
    assert "adapter" in fixes.cheapest(llama, training(max_length=4096, optimizer="lion"), H100, cards=8)[0]


def test_the_cheapest_change_is_the_one_that_trains_the_same(tmp_path):
    small = shape_of(tmp_path, {**LLAMA, "num_hidden_layers": 4, "vocab_size": 8_000})
    wanted = training(batch_size=128)
    assert plan.of_training(small, wanted, H100).peak > H100.memory_bytes
    settings, changed, _ = fixes.cheapest(small, wanted, H100)
    assert list(settings) == ["batch_size", "gradient_accumulation_steps"]
    assert changed.batch_size * changed.accumulation == 128
    # A row alone is too long for the card, until activations are computed again.
    long = training(batch_size=1, max_length=131_072)
    assert list(fixes.cheapest(small, long, H100)[0]) == ["gradient_checkpointing"]


def test_what_fits_nowhere_has_no_fix(llama):
    assert fixes.cheapest(llama, training(max_length=131_072), Card("CPU", 8e9, 0, 0, is_gpu=False)) is None


def test_operations_are_six_a_number_and_token(llama):
    tokens = 1000.0
    attention = 4 * 32 * 4096 * (1024 / 2) * 3
    assert plan.flops(llama, training(), tokens) == tokens * (6 * llama.active + attention)
    lora = plan.flops(llama, training(adapter={"rank": 16}), tokens)
    assert lora == tokens * (4 * llama.active + 6 * 41_943_040 + attention)
    again = plan.flops(llama, training(checkpointing=True), tokens)
    assert again == tokens * (8 * llama.active + attention * 4 / 3)
    before, beside = (plan.flops(llama, training(reference=read), tokens, epochs=3) for read in ("before", "beside"))
    assert before == tokens * (3 * (6 * llama.active + attention) + 2 * llama.active + attention / 3)
    assert beside == tokens * 3 * (8 * llama.active + attention * 4 / 3)


def test_answers_take_keys_and_values(llama):
    need = plan.of_generation(llama, H100, sequences=8, length=2048)
    assert need.parts["kv cache"] == 8 * 2048 * 131_072  # 128 KiB a token: 2 x 32 layers x 8 heads x 128 x 2 bytes
    assert need.parts["weights"] == 2 * llama.parameters


def test_a_config_that_tells_too_little_is_refused(tmp_path):
    with pytest.raises(ModelError, match="does not tell num_attention_heads"):
        shape_of(tmp_path, {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 10})
    with pytest.raises(ModelError, match=r"weights of gpt2 are not known.*safetensors"):
        shape_of(tmp_path, {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 2, "vocab_size": 10})
    with pytest.raises(ModelError, match=r"no config\.json"):
        shapes.read(tmp_path / "nothing")


def test_weights_that_are_there_tell_the_shape_of_any_architecture(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab_size=50, n_positions=16))
    model.save_pretrained(tmp_path)
    found = shapes.read(tmp_path)
    assert found.parameters == model.num_parameters()
    assert (found.layers, found.intermediate, found.gated, found.tied) == (3, 128, False, True)
    assert sum(rows * columns * count for _, rows, columns, count in found.linear) == 3 * 12 * 32 * 32
    assert ("c_fc", 128, 32, 3) in found.linear  # outputs x inputs, which GPT-2 stores the other way round
    biases = sum(own.numel() for name, own in model.named_parameters() if name.endswith("bias"))
    assert plan.trained_numbers(found, training(trained="bias")) == biases


@pytest.mark.parametrize(
    ("told", "like"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "H100"),
        ("NVIDIA H100 PCIe, 81559", "H100-PCIE"),
        ("NVIDIA A100-SXM4-80GB, 81920", "A100"),
        ("NVIDIA A100-SXM4-40GB, 40960", "A100-40GB"),
        ("NVIDIA A10, 23028", "A10"),
        ("NVIDIA A10G, 23028", "A10G"),
        ("NVIDIA L40S, 46068", "L40S"),
        ("NVIDIA L4, 23034", "L4"),
        ("Tesla V100-SXM2-32GB, 32768", "V100"),
        ("NVIDIA GeForce RTX 4090, 24564", "RTX4090"),
    ],
)
def test_a_card_is_known_by_what_its_driver_says(told, like, tmp_path, monkeypatch):
    driver = tmp_path / "nvidia-smi"
    driver.write_text(f"#!/bin/sh\necho '{told}'\n", encoding="utf-8")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    card, known = cards.here(), cards.named(like)
    assert (card.flops, card.bandwidth) == (known.flops, known.bandwidth)
    assert card.name == told.partition(",")[0] and card.memory_bytes == float(told.partition(",")[2]) * 2**20


def test_cards_are_found_by_name():
    assert cards.named("a100-40gb").memory_bytes == 40_960 * 2**20
    assert cards.named("RTX 4090").name == "RTX4090"
    with pytest.raises(ConfigError, match=r"--gpu H10: no such card; did you mean H100\?"):
        cards.named("H10")


def test_beside_the_cards_each_process_reads_all_weights(llama):
    assert plan.of_host(llama, training(precision="fp32"), H100, 8) == 8 * (580e6 + 4 * llama.parameters)
    assert plan.of_host(llama, training(adapter={"kind": "qlora"}), H100, 2) == 2 * 580e6 + 2 * llama.parameters


def test_an_adapter_is_planned_as_it_is_configured():
    assert Training.model_validate({"batch_size": 1, "max_length": 8, "adapter": {}}).adapter == AdapterConfig()
