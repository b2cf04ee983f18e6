"""One variant: exported, loaded again by a fresh process, measured, the same each time."""

import json
import shutil
import sys
from collections import Counter

import pytest
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export, installed
from bloomery.components.quantisation.measure import questions
from bloomery.components.quantisation.step import measured_apart, run

TASKS = {
    "echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}, "max_new_tokens": 4},
    "texts": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}},
}
PAIRS = [(f"say {word}", word) for word in ("ab", "cd", "ef", "gh")]


@pytest.fixture(scope="module")
def base(tiny_model):
    artifact.seal(tiny_model, "model/1")
    return tiny_model


@pytest.fixture
def tasks(make_tasks):
    rows = [{"task": "echo", "split": "validation", "prompt": p, "reference": a} for p, a in PAIRS]
    texts = [{"task": "texts", "split": split, "prompt": "", "reference": split} for split in ("train", "test")]
    return make_tasks(TASKS, [*rows, *texts])


@pytest.fixture
def chats(tmp_path):
    return write_chats(tmp_path / "chats", PAIRS)


def measured(folder):
    return json.loads((folder / "measurement.json").read_text())


def test_a_variant_is_measured_as_it_stands_on_disk(base, tasks, chats, tmp_path):
    metrics = run(
        QuantisationConfig(scheme="int8_weight_only"),
        base_model=base,
        tasks=tasks,
        chats=chats,
        model=tmp_path / "m",
        measurement=tmp_path / "v",
    )
    found = measured(tmp_path / "v")
    assert found["scheme"] == "int8_weight_only" and found["skipped"] == ""
    assert len(found["answers"]) == len(found["scores"]) == 4 and found["asked"] == {"validation": 4}
    # The text of `train`, whose first byte has nothing before it: the evaluation set `test` is not looked at.
    ((nats, tokens),) = found["likelihoods"]
    assert tokens == 4 and nats < 0
    assert metrics["quantisation/bytes"] == found["bytes"] == checkpoints.num_bytes(tmp_path / "m")
    assert found["weight_bytes"] < found["bytes"] < checkpoints.num_bytes(base) / 2
    assert found["prefill_seconds"] > 0 and found["decode_seconds_per_token"] > 0
    assert found["prefill_tokens"] == 8  # user, 6 bytes, assistant
    assert artifact.read_manifest(tmp_path / "m", "model/1").files["model.safetensors"].bytes == found["bytes"]


def test_equal_exports_have_equal_digests(base, tasks, chats, tmp_path):
    for scheme in ("int8_dynamic_activation", "int4_weight_only"):
        digests = set()
        for again in ("1", "2"):
            target = tmp_path / f"{scheme}{again}"
            export(QuantisationConfig(scheme=scheme), base, chats, target)
            digests.add(artifact.seal(target, "model/1").digest)
        assert len(digests) == 1


def test_a_scheme_that_cannot_run_here_is_skipped_with_its_reason(base, tasks, chats, tmp_path):
    metrics = run(
        QuantisationConfig(scheme="int4_weight_only", group_size=48),
        base_model=base,
        tasks=tasks,
        chats=chats,
        model=tmp_path / "m",
        measurement=tmp_path / "v",
    )
    assert metrics == {"quantisation/skipped": 1.0}
    assert "no multiple of group_size 48" in measured(tmp_path / "v")["skipped"]
    assert artifact.read_manifest(tmp_path / "m", "model/1").files == {}


def test_where_nothing_is_held_out_for_choosing_other_questions_are_asked(base, make_tasks, chats, tmp_path):
    def rows(split, n):
        return [{"task": "echo", "split": split, "prompt": f"{split} {i}", "reference": "a"} for i in range(n)]

    def asked(name, *members):
        known = Tasks(make_tasks(TASKS, [*rows("test", 3), *members], name))
        return Counter(row.split for row in questions(known, chats))

    assert asked("few", *rows("validation", 2), *rows("unlabelled", 60), *rows("train", 9)) == {
        "validation": 2, "unlabelled": 60, "train": 2,
    }  # fmt: skip
    assert asked("many", *rows("validation", 70), *rows("train", 9)) == {"validation": 70}
    assert asked("none") == {"chats": 4}
    found = measured_apart(base, make_tasks(TASKS, rows("test", 3)), chats)
    assert found["asked"] == {"chats": 4} and len(found["answers"]) == 4
    assert found["scores"] == found["likelihoods"] == [] and found["prefill_tokens"] == 8


def test_errors_of_the_measuring_process_keep_their_kind(base, tasks, chats, tmp_path):
    broken = shutil.copytree(base, tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    artifact.seal(broken, "model/1")
    with pytest.raises(ModelError, match="safetensors"):
        measured_apart(broken, tasks, chats)
    with pytest.raises(ModelError, match="could not be measured"):
        measured_apart(base, tmp_path / "nothing", chats)


def test_a_scheme_without_its_library_is_told_how_to_be_had_and_no_result_to_reuse(base, chats, tmp_path, monkeypatch):
    monkeypatch.delenv("BLOOMERY_LLM_COMPRESSOR", raising=False)
    with pytest.raises(CannotRun, match="pip install 'llmcompressor.*BLOOMERY_LLM_COMPRESSOR .*not set"):
        export(QuantisationConfig(scheme="gptq_int4"), base, chats, tmp_path / "q")
    gptq, int4 = (QuantisationConfig(scheme=scheme) for scheme in ("gptq_int4", "int4_weight_only"))
    assert not installed(gptq)
    monkeypatch.setenv("BLOOMERY_LLM_COMPRESSOR", sys.executable)
    assert installed(gptq) and installed(int4)
    with pytest.raises(ModelError, match="gptq_int4_g32: llm-compressor ended with exit code 1: .*llmcompressor"):
        export(QuantisationConfig(scheme="gptq_int4"), base, chats, tmp_path / "q")
