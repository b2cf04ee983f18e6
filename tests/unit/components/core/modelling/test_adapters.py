"""Each way to train a part of a model: it learns, merges into plain weights, and leaves alone what it should."""

import json
import shutil
from pathlib import Path
from typing import get_args

import pytest
import torch
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.config import parameters, parse
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import adapter_folders, adapters, checkpoints
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.optimisers import OF_BITSANDBYTES, Optimizer
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

PAIRS = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
KINDS = [kind for kind in get_args(AdapterConfig.model_fields["kind"].annotation) if kind not in adapters.SOFT]
RATES = {"vera": 1e-1, "ia3": 1e-1, "hra": 3e-2, "oft": 3e-2, "randlora": 3e-2}
"""Kinds that move little need a higher rate."""


@pytest.fixture(autouse=True)
def no_tracking(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def learn(tiny_model, make_tasks, tmp_path):
    """Fine-tune the tiny model with some settings; returns (folder of the new one, metrics)."""
    artifact.seal(tiny_model, "model/1")
    tasks = make_tasks(TASK, [])

    def run(base=tiny_model, **settings):
        defaults = {"learning_rate": 1e-2, "epochs": 20, "batch_size": 4, "max_length": 64, "num_validations": 0}
        chats = write_chats(tmp_path / "c", PAIRS)
        config = parse(SftConfig, {**defaults, **settings}, where="sft")
        return tmp_path / "m", sft(config, chats=chats, tasks=tasks, base_model=base, model=tmp_path / "m")

    return run


def changed(before, after) -> set[str]:
    old, new = (dict(checkpoints.load(folder)[0].named_parameters()) for folder in (before, after))
    assert old.keys() == new.keys()
    return {name for name, weight in old.items() if not torch.equal(weight, new[name])}


def answers(folder) -> list[str]:
    """What the model says to the prompts of PAIRS, greedily."""
    return [one for (one,) in Generator.load(folder).generate([chat(prompt) for prompt, _ in PAIRS], max_new_tokens=8)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qlora"])
def test_every_kind_learns_and_merges_into_the_linear_layers(kind, learn, tiny_model):
    rank = {} if kind == "ia3" else {"rank": 8}
    folder, metrics = learn(adapter={"kind": kind, **rank}, learning_rate=RATES.get(kind, 1e-2))
    assert metrics["sft/loss"] < 5.45  # ln(260) = 5.56 where nothing is learnt
    found = changed(tiny_model, folder)
    assert found and all("_proj" in name for name in found)
    assert Generator.load(folder).generate([chat("say ab")], max_new_tokens=4)
    ids = torch.arange(4, 20)[None]
    with torch.inference_mode():
        merged = checkpoints.load(folder)[0](input_ids=ids).logits
        base = checkpoints.load(tiny_model)[0]
        before = base(input_ids=ids).logits
        both = adapter_folders.attached(base, [("it", folder / "adapter")], "the base")(input_ids=ids).logits
    assert (both - merged).abs().max() < 1e-4 * merged.abs().max() < (merged - before).abs().max()


def test_an_adapter_lies_beside_the_weights_and_is_no_part_of_them(learn, tmp_path):
    folder, _ = learn(adapter={"rank": 2, "target_modules": ["v_proj", "q_proj", "up_proj"]})
    own = checkpoints.num_bytes(folder)
    assert own == (folder / "model.safetensors").stat().st_size
    manifest = artifact.read_manifest(folder, "model/1")
    assert {name for name in manifest.files if name.startswith("adapter/")} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    settings = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    assert settings["target_modules"] == ["q_proj", "up_proj", "v_proj"]  # PEFT: in an order that changes
    assert str(tmp_path) not in json.dumps(settings)  # else the digest would follow the place
    uri = checkpoints.publish(folder, str(tmp_path / "store"))
    checkpoints.fetch(uri, tmp_path / "fetched")
    assert artifact.read_manifest(tmp_path / "fetched", "model/1").digest == manifest.digest


def test_the_same_training_writes_the_same_adapter(learn):
    digests = {artifact.read_manifest(learn(adapter={"kind": "pissa", "rank": 2})[0]).digest for _ in range(2)}
    assert len(digests) == 1


def test_an_adapter_that_does_not_fit_is_told(learn, tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder, _ = learn(adapter={"rank": 2})
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    first = next(name for name in tensors if "lora_A" in name)
    for odd in (
        {**tensors, first: tensors[first].repeat(1, 2)},  # another width
        {name: tensor for name, tensor in tensors.items() if name != first},
        {**tensors, first.replace("layers.0", "layers.7"): tensors[first].clone()},  # a layer that is not there
    ):
        save_file(odd, file)
        with pytest.raises(ModelError, match="it does not fit the base: .*; give the base that it was trained on"):
            adapter_folders.attached(checkpoints.load(tiny_model)[0], [("it", folder / "adapter")], "the base")
    with pytest.raises(ModelError, match=r"it holds no adapter_config\.json"):
        adapter_folders.found("it", tiny_model)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what a process has mapped is told by Linux")
def test_what_is_loaded_in_4_bits_lets_go_of_its_file(tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    model = shutil.copytree(tiny_model, tmp_path / "model")  # other tests may have left the file itself mapped
    network = adapters.load_in_4_bits(model)
    assert str(model) not in Path("/proc/self/maps").read_text() and network.get_input_embeddings().weight.numel()


def test_gradients_pass_through_4_bits_after_an_answer_too(tiny_model):
    pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    network = adapters.load_in_4_bits(tiny_model).eval()
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        network(ids)
    vectors = network.get_input_embeddings()(ids).detach().requires_grad_()
    network.train()(inputs_embeds=vectors, labels=ids).loss.backward()
    through_attention = network.model.layers[0].self_attn.o_proj(vectors)
    assert vectors.grad.abs().sum() > 0 and through_attention.requires_grad


def save_wider(tiny_model, folder, dtype):
    """The tiny model with random weights in blocks of 64, as NF4 has them, and as large as that frozen embeddings can
    tell one token from the others."""
    from transformers import LlamaForCausalLM

    tiny, tokenizer = checkpoints.load(tiny_model)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32, "initializer_range": 0.2}
    torch.manual_seed(0)
    wider = LlamaForCausalLM(type(tiny.config).from_dict({**tiny.config.to_dict(), **sizes})).to(dtype)
    checkpoints.save(folder, wider, tokenizer)


def test_an_adapter_over_4_bits_is_merged_into_16_bits_with_one_rounding(learn, tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    from safetensors.torch import load_file

    save_wider(tiny_model, tmp_path / "wider", torch.bfloat16)
    folder, _ = learn(tmp_path / "wider", adapter={"kind": "qlora", "rank": 2, "alpha": 4})
    old, new = (load_file(path / "model.safetensors") for path in (tmp_path / "wider", folder))
    own = load_file(folder / adapter_folders.FOLDER / "adapter_model.safetensors")
    name = "model.layers.0.mlp.up_proj"
    first, second = (own[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
    expected = (old[f"{name}.weight"].float() + second @ first * 2).bfloat16()
    assert not torch.equal(old[f"{name}.weight"], expected) and torch.equal(new[f"{name}.weight"], expected)


def test_qlora_trains_on_4_bits_and_merges_into_the_weights_as_they_were(learn, tiny_model, tmp_path):
    pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    from safetensors.torch import load_file

    save_wider(tiny_model, tmp_path / "wider", torch.float32)
    folder, metrics = learn(tmp_path / "wider", adapter={"kind": "qlora", "rank": 1}, epochs=40)
    assert metrics["sft/loss"] < 0.5 and answers(folder) == [answer for _, answer in PAIRS]
    file = folder / adapter_folders.FOLDER / "adapter_model.safetensors"
    assert {weight.dtype for weight in load_file(file).values()} == {torch.float32}  # in which it was trained
    old, new = (checkpoints.load(path)[0].model.layers[0].mlp.up_proj.weight for path in (tmp_path / "wider", folder))
    # An update of rank 1 to the very weights; from dequantised ones every number would differ.
    assert torch.linalg.matrix_rank((new - old).detach(), rtol=1e-3) == 1


@pytest.mark.parametrize(
    ("trained", "parts"), [("head", {"model.embed_tokens"}), (1, {"model.embed_tokens", "model.layers.1"})]
)
def test_some_of_the_weights_are_trained_and_no_other(trained, parts, learn, tiny_model):
    folder, _ = learn(trained=trained, epochs=60)  # the head of the tiny model is its embedding
    assert {".".join(name.split(".")[: 3 if "layers" in name else 2]) for name in changed(tiny_model, folder)} == parts
    assert answers(folder) == [answer for _, answer in PAIRS]


def test_biases_alone(tiny_model):
    network, _ = checkpoints.load(tiny_model)
    with pytest.raises(ConfigError, match="the model has no biases; use an adapter"):
        adapters.freeze(network, "bias")
    network.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.zeros(64))
    adapters.freeze(network, "bias")
    assert [name for name, weight in network.named_parameters() if weight.requires_grad] == [
        "model.layers.0.mlp.up_proj.bias"
    ]


def test_trained_biases_are_all_that_changes_and_answer(learn, talking_model, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    network, tokenizer = checkpoints.load(talking_model)
    config = LlamaConfig(**{**network.config.to_dict(), "attention_bias": True, "mlp_bias": True})
    biased = LlamaForCausalLM(config)  # whose biases are zero
    biased.load_state_dict(network.state_dict(), strict=False)
    checkpoints.save(tmp_path / "biased", biased, tokenizer)
    folder, _ = learn(tmp_path / "biased", trained="bias", learning_rate=3e-2, epochs=60)
    names = {name for name, _ in biased.named_parameters() if name.endswith(".bias")}
    assert changed(tmp_path / "biased", folder) == names and len(names) == 2 * 7
    assert answers(tmp_path / "biased") != answers(folder) == [answer for _, answer in PAIRS]


def test_more_layers_than_there_are(tiny_model):
    with pytest.raises(ConfigError, match="found 3, and the model has 2 layers"):
        adapters.freeze(checkpoints.load(tiny_model)[0], 3)


def test_the_named_modules_get_the_adapter_and_an_unknown_one_is_told(learn, tiny_model):
    folder, _ = learn(adapter={"target_modules": ["q_proj", "v_proj"]})
    assert {name.split(".")[-2] for name in changed(tiny_model, folder)} == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"found query, and the linear layers are called down_proj, .*, v_proj"):
        learn(adapter={"target_modules": ["q_proj", "query"]})


@pytest.mark.parametrize(
    ("adapter", "told"),
    [
        ({"kind": "vera", "alpha": 16}, "alpha: found 16, but vera has no such scale"),
        ({"kind": "ia3", "rank": 4}, "rank: found 4, but ia3 has none"),
    ],
)
def test_a_setting_that_a_kind_does_not_have_is_refused(adapter, told, learn):
    with pytest.raises(ConfigError, match=told):
        learn(adapter=adapter)


@pytest.mark.parametrize("kind", get_args(AdapterConfig.model_fields["kind"].annotation))
def test_a_task_that_is_told_every_field_reads_the_same_adapter(kind):
    adapter = AdapterConfig(kind=kind)
    assert AdapterConfig.model_validate(parameters(adapter)) == adapter


def test_an_adapter_and_a_part_of_the_weights_are_refused_together(learn):
    with pytest.raises(ConfigError, match="trained: found head, beside an adapter"):
        learn(adapter={}, trained="head")


@pytest.mark.parametrize(("factor", "told"), [(2, "1"), (1.01, "0.01")])
def test_a_merge_that_changes_the_answers_is_refused(tiny_model, factor, told):
    from peft import get_peft_model

    network, _ = checkpoints.load(tiny_model)
    model = get_peft_model(network, adapters.peft_config(AdapterConfig(rank=2), network))
    merge = model.merge_and_unload

    def wrongly():
        whole = merge()
        whole.model.norm.weight.data.mul_(factor)
        return whole

    model.merge_and_unload = wrongly
    with pytest.raises(ModelError, match=f"changed the logits by {told} of the largest, and 0.001 is what"):
        adapters.merged(model)


@pytest.mark.parametrize("optimizer", get_args(Optimizer))
def test_every_optimiser_learns(optimizer, learn):
    if optimizer in OF_BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="pip install 'bloomery[bitsandbytes]'")
    _, metrics = learn(optimizer=optimizer, learning_rate=1e-2)
    assert metrics["sft/loss"] < (5.3 if optimizer == "radam" else 3)  # whose first steps are small


@pytest.mark.parametrize("schedule", ["one_cycle", "constant_with_cooldown"])
def test_a_schedule_of_our_own_trains(schedule, learn):
    assert learn(schedule=schedule, epochs=10)[1]["sft/loss"] < 4.5


def test_a_training_of_one_step_learns(learn, tiny_model):
    folder, metrics = learn(epochs=0.001, batch_size=32)
    assert metrics["sft/best_step"] == 1 and changed(tiny_model, folder)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"trained": 0}, "greater than or equal to 1"),
        ({"trained": -3}, "greater than or equal to 1"),
        ({"trained": True}, "expected all, bias, head or a number of layers"),
        ({"adapter": {"target_modules": []}}, "at least 1 item"),
        ({"adapter": {"kind": "gralora", "rank": 7}}, "gralora halves it; give an even number"),
        ({"adapter": {"kind": "pissa", "rank": 33}}, "pissa can have at most 32, the width of model.layers.0"),
        ({"adapter": {"kind": "olora", "rank": 33, "target_modules": ["q_proj"]}}, "olora can have at most 32"),
        ({"adapter": {"kind": "miss", "rank": 1_000}}, "miss can have at most"),
        ({"epochs": 1e300}, "less than or equal to 10000"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_words(learn, settings, told):
    with pytest.raises(ConfigError, match=told):
        learn(**settings)
