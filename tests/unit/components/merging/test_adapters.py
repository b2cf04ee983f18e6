"""LoRA adapters side by side, beside the product of their matrices."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.step import run

UP = "model.layers.0.mlp.up_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def adapters(tiny_model, tmp_path):
    """The artifact of two adapters of different rank, scale and modules, as PEFT writes them."""
    from peft import LoraConfig, get_peft_model

    settings = {
        "one": {"r": 2, "lora_alpha": 8, "target_modules": ["up_proj", "q_proj"]},
        "two": {"r": 3, "lora_alpha": 3, "target_modules": ["up_proj"], "use_rslora": True},
    }
    for name, own in settings.items():
        network, _ = checkpoints.load(tiny_model)
        wrapped = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", **own))
        numbers = torch.Generator().manual_seed(len(name))
        for key, weight in wrapped.named_parameters():
            if "lora_B" in key:
                weight.data = torch.randn(weight.shape, generator=numbers) * 0.1
        wrapped.save_pretrained(tmp_path / "outside" / NamedModel(model=f"/{name}").folder)
    artifact.seal(tmp_path / "outside", "models/1")
    return tmp_path / "outside"


def product(outside, name, module):
    held = load_file(outside / NamedModel(model=f"/{name}").folder / "adapter_model.safetensors")
    first, second = (held[f"base_model.model.{module.removesuffix('.weight')}.lora_{kind}.weight"] for kind in "AB")
    return second @ first


@pytest.mark.parametrize("is_turned", [False, True])
def test_concatenated_adapters_add_the_sum_of_their_products(adapters, tiny_model, tmp_path, is_turned):
    """In any order: PEFT gives the sum the scale of the first."""
    given = [{"model": "/one", "weight": 0.5}, {"model": "/two", "weight": 2}][:: -1 if is_turned else 1]
    config = MergingConfig.model_validate({"method": "lora_concatenation", "models": given})
    metrics = run(config, base_model=tiny_model, model=tmp_path / "out", outside=adapters)
    base, made = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    # alpha / r = 4; with rank-stabilised scaling alpha / sqrt(r) = sqrt(3).
    added = 0.5 * 4 * product(adapters, "one", UP) + 2 * 3**0.5 * product(adapters, "two", UP)
    torch.testing.assert_close(made[UP], base[UP] + added)
    torch.testing.assert_close(made[QUERY], base[QUERY] + 0.5 * 4 * product(adapters, "one", QUERY))
    assert made.keys() == base.keys() and torch.equal(made["model.norm.weight"], base["model.norm.weight"])
    assert metrics["merging/models"] == 2 and checkpoints.load(tmp_path / "out")[0] is not None


def test_the_adapter_beside_a_stages_weights_is_found_and_knows_its_base(adapters, tiny_model, tmp_path, caplog):
    stage = tmp_path / "stage"
    artifact.link_tree(tiny_model, stage)
    artifact.link_tree(adapters / NamedModel(model="/one").folder, stage / "adapter")
    manifest = artifact.seal(stage, "model/1")
    config = MergingConfig.model_validate({"method": "lora_concatenation", "models": [{"stage": "sft"}]})
    run(config, base_model=tiny_model, model=tmp_path / "untold", first=stage)
    assert "the stage sft has no manifest that would tell whether it was trained on" in caplog.text
    caplog.clear()

    def trained_on(digest):
        told = manifest.model_copy(update={"inputs": {"base_model": digest}})
        (stage / artifact.MANIFEST).write_text(told.model_dump_json(), encoding="utf-8")

    trained_on("f" * 64)
    with pytest.raises(ModelError, match="the stage sft: its adapter was trained on the model ffffffffffff, and the "):
        run(config, base_model=tiny_model, model=tmp_path / "other", first=stage)
    trained_on(artifact.read_manifest(tiny_model).digest)
    run(config, base_model=tiny_model, model=tmp_path / "out", first=stage)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    base, made = load_file(tiny_model / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(made[QUERY], base[QUERY] + 4 * product(adapters, "one", QUERY))


def settings(**changes):
    def change(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return change


def narrower(folder):
    held = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: weight[..., :16].contiguous() for name, weight in held.items()}, folder / "adapter_model.safetensors"
    )


def fewer(folder):
    held = load_file(folder / "adapter_model.safetensors")
    held.pop(sorted(held)[0])
    save_file(held, folder / "adapter_model.safetensors")


FAULTS = {
    "dora": (settings(use_dora=True), "/one has use_dora: True, which is no part of its low-rank product"),
    "kind": (settings(peft_type="IA3"), "/one is an adapter of type IA3; expected a LoRA adapter as PEFT writes it"),
    "none": (lambda f: (f / "adapter_config.json").unlink(), "/one holds no adapter_config.json"),
    "weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "/one has no weights in safetensors"),
    "shape": (narrower, "/one does not fit"),
    "tensor": (fewer, "1 tensors are in one of the two alone, the first base_model.model.model.layers.0.mlp.up_proj"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_adapters_that_do_not_fit_are_refused(adapters, tiny_model, tmp_path, fault):
    change, told = FAULTS[fault]
    change(adapters / NamedModel(model="/one").folder)
    config = MergingConfig.model_validate({"method": "lora_concatenation", "models": [{"model": "/one"}]})
    with pytest.raises(ModelError) as error:
        run(config, base_model=tiny_model, model=tmp_path / "out", outside=adapters)
    assert told in str(error.value), str(error.value)
