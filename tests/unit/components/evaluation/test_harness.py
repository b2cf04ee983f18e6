"""Tasks of lm-eval from local files, on a real, tiny model."""

import importlib.util
import json

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError, DataError, MissingExtraError
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring import lm_eval_tasks
from bloomery.components.core.scoring.lm_eval_tasks import LmEvalConfig
from bloomery.components.evaluation import harness
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.evaluation.step import run
from bloomery.pipelines.scores import Scores

installed = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not installed, reason="lm-eval is not installed: pip install 'bloomery[lm-eval]'")

TASK = """\
task: colours
dataset_path: json
dataset_kwargs: {data_files: colours.jsonl}
test_split: train
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
doc_to_choice: [red, blue]
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
metadata: {version: 1.5}
"""


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tmp_path / "colours"
    folder.mkdir()
    rows = [{"question": f"Colour of {i // 2 * 2}?", "answer": ["red", "blue"][i // 2 % 2]} for i in range(8)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(TASK)
    return folder / "colours.yaml"


@pytest.fixture
def tasks(make_tasks, task_file):
    folder = make_tasks({}, [])
    lm_eval_tasks.take([str(task_file)], folder)
    artifact.seal(folder, "tasks/1")
    return folder


@pytest.mark.skipif(installed, reason="lm-eval is installed")
def test_without_the_extra_the_pip_line_is_told(tmp_path, task_file):
    with pytest.raises(MissingExtraError, match=r"pip install 'bloomery\[lm-eval\]'"):
        lm_eval_tasks.take([str(task_file)], tmp_path / "tasks")


@needs_harness
def test_each_document_is_a_row_and_the_bos_policy_is_recorded(tmp_path, tiny_model, tasks, task_file):
    settings = LmEvalConfig(tasks=[str(task_file)], num_fewshot=1, limit=6, add_bos_token=False)
    for name in ("a", "b"):
        config = EvaluationConfig(lm_eval=settings, repeats=2)
        metrics = run(config, model=tiny_model, tasks=tasks, results=tmp_path / name)
    first, second = (artifact.read_manifest(tmp_path / name) for name in ("a", "b"))
    assert first.digest == second.digest
    rows = artifact.read_table(tmp_path / "a", "eval_result/2").to_pylist()
    assert len({row["id"] for row in rows}) == len(rows) == 6  # though each document stands there twice
    assert all(row["score"] == (row["response"] == row["reference"]) for row in rows)
    assert {(row["task"], row["split"], row["metric"], row["repeat"]) for row in rows} == {
        ("lm_eval/colours", "test", "acc", 0)
    }
    assert metrics["evaluation/lm_eval/colours.test.acc"] == sum(row["score"] for row in rows) / 6
    assert json.loads((tmp_path / "a" / "lm_eval.json").read_text()) == {
        "lm_eval": lm_eval_tasks.harness_version(),
        "add_bos_token": False,
        "texts_begin_with_bos": False,
        "apply_chat_template": False,
        "limit": 6,
        "tasks": {
            "colours": {"version": 1.5, "num_fewshot": 1, "metric": "acc", "filter": "none", "documents": 6},
        },
    }
    (part,) = Scores({"base": rows, "dpo": rows}, {}).parts()
    assert part["title"] == "General tasks" and part["rivals"] == ["base"]


@needs_harness
@pytest.mark.parametrize("wanted", [True, False])
def test_the_bos_policy_is_what_the_texts_begin_with(tiny_model, tasks, task_file, wanted):
    from tokenizers.processors import TemplateProcessing

    generator = Generator.load(tiny_model)
    fast = generator.tokenizer
    fast.bos_token = "<|user|>"
    fast.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", fast.bos_token_id)]
    )
    settings = LmEvalConfig(tasks=[str(task_file)], add_bos_token=wanted)
    _, measured = harness.answer(generator, settings, tasks)
    assert measured["texts_begin_with_bos"] is wanted


@needs_harness
def test_what_stands_in_the_tasks_follows_the_documents(tmp_path, make_tasks, task_file):
    def digest(name):
        folder = tmp_path / name
        lm_eval_tasks.take([str(task_file)], folder)
        return json.loads((folder / "lm_eval.json").read_text())["tasks"]["colours"]["digest"]

    before = digest("before")
    data = task_file.with_name("colours.jsonl")
    data.write_text(data.read_text().replace("of 0", "of zero"))
    assert digest("after") != before


@needs_harness
def test_a_wrong_name_and_a_missing_file_are_told(tmp_path):
    with pytest.raises(ConfigError, match="no_such_task"):
        lm_eval_tasks.load(["no_such_task"], tmp_path)
    with pytest.raises(DataError, match="no file"):
        lm_eval_tasks.take([str(tmp_path / "none.yaml")], tmp_path)
