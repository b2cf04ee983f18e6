import pytest
import yaml
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.infra import images
from bloomery.pipelines import launch, recipe, recipe_files
from bloomery.pipelines.cli import app

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
}
TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}
STAGES = [
    {"data_curation": {"sources": [{"name": "d", "path": "docs"}]}},
    "dedup",
    "synthetic_data",
    {"cpt": TRAINING},
    {"sft": TRAINING},
    "rejection_sampling",
    {"sft": {"as": "sft_2", **TRAINING}},
    {"dpo": TRAINING},
]


@pytest.fixture
def write(tmp_path):
    def go(**changes):
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**MINIMAL, "stages": STAGES, **changes}))
        return str(file)

    return go


def stages_of(loaded):
    return {stage.name: stage.config for stage in loaded.stages}


def test_paths_are_relative_to_the_recipe_and_hub_names_stay(write, tmp_path):
    loaded = recipe.load(write())
    assert loaded.base_model == "org/model"
    assert loaded.tasks["t"].splits["test"].path == str(tmp_path / "q.jsonl")
    assert stages_of(loaded)["data_curation"].sources[0].path == str(tmp_path / "docs")


def test_settings_override_and_the_seed_spreads_to_steps_that_set_none(write):
    loaded = recipe.load(write(seed=3), ["dpo.beta=0.5", "sft.seed=9", "promotion.gate.max_forgetting=0.1"])
    found = stages_of(loaded)
    assert found["dpo"].beta == 0.5 and loaded.promotion.gate.max_forgetting == 0.1
    assert [found[name].seed for name in ("cpt", "sft", "sft_2", "dedup", "rejection_sampling")] == [3, 9, 3, 3, 3]
    trained = recipe.load(write(seed=3, quantisation=[{"scheme": "int4_weight_only", "qat": {"max_length": 64}}]))
    assert trained.quantisation[0].qat.seed == 3


def test_every_problem_of_a_recipe_is_told_at_once(write):
    broken = write(stages=[{"sft": {}}, {"dpo": {**TRAINING, "bta": 1}}, "sfft"], tassks={}, seed="many")
    with pytest.raises(ConfigError) as caught:
        recipe.load(broken)
    told = str(caught.value).split("\n")
    assert "dpo.bta: unknown key; did you mean 'beta'?" in told
    assert "sfft: no such step; did you mean 'sft'?" in told
    assert "sft.learning_rate: missing; this key has no default" in told
    assert "tassks: unknown key; did you mean 'tasks'?" in told
    assert any(line.startswith('seed: found "many"') for line in told)


def test_validate_tells_files_that_are_not_there_beside_all_else(write, tmp_path):
    chats = [{"name": "c", "path": "c.jsonl"}, {"name": "g", "path": "*/deep.jsonl"}, {"name": "s", "path": "s3://b/c"}]
    verifier = {"kind": "exakt", "databases": ["t.sqlite"]}
    task = {**MINIMAL["tasks"]["t"], "verifier": verifier}
    stages = [STAGES[0], {"sft": {**TRAINING, "epochs": -1}}]
    broken = write(base_model="./base", chats=chats, tasks={"t": task}, stages=stages)
    result = CliRunner().invoke(app, ["validate", broken])
    assert isinstance(result.exception, ConfigError)
    told = str(result.exception).split("\n")
    assert told[0] == "sft.epochs: found -1; Input should be greater than 0"
    assert told[1].startswith("tasks.t.verifier.kind: found \"exakt\"; ") and "did you mean 'exact'?" in told[1]
    places = {
        **{"base_model": "base", "chats.0.path": "c.jsonl", "chats.1.path": "*/deep.jsonl"},
        **{"tasks.t.splits.test.path": "q.jsonl", "tasks.t.verifier.databases.0": "t.sqlite"},
        "stages.0.data_curation.sources.0.path": "docs",
    }
    told = {line.partition(": no file there: ")[0]: line for line in told[2:]}
    assert told.keys() == places.keys()
    assert all(f"{tmp_path}/{name};" in told[place] for place, name in places.items())
    # Without other mistakes it is a matter of the data.
    for name in ("base", "docs", "deeper"):
        (tmp_path / name).mkdir()
    for name in ("q.jsonl", "deeper/deep.jsonl"):
        (tmp_path / name).write_text("")
    whole = write(base_model="./base", chats=chats, stages=STAGES[:2] + [STAGES[4]])
    error = CliRunner().invoke(app, ["validate", whole]).exception
    assert isinstance(error, DataError)
    assert str(error) == f"chats.0.path: no file there: {tmp_path}/c.jsonl; see to the path, or where it is run"
    recipe.load(whole)  # elsewhere, as on a cluster, they may be
    (tmp_path / "c.jsonl").write_text("")
    assert CliRunner().invoke(app, ["validate", whole]).exit_code == 0


def test_what_a_demo_makes_on_first_use_is_not_missed_before(monkeypatch, tmp_path):
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path))
    assert CliRunner().invoke(app, ["validate", "quickstart"]).exit_code == 0


@pytest.mark.parametrize("setting", ["dpo", "=3", "name.x=1"])
def test_a_setting_of_another_form_is_refused(write, setting):
    with pytest.raises(ConfigError, match="--set"):
        recipe.load(write(), [setting])


def test_variables_come_from_the_caller_or_the_environment(write, monkeypatch):
    file = write(base_model="${PLACE}/model")
    with pytest.raises(ConfigError, match=r"\$\{PLACE\} is not set"):
        recipe.load(file)
    assert recipe.load(file, reads_data=False).base_model == "${PLACE}/model"
    monkeypatch.setenv("PLACE", "/there")
    assert recipe.load(file).base_model == "/there/model"
    assert recipe.load(file, variables={"PLACE": "/here"}).base_model == "/here/model"


def test_a_recipe_is_found_by_name_and_a_typo_is_met_with_the_nearest(tmp_path):
    assert recipe_files.find("quickstart").name == "quickstart.yaml"
    with pytest.raises(ConfigError, match="did you mean 'quickstart'"):
        recipe_files.find("quikstart")
    with pytest.raises(ConfigError, match="no such recipe file"):
        recipe_files.find(str(tmp_path / "none.yaml"))


def test_what_is_no_mapping_or_no_yaml_is_refused(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("- a\n")
    with pytest.raises(ConfigError, match="expected a mapping"):
        recipe.load(str(file))
    file.write_text("a: [\n")
    with pytest.raises(ConfigError, match="not YAML") as told:
        recipe.load(str(file))
    assert f"in {file}, line 2" in str(told.value)


def test_a_recipe_in_another_encoding_is_refused_wherever_it_is_read(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("# 우리 모델\nname: ours\n", encoding="cp949")
    for read in (recipe.load, lambda name: launch.load(name, prepare=False)):
        with pytest.raises(ConfigError, match="no text in UTF-8"):
            read(str(file))


@pytest.mark.parametrize("seed", ["-1", "4294967296"])
def test_a_seed_is_one_that_every_generator_takes(write, seed):
    with pytest.raises(ConfigError, match="seed"):
        recipe.load(write(), [f"seed={seed}"])


def test_a_path_is_not_empty(write):
    with pytest.raises(ConfigError, match="chats.0.path"):
        recipe.load(write(chats=[{"name": "own", "path": ""}]))


@pytest.mark.parametrize("name", ["pipeline", "pipeline.json", ""])
def test_what_is_compiled_goes_to_a_yaml_file(write, tmp_path, name):
    (tmp_path / "pipeline.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"ends with \.yaml"):
        launch.compile_to(recipe.load(write()), tmp_path / name)
    assert (tmp_path / "pipeline.json").read_text() == "{}"
    launch.compile_to(recipe.load(write()), tmp_path / "pipeline.yml")
    assert (tmp_path / "pipeline.yml").stat().st_size


def test_what_a_cluster_would_refuse_whole_is_not_compiled(write, tmp_path, monkeypatch):
    from kfp import dsl

    @dsl.container_component
    def said(text: str):
        return dsl.ContainerSpec(image="bloomery:1.0", command=["echo", text])

    @dsl.pipeline(name="large")
    def large(text: str = "x" * 1_600_000) -> None:
        said(text=text)

    with pytest.raises(ConfigError, match=r"takes 1,600,\d+ bytes at least, and Kubernetes keeps 1,572,864 of one run"):
        launch.compile_pipeline(large, tmp_path / "p.yaml")
    monkeypatch.setattr(images, "CPU_IMAGE", "Ours:latest")  # of the environment, which no recipe's check has seen
    with pytest.raises(ConfigError, match="Ours:latest: no name of an image; BLOOMERY_IMAGE_CPU and"):
        launch.compile_to(recipe.load(write()), tmp_path / "p.yaml")
    assert not (tmp_path / "p.yaml").exists()


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


def test_a_stage_that_is_to_learn_a_task_that_is_not_there_is_told(write):
    def learning(*names):
        return write(stages=["synthetic_data", {"sft": {**TRAINING, "tasks": [*names], "mixing": {"temperature": 2}}}])

    assert stages_of(recipe.load(learning("t")))["sft"].tasks == ["t"]
    with pytest.raises(ConfigError, match=r"stages\.sft\.tasks: no task u; the tasks are t"):
        recipe.load(learning("t", "u"))
    trained = [{"scheme": "int4_weight_only", "qat": {**TRAINING, "tasks": ["u"]}}]
    with pytest.raises(ConfigError, match=r"quantisation\.int4_weight_only_g32_qat\.qat\.tasks: no task u; the tasks"):
        recipe.load(write(quantisation=trained))


@pytest.mark.parametrize("name", sorted(file.stem for file in recipe_files.RECIPES.glob("*.yaml")))
def test_what_is_dumped_is_read_as_the_same_recipe(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_DATA", str(tmp_path))
    found = launch.load(name, prepare=False)
    (tmp_path / "again.yaml").write_text(recipe_files.dumped(found), encoding="utf-8")
    assert launch.load(str(tmp_path / "again.yaml"), prepare=False) == found


def code(model, revision):
    return [{"model": model, "revision": revision}]


COMMIT, DIGEST = "a" * 40, "b" * 64
CODE = {
    "a branch": (code("org/model", "main"), 'revision: found "main"; expected the commit of a hub\'s model (40 hex'),
    "another commit": (code("org/model", COMMIT), f"org/model: found {COMMIT}, and the recipe takes it at main; give"),
    "a digest of a hub's model": (code("org/model", DIGEST), f"found {DIGEST}, and the recipe takes it at main"),
    "a stranger": (code("org/other", COMMIT), "other: no model that the recipe takes from outside; these are org/mod"),
    "a champion's commit": (code("champion", COMMIT), "champion: give the sha256 over its code, which preflight tells"),
    "a folder elsewhere": (code("/there", COMMIT), "/there: give the sha256 over the code"),
}


@pytest.mark.parametrize("name", CODE)
def test_a_consent_to_code_fits_a_model_and_its_revision(write, name):
    consents, told = CODE[name]
    with pytest.raises(ConfigError) as caught:
        recipe.load(write(base_model="/there" if "/there" in told else "org/model", trust_remote_code=consents))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_consent_to_code_in_a_folder_is_to_the_code_that_is_there(write, tmp_path):
    (tmp_path / "own").mkdir()
    with pytest.raises(ConfigError, match="the folder has no code"):
        recipe.load(write(base_model="own", trust_remote_code=code("./own", DIGEST)))
    (tmp_path / "own" / "modeling_own.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"found b{64}, and the code \(\*\.py\) in the folder is") as caught:
        recipe.load(write(base_model="own", trust_remote_code=code("own", DIGEST)))
    revision = str(caught.value).rpartition("revision: ")[2].rstrip("`")
    consents = recipe.load(write(base_model="own", trust_remote_code=code("own", revision))).preflight()
    assert [(one.model, one.revision) for one in consents.trust_remote_code] == [(str(tmp_path / "own"), revision)]


def test_what_a_model_with_code_cannot_pass_is_told_before_it_runs(write):
    own = {"revision": COMMIT, "trust_remote_code": code("org/model", COMMIT)}
    reward = [*STAGES[:-1], {"reward_model": TRAINING}, STAGES[-1]]
    with pytest.raises(ConfigError) as caught:
        recipe.load(
            write(**own, stages=reward, quantisation=[{"scheme": "gguf_q8_0"}, {"scheme": "int8_weight_only"}]),
            ["serving.engine=vllm"],
        )
    told = str(caught.value).split("\n")
    assert [line.partition(": ")[0] for line in told] == ["quantisation", "stages.reward_model", "serving.engine"]
    assert "gguf_q8_0: llama.cpp knows architectures by name" in told[0]
    assert recipe.load(write(**own)).trust_remote_code[0].revision == COMMIT
    with pytest.raises(ConfigError, match="--trust-remote-code would run code that nobody has named"):
        recipe.load(write(), ["serving.vllm_arguments=[--trust-remote-code]"])
