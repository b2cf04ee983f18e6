"""What stages do to the shapes of models, followed before any of them runs."""

import json
import shutil

import pytest
import yaml
from chats import write_chats
from safetensors.torch import load_file, save_file

from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, reshaping, surgery
from bloomery.components.core.modelling.reshaping import followed, opened
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.preflight.models import follow_shapes, take_outside
from bloomery.components.pruning.config import PruningConfig
from bloomery.components.pruning.step import run as prune
from bloomery.pipelines import recipe

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}
TASKS = {
    "t": {
        "role": "domain",
        "templates": [{"prompt": "{q}", "answer": "{a}"}],
        "verifier": {"kind": "exact"},
        "splits": {name: {"path": "q.jsonl"} for name in ("train", "validation", "test")},
    }
}
SMALLER = {"num_hidden_layers": 1, "intermediate_size": 48}


@pytest.fixture
def look(tiny_model, tmp_path):
    """What preflight says of stages that start from the tiny model: 2 layers, 2 heads of 16, 64 channels."""

    def go(*stages):
        file = tmp_path / "recipe.yaml"
        named = {"name": "shapes", "registered_model": "m", "base_model": str(tiny_model)}
        file.write_text(yaml.safe_dump({**named, "tasks": TASKS, "stages": list(stages)}))
        config = recipe.load(str(file)).preflight()
        sent = PreflightConfig.model_validate(json.loads(config.model_dump_json(exclude_none=True)))
        shutil.rmtree(tmp_path / "outside", ignore_errors=True)
        take_outside(sent, tmp_path / "outside")
        follow_shapes(sent, tiny_model, tmp_path / "outside")
        return sent

    return go


def refused(look, *stages, kind=ConfigError):
    with pytest.raises(kind) as caught:
        look(*stages)
    return str(caught.value).split("\n")


def test_every_stage_is_looked_at_in_the_shape_that_those_before_it_leave(look):
    pruning = {"pruning": {**SMALLER, "importance": "magnitude"}}
    again = {"pruning": {"as": "again", "num_hidden_layers": 2, "intermediate_size": 49}}
    whole = {"nas": {"from": "start", "num_hidden_layers": [1, 2], "max_bytes": 10**6}}
    told = refused(look, pruning, {"sft": TRAINING}, again, {"sft": {"as": "healed", **TRAINING}}, whole)
    more = "expected as many or fewer"
    assert told == [
        f"again.num_hidden_layers: found 2; the model has 1, {more}",
        f"again.intermediate_size: found 49; the model has 48, {more}",
    ]
    look(pruning, {"sft": TRAINING}, whole)


def test_of_a_search_the_largest_shape_goes_on_and_layers_that_are_stacked_count(look):
    nas = {"nas": {"num_hidden_layers": [1, 2], "intermediate_size": [32], "max_bytes": 10**6}}
    look(nas, {"pruning": {"num_hidden_layers": 2, "intermediate_size": 32}})
    assert len(refused(look, nas, {"pruning": {"intermediate_size": 33}})) == 1
    taller = {"merging": {"method": "depth_up_scaling", "removed_layers": 1, "as": "taller", "from": "start"}}
    stacked = {"merging": {"method": "passthrough", "slices": [{"layers": [0, 2]}, {"layers": [0, 1]}]}}
    look(stacked, {"pruning": {"num_hidden_layers": 3}})
    (told,) = refused(look, stacked, taller, {"pruning": {"num_hidden_layers": 3}})
    assert told.startswith("pruning.num_hidden_layers: found 3; the model has 2")


def test_heads_zeros_and_bytes_that_cannot_be_are_told(look, tiny_model):
    size = checkpoints.num_bytes(tiny_model)
    limit = {"num_hidden_layers": [1], "intermediate_size": [16, 8], "max_bytes": 1000}
    told = refused(
        look, {"pruning": {"sparsity": 0.001}}, {"nas": limit}, {"pruning": {"as": "heads", "num_key_value_heads": 3}}
    )
    assert [line.partition(":")[0] for line in told] == [
        "pruning.sparsity",
        "pruning.sparsity",
        "nas",
        "heads.num_key_value_heads",
    ]
    assert "of the 32 inputs of a projection none would be zero" in told[0] and "of the 64 inputs" in told[1]
    # Of 2 layers one is left, and of its 3 x 64 rows of 32 numbers 3 x 8: 4 bytes a number, beside a shorter head.
    left = 3 * 8 * 32 + 4 * 32 * 32 + 2 * 32 + 260 * 32 + 32
    smallest = int(told[2].partition("the smallest takes ")[2].split()[0].replace(",", ""))
    assert 4 * left < smallest < size and smallest - 4 * left < 2000
    assert told[2].endswith("bytes (max_bytes 1,000)")
    look({"nas": {**limit, "max_bytes": smallest}})


def test_what_is_followed_is_what_is_written(tiny_model, tmp_path):
    """Also where the head is stored beside the embeddings that it is tied to."""
    weights = load_file(tiny_model / "model.safetensors")
    base = shutil.copytree(tiny_model, tmp_path / "base")
    save_file({**weights, "lm_head.weight": weights["model.embed_tokens.weight"].clone()}, base / "model.safetensors")
    config = PruningConfig(importance="magnitude", **SMALLER)
    chats = write_chats(tmp_path / "chats", [("say ab", "ab")])
    prune(config, base_model=tiny_model, model=tmp_path / "small", chats=chats)
    stages = [reshaping.Reshaping.of("pruning", "", config)]
    for start in (tiny_model, base):
        told, problems = followed(stages, opened(start), lambda named: pytest.fail(named))
        (_, made), written = told["pruning"], opened(tmp_path / "small")
        assert problems == [] and surgery.widths(made.config) == surgery.widths(written.config)
        assert {name: one.shape for name, one in made.tensors.items()} == {
            name: one.shape for name, one in written.tensors.items()
        }


def test_models_from_outside_are_told_before_their_stage(look, tiny_model, tmp_path):
    bare, other = (shutil.copytree(tiny_model, tmp_path / name) for name in ("bare", "other"))
    (bare / "chat_template.jinja").unlink()
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["!"], vocabulary['"'] = vocabulary['"'], vocabulary["!"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    (told,) = refused(look, {"adoption": {"model": str(bare)}}, {"sft": TRAINING}, kind=ModelError)
    assert told.startswith(f"adoption: {bare}: ") and "chat template" in told
    lesson = {"distillation": {**TRAINING, "teacher": {"model": str(other)}}}
    (told,) = refused(look, {"sft": TRAINING}, lesson, kind=ModelError)
    assert told.startswith(
        f"distillation.teacher: the vocabularies differ: token '!' is 5 in {other} and 4 in the student"
    )
    # The student that was adopted has the teacher's tokens, and those of the model before are other ones then.
    adopted = {"adoption": {"model": str(other)}}
    look(adopted, lesson)
    back = {"distillation": {**TRAINING, "teacher": {"stage": "start"}}}
    (told,) = refused(look, adopted, back, kind=ModelError)
    assert "token '\"' is 5 in start and 4 in the student" in told
    ticket = {"pruning": {"sparsity": 0.5, "importance": "magnitude", "rewind": {"stage": "start"}}}
    narrow = {"pruning": {"as": "narrow", "intermediate_size": 8, "importance": "magnitude"}}
    (told,) = refused(look, narrow, {"pruning": {"as": "ticket", **ticket["pruning"]}}, kind=ModelError)
    assert told.startswith("ticket.rewind: model.layers.0.mlp.down_proj.weight is [32, 64] in the model")


def test_a_chain_that_leaves_the_shape_as_it_is_has_nothing_to_follow(look):
    assert look({"sft": TRAINING}).reshapings == []
