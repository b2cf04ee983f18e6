"""The list of stages: how it is written, what each stage reads, and what is wrong with a list."""

import hashlib
import re
from pathlib import Path

import pytest
import yaml

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import launch, recipe, steps
from bloomery.pipelines.post_training import build, stages

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}
CURATION = {"data_curation": {"sources": [{"name": "d", "path": "docs"}]}}
QUESTIONS = {"role": "domain", "templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
TEXTS = {"role": "domain", "templates": [{"answer": "{text}"}], "verifier": {"kind": "perplexity"}}


@pytest.fixture
def load(tmp_path):
    def go(chain, settings=(), **changes):
        tasks = {"t": {**QUESTIONS, "splits": {"train": {"path": "q.jsonl"}, "test": {"path": "t.jsonl"}}}}
        values = {"name": "mine", "registered_model": "m", "base_model": "org/model", "tasks": tasks, "stages": chain}
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump({**values, **changes}))
        return recipe.load(str(file), settings)

    return go


def wiring(loaded) -> dict[str, dict[str, str]]:
    """By stage, the stage and output that each of its inputs comes from, in the compiled pipeline."""
    dag = build(loaded).pipeline_spec.root.dag
    shown = {name: task.task_info.name for name, task in dag.tasks.items()}
    found: dict[str, dict[str, str]] = {}
    for name, task in dag.tasks.items():
        for port, source in task.inputs.artifacts.items():
            made = source.task_output_artifact
            found.setdefault(shown[name], {})[port] = f"{shown[made.producer_task]}.{made.output_artifact_key}"
    return found


ROUNDS = [
    CURATION,
    "dedup",
    "synthetic_data",
    {"sft": TRAINING},
    "rejection_sampling",
    {"sft": {"as": "sft_2", **TRAINING}},
    {"rejection_sampling": {"as": "sampling_2"}},
    {"sft": {"as": "sft_3", **TRAINING}},
    {"dpo": TRAINING},
    {"rejection_sampling": {"as": "sampling_3"}},
    {"dpo": {"as": "dpo_2", **TRAINING}},
]


def test_a_stage_reads_the_newest_artifact_of_each_schema(load):
    found = wiring(load(ROUNDS))
    assert found["sft"] == {
        "chats": "synthetic_data.chats",
        "tasks": "preflight.tasks",
        "base_model": "preflight.start",
    }
    assert found["sft_3"]["chats"] == "sampling_2.sampled_chats"
    assert found["sft_3"]["base_model"] == "sft_2.model"
    assert found["dpo"] == {"preferences": "sampling_2.preferences", "base_model": "sft_3.model"}
    assert found["dpo_2"] == {"preferences": "sampling_3.preferences", "base_model": "dpo.model"}
    assert found["evaluation_dpo_2"]["model"] == "dpo_2.model"
    # Nothing is quantised, so the last model is the candidate, and no variants are judged.
    assert found["promotion"]["model"] == "dpo_2.model" and "variants" not in found["promotion"]
    assert found["promotion"]["curated"] == "data_curation.documents"
    assert found["promotion"]["duplicates"] == "dedup.duplicates" and "chats" not in found["promotion"]


def test_the_last_short_pass_in_full_precision_is_one_line_as_the_readme_has_it(load):
    readme = (Path(steps.__file__).parents[1] / "components" / "sft" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("**From four bits to full precision.**")[2].partition("**Soft prompts.**")[0]
    loaded = load(["synthetic_data", *yaml.safe_load(section[section.index("    stages:") :])["stages"]])
    found, (_, first, last) = wiring(loaded), loaded.stages
    assert first.config.adapter.kind == "qlora" and last.config.adapter is None
    assert (last.config.trained, last.config.precision) == ("all", "fp32")
    assert found["sft"]["base_model"] == "preflight.start" and found["sft_whole"]["base_model"] == "sft.model"
    assert found["sft_whole"]["chats"] == found["sft"]["chats"] and found["promotion"]["model"] == "sft_whole.model"


def test_continued_pre_training_alone_is_a_chain(load):
    tasks = {"d": {**TEXTS, "splits": {"test": {"path": "t.jsonl"}}}}
    loaded = load([CURATION, "dedup", {"cpt": TRAINING}], tasks=tasks)
    found = wiring(loaded)
    assert found["cpt"] == {"documents": "dedup.kept", "base_model": "preflight.start"}
    assert stages(loaded) == (
        *("preflight", "evaluation_base", "data_curation", "dedup", "cpt", "evaluation_cpt"),
        *("evaluation_champion", "promotion"),
    )


def test_chats_are_read_by_continued_pre_training_where_it_replays_exercises(load):
    def chain(**settings):
        return [CURATION, "dedup", "synthetic_data", {"cpt": {**TRAINING, **settings}}]

    assert "chats" not in wiring(load(chain()))["cpt"]  # so that no change of them trains it anew
    found = wiring(load(chain(replay_exercises=0.5)))
    assert found["cpt"]["chats"] == "synthetic_data.chats"
    tasks = {"d": {**TEXTS, "splits": {"test": {"path": "t.jsonl"}}}}
    with pytest.raises(ConfigError, match="stages.cpt: reads chats .* which nothing before it writes"):
        load([CURATION, "dedup", {"cpt": {**TRAINING, "replay_exercises": 0.5}}], tasks=tasks)
    given = {"tasks": tasks, "chats": [{"name": "c", "path": "c.jsonl"}]}
    with pytest.raises(ConfigError, match="chats: no stage reads them"):
        load([CURATION, "dedup", {"cpt": TRAINING}], **given)


def test_the_share_that_is_replayed_has_one_name(load):
    chain = [*ROUNDS[:3], {"cpt": TRAINING}, {"sft": TRAINING}]
    found = load(chain, ["cpt.replay_share=0.25", "sft.replay_share=0.1"]).stages[3:]
    assert {stage.name: stage.config.replay_share for stage in found} == {"cpt": 0.25, "sft": 0.1}
    found = load(chain).stages[3:]
    assert {stage.name: stage.config.replay_share for stage in found} == {"cpt": 0.05, "sft": None}


def test_without_quantisation_the_last_model_is_asked_again_for_its_noise(load):
    pipeline = build(load([CURATION, "dedup", "synthetic_data", {"sft": TRAINING}])).pipeline_spec
    asked = {
        task.task_info.name: task.inputs.parameters["config"].component_input_parameter
        for task in pipeline.root.dag.tasks.values()
    }
    assert asked["evaluation_base"] == asked["evaluation_sft"] == "evaluation_of_rivals"


def test_settings_address_a_stage_by_its_name_and_the_recipe_by_its_keys(load):
    loaded = load(ROUNDS, ["sft_2.epochs=3", "sampling_3.num_samples=2", "evaluation.limit=7", "dpo.beta=0.2"])
    found = {stage.name: stage.config for stage in loaded.stages}
    assert (found["sft"].epochs, found["sft_2"].epochs, found["sft_3"].epochs) == (1, 3, 1)
    assert found["sampling_3"].num_samples == 2 and found["sampling_2"].num_samples == 8
    assert found["dpo"].beta == 0.2 and found["dpo_2"].beta == 0.1 and loaded.evaluation.limit == 7


def test_a_resolved_recipe_is_a_recipe(load, tmp_path):
    loaded = load(ROUNDS, ["sft.seed=4"])
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(loaded.model_dump(mode="json", exclude_none=True)))
    again = recipe.load(str(file))
    assert again == loaded and again.stages[5].name == "sft_2"


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        ([{"dpo": TRAINING}], "stages.dpo: reads preferences (preference/3), which nothing before it writes; add"),
        ([CURATION, "dedup"], "stages: no stage writes a model, so the gate has nothing to judge"),
        ([], "stages: found []; List should have at least 1 item"),
        (["sfft"], "sfft: no such step; did you mean 'sft'?"),
        (["evaluation"], "evaluation: is no stage: it has a key of its own"),
        ([{"sft": TRAINING}, {"sft": TRAINING}], "2 stages are named sft; give each a name of its own, such as {sft:"),
        ([{"sft": {"as": "base", **TRAINING}}], "stages: base names something else in every run"),
        ([{"dpo": TRAINING, "sft": TRAINING}], "stages.0: found dpo, sft; expected a step, or one step with its"),
        ([{"sft": 3}], "stages.0.sft: found 3; expected settings such as {epochs: 1}"),
        ({"sft": TRAINING}, "stages: found dict, expected a list of steps such as [sft, dpo]"),
        ([{"sft": {"as": "warm-up", **TRAINING}}], "stages: warm-up is no name: up to 60 small letters, digits and _"),
        ([{"sft": {"as": "a" * 61, **TRAINING}}], "aaa is no name: up to 60 small letters"),
        ([{"sft": {"as": "class", **TRAINING}}], "stages: class is a word of Python; call the stage otherwise"),
        (["sft: {epochs: 1}"], "stages.0: found the text 'sft: {epochs: 1}'; expected a step, then a colon, a space"),
        ([{"sft:{epochs": "1}"}], "stages.0: found the text 'sft:{epochs'; expected a step, then a colon, a space"),
        ([{"epochs": 1, "sft": None}], "stages.0: found epochs, sft; expected a step, or one step with its"),
        ([{}], "stages.0: found nothing; expected a step"),
        ([{"sft": {"as": "dpo", **TRAINING}}], "stages: dpo is the name of a step; call the stage sft otherwise"),
        ([{"sft": {"as": "tasks", **TRAINING}}], "stages: tasks is a key of the recipe, and --set could not"),
        (["chat_curation", {"sft": TRAINING}], "chat_curation: nothing to read; give `chats` or `preferences`"),
        ([CURATION, {"cpt": TRAINING}], "promotion.gate.decontaminated: nothing takes the questions"),
    ],
)
def test_a_wrong_list_is_told_with_what_to_do(load, chain, told):
    with pytest.raises(ConfigError) as caught:
        load(chain)
    assert told in str(caught.value)


def test_fine_tuning_alone_learns_from_a_train_split(load):
    load([{"sft": TRAINING}])
    unseeded = {"t": {**QUESTIONS, "splits": {"test": {"path": "t.jsonl"}}}}
    told = r"stages.sft: reads chats \(chat/2\), which nothing before it writes; add files of"
    with pytest.raises(ConfigError, match=told):
        load([{"sft": TRAINING}], tasks=unseeded)


def test_a_step_as_a_key_of_the_recipe_is_told_where_it_belongs(load):
    with pytest.raises(ConfigError, match=r"dpo: a step is no key of its own: put it into the list `stages`"):
        load(ROUNDS, dpo=TRAINING)


def test_a_setting_that_names_nothing_is_refused(load):
    with pytest.raises(ConfigError, match="no stage and no key dppo; did you mean 'dpo'"):
        load(ROUNDS, ["dppo.beta=1"])


def test_a_recipe_needs_something_to_judge_by(load):
    tasks = {"t": {**QUESTIONS, "splits": {"train": {"path": "q.jsonl"}}}}
    with pytest.raises(ConfigError, match="no task of role domain has an evaluation set"):
        load(ROUNDS, tasks=tasks)


def test_resources_name_steps_and_no_accelerator_where_none_is_wanted(load):
    with pytest.raises(ConfigError, match="resources.steps: unknown step sftt"):
        load(ROUNDS, resources={"steps": {"sftt": {}}})
    with pytest.raises(ConfigError, match="resources.steps.dedup.accelerators: dedup runs on CPUs"):
        load(ROUNDS, resources={"accelerator": "nvidia.com/gpu", "steps": {"dedup": {"accelerators": 1}}})
    with pytest.raises(ConfigError, match="resources.steps.evaluation.accelerators: found 4; evaluation uses one"):
        load(ROUNDS, resources={"accelerator": "nvidia.com/gpu", "steps": {"evaluation": {"accelerators": 4}}})
    sampling = "resources.steps.rejection_sampling.nodes: found 2; rejection_sampling runs on one; remove the key"
    with pytest.raises(ConfigError, match=sampling):
        load(ROUNDS, resources={"steps": {"rejection_sampling": {"nodes": 2}}})


def test_nodes_share_a_training_on_a_cluster_and_on_one_machine_there_is_one(load, tmp_path):
    spread = load(ROUNDS, resources={"profile": "multi-node", "nodes": 4, "steps": {"dpo": {"nodes": 2}}})
    shared = {stage.name: spread.shared_by(stage) for stage in spread.stages}
    assert (shared["sft"], shared["dpo"], shared["rejection_sampling"], shared["dedup"]) == (32, 16, 1, 1)
    assert spread.preflight().trainings["sft"].shards == 32
    here = launch._at(spread, tmp_path)
    assert {here.resources.spread(stage.step, "all") for stage in here.stages} == {1}

def test_weights_are_shared_out_where_several_accelerators_train_and_nothing_wants_them_whole(load):
    resources = {"accelerator": "nvidia.com/gpu", "accelerators": 4, "sharding": "full"}
    assert load(ROUNDS, resources=resources).preflight().trainings["sft"].shards == 4
    assert load(ROUNDS, resources={**resources, "sharding": "none"}).preflight().trainings["sft"].shards is None
    alone = {**resources, "steps": {"sft": {"accelerators": 1}}}
    assert load(ROUNDS, ["sft.optimizer=muon"], resources=alone).preflight().trainings["sft"].shards is None
    with pytest.raises(ConfigError, match=r"stages.sft.optimizer: found muon, expected adamw or radam, under res"):
        load(ROUNDS, ["sft.optimizer=muon"], resources=resources)


def test_large_settings_are_packed_and_too_large_ones_are_refused(load):
    from bloomery.components.core.config import unpacked

    cities = {f"city {n}": [f"city {n}", f"도시 {n}"] for n in range(4000)}
    chain = [CURATION, "dedup", {"synthetic_data": {"entities": {"city": cities}}}, {"sft": TRAINING}]
    spec = build(load(chain)).pipeline_spec
    value = spec.root.input_definitions.parameters["synthetic_data"].default_value.struct_value
    assert list(value) == ["packed"] and len(value["packed"]) < 65_536
    assert unpacked(dict(value))["entities"]["city"] == cities


WORDS = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(3000)]
QUESTION_WORDS = {**QUESTIONS, "templates": [{"prompt": f"{word} {{q}}", "answer": "{a}"} for word in WORDS]}
LARGE = {
    "preflight": ("tasks", {"tasks": {"t": {**QUESTION_WORDS, "splits": {"test": {"path": "t.jsonl"}}}}}),
    "synthetic_data": ("entities", {}),
    "quantisation.int4_weight_only_g32_qat": (
        "qat",
        {
            "quantisation": [{"scheme": "int4_weight_only", "qat": {"max_length": 64, "tasks": WORDS}}],
            "tasks": dict.fromkeys(WORDS, {**QUESTIONS, "splits": {"test": {"path": "t.jsonl"}}}),
        },
    ),
    "evaluation": ("lm_eval", {"evaluation": {"lm_eval": {"tasks": WORDS}}}),
    "promotion": ("models_uri", {"promotion": {"models_uri": f"s3://{''.join(WORDS)}"}}),
    "monitoring": ("settings", {"monitoring": {"settings": [f"sft.epochs={word}" for word in WORDS]}}),
}


@pytest.mark.parametrize("place", LARGE)
def test_settings_that_are_too_large_for_an_argument_are_refused(load, place):
    longest, changes = LARGE[place]
    entities = {"entities": {"word": dict.fromkeys(WORDS, ["a"])}} if place == "synthetic_data" else {}
    with pytest.raises(ConfigError) as caught:
        load([CURATION, "dedup", {"synthetic_data": entities}, {"sft": TRAINING}], **changes)
    told = f"^{place}: its settings take [\\d,]+ bytes when they are packed, .* the longest of them, {longest}$"
    assert re.search(told, str(caught.value), re.MULTILINE), caught.value


def test_every_step_is_found_by_its_folder():
    root = Path(steps.__file__).parents[1] / "components"
    assert set(steps.names()) == {file.parent.name for file in root.glob("*/component.py")}


def test_files_of_chats_and_pairs_are_curated_first(load):
    files = {"chats": [{"name": "own", "path": "own.jsonl"}], "preferences": [{"name": "pairs", "path": "p.jsonl"}]}
    tasks = {"t": {**QUESTIONS, "splits": {"test": {"path": "t.jsonl"}}}}
    found = wiring(load([{"sft": TRAINING}, {"dpo": TRAINING}], tasks=tasks, **files))
    assert found["chat_curation"] == {"sources": "preflight.sources", "tasks": "preflight.tasks"}
    assert found["sft"]["chats"] == "chat_curation.chats" and found["dpo"]["preferences"] == "chat_curation.preferences"
    judged = {port: found["promotion"].get(port) for port in ("chats", "preferences", "duplicates")}
    assert judged == {"chats": "chat_curation.chats", "preferences": "chat_curation.preferences", "duplicates": None}


def test_preflight_measures_each_kind_of_rows_by_the_first_stage_that_learns_from_it(load):
    files = {"chats": [{"name": "own", "path": "own.jsonl"}], "preferences": [{"name": "pairs", "path": "p.jsonl"}]}
    short, long = {**TRAINING, "max_length": 32}, {**TRAINING, "max_length": 96}
    chain = [{"sft": TRAINING}, {"dpo": short}, {"dpo": {"as": "dpo_2", **long}}]
    checked = load(chain, evaluation={"too_long": "truncate_left", "limit": 7}, **files).preflight()
    assert (checked.max_length, checked.pair_max_length) == (64, 32)
    named = [[source.name for source in sources] for sources in (checked.chat_sources, checked.preference_sources)]
    assert named == [["own"], ["pairs"]] and (checked.too_long, checked.limit) == ("truncate_left", 7)
    assert load([{"sft": TRAINING}]).preflight().pair_max_length == 0


@pytest.mark.parametrize(
    ("chain", "kinds"),
    [
        ([{"dpo": TRAINING}], ["pair"]),
        ([{"dpo": {**TRAINING, "loss": "kto"}}], ["label", "pair"]),
        ([{"dpo": TRAINING}, {"reward_model": TRAINING}], ["pair", "score"]),
        # dpo reads the pairs that sampling has made since.
        ([{"reward_model": TRAINING}, "rejection_sampling", {"dpo": {**TRAINING, "loss": "kto"}}], ["pair", "score"]),
    ],
)
def test_preflight_knows_what_is_learnt_from_the_preferences(load, chain, kinds):
    pairs = [{"name": "pairs", "path": "p.jsonl"}]
    assert load(chain, preferences=pairs).preflight().pair_kinds == kinds


@pytest.mark.parametrize(
    ("chain", "files", "told"),
    [
        ([{"sft": TRAINING}], ("preferences",), "preferences: no stage reads them; add one that reads preference/3"),
        ([{"dpo": TRAINING}], ("chats",), "stages.dpo: reads preferences (preference/3), which nothing before it"),
        (
            [{"sft": TRAINING}, "rejection_sampling", {"dpo": TRAINING}],
            ("preferences",),
            "preferences: stages.rejection_sampling writes preference/3 anew before a stage has read them",
        ),
    ],
)
def test_files_that_no_stage_reads_are_told(load, chain, files, told):
    with pytest.raises(ConfigError) as caught:
        load(chain, **{key: [{"name": "own", "path": "own.jsonl"}] for key in files})
    assert told in str(caught.value)


def test_every_problem_of_the_list_and_of_other_keys_is_told_at_once(load):
    with pytest.raises(ConfigError) as caught:
        load([3, "dppo", {"sft": {**TRAINING, "epochs": "x"}}], quantisation=[{"scheme": "int9"}], typo=1)
    told = str(caught.value)
    for part in ("stages.0: found 3", "dppo: no such step", 'sft.epochs: found "x"', "quantisation.0.scheme", "typo"):
        assert part in told


def test_chats_are_given_in_one_place(load):
    own, other = {"name": "own", "path": "c.jsonl"}, {"name": "other", "path": "d.jsonl"}
    with pytest.raises(ConfigError, match="chat_curation.chats: given here and at the top of the recipe"):
        load([{"chat_curation": {"chats": [other]}}, {"sft": TRAINING}], chats=[own])
    assert load([{"chat_curation": {"chats": [own]}}, {"sft": TRAINING}], chats=[own]).chats[0].name == "own"


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("sft=3", "sft is a stage; expected one of its settings, --set sft.KEY=VALUE"),
        ("stages.0.sft.epochs=2", "'stages' is a list, which is set whole; a stage's settings are set by its name"),
    ],
)
def test_a_setting_of_another_form_is_told_the_right_one(load, setting, told):
    with pytest.raises(ConfigError, match=told):
        load([{"sft": TRAINING}], [setting])


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("sft_9.epochs=1", "monitoring.settings: --set sft_9.epochs=1: no stage and no key sft_9; did you mean 'sft'"),
        ("sft.epochs=abc", 'monitoring.settings: sft.epochs: found "abc"'),
        ('tasks.t.splits.new={path: "{drifted}", template: []}', "monitoring.settings: tasks.t.splits.new.template"),
    ],
)
def test_the_settings_of_a_retraining_are_tried_before_there_is_one(load, setting, told):
    new = 'tasks.t.splits.new={path: "{drifted}", templates: [{prompt: "{prompt}", answer: "{label}"}]}'
    assert load([{"sft": TRAINING}], monitoring={"settings": ["sft.epochs=2", new]}).stages[0].config.epochs == 1
    with pytest.raises(ConfigError) as caught:
        load([{"sft": TRAINING}], monitoring={"settings": [new, setting]})
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"name: a\nname: b\n", "the key name stands here again"),
        (b"stages: &a\n  - *a\n", "stands inside of what its anchor"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_a_file_that_says_two_things_or_none_is_no_recipe(tmp_path, text, told):
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(ConfigError, match=told):
        recipe.load(str(tmp_path / "r.yaml"))


def test_what_anchors_share_is_set_in_one_place(tmp_path, load):
    load([{"sft": TRAINING}])
    text = (tmp_path / "recipe.yaml").read_text()
    first = "  - sft: &t {learning_rate: 1.0e-3, epochs: 1, max_length: 64}\n"
    chain = f"stages:\n{first}  - sft: {{<<: *t, as: b, epochs: 2}}\n"
    (tmp_path / "recipe.yaml").write_text(text.partition("stages:")[0] + chain + text[text.index("tasks:") :])
    loaded = recipe.load(str(tmp_path / "recipe.yaml"), ["b.max_length=32"])
    assert [(stage.config.epochs, stage.config.max_length) for stage in loaded.stages] == [(1, 64), (2, 32)]


def test_a_key_is_documented_where_a_user_would_look(load):
    from bloomery.pipelines.schema import documentation

    assert documentation("stages.sft.epochs") == documentation("sft.epochs")
    assert documentation("quantisation.0.scheme") == documentation("quantisation.scheme")
    assert documentation("evaluation.lm_eval.tasks").startswith("tasks (list[str], required)\n")


def test_a_stage_goes_on_from_the_model_that_it_names_and_reads_those_of_others(load):
    merging = {"method": "ties", "density": 0.2, "models": [{"stage": "b"}, {"model": "org/other"}, {"stage": "a"}]}
    again = {"as": "half", "method": "linear", "models": [{"stage": "start"}, {"stage": "merging"}]}
    chain = [
        {"sft": {"as": "a", **TRAINING}},
        {"sft": {"as": "b", "from": "start", **TRAINING}},
        {"merging": {"from": "start", **merging}},
        {"sft": {"as": "c", **TRAINING}},
        {"merging": again},
    ]
    loaded = load(chain, ["b.from=start", "merging.density=0.3"])
    found = wiring(loaded)
    assert found["b"]["base_model"] == "preflight.start"
    read = {"base_model": "preflight.start", "outside": "preflight.outside"}
    assert found["merging"] == {**read, "first": "b.model", "second": "a.model"}
    assert found["c"]["base_model"] == "merging.model"
    # It names none from outside, and so does not depend on them.
    assert found["half"] == {"base_model": "c.model", "first": "preflight.start", "second": "merging.model"}
    assert [one.model for one in loaded.preflight().outside] == ["org/other"]
    assert loaded.stages[2].config.density == 0.3
    assert loaded.model_dump(mode="json")["stages"][1]["sft"]["from"] == "start"


WATCHED = {"path": "v.jsonl"}


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"nas": {"num_hidden_layers": [2], "max_bytes": 9}}, "stages.nas: needs rows of a split `validation`"),
        ({"sft": {**TRAINING, "best_by": "score", "as": "last"}}, "stages.last: needs questions of a split `validat"),
    ],
)
def test_what_a_stage_is_judged_by_has_to_be_there(load, stage, told):
    """A search among sub-networks is judged by texts, too; the score of a fine-tuning by questions alone."""
    chain = [{"sft": TRAINING}, stage]
    with pytest.raises(ConfigError, match=told):
        load(chain)
    test, train = {"test": {"path": "t.jsonl"}}, {"train": {"path": "q.jsonl"}}
    asked = {"t": {**QUESTIONS, "splits": {**train, **test, "validation": WATCHED}}}
    load(chain, tasks=asked)
    load(chain, tasks={"t": {**QUESTIONS, "splits": {**train, **test, "served": {**WATCHED, "joins": "validation"}}}})
    texts = {"t": {**QUESTIONS, "splits": {**train, **test}}, "p": {**TEXTS, "splits": {"validation": WATCHED}}}
    if "nas" in stage:
        load(chain, tasks=texts)
    else:
        with pytest.raises(ConfigError, match=told):
            load(chain, tasks=texts)


def test_adapters_that_no_stage_trains_are_not_put_side_by_side(load):
    def chain(**given):
        one = {"sft": {"as": "one", **TRAINING, **given}}
        two = {"sft": {"as": "two", "from": "start", **TRAINING, "adapter": {"kind": "pissa"}}}
        names = [{"stage": "one"}, {"stage": "two"}]
        return [one, two, {"merging": {"from": "start", "method": "lora_concatenation", "models": names}}]

    assert load(chain(adapter={})).stages[2].config.needed_adapters == ["one", "two"]
    with pytest.raises(ConfigError, match="adapter of stage one, which trains none; add `adapter: {}` to it$"):
        load(chain())
    with pytest.raises(ConfigError, match="adapter of stage one, which trains an adapter of kind dora; add"):
        load(chain(adapter={"kind": "dora"}))


def test_a_model_is_pruned_healed_and_gone_back_with(load):
    validated = {"t": {**QUESTIONS, "splits": {name: {"path": "q.jsonl"} for name in ("train", "validation", "test")}}}
    chain = [
        {"sft": TRAINING},
        {"nas": {"num_hidden_layers": [2], "max_bytes": 9}},
        {"pruning": {"intermediate_size": 8}},
        {"sft": {"as": "healed", **TRAINING}},
        {"pruning": {"as": "ticket", "sparsity": "2:4", "importance": "magnitude", "rewind": {"stage": "sft"}}},
        {"sft": {"as": "last", "keep_zeros": True, **TRAINING}},
    ]
    found = wiring(load(chain, tasks=validated))
    chats = found["sft"]["chats"]
    assert found["nas"] == {"base_model": "sft.model", "chats": chats, "tasks": "preflight.tasks"}
    assert found["pruning"] == {"base_model": "nas.model", "chats": chats}
    assert found["healed"]["base_model"] == "pruning.model"
    assert found["ticket"] == {"base_model": "healed.model", "chats": chats, "first": "sft.model"}
    assert found["evaluation_pruning"]["model"] == "pruning.model"
    unlabelled = {"t": {**QUESTIONS, "splits": {"test": {"path": "t.jsonl"}}}}
    with pytest.raises(ConfigError, match="stages.pruning: reads chats .chat/2., which nothing before it writes"):
        load([{"pruning": {"intermediate_size": 8}}], tasks=unlabelled)


def test_folders_of_models_are_meant_from_the_recipe(load, tmp_path):
    (tmp_path / "other").mkdir()
    merging = {"method": "linear", "models": [{"model": "other"}, {"model": "./later", "revision": "v2"}]}
    found = load([{"merging": merging}]).preflight().outside
    assert [(one.model, one.revision) for one in found] == [
        (str(tmp_path / "other"), "main"),
        (str(tmp_path / "later"), "v2"),
    ]
    with pytest.raises(ConfigError, match="merging.models.0: found .* expected one of `stage`"):
        load([{"merging": {"method": "linear", "models": [{}, {"stage": "start"}]}}])


@pytest.mark.parametrize(
    ("chain", "told"),
    [
        (
            [{"sft": {"as": "one", **TRAINING}}, {"merging": {"method": "linear", "models": [{"stage": "oen"}] * 2}}],
            "stages.merging: no stage oen before it writes a model; did you mean 'one'?",
        ),
        (
            [{"sft": {"from": "sft", **TRAINING}}],
            "stages.sft: no stage sft before it writes a model; expected one of s",
        ),
        ([{**CURATION}, {"dedup": {"from": "start"}}, {"cpt": TRAINING}], "stages.dedup.from: dedup reads no model"),
        (
            [
                *({"sft": {"as": f"s{number}", **TRAINING}} for number in range(5)),
                {"merging": {"method": "linear", "models": [{"stage": f"s{number}"} for number in range(5)]}},
            ],
            "stages.merging: names 5 stages, and merging reads the models of at most 4",
        ),
        ([{"sft": {"as": "start", **TRAINING}}], "stages: start names something else in every run"),
        (
            [{"sft": TRAINING}, {"distillation": {**TRAINING, "teacher": {"stage": "sft"}}}],
            "stages.distillation: names sft, whose model is the very one that it trains; expected an earlier one",
        ),
        (
            [{"distillation": {**TRAINING, "from": "start", "teacher": {"stage": "start"}}}],
            "stages.distillation: names start, whose model is the very one",
        ),
    ],
)
def test_models_that_no_stage_before_writes_are_told(load, chain, told):
    with pytest.raises(ConfigError) as error:
        load(chain)
    assert told in str(error.value), str(error.value)


def test_a_reward_model_is_read_where_there_is_one_and_missed_where_the_settings_need_it(load):
    learning = [{"sft": TRAINING}, "rejection_sampling", {"reward_model": TRAINING}, {"grpo": TRAINING}]
    found = wiring(load(learning))
    assert found["grpo"]["reward_model"] == "reward_model.reward_model"
    assert found["grpo"]["base_model"] == "sft.model" and "reward_model" not in found["rejection_sampling"]
    assert "reward_model" not in wiring(load([{"grpo": TRAINING}]))["grpo"]
    alone = {"grpo": {**TRAINING, "rewards": {"verifier": 0}}}
    with pytest.raises(ConfigError, match="stages.grpo: reads reward_model .* add a stage reward_model"):
        load([alone])
    with pytest.raises(ConfigError, match="stages.rejection_sampling: reads reward_model"):
        load([{"rejection_sampling": {"judge": "reward_model"}}, {"sft": TRAINING}])
    assert wiring(load([{"sft": TRAINING}, "rejection_sampling", {"reward_model": TRAINING}, alone]))


def test_a_task_has_the_name_of_its_stage(load):
    chain = [{"sft": TRAINING}, {"sft": {"as": "again", **TRAINING}}]
    loaded = load(chain, quantisation=[{"scheme": "int8_weight_only"}])
    spec = build(loaded).pipeline_spec
    named = {task.task_info.name: key for key, task in spec.root.dag.tasks.items()}
    # The key is what the API and the pods' nodes are called by; Kubernetes has no underscores.
    single = [stage for stage in stages(loaded) if not stage.startswith(("ptq_", "evaluation_ptq_"))]
    assert named == {**{stage: stage.replace("_", "-") for stage in single}, "variants": "for-loop-1"}
    (loop,) = (component for component in spec.components.values() if component.dag.tasks)
    assert set(loop.dag.tasks) == {"quantisation-of-variant", "evaluation-of-variant"}


def test_a_mistake_in_chats_is_told_once_by_the_name_that_the_recipe_has_for_it(load):
    with pytest.raises(ConfigError) as caught:
        load([{"sft": {**TRAINING, "rank": 3}}], chats=[{"name": "own", "path": 3}])
    told = str(caught.value).split("\n")
    assert [line.split(":")[0] for line in told] == ["sft.rank", "chats.0.path"], told
