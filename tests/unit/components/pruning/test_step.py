"""A model that answers, pruned each way: written, loaded again, answering, healed."""

import json

import pytest
import torch
from chats import prompt_row, write_chats
from safetensors.torch import load_file

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, surgery
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.records import Prompt
from bloomery.components.pruning import sparsity
from bloomery.components.pruning.config import PruningConfig
from bloomery.components.pruning.step import run
from bloomery.components.sft.config import SftConfig
from bloomery.components.sft.step import run as sft

PAIRS = [("say ab", "ab"), ("say cd", "cd")]
TASK = {"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4}}
HEAL = {"learning_rate": 1e-2, "epochs": 10, "batch_size": 2, "max_length": 64, "num_validations": 0, "keep": "last"}


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_chats(tmp_path_factory.mktemp("chats") / "chats", PAIRS)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks") / "tasks"
    folder.mkdir()
    (folder / "tasks.json").write_text(json.dumps(TASK))
    row = prompt_row(task="echo", split="test", prompt="say ab", reference="ab")
    artifact.write_rows(folder, "prompt/2", Prompt.table([row]))
    artifact.seal(folder, "tasks/1", rows=1)
    return folder


@pytest.mark.parametrize("importance", ["magnitude", "activation", "taylor"])
def test_a_smaller_shape_is_written_and_answers(importance, talking_model, chats, tmp_path):
    shape = {"num_hidden_layers": 1, "num_key_value_heads": 1, "intermediate_size": 48}
    config = PruningConfig(importance=importance, **shape)
    metrics = run(config, base_model=talking_model, model=tmp_path / "small", chats=chats)
    artifact.read_manifest(tmp_path / "small", "model/1")
    loaded = Generator.load(tmp_path / "small")
    assert {key: getattr(loaded.model.config, key) for key in shape} == shape
    assert (loaded.model.config.num_attention_heads, loaded.model.config.head_dim) == (1, 16)
    assert len(loaded.generate([chat("say ab")], max_new_tokens=3)) == 1
    # Of a layer: attention 4 x 32 x 16 and the network 3 x 32 x 48, two norms of 32; beside them embeddings and a norm.
    before, after = (checkpoints.num_parameters(path) for path in (talking_model, tmp_path / "small"))
    embedded = loaded.model.config.vocab_size * 32 + 32
    assert after == embedded + 4 * 32 * 16 + 3 * 32 * 48 + 64
    assert (metrics["pruning/parent_parameters"], metrics["pruning/parameters"]) == (before, after)
    assert metrics["pruning/parent_bytes"] > metrics["pruning/bytes"] >= 4 * after
    assert metrics["pruning/decode_seconds_per_token"] > 0 and metrics["pruning/parent_prefill_seconds"] > 0
    assert [metrics[f"pruning/{key}"] for key in ("layers", "key_value_heads", "channels")] == [1, 1, 48]


def test_the_channels_that_matter_stay(talking_model, chats, tmp_path):
    """Half of the channels of each layer hand on nothing, so that without them the model is what it was."""
    network, tokenizer = checkpoints.load(talking_model)
    for number, layer in enumerate(network.model.layers):
        layer.mlp.down_proj.weight.data[:, number::2] = 0
    checkpoints.save(tmp_path / "base", network, tokenizer)
    run(PruningConfig(intermediate_size=32), base_model=tmp_path / "base", model=tmp_path / "small", chats=chats)
    small, _ = checkpoints.load(tmp_path / "small")
    ids = torch.tensor([[5, 40, 41, 42]])
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, network(ids).logits, rtol=0, atol=1e-5)
    assert small.config.intermediate_size == 32


def test_a_score_that_falls_by_pruning_comes_back_by_healing(talking_model, tasks, tmp_path):
    said = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]
    given = {"chats": write_chats(tmp_path / "chats", said), "tasks": tasks}
    healing = SftConfig(**{**HEAL, "epochs": 40, "batch_size": 4})
    sft(healing, **given, base_model=talking_model, model=tmp_path / "whole")
    config = PruningConfig(num_hidden_layers=1, num_key_value_heads=1, intermediate_size=8)
    run(config, base_model=tmp_path / "whole", model=tmp_path / "pruned", chats=given["chats"])
    sft(healing, **given, base_model=tmp_path / "pruned", model=tmp_path / "healed")

    def score(name):
        answers = Generator.load(tmp_path / name).generate([chat(prompt) for prompt, _ in said], max_new_tokens=4)
        return sum(answer == right for (answer,), (_, right) in zip(answers, said, strict=True))

    assert score("whole") == score("healed") == 4 and score("pruned") <= 1
    assert checkpoints.num_parameters(tmp_path / "healed") == checkpoints.num_parameters(tmp_path / "pruned")


def zeros(folder):
    held = load_file(folder / "model.safetensors")
    return {name: weight == 0 for name, weight in held.items() if sparsity.is_pruned(name)}


def test_half_of_the_weights_by_weight_and_input(talking_model, chats, tmp_path):
    found = {}
    for importance in ("magnitude", "activation"):
        config = PruningConfig(sparsity="2:4", importance=importance)
        metrics = run(config, base_model=talking_model, model=tmp_path / importance, chats=chats)
        assert metrics["pruning/zero_fraction"] == 0.5
        assert metrics["pruning/bytes"] == pytest.approx(metrics["pruning/parent_bytes"], rel=1e-3)  # zeros take room
        found[importance] = zeros(tmp_path / importance)
        assert all((is_zero.view(-1, 4).sum(1) == 2).all() for is_zero in found[importance].values())
    before, after = (load_file(path / "model.safetensors") for path in (talking_model, tmp_path / "activation"))
    for name, weight in after.items():
        assert torch.equal(weight, before[name] if name not in found["activation"] else before[name] * (weight != 0))
    # By weights alone: the two smallest of four.
    name = "model.layers.0.mlp.up_proj.weight"
    smallest = before[name].abs().view(-1, 4).argsort(dim=1)[:, :2].sort(dim=1).values
    assert torch.equal(found["magnitude"][name].view(-1, 4).nonzero()[:, 1].view(-1, 2), smallest)
    assert not torch.equal(found["magnitude"][name], found["activation"][name])


def test_a_lottery_ticket_has_the_zeros_of_one_and_the_weights_of_another(
    talking_model, tiny_model, chats, tasks, tmp_path
):
    settings = {"sparsity": 0.5, "importance": "magnitude"}
    ticket = PruningConfig(**settings, rewind=NamedModel(stage="start"))
    run(PruningConfig(**settings), base_model=talking_model, model=tmp_path / "sparse")
    run(ticket, base_model=talking_model, model=tmp_path / "ticket", first=tiny_model)
    expected, early = zeros(tmp_path / "sparse"), load_file(tiny_model / "model.safetensors")
    for name, weight in load_file(tmp_path / "ticket" / "model.safetensors").items():
        assert torch.equal(weight, early[name] * ~expected[name] if name in expected else early[name])
    # Healed as it is, the zeros fill up; kept, they stay, and the rest learns.
    given = {"chats": chats, "tasks": tasks, "base_model": tmp_path / "ticket"}
    sft(SftConfig(**HEAL), **given, model=tmp_path / "dense")
    assert sum(int(is_zero.sum()) for is_zero in zeros(tmp_path / "dense").values()) < 100
    sft(SftConfig(**HEAL, keep_zeros=True), **given, model=tmp_path / "trained")
    after = zeros(tmp_path / "trained")
    assert all(torch.equal(after[name], is_zero) for name, is_zero in expected.items())
    learnt = load_file(tmp_path / "trained" / "model.safetensors")
    assert all(((learnt[name] != early[name]) | is_zero).float().mean() > 0.99 for name, is_zero in expected.items())


def test_zeros_that_are_not_there_cannot_be_kept(tiny_model, chats, tasks, tmp_path):
    with pytest.raises(ConfigError, match="keep_zeros: no trained matrix of the layers has a weight that is zero"):
        sft(SftConfig(**HEAL, keep_zeros=True), chats=chats, tasks=tasks, base_model=tiny_model, model=tmp_path / "m")
    with pytest.raises(ValueError, match="keep_zeros: an adapter is added to every weight"):
        SftConfig(**HEAL, keep_zeros=True, adapter={"kind": "lora", "rank": 2, "alpha": 2})


def test_a_ticket_of_another_shape_is_refused(talking_model, tiny_model, tmp_path):
    config = PruningConfig(intermediate_size=32, importance="magnitude")
    run(config, base_model=tiny_model, model=tmp_path / "narrow")
    assert surgery.widths(checkpoints.load_config(tmp_path / "narrow")).channels == 32
    ticket = PruningConfig(sparsity=0.5, importance="magnitude", rewind=NamedModel(stage="start"))
    with pytest.raises(ModelError, match=r"layers.0.mlp.down_proj.weight is \[32, 32\] in the model that is gone back"):
        run(ticket, base_model=talking_model, model=tmp_path / "out", first=tmp_path / "narrow")
    with pytest.raises(ConfigError, match="start: named in the settings, and not among the inputs"):
        run(ticket, base_model=talking_model, model=tmp_path / "out")
