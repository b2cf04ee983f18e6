"""One real, tiny model on small sets."""

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import TaskConfig, Tasks
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.evaluation.step import answer, run, summarise


def task(kind, **settings):
    values = {
        "role": "domain",
        "templates": [{"prompt": "{q}", "answer": "{a}"}],
        "verifier": {"kind": kind},
        "splits": {"test": {"path": ""}, **({"train": {"path": ""}} if settings.get("shots") else {})},
        "max_new_tokens": 6,
        **settings,
    }
    return TaskConfig.model_validate(values).model_dump(mode="json", exclude_none=True)


def row(name, index, split="test", prompt=None, reference="red"):
    prompt = f"colour of {index}?" if prompt is None else prompt
    return {"task": name, "split": split, "prompt": prompt, "reference": reference}


@pytest.fixture
def tasks(make_tasks):
    configs = {"near": task("chrf"), "label": task("label"), "text": task("perplexity", role="general")}
    rows = [row("near", i) for i in range(5)] + [row("label", i, reference=f"l{i % 2}") for i in range(4)]
    return make_tasks(configs, rows + [row("text", i, prompt="", reference=f"A sentence {i}.") for i in range(3)])


def test_each_prompt_is_a_row_and_repeats_answer_some_again(tmp_path, tiny_model, tasks):
    config = EvaluationConfig(repeats=3, repeat_limit=2)
    metrics = run(config, model=tiny_model, tasks=tasks, results=tmp_path / "r")
    rows = artifact.read_table(tmp_path / "r", "eval_result/2").to_pylist()
    counts = {(r["task"], r["repeat"]): 0 for r in rows}
    for r in rows:
        counts[r["task"], r["repeat"]] += 1
    assert counts == {
        ("near", 0): 5, ("label", 0): 4, ("text", 0): 3,
        ("near", 1): 2, ("label", 1): 2, ("near", 2): 2, ("label", 2): 2,
    }  # fmt: skip
    assert {r["task"]: r["metric"] for r in rows} == {
        "near": "chrf",
        "label": "accuracy",
        "text": "log_likelihood",
    }
    assert metrics["evaluation/near.test.n"] == 5 and 0 <= metrics["evaluation/near.test.flipped_fraction"] <= 1
    assert {"evaluation/near.test.corpus_chrf", "evaluation/label.test.macro_f1"} <= metrics.keys()
    assert metrics["evaluation/text.test.perplexity"] > 1 and "evaluation/text.test.flipped_fraction" not in metrics


def test_no_champion_gives_no_rows(tmp_path, tasks):
    (tmp_path / "none").mkdir()
    artifact.seal(tmp_path / "none", "model/1")
    assert run(EvaluationConfig(repeats=3), model=tmp_path / "none", tasks=tasks, results=tmp_path / "r") == {}


def test_the_same_evaluation_has_the_same_bytes(tmp_path, tiny_model, tasks):
    for name in ("a", "b"):
        run(EvaluationConfig(repeats=2), model=tiny_model, tasks=tasks, results=tmp_path / name)
    first, second = (artifact.read_manifest(tmp_path / name).digest for name in ("a", "b"))
    assert first == second


def test_another_composition_answers_the_same_prompts(tiny_model):
    generator = Generator.load(tiny_model)
    prompts = [chat(f"colour of {'x' * (i % 7)}{i}?") for i in range(12)]
    plain, other = (generator.generate(prompts, max_new_tokens=5, composition=c) for c in (0, 1))
    assert len(plain) == len(other) == 12
    assert sum(a == b for a, b in zip(plain, other, strict=True)) >= 11  # fp32: a flip is rare


def test_shots_are_train_rows_before_the_question(make_tasks, tiny_model):
    rows = [row("t", i, "train", reference=f"r{i}") for i in range(4)] + [row("t", 9)]
    known = Tasks(make_tasks({"t": task("exact", shots=2)}, rows))
    shots = known.shots("t")
    assert [message["role"] for message in shots] == ["user", "assistant"] * 2
    assert {message["content"] for message in shots} <= {r["prompt"] for r in rows[:4]} | {f"r{i}" for i in range(4)}
    generator, (question,) = Generator.load(tiny_model), known.prompts()
    sampled = {"max_new_tokens": 20, "temperature": 1.0, "num_samples": 64}  # greedily, it says nothing
    with_shots = known.conversations([question])
    assert with_shots == [[*shots, *chat("colour of 9?")]]
    assert generator.generate([question.messages], **sampled) != generator.generate(with_shots, **sampled)
    assert [r["prompt"] for r in answer(generator, known, EvaluationConfig())] == ["colour of 9?"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "exact", "shots": 2, "splits": {"test": {"path": "t"}}}, "shots are taken from the split `train`"),
        ({"kind": "perplexity", "perturbations": ["typos"]}, "perturbations change the question"),
        ({"kind": "refusal", "splits": {"unlabelled": {"path": "t"}}}, "wrong answers to harmless questions"),
    ],
)
def test_tasks_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        task(**settings)


def test_flips_are_told_from_the_repeats(make_tasks):
    known = Tasks(make_tasks({"t": task("exact")}, [row("t", 0)]))
    base = {"task": "t", "split": "test", "weight": 1.0, "metric": "accuracy", "reference": "red", "response": ""}
    rows = [{**base, "id": i, "repeat": r, "score": s} for i, r, s in
            (("a", 0, 1.0), ("b", 0, 0.0), ("a", 1, 1.0), ("b", 1, 1.0), ("a", 2, 1.0), ("b", 2, 0.0))]  # fmt: skip
    metrics = summarise(rows, known)
    assert metrics["evaluation/t.test.accuracy"] == 0.5 and metrics["evaluation/t.test.flipped_fraction"] == 0.25
    assert metrics["evaluation/t.test.stderr"] == 0.5
    alone = summarise(rows[:1], known)  # of one answer the error is not known
    assert alone == {"evaluation/t.test.accuracy": 1.0, "evaluation/t.test.n": 1.0}


def test_a_question_beyond_the_context_is_counted_and_not_scored(tmp_path, tiny_model, make_tasks):
    # 256 tokens of context, a byte each; 6 for the answer and 2 for the roles leave 248.
    rows = [row("near", 0, prompt="x" * 248), row("near", 1, prompt="x" * 249), row("near", 2, prompt="한" * 83)]
    rows.append(row("near", 3, split="other", prompt="x" * 249))
    tasks = make_tasks({"near": task("chrf", splits={"test": {"path": ""}, "other": {"path": ""}})}, rows)

    def answered(**settings):
        target = tmp_path / "-".join(settings.values())
        metrics = run(EvaluationConfig(repeats=2, **settings), model=tiny_model, tasks=tasks, results=target)
        kept = artifact.read_table(target, "eval_result/2").to_pylist()
        return metrics, [len(r["prompt"]) for r in kept if r["repeat"] == 0]

    metrics, lengths = answered(too_long="drop")
    assert lengths == [248]
    assert metrics["evaluation/near.test.too_long"] == 2 and metrics["evaluation/near.other.too_long"] == 1
    assert metrics["evaluation/near.test.n"] == 1 and "evaluation/near.other.n" not in metrics
    metrics, lengths = answered(too_long="truncate_left")
    assert lengths == [248, 249, 83, 249] and not any("too_long" in name for name in metrics)
    with pytest.raises(DataError, match="tasks.near: 3 of 4 questions do not fit: the longest has 251 tokens"):
        answered(too_long="error")


def test_a_task_of_which_nothing_fits_is_an_error(tmp_path, tiny_model, make_tasks):
    tasks = make_tasks({"near": task("chrf", max_new_tokens=400)}, [row("near", 0)])
    with pytest.raises(DataError, match="1 of 1 questions do not fit.*leaves 0 beside an answer of `max_new_tokens`"):
        run(EvaluationConfig(), model=tiny_model, tasks=tasks, results=tmp_path / "r")
