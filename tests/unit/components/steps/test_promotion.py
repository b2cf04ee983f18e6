"""The gate on hand-made results, and the registry on a real MLflow over SQLite."""

import json

import pytest

from bloomery.components.core import artifact, registry
from bloomery.components.core.errors import GateError
from bloomery.components.core.records import EvalResult
from bloomery.components.core.tasks import Tasks
from bloomery.components.promotion.config import GateConfig, PromotionConfig
from bloomery.components.promotion.step import judge, run

CONFIGS = {
    "sql": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}},
    "skills": {"role": "general", "splits": {}, "verifier": {"kind": "exact"}},
    "text": {"role": "general", "splits": {}, "verifier": {"kind": "perplexity"}},
}


def results(sql: list[int], skills: list[int], nats: float) -> list[dict]:
    def row(task: str, index: int, score: float, weight: float = 1.0) -> dict:
        empty = dict.fromkeys(("group", "prompt", "reference", "response", "reason"), "")
        return {**empty, "id": f"{task}{index}", "task": task, "split": "test", "score": score, "weight": weight}

    rows = [row("sql", i, float(s)) for i, s in enumerate(sql)] + [
        row("skills", i, float(s)) for i, s in enumerate(skills)
    ]
    return [*rows, row("text", 0, -nats, 10.0)]


BASE = results([0] * 100, [1] * 50, 1.0)


@pytest.fixture
def tasks(make_tasks):
    return Tasks(make_tasks(CONFIGS, []))


def verdicts(legs: list[dict]) -> dict[str, bool]:
    return {leg["name"]: leg["passed"] for leg in legs}


def test_a_better_model_that_forgot_nothing_passes(tasks):
    legs = judge(
        GateConfig(min_score={"sql.test": 0.5}), tasks, results([1] * 80 + [0] * 20, [1] * 50, 1.1), BASE, [], 10
    )
    assert verdicts(legs) == {
        "sql.test against base": True,
        "sql.test floor": True,
        "skills.test against base": True,
        "text.test perplexity ratio to base": True,
    }


def test_an_improvement_inside_the_noise_fails(tasks):
    champion = results([1] * 50 + [0] * 50, [1] * 50, 1.0)
    # 5 gained, 3 lost: the difference is 0.02, its standard error sqrt((8/100 - 0.02^2) / 99) = 0.0283.
    candidate = results([0] * 3 + [1] * 52 + [0] * 45, [1] * 50, 1.0)
    leg = judge(GateConfig(), tasks, candidate, BASE, champion, 10)[0]
    assert leg["name"] == "sql.test against champion" and not leg["passed"]
    assert leg["difference"] == pytest.approx(0.02)
    assert leg["stderr"] == pytest.approx(((8 / 100 - 0.02**2) / 99) ** 0.5, rel=1e-6)
    assert leg["threshold"] == pytest.approx(1.6449 * leg["stderr"], rel=1e-3)


def test_forgetting_fails_on_skills_and_on_text(tasks):
    legs = judge(GateConfig(), tasks, results([1] * 100, [1] * 48 + [0] * 2, 1.3), BASE, [], 10)
    assert verdicts(legs)["skills.test against base"] is False  # 4 points lost, 2 allowed
    assert verdicts(legs)["text.test perplexity ratio to base"] is False  # e^0.3 = 1.35 > 1.2


def test_a_floor_and_a_size_are_held(tasks):
    legs = judge(
        GateConfig(min_score={"sql.test": 0.9}, max_bytes=9),
        tasks,
        results([1] * 80 + [0] * 20, [1] * 50, 1.0),
        BASE,
        [],
        10,
    )
    assert not verdicts(legs)["sql.test floor"] and not verdicts(legs)["bytes on disk"]


@pytest.fixture
def promote(tmp_path, tiny_model, make_tasks, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tasks_path = make_tasks(CONFIGS, [], name="gate_tasks")
    calls = iter(range(100))

    def table(name, rows):
        path = tmp_path / "tables" / f"{next(calls)}-{name}"
        artifact.write_rows(path, "eval_result/1", EvalResult.table(rows))
        return path

    def go(model, champion, version, candidate_rows, champion_rows):
        named = tmp_path / f"version-{next(calls)}"
        named.mkdir()
        (named / "champion.json").write_text(json.dumps({"registered_model": "shop", "champion_version": version}))
        artifact.seal(named, "registry/1")
        verdict = tmp_path / f"verdict-{next(calls)}"
        metrics = run(
            PromotionConfig(models_uri=str(tmp_path / "models")),
            model=model,
            tasks=tasks_path,
            candidate_results=table("candidate", candidate_rows),
            base_results=table("base", BASE),
            champion_results=table("champion", champion_rows),
            champion=champion,
            champion_version=named,
            verdict=verdict,
        )
        return metrics, json.loads((verdict / "verdict.json").read_text())

    return go


def test_promotion_moves_the_aliases_once_and_rollback_moves_them_back(promote, tiny_model, tmp_path):
    import shutil

    artifact.seal(tiny_model, "model/1")
    none = tmp_path / "none"
    none.mkdir()
    artifact.seal(none, "model/1")
    weak, strong = results([1] * 60 + [0] * 40, [1] * 50, 1.0), results([1] * 90 + [0] * 10, [1] * 50, 1.0)

    _, first = promote(tiny_model, none, None, weak, [])
    assert first["status"] == "promoted"
    assert first["model"] == {"name": "shop", "version": "1", "aliases": ["candidate", "champion"]}
    assert str(registry.alias("shop", registry.CHAMPION).version) == "1"

    _, again = promote(tiny_model, tiny_model, "1", weak, weak)
    assert again["status"] == "promoted" and again["model"]["version"] == "1" and "nothing to do" in again["reason"]
    assert len(registry.versions("shop")) == 1

    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "note.txt").write_text("another model")
    artifact.seal(other, "model/1")
    metrics, rejected = promote(other, tiny_model, "1", weak, weak)
    assert rejected["status"] == "rejected" and metrics["promotion/promoted"] == 0 and rejected["model"] is None
    assert len(registry.versions("shop")) == 1

    _, second = promote(other, tiny_model, "1", strong, weak)
    assert second["model"]["version"] == "2"
    assert str(registry.alias("shop", registry.PREVIOUS).version) == "1"

    with pytest.raises(GateError, match="another promotion came first"):
        registry.promote("shop", "1", expected_champion="1")
    assert registry.rollback("shop") == ("2", "1")
    assert str(registry.alias("shop", registry.CHAMPION).version) == "1"
    assert {entry["version"]: entry["aliases"] for entry in registry.versions()} == {
        "2": ["candidate", "previous"],
        "1": ["champion"],
    }


def test_a_rollback_without_a_champion_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    with pytest.raises(GateError, match="no champion"):
        registry.rollback("nobody")
