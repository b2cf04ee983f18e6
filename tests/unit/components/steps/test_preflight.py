import importlib.util
import json
import shutil
import sys

import pytest
from published import SHARDS, in_the_makers_form_too, weights_in

from bloomery.components.core import artifact
from bloomery.components.core.data.chat_forms import read_pair
from bloomery.components.core.data.chats import as_text, chat, message
from bloomery.components.core.errors import BloomeryError, ConfigError, DataError, MissingExtraError, ModelError
from bloomery.components.core.modelling import cards, checkpoints, inspection
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.modelling.preference_rows import usable_pairs
from bloomery.components.core.records import Preference
from bloomery.components.core.registry import registry
from bloomery.components.core.scoring.contamination import evaluation_items
from bloomery.components.core.scoring.tasks import Tasks, Template, ask
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.preflight.memory import warn_of_memory
from bloomery.components.preflight.step import run

SOME_TASK = {
    "t": {
        "role": "domain",
        "templates": [{"prompt": "{q}", "answer": "{a}"}],
        "splits": {"test": {"path": "t.jsonl"}},
        "verifier": {"kind": "exact"},
    }
}
OUTPUTS = (
    *("sources", "tasks", "seeds", "known", "encoder", "outside"),
    *("base_model", "start", "champion", "champion_version"),
)


@pytest.fixture
def call(tmp_path, tiny_model, database, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    questions = tmp_path / "q.jsonl"
    rows = [
        {"q": f"name of {n}?", "sql": f"SELECT name FROM t WHERE id = {n}", "split": s}
        for n, s in ((1, "train"), (2, "test"))
    ]
    rows.append({"q": "NAME of  2?", "sql": "SELECT name FROM t WHERE id = 2", "split": "train"})
    questions.write_text("\n".join(json.dumps(row) for row in rows) + "\n{broken\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")

    def split(name):
        return {"path": str(questions), "where": {"split": name}, "templates": [{"prompt": "{q}", "answer": "{sql}"}]}

    values = {
        "base_model": str(tiny_model),
        "registered_model": "m",
        "sources": [{"name": "docs", "path": str(tmp_path / "docs")}],
        "tasks": {
            "sql": {
                "role": "domain",
                "splits": {"train": split("train"), "test": split("test")},
                "verifier": {"kind": "sql_execution", "databases": [str(database)]},
            }
        },
    }

    def go(change=lambda values: None):
        change(values)
        out = {name: tmp_path / "out" / name for name in OUTPUTS}
        return run(PreflightConfig.model_validate(values), **out), out

    return go


def test_what_comes_from_outside_becomes_artifacts(call, tiny_model, caplog):
    metrics, out = call()
    assert "tasks.sql.splits.test: the gate will judge by n = 1, where a score has a standard error of" in caplog.text
    tasks = Tasks(out["tasks"])
    assert [as_text(row.messages) for row in tasks.prompts("train")] == ["name of 1?"]
    assert [as_text(row.messages) for row in tasks.prompts()] == ["name of 2?"]
    assert tasks.verify("sql", "SELECT 'b'", tasks.prompts()[0].reference) == (1.0, "equal rows")
    manifest = artifact.read_manifest(out["tasks"], "tasks/1")
    # Each split reads the whole file and meets the broken line, which is one row of the task.
    assert manifest.dropped == {"broken_json": 1, "in_evaluation_set": 1}
    assert metrics["preflight/lost_sql"] == 1
    (seed,) = artifact.read_table(out["seeds"], "chat/2").to_pylist()
    assert [turn["content"] for turn in seed["messages"]] == ["name of 1?", "SELECT name FROM t WHERE id = 1"]
    assert (seed["id"], seed["origin"], seed["task"]) == (tasks.prompts("train")[0].id, "seed", "sql")
    assert artifact.read_manifest(out["champion"], "model/1").files == {}
    assert artifact.read_table(out["sources"], "source/1").num_rows == 1
    assert metrics["preflight/prompts"] == 2


def test_the_same_rows_in_another_place_are_the_same_tasks(call, tmp_path):
    first = artifact.read_manifest(call()[1]["tasks"]).digest
    (tmp_path / "moved").mkdir()
    shutil.move(tmp_path / "q.jsonl", tmp_path / "moved" / "q.jsonl")

    def move(values):
        for split in values["tasks"]["sql"]["splits"].values():
            split["path"] = str(tmp_path / "moved" / "q.jsonl")

    shutil.rmtree(tmp_path / "out")
    assert artifact.read_manifest(call(move)[1]["tasks"]).digest == first


def test_weights_that_are_not_loaded_are_not_taken_in(call, tmp_path, tiny_model):
    published = in_the_makers_form_too(shutil.copytree(tiny_model, tmp_path / "published"))
    named = NamedModel(model=str(published))

    def give(values):
        given = {"base_model": str(published), "encoder": str(published), "outside": [named.model_dump()]}
        values |= given

    _, out = call(give)
    for folder in (out["base_model"], out["start"], out["encoder"], out["outside"] / named.folder):
        assert weights_in(folder) == SHARDS


def test_models_that_stages_name_are_taken_in_and_told_by_content(call, tmp_path, tiny_model):
    other = shutil.copytree(tiny_model, tmp_path / "other")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    named = [NamedModel(model=str(folder)) for folder in (other, adapter)]

    def give(values):
        values["outside"] = [one.model_dump() for one in named]

    def taken():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        return artifact.read_manifest(call(give)[1]["outside"], "models/1")

    first = taken()
    assert {f"{named[0].folder}/model.safetensors", f"{named[1].folder}/adapter_config.json"} <= first.files.keys()
    assert f"{named[0].folder}/{artifact.MANIFEST}" not in first.files and taken().digest == first.digest
    (other / "config.json").write_text((other / "config.json").read_text() + "\n")
    assert taken().digest != first.digest
    (other / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="other: found no weights; expected"):
        call(give)


def test_every_problem_is_told_at_once(call, tmp_path):
    def spoil(values):
        values["base_model"] = str(tmp_path)
        values["sources"][0]["path"] = str(tmp_path / "nothing")
        values["tasks"]["sql"]["splits"]["test"]["templates"][0]["prompt"] = "{question}"

    with pytest.raises(BloomeryError) as caught:
        call(spoil)
    told = str(caught.value)
    assert "nothing: no file there" in told
    assert "tasks.sql.splits.test: the template '{question}' does not fit" in told and "q, sql, split" in told
    assert "no config.json" in told


def test_an_empty_split_says_so(call):
    def spoil(values):
        values["tasks"]["sql"]["splits"]["test"]["where"] = {"split": "exam"}

    with pytest.raises(DataError, match="tasks.sql.splits.test: no usable row"):
        call(spoil)


def test_a_reference_that_its_verifier_refuses_is_found_before_training(call):
    def spoil(values):
        values["tasks"]["sql"]["splits"]["test"]["templates"][0]["answer"] = "SELEC {sql}"

    with pytest.raises(DataError, match="the verifier refuses a reference answer"):
        call(spoil)


def test_worked_solutions_and_bare_numbers_are_both_references(call, tmp_path):
    def worked(values, *, train="{a}"):
        rows = [
            {"q": "3 at $2?", "a": "3*2=<<3*2=6>>6\n#### 6", "split": "train"},
            {"q": "4 at $259?", "a": "4*259=<<4*259=1036>>1,036\n#### 1,036", "split": "test"},
            {"q": "Of 4, 8 are sold?", "a": "−4", "split": "test"},
        ]
        (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        task = values["tasks"]["sql"]
        task["verifier"] = {"kind": "numeric", "extract": r"#### (\S+)"}
        for name, split in task["splits"].items():
            split["templates"] = [{"prompt": "{q}", "answer": train if name == "train" else "{a}"}]

    tasks = Tasks(call(worked)[1]["tasks"])
    long, bare = tasks.prompts("test")
    assert tasks.verify("sql", "#### 1036", long.reference) == (1.0, "equal")
    assert tasks.verify("sql", "#### -4", bare.reference) == (1.0, "equal")
    with pytest.raises(DataError, match="verifier.extract finds no answer in what the model is to learn"):
        call(lambda values: worked(values, train="It is {q}"))


def test_a_reference_that_is_no_pattern_is_found_before_training(call, tmp_path):
    def patterns(values, second="a("):
        rows = [{"q": "1?", "a": "[0-9]+", "split": "train"}, {"q": "2?", "a": second, "split": "test"}]
        (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        values["tasks"]["sql"]["verifier"] = {"kind": "regex"}
        for split in values["tasks"]["sql"]["splits"].values():
            split["templates"] = [{"prompt": "{q}", "answer": "{a}"}]

    with pytest.raises(DataError, match=r"tasks.sql.splits.test: the reference 'a\(' is no regular expression"):
        call(patterns)
    shutil.rmtree(tmp_path / "out")
    tasks = Tasks(call(lambda values: patterns(values, "b+"))[1]["tasks"])
    assert tasks.verify("sql", "bb", tasks.prompts("test")[0].reference) == (1.0, "match")


def test_a_field_of_conversations_that_no_row_has_is_told(call):
    def ask_of(field):
        def change(values):
            values["tasks"]["sql"]["splits"]["test"]["templates"] = [{"messages": field}]

        return change

    with pytest.raises(DataError, match=r"no usable row in .*: 1 missing_field.*; the first is .*q.jsonl row 2, miss"):
        call(ask_of("mesages"))
    with pytest.raises(ValueError, match="'{messages}' is a template; expected the name of a field, 'messages'"):
        call(ask_of("{messages}"))


def test_chats_longer_than_a_stage_takes_are_told_before_it_runs(call, tmp_path, caplog):
    def chats_of(values):
        long = {"prompt": "a" * 80, "completion": "b"}
        rows = [{"prompt": "a", "completion": "b"}, {"prompt": "c", "completion": "d"}, long, {"no": "chat"}]
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
        values["chat_sources"] = [{"name": "own", "path": str(tmp_path / "own.jsonl")}]
        values["max_length"] = 60

    # One question of the task and three chats, of which one has more than 60 bytes.
    assert call(chats_of)[0]["preflight/too_long_fraction"] == 0.25
    assert "25.0 % of 4 chats looked at are longer than max_length = 60 tokens" in caplog.text
    assert [record.levelname for record in caplog.records if "longer than max_length" in record.message] == ["WARNING"]


def test_of_a_file_that_is_sorted_by_length_more_than_its_beginning_is_measured(call, tmp_path):
    def sorted_chats(values):
        rows = [{"prompt": "a" * (place // 25), "completion": "b"} for place in range(2_000)]
        (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
        values["chat_sources"] = [{"name": "own", "path": str(tmp_path / "own.jsonl")}]
        values["max_length"] = 44

    # Of 80 lengths those of 40 bytes and more are too long; 200 rows tell a half to within 0.035 (one standard error).
    assert call(sorted_chats)[0]["preflight/too_long_fraction"] == pytest.approx(0.5, abs=0.1)


def test_pairs_longer_than_a_stage_takes_are_counted_as_dpo_counts_them(call, tmp_path, tiny_model, caplog):
    # Tokens are bytes: `<|user|>` + question + `<|assistant|>`, then the longer answer and its end.
    pairs = [("a" * 40, "b", "c"), ("a", "b" * 50, "c"), ("a" * 40, "b" * 17, "c"), ("a" * 40, "b" * 18, "c")]
    rows = [{"prompt": q, "chosen": c, "rejected": r} for q, c, r in pairs]
    rows += [{"prompt": "a" * 90, "completion": "b", "label": False}, {"no": "pair"}]

    def pairs_of(values):
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
        values["preference_sources"] = [{"name": "pairs", "path": str(tmp_path / "pairs.jsonl")}]
        values["pair_max_length"] = 60

    metrics, out = call(pairs_of)
    # 44, 54, 60 and 61 tokens; an answer without its rival is a row, but no pair that could be too long.
    assert metrics["preflight/too_long_pair_fraction"] == 0.2
    told = "20.0 % of 5 pairs looked at are longer than max_length = 60 tokens; the longest have [61, 60, 54]"
    assert [record.levelname for record in caplog.records if told in record.message] == ["WARNING"]
    assert artifact.read_table(out["sources"], "source/1")["name"].to_pylist() == ["docs", "pairs"]
    _, tokenizer = checkpoints.load(tiny_model)
    stored = [{"id": "", **pair._asdict()} for pair in map(read_pair, rows[:5])]
    config = DpoConfig(learning_rate=1e-3, epochs=1, max_length=60)
    stored = [{"task": "", **row} for row in stored]
    artifact.write_rows(tmp_path / "stored", "preference/3", Preference.table(stored))
    with usable_pairs(tokenizer, tmp_path / "stored", config, "dpo") as (_, _, counted):
        assert counted["too_long_fraction"] == 0.2
    shutil.rmtree(tmp_path / "out")
    caplog.clear()
    assert call(lambda values: values.update(pair_max_length=61))[0]["preflight/too_long_pair_fraction"] == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "looked at" in record.message]


def questions(values, path, *lengths):
    """Make the test set questions of so many bytes."""
    rows = [{"q": "x" * length, "sql": "SELECT name FROM t WHERE id = 2"} for length in lengths]
    path.write_text("\n".join(json.dumps({**row, "n": n}) for n, row in enumerate(rows)))
    template = {"prompt": "{q}{n}", "answer": "{sql}"}
    values["tasks"]["sql"]["splits"]["test"] = {"path": str(path), "templates": [template]}


def test_questions_that_leave_no_room_for_an_answer_are_told_by_set(call, tmp_path, caplog):
    # The context has 256 tokens, of which the answer takes 96, `<|user|>` and `<|assistant|>` two, the number one.
    metrics, _ = call(lambda values: questions(values, tmp_path / "test.jsonl", 157, 158, 10, 20))
    assert metrics["preflight/too_long_fraction_sql.test"] == 0.25
    told = "25.0 % of 4 questions of sql.test looked at have more than the 160 tokens that the model's context leaves"
    assert [record.levelname for record in caplog.records if told in record.message] == ["WARNING"]
    shutil.rmtree(tmp_path / "out")
    assert "preflight/too_long_fraction_sql.test" not in call(lambda values: values.update(limit=1))[0]


@pytest.mark.parametrize("too_long", ["drop", "error"])
def test_a_set_of_which_nothing_would_be_evaluated_ends_the_run(call, tmp_path, too_long):
    def change(values):
        values["too_long"] = too_long
        questions(values, tmp_path / "test.jsonl", *[200] * 3)

    expected = r"evaluation: tasks\.sql\.test: 3 of 3 questions do not fit: the longest has 203 tokens, .* leaves 160 "
    with pytest.raises(DataError, match=expected) as caught:
        call(change)
    assert len(str(caught.value).splitlines()) == 1


def test_a_set_whose_beginning_alone_is_too_long_can_be_evaluated(call, tmp_path):
    lengths = [200] * inspection.NUM_QUESTIONS + [3] * 50
    metrics, _ = call(lambda values: questions(values, tmp_path / "test.jsonl", *lengths))
    assert metrics["preflight/too_long_fraction_sql.test"] == 0.8
    shutil.rmtree(tmp_path / "out")
    cut, _ = call(lambda values: values.update(too_long="truncate_left"))
    assert cut["preflight/too_long_fraction_sql.test"] == 1.0  # of the first 200, and none is left out


def test_a_base_model_without_a_template_is_refused(call, tiny_model, tmp_path):
    broken = shutil.copytree(tiny_model, tmp_path / "broken")
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(BloomeryError, match="no chat template"):
        call(lambda values: values.update(base_model=str(broken)))


def test_a_path_that_is_no_folder_is_not_taken_for_a_hub_name(call):
    with pytest.raises(DataError, match="base_model: no folder /nowhere/model"):
        call(lambda values: values.update(base_model="/nowhere/model"))


def test_a_null_is_an_empty_answer(call, tmp_path):
    with (tmp_path / "q.jsonl").open("a") as stream:
        stream.write('\n{"q": "name of 3?", "sql": null, "split": "train"}\n')
    manifest = artifact.read_manifest(call()[1]["tasks"], "tasks/1")
    assert manifest.dropped["empty_answer"] == 1


def test_a_template_that_passed_is_not_rendered_again(call, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "store"))
    own = shutil.copytree(tiny_model, tmp_path / "own")

    def change(values):
        values["base_model"] = str(own)

    call(change)
    passed = [*(tmp_path / "store" / "preflight").iterdir()]
    before = {file: file.stat().st_mtime_ns for file in passed}
    shutil.rmtree(tmp_path / "out")
    call(change)
    assert before and before == {file: file.stat().st_mtime_ns for file in passed[0].parent.iterdir()}
    template = own / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|eos|>", "</s>"))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ModelError, match="'</s>', which is no token of the tokenizer"):
        call(change)


def test_what_a_base_model_lacks_is_supplied_to_every_step(call, tiny_model, tmp_path):
    bare = shutil.copytree(tiny_model, tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    (bare / "generation_config.json").write_text('{"eos_token_id": 9}')
    before = {file.name: file.read_bytes() for file in bare.iterdir()}
    _, out = call(lambda values: values.update(base_model=str(bare), chat_template="chatml"))
    for folder in (out["base_model"], out["start"]):
        model, tokenizer = checkpoints.load(folder)
        checkpoints.check_template(tokenizer, folder)
        assert "<|im_start|>" in tokenizer.chat_template
        assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 9]
        artifact.read_manifest(folder, "model/1")
    assert {file.name: file.read_bytes() for file in bare.iterdir()} == before


def test_only_evaluation_sets_need_the_field_of_the_group(call, tmp_path):
    row = {"q": "name of 5?", "sql": "SELECT name FROM t WHERE id = 5"}
    (tmp_path / "served.jsonl").write_text(json.dumps(row))

    def group(values):
        values["tasks"]["sql"]["group"] = "{split}"
        served = {"path": str(tmp_path / "served.jsonl"), "templates": [{"prompt": "{q}", "answer": "{sql}"}]}
        values["tasks"]["sql"]["splits"]["unlabelled"] = served

    tasks = Tasks(call(group)[1]["tasks"])
    assert [(as_text(row.messages), row.group) for row in tasks.prompts("unlabelled", "test")] == [
        ("name of 2?", "test"),
        ("name of 5?", ""),
    ]


def test_a_perturbed_set_pairs_with_its_clean_parent(call):
    metrics, out = call(lambda values: values["tasks"]["sql"].update(perturbations=["typos", "spacing"]))
    rows = {row.split: row for row in Tasks(out["tasks"]).prompts()}
    assert set(rows) == {"test", "test+typos", "test+spacing"} and metrics["preflight/prompts"] == 4
    assert len({row.id for row in rows.values()}) == 1 and len({row.reference for row in rows.values()}) == 1
    assert len({as_text(row.messages) for row in rows.values()}) == 3
    manifest = artifact.read_manifest(out["tasks"], "tasks/1")
    assert manifest.rows_made == 2 and manifest.rows == 4


def test_a_refusal_task_wants_one_of_two_references(call):
    def safety(values):
        task = values["tasks"]["sql"]
        task.update(role="safety", verifier={"kind": "refusal"}, splits={"test": task["splits"]["test"]})

    with pytest.raises(DataError, match="splits.test: .* expected `refuse` or `answer`"):
        call(safety)


def test_a_refusal_task_teaches_what_a_model_says_and_no_label(call):
    def safety(values):
        task = values["tasks"]["sql"]
        task.update(role="safety", verifier={"kind": "refusal"})
        task["splits"]["test"]["templates"] = [{"prompt": "{q}", "answer": "answer"}]

    def labels(values):
        safety(values)
        values["tasks"]["sql"]["splits"]["train"]["templates"] = [{"prompt": "{q}", "answer": "refuse"}]

    tasks = Tasks(call(safety)[1]["tasks"])
    assert [row.reference for row in tasks.prompts("train", "test")] == ["SELECT name FROM t WHERE id = 1", "answer"]
    with pytest.raises(DataError, match="splits.train: found the reference 'refuse', expected what the model is to"):
        call(labels)


def test_a_registry_that_takes_no_folder_is_told_before_training(call, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError) as caught:
        call(lambda values: values.update(models_uri="/here/models"))
    assert str(caught.value).count("takes no folder of this machine (/here/models)") == 1


def test_served_questions_join_a_split_in_their_own_phrasing(call, tmp_path):
    served = [{"prompt": "who is 1?", "label": "SELECT name FROM t WHERE id = 1"}, {"prompt": "?", "label": None}]
    (tmp_path / "served.jsonl").write_text("\n".join(map(json.dumps, served)))

    def join(values):
        task = values["tasks"]["sql"]
        task["group"] = "{split}"
        template = [{"prompt": "{prompt}", "answer": "{label}"}]
        path = str(tmp_path / "served.jsonl")
        task["splits"]["served"] = {"path": path, "joins": "train", "templates": template}
        task["splits"]["test_served"] = {"path": path, "group": "", "limit": 1, "templates": template}
        task["splits"]["test_served"]["where"] = {"prompt": "who is 1?"}

    def without_the_test(values):
        join(values)
        del values["tasks"]["sql"]["splits"]["test_served"]

    tasks = Tasks(call(without_the_test)[1]["tasks"])
    assert {as_text(row.messages) for row in tasks.prompts("train")} == {"name of 1?", "who is 1?"}
    assert {template.prompt for template in tasks.configs["sql"].templates_of("train")} == {"{q}", "{prompt}"}
    shutil.rmtree(tmp_path / "out")
    tasks = Tasks(call(join)[1]["tasks"])
    assert {(row.split, row.group) for row in tasks.prompts()} == {("test", "test"), ("test_served", "")}
    assert [as_text(row.messages) for row in tasks.prompts("train")] == ["name of 1?"]


def test_perturbed_questions_are_looked_for_in_documents_too(call):
    def perturb(values):
        values["tasks"]["sql"]["perturbations"] = ["spacing"]

    tasks = Tasks(call(perturb)[1]["tasks"])
    assert evaluation_items(tasks) == ([], 2)  # both forms of the question are too short to be told from prose
    assert [template.prompt for template in tasks.configs["sql"].templates_of("test+spacing")] == ["{q}"]


@pytest.mark.parametrize("asks", [{"optimizer": "adamw_8bit"}, {"adapter": {"kind": "qlora"}}])
def test_a_package_that_a_training_would_lack_is_told_here(call, monkeypatch, asks):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    named = {"sft_2": {"batch_size": 1, "max_length": 8, **asks}}
    with pytest.raises(MissingExtraError, match=r"sft_2\..* needs bitsandbytes: pip install 'bloomery\[bits"):
        call(lambda values: values.update(trainings=named))
    call(lambda values: values.update(on_accelerator=True))  # the image of an accelerator's tasks may hold it


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_a_recipe_with_tasks_of_lm_eval_ends_here_without_the_extra(call):
    with pytest.raises(MissingExtraError, match=r"pip install 'bloomery\[lm-eval\]'"):
        call(lambda values: values.update(lm_eval_tasks=["kmmlu"]))


def test_training_starts_from_the_champion_as_it_was_before_quantisation(call, tiny_model, tmp_path, monkeypatch):
    def digest_of(path):
        return artifact.read_manifest(path, "model/1").digest

    _, out = call(lambda values: values.update(start_from="champion"))
    assert digest_of(out["start"]) == digest_of(out["base_model"])  # no champion yet

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent, quantised = (shutil.copytree(tiny_model, tmp_path / name) for name in ("parent", "quantised"))
    for path in (parent, quantised):
        (path / "note.txt").write_text(path.name)
        artifact.seal(path, "model/1")
    published = checkpoints.publish(parent, str(tmp_path / "models"))
    version = registry.register("m", str(quantised), {registry.PARENT: published})
    registry.promote("m", version, expected_champion=None, why="a test")
    for start_from, version_started_from in (("base", ""), ("champion", "1")):
        shutil.rmtree(tmp_path / "out")
        _, out = call(lambda values, name=start_from: values.update(start_from=name))
        assert digest_of(out["champion"]) == digest_of(quantised)
        assert digest_of(out["start"]) == digest_of(parent if start_from == "champion" else out["base_model"])
        told = json.loads((out["champion_version"] / "champion.json").read_text())
        assert (told["champion_version"], told["started_from"]) == ("1", version_started_from)


def test_a_champion_without_a_parent_cannot_be_started_from(call, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    artifact.seal(tiny_model, "model/1")
    registry.promote("m", registry.register("m", str(tiny_model), {}), expected_champion=None, why="a test")
    with pytest.raises(ModelError, match="version 1 of m, the champion, was registered without its parent"):
        call(lambda values: values.update(start_from="champion"))


def test_lost_rows_are_told_once_with_the_first(call, caplog):
    call()
    (told,) = [record.getMessage() for record in caplog.records if "are lost" in record.getMessage()]
    assert "tasks.sql: 1 rows are lost: 1 broken_json; the first is " in told
    assert told.endswith("q.jsonl row 4, broken_json")


def test_an_empty_question_is_no_row(call, tmp_path):
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write(json.dumps({"q": "  ", "sql": "SELECT 1", "split": "train"}) + "\n")
    metrics, out = call()
    assert artifact.read_manifest(out["tasks"]).dropped["empty_question"] == 1 and metrics["preflight/lost_sql"] == 2


TURNS = [{"role": role, "content": text} for role, text in (("user", "hi"), ("assistant", "hello"), ("user", "id?"))]
ONE = {"role": "assistant", "content": "1"}
READ = [*chat("hi", "hello"), *chat("id?")]


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        ({"prompt": "{q}", "answer": "{a}"}, {"q": "id?", "a": "1"}, (chat("id?"), "1", "")),
        ({"prompt": "{q}", "system": "be {how}", "answer": "{a}"}, {"q": "id?", "how": "brief", "a": "1"},
         ([message("system", "be brief"), *chat("id?")], "1", "")),
        ({"messages": "turns", "answer": "{a}"}, {"turns": TURNS, "a": "1"}, (READ, "1", "")),
        ({"messages": "turns", "answer": "{a}"}, {"turns": json.dumps(TURNS), "a": "1"}, (READ, "1", "")),
        ({"messages": "data.turns", "system": "s"}, {"data": {"turns": [*TURNS, ONE]}},
         ([message("system", "s"), *READ], "1", "")),
        ({"messages": "c"}, {"c": [{"from": "human", "value": "id?"}, {"from": "gpt", "value": "1"}]},
         (chat("id?"), "1", "")),
        ({"answer": "{text}"}, {"text": "Once."}, ([], "Once.", "")),
        ({"prompt": "{q}", "answer": "{a}"}, {"q": "id?", "a": None}, (chat("id?"), "", "empty_answer")),
        ({"prompt": "{q}", "answer": "{a}"}, {"q": " ", "a": "1"}, (chat(" "), "1", "empty_question")),
        ({"messages": "turns"}, {"turns": TURNS}, ([], "", "no_answer_at_end")),
        ({"messages": "turns", "answer": "{a}"}, {"turns": TURNS[:2], "a": "1"}, ([], "", "no_question_at_end")),
    ],
)  # fmt: skip
def test_a_question_is_messages_with_a_reference(template, row, expected):
    asked = ask(Template(**template), row)
    assert (asked.messages, asked.reference, asked.problem) == expected


def test_a_template_asks_in_one_way():
    for values in ({"prompt": "{q}", "messages": "m"}, {"prompt": "{q}"}, {"system": "s", "answer": "{a}"}):
        with pytest.raises(ValueError):
            Template(**values)
    assert ask(Template(messages="a.b"), {"a": {}}).problem == "missing_field"
    assert ask(Template(messages="a.b"), {"a": {"b": None}}).problem == "no_turns"


def test_conversations_are_asked_perturbed_and_told_apart(call, tmp_path):
    def change(values):
        turns = [*TURNS[:2], {"role": "user", "content": "what is the name of the second row?"}]
        systems = [{"role": "system", "content": f"s{n}"} for n in (1, 2)]
        rows = [{"m": [system, *turns], "sql": "SELECT 2", "split": "test"} for system in systems]
        (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
        template = {"messages": "m", "answer": "{sql}"}
        task = values["tasks"]["sql"]
        task["splits"]["test"] |= {"path": str(tmp_path / "m.jsonl"), "templates": [template]}
        task["perturbations"] = ["typos"]

    _, out = call(change)
    rows = Tasks(out["tasks"]).prompts()
    assert [row.split for row in rows] == ["test", "test", "test+typos", "test+typos"]
    assert len({row.id for row in rows}) == 2
    clean, harder = rows[0].messages, rows[2].messages
    assert harder[:-1] == clean[:-1] and harder[-1]["content"] != clean[-1]["content"]


def test_chat_files_are_fingerprinted_beside_documents(call, tmp_path):
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}')
    path = str(tmp_path / "chats.jsonl")
    _, out = call(lambda values: values.update(chat_sources=[{"name": "chats", "path": path}]))
    found = artifact.read_table(out["sources"], "source/1").select(["name", "uri"]).to_pylist()
    assert found[1] == {"name": "chats", "uri": path}
    with pytest.raises(ValueError, match="share the name docs"):
        call(lambda values: values.update(chat_sources=[{"name": "docs", "path": path}]))


def test_sources_without_a_conversation_are_told_before_anything_runs(call, tmp_path):
    """An empty file, one of other rows, one of broken lines, pairs that are none, and one that is not there."""
    held = {"empty": "", "other": '{"q": "a"}\n{"q": "b"}', "broken": "{", "pairs": '{"prompt": "a"}'}
    for name, text in held.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    given = {name: {"name": name, "path": str(tmp_path / f"{name}.jsonl")} for name in (*held, "absent")}

    def sources(values):
        values["preference_sources"] = [given.pop("pairs")]
        values["chat_sources"] = list(given.values())

    with pytest.raises(DataError) as caught:
        call(sources)
    told = str(caught.value).split("\n")
    parts = (
        f"empty: there is no row in {tmp_path}/empty.jsonl",
        "other.jsonl can be learnt from (2 unknown_form; the first is",
        "broken.jsonl can be learnt from (1 broken_json; the first is",
        "absent.jsonl: no file there",
        "pairs.jsonl can be learnt from (1 no_pair; the first is",
    )
    assert len(told) == 5 and all(part in line for part, line in zip(parts, told, strict=True)), told


@pytest.mark.parametrize(
    ("row", "kinds", "told"),
    [
        ({"completion": "b", "label": True}, ["pair"], "2 label; .*row 1, label: .* dpo learns from by `loss: kto`"),
        ({"completion": "b", "score": 3}, ["label", "pair"], "2 score; .*row 1, score: .* reward_model learns from"),
        ({"completion": "b", "label": True}, ["label", "pair"], ""),
        ({"completion": "b", "score": 3}, [], ""),
        ({"chosen": "b", "rejected": "c"}, ["pair"], ""),
    ],
)
def test_preferences_that_no_stage_learns_from_are_told_before_anything_runs(row, kinds, told, call, tmp_path):
    (tmp_path / "own.jsonl").write_text(json.dumps({"prompt": "a", **row}) + "\n" + json.dumps({"prompt": "d", **row}))

    def given(values):
        values["preference_sources"] = [{"name": "own", "path": str(tmp_path / "own.jsonl")}]
        values["pair_kinds"] = kinds

    if not told:
        call(given)
        return
    with pytest.raises(DataError, match=f"own: no row of .*own.jsonl can be learnt from .{told}"):
        call(given)


@pytest.mark.parametrize(("most_tokens", "is_refused"), [(70, True), (73, False), (0, False)])
def test_a_file_of_which_every_chat_is_too_long_is_refused_by_its_shortest(most_tokens, is_refused, call, tmp_path):
    rows = [{"prompt": "a" * size, "completion": "b"} for size in (80, 69, 90)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def chats_of(values):
        values |= {"chat_sources": [{"name": "own", "path": str(tmp_path / "own.jsonl")}], "most_tokens": most_tokens}

    if not is_refused:
        call(chats_of)
        return
    # Beside the bytes of question and answer stand two tokens for the turns and one for the end.
    told = r"chats: own: .*own.jsonl: every chat is too long: max_length allows 70 tokens, and the shortest has 73"
    with pytest.raises(DataError, match=told):
        call(chats_of)


def test_rows_of_an_older_version_are_refused(call, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, out = call()
    (part,) = out["tasks"].glob("part-*.parquet")
    table = pa.table({"id": ["1"], "prompt": ["?"]}, metadata={"schema": "prompt/1"})
    pq.write_table(table, part)
    with pytest.raises(DataError, match="holds prompt/1, but prompt/2 is read here: it was written by an older"):
        Tasks(out["tasks"])


def test_a_training_that_this_machine_has_no_memory_for_is_warned_of(call, tiny_model, caplog):
    def wanting(batch_size, **more):
        settings = {"batch_size": batch_size, "max_length": 1024, "precision": "fp32"}
        return lambda values: values.update(trainings={"sft": settings}, **more)

    def told():
        warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
        return [line for line in warned if "of memory are planned" in line]

    _, out = call(wanting(2**32))
    (line,) = told()
    assert line.startswith("sft: some ") and "what would fit: batch_size: " in line
    values = {"base_model": str(tiny_model), "registered_model": "m", "tasks": SOME_TASK}
    for change, count in ((wanting(1), 0), (wanting(2**32), 1), (wanting(2**32, on_accelerator=True), 0)):
        if count == 0 and cards.here().is_gpu:
            continue  # there it is this machine that trains
        caplog.clear()
        change(values)
        warn_of_memory(PreflightConfig.model_validate(values), out["base_model"])
        assert len(told()) == count
