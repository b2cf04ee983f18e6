"""The lists of stages in the READMEs are recipes: each validates, and its wiring is what the text says."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
import yaml

from bloomery.pipelines import recipe
from bloomery.pipelines.post_training import build

COMPONENTS = Path(recipe.__file__).parents[1] / "components"


def lists(step: str) -> list[list]:
    """The lists of stages in a step's README."""
    text = (COMPONENTS / step / "README.md").read_text(encoding="utf-8")
    blocks = [part.partition("\n\n")[0] for part in text.split("\n\n    stages:\n")[1:]]
    return [yaml.safe_load(textwrap.dedent(block)) for block in blocks]


@pytest.fixture
def wiring(tmp_path):
    """By stage, the stage and output that each of its inputs comes from, in the compiled pipeline."""

    def go(chain):
        rows = {name: {"path": f"{name}.jsonl"} for name in ("train", "unlabelled", "validation", "test")}
        question = {"templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
        values = {"name": "mine", "registered_model": "m", "base_model": "org/model", "stages": chain}
        values["tasks"] = {"t": {"role": "domain", **question, "splits": rows}}
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
        loaded = recipe.load(str(tmp_path / "recipe.yaml"))
        dag = build(loaded).pipeline_spec.root.dag
        shown = {name: task.task_info.name for name, task in dag.tasks.items()}
        found: dict[str, dict[str, str]] = {}
        for name, task in dag.tasks.items():
            for port, source in task.inputs.artifacts.items():
                made = source.task_output_artifact
                found.setdefault(shown[name], {})[port] = f"{shown[made.producer_task]}.{made.output_artifact_key}"
        return loaded, found

    return go


def test_a_teacher_from_outside(wiring, tmp_path):
    loaded, found = wiring(lists("distillation")[0])
    assert found["distillation"] == {
        **{"chats": "preflight.seeds", "tasks": "preflight.tasks"},
        **{"base_model": "preflight.start", "outside": "preflight.outside"},
    }
    assert [one.model for one in loaded.preflight().outside] == [str(tmp_path.parent / "models" / "large")]


def test_over_several_sizes_each_names_its_teacher(wiring):
    loaded, found = wiring(lists("distillation")[1])
    assert found["halfway"]["teacher"] == "large.model" and found["halfway"]["base_model"] == "medium.model"
    assert found["distillation"]["teacher"] == "halfway.model" and found["distillation"]["base_model"] == "small.model"
    assert found["medium"] == {"outside": "preflight.outside"} and "outside" not in found["halfway"]
    assert len(loaded.preflight().outside) == 2 and loaded.last_model() == "distillation"


def test_from_a_teachers_answers_alone(wiring):
    for chain in (lists("distillation")[2], lists("adoption")[0]):
        _, found = wiring(chain)
        student = next(name for name in ("student", "sft") if name in found)
        assert found["rejection_sampling"]["base_model"] == "teacher.model"
        assert found[student]["base_model"] == "small.model"
        assert found[student]["chats"] == "rejection_sampling.sampled_chats"
    _, found = wiring(lists("distillation")[3])
    assert found["rejection_sampling"]["base_model"] == "teacher.model"
    assert found["student"]["base_model"] == "preflight.start"


def test_from_small_to_large_and_back(wiring):
    _, found = wiring(lists("distillation")[4])
    assert found["large"]["base_model"] == "untuned.model"
    assert found["distillation"]["base_model"] == "small.model" and found["distillation"]["teacher"] == "large.model"
    assert len(lists("distillation")) == 5 and len(lists("adoption")) == 1
