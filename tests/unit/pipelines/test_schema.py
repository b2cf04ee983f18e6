"""The JSON Schema of recipes, and what is told of their keys."""

import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from bloomery.components.core.config import ELSEWHERE
from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import schema, steps
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.recipe_files import RECIPES

SHIPPED = sorted(file.stem for file in RECIPES.glob("*.yaml"))


def test_the_file_is_what_the_code_says():
    assert schema.FILE.read_text(encoding="utf-8") == schema.written(), "python -m bloomery.pipelines.schema"
    assert schema.STEPS_FILE.read_text(encoding="utf-8") == schema.steps_page(), "python -m bloomery.pipelines.schema"


def test_the_page_of_steps_says_what_each_of_them_reads_and_writes():
    rows = [line.split(" | ") for line in schema.steps_page().split("\n") if line.startswith("| [")]
    told = {row[0].removeprefix("| [").partition("]")[0]: row[1:] for row in rows}
    assert set(told) == set(steps.names()) and len(rows) == len(told)
    assert told["dpo"][:2] == ["preferences (preference/3), base_model (model/1)", "model (model/1)"]
    assert "seeds (chat/2, optional)" in told["synthetic_data"][0]
    assert told["merging"][0].endswith("models of up to 4 stages that it names")
    for name, row in told.items():
        assert (schema.STEPS_FILE.parent / name / "README.md").is_file() and len(row) == 3 and all(row)


@pytest.fixture(scope="module")
def validator():
    known = schema.recipe_schema()
    Draft202012Validator.check_schema(known)
    return Draft202012Validator(known)


def shipped(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_recipe_names_it_and_fits_it(name, validator):
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith("# yaml-language-server: $schema=recipe.schema.json\n")
    assert [error.message for error in validator.iter_errors(shipped(name))] == []


def spoiled(change):
    values = shipped("quickstart")
    change(values)
    return values


WRONG = {
    "a key that there is not": lambda values: values.update(evalution={}),
    "a key that is lacking": lambda values: values.pop("tasks"),
    "a step that there is not": lambda values: values["stages"].append("sftt"),
    "a setting of another step": lambda values: values["stages"].append({"dedup": {"beta": 0.1}}),
    "a setting out of its range": lambda values: values["promotion"]["gate"].update(max_forgetting=-1),
    "a setting of another kind": lambda values: values.update(evaluation={"limit": "many"}),
    "a word that is no choice": lambda values: values["quantisation"].append({"scheme": "int3"}),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_recipe_does_not_fit_it(kind, validator):
    assert not validator.is_valid(spoiled(WRONG[kind]))


def test_every_step_that_can_be_a_stage_is_in_it_with_its_documentation():
    known = schema.recipe_schema()
    entries = known["properties"]["stages"]["items"]["anyOf"]
    named = {next(iter(entry["properties"])) for entry in entries if "properties" in entry}
    assert named == set(steps.names()) - set(steps.FRAME)
    beta = known["$defs"]["DpoConfig"]["properties"]["beta"]
    assert beta["default"] == 0.1 and "pull to the reference model" in beta["description"]
    json.dumps(known)


def test_every_key_of_a_recipe_is_told():
    for name in Recipe.model_fields:
        assert Recipe.model_fields[name].description.split()[0] in schema.documentation(name)
    for name in set(steps.names()) - set(steps.FRAME):
        for key in steps.find(name).config.model_fields:
            assert schema.documentation(f"{name}.{key}").startswith(f"{key} (")
    assert "sft: chats (chat/2), tasks (tasks/1), base_model (model/1) -> model" in schema.documentation("stages")


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("dpo.beta", "beta (float, default 0.1)"),
        ("tasks.shop.verifier.kind", "kind ("),
        ("promotion.gate.max_forgetting", "max_forgetting (float, default 0.05)"),
        ("sft.learning_rate", "learning_rate (float, required)"),
        ("sft.trained", 'trained (all | bias | head | int, default "all")'),
        ("sft.adapter", "adapter (AdapterConfig | None, default null)"),
        ("dedup.survivor", "survivor (list[domain | source | newest | quality | longest], default"),
        ("chats.path", "path (path from the recipe's folder, required)"),
        ("tasks.verifier.databases", "databases (list[path from the recipe's folder], default [])"),
        ("base_model", "base_model (hub name or path from the recipe's folder, required)"),
        ("chat_template", 'chat_template (chatml or path from the recipe\'s folder, default "")'),
    ],
)
def test_a_key_is_found_by_its_path(key, told):
    assert schema.documentation(key).startswith(told)


@pytest.mark.parametrize(
    ("key", "told"),
    [
        ("dpo.bta", "dpo has no key bta; did you mean 'beta'"),
        ("dppo", "did you mean 'dpo'"),
        ("sft.lora_r", "sft has no key lora_r; did you mean 'adapter.rank'"),
        ("sft.adapter.lora_alpha", "sft.adapter has no key lora_alpha; did you mean 'alpha'"),
        ("num_return_sequences", "a key of that meaning is rejection_sampling.num_samples$"),
        ("verifier", "a key of that meaning is tasks.verifier$"),
        ("zzz", "known: name, .*, ptq, evaluation, promotion, resources, monitoring, serving, adoption, "),
    ],
)
def test_a_key_that_there_is_not_is_met_with_the_nearest(key, told):
    with pytest.raises(ConfigError, match=told):
        schema.documentation(key)


def test_every_key_that_other_libraries_call_otherwise_is_one_of_ours():
    for key in ELSEWHERE.values():
        assert told_of(key) or any(told_of(f"{name}.{key}") for name in steps.names()), key


def told_of(key):
    try:
        return schema.documentation(key)
    except ConfigError:
        return ""
