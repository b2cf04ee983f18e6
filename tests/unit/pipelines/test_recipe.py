import pytest
import yaml

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import recipe

MINIMAL = {
    "name": "mine",
    "registered_model": "m",
    "base_model": "org/model",
    "tasks": {
        "t": {
            "role": "domain",
            "templates": [{"prompt": "{q}", "answer": "{a}"}],
            "verifier": {"kind": "exact"},
            "splits": {"test": {"path": "q.jsonl"}},
        }
    },
    "data_curation": {"sources": [{"name": "d", "path": "docs"}]},
    "cpt": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64},
    "sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64},
    "sft_2": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64},
    "dpo": {"learning_rate": 1e-5, "epochs": 1, "max_length": 64},
}


@pytest.fixture
def write(tmp_path):
    def go(**changes):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**MINIMAL, **changes}))
        return str(file)

    return go


def test_paths_are_relative_to_the_recipe_and_hub_names_stay(write, tmp_path):
    loaded = recipe.load(write())
    assert loaded.base_model == "org/model"
    assert loaded.tasks["t"].splits["test"].path == str(tmp_path / "q.jsonl")
    assert loaded.data_curation.sources[0].path == str(tmp_path / "docs")


def test_settings_override_and_the_seed_spreads_to_steps_that_set_none(write):
    loaded = recipe.load(write(seed=3), ["dpo.beta=0.5", "sft.seed=9", "promotion.gate.max_forgetting=0.1"])
    assert loaded.dpo.beta == 0.5 and loaded.promotion.gate.max_forgetting == 0.1
    assert (loaded.cpt.seed, loaded.sft.seed, loaded.dedup.seed, loaded.rejection_sampling.seed) == (3, 9, 3, 3)
    trained = recipe.load(write(seed=3, quantisation=[{"scheme": "int4_weight_only", "qat": {"max_length": 64}}]))
    assert trained.quantisation[0].qat.seed == 3


def test_every_problem_of_a_recipe_is_told_at_once(write):
    broken = write(dpo={"learning_rate": 1e-5, "epochs": 1, "max_length": 64, "bta": 1}, sfft={}, seed="many")
    with pytest.raises(ConfigError) as caught:
        recipe.load(broken)
    told = str(caught.value).split("\n")
    assert "dpo.bta: unknown key; did you mean 'beta'?" in told
    assert "sfft: unknown key; did you mean 'sft'?" in told
    assert any(line.startswith('seed: found "many"') for line in told)


@pytest.mark.parametrize("setting", ["dpo", "=3", "name.x=1"])
def test_a_setting_of_another_form_is_refused(write, setting):
    with pytest.raises(ConfigError, match="--set"):
        recipe.load(write(), [setting])


def test_variables_come_from_the_caller_or_the_environment(write, monkeypatch):
    file = write(base_model="${PLACE}/model")
    with pytest.raises(ConfigError, match=r"\$\{PLACE\} is not set"):
        recipe.load(file)
    monkeypatch.setenv("PLACE", "/there")
    assert recipe.load(file).base_model == "/there/model"
    assert recipe.load(file, variables={"PLACE": "/here"}).base_model == "/here/model"


def test_a_recipe_is_found_by_name_and_a_typo_is_met_with_the_nearest(tmp_path):
    assert recipe.find("quickstart").name == "quickstart.yaml"
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        recipe.find("quikstart")
    with pytest.raises(ConfigError, match="no such recipe file"):
        recipe.find(str(tmp_path / "none.yaml"))


def test_what_is_no_mapping_or_no_yaml_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        recipe.load(str(file))
    file.write_text("a: [\n")
    with pytest.raises(ConfigError, match="not YAML"):
        recipe.load(str(file))


def test_a_task_needs_templates_and_sql_needs_databases(write):
    task = {"role": "domain", "verifier": {"kind": "sql_execution"}, "splits": {"test": {"path": "q.jsonl"}}}
    with pytest.raises(ConfigError, match="tasks.t: .*no templates for split test"):
        recipe.load(write(tasks={"t": task}))
    with pytest.raises(ConfigError, match="sql_execution needs `databases`"):
        recipe.load(write(tasks={"t": {**task, "templates": [{"answer": "{a}"}]}}))


def test_a_floor_names_an_evaluation_set(write, tmp_path):
    recipe.load(write(promotion={"gate": {"min_score": {"t.test": 0.5}}}))
    with pytest.raises(ConfigError, match="no evaluation set t.exam; the sets are t.test"):
        recipe.load(write(promotion={"gate": {"min_score": {"t.exam": 0.5}}}))
    outside = {"gate": {"min_score": {"lm_eval/colours.test": 0.5}}}
    with pytest.raises(ConfigError, match="no evaluation set lm_eval/colours.test"):
        recipe.load(write(promotion=outside))
    loaded = recipe.load(write(promotion=outside, evaluation={"lm_eval": {"tasks": ["kmmlu", "colours.yaml"]}}))
    assert loaded.preflight().lm_eval_tasks == ["kmmlu", str(tmp_path / "colours.yaml")]
