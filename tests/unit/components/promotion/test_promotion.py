"""The gate and the registry behind it, on a real MLflow over SQLite."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from bloomery.components.core import artifact
from bloomery.components.core.records import Chat, Document, EvalResult, Preference, Reject
from bloomery.components.core.registry import registry
from bloomery.components.promotion.config import ModelCardConfig, PromotionConfig
from bloomery.components.promotion.step import run

CONFIGS = {"sql": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}}}


def results(correct: int, total: int = 100) -> list[dict]:
    empty = dict.fromkeys(("group", "reference", "response", "reason"), "")
    base = {**empty, "task": "sql", "split": "test", "metric": "accuracy", "repeat": 0, "weight": 1.0}
    return [{**base, "id": str(i), "prompt": f"question {i}", "score": float(i < correct)} for i in range(total)]


@pytest.fixture
def promote(tmp_path, tiny_model, make_tasks, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tasks = make_tasks(CONFIGS, [])
    asked = artifact.read_manifest(tasks).digest
    documents = Document.table([])
    curation = {"sources": [{"name": "shop"}, {"name": "web", "general": True}], "languages": ["en", "ko"]}
    with artifact.lineage("data_curation", curation, {"sources": "0" * 64}):
        artifact.write_rows(
            tmp_path / "curated", "document/2", documents, rows_in=10, dropped={"empty": 3, "language": 7}
        )
    with artifact.lineage("dedup", {}, {"documents": "1" * 64, "tasks": asked}):
        artifact.write_rows(tmp_path / "unique", "document/2", documents, rows_in=4, dropped={"contaminated": 4})
    removed = [("sheets", "near_duplicate"), ("sheets", "exact_duplicate")] + [("sheets", "contaminated")] * 2
    removed += [("web", "contaminated")] * 3
    empty = dict.fromkeys(("id", "detail", "text"), "")
    rejects = [{**empty, "source": f"{source}:a.jsonl#{n}", "reason": why} for n, (source, why) in enumerate(removed)]
    artifact.write_rows(tmp_path / "duplicates", "reject/1", Reject.table(rejects))
    chats = [{"messages": [], "tools": "", "task": "", "parent": "", "origin": o} for o in ("seed", "replay", "given")]
    rows = Chat.table([{"id": str(n), **row} for n, row in enumerate(chats)])
    artifact.write_rows(tmp_path / "chats", "chat/2", rows, dropped={"near_duplicate": 1, "empty_turn": 1})
    pair = {"id": "p", "task": "", "messages": [], "tools": "", "chosen": [], "rejected": []}
    pairs = Preference.table([pair])
    artifact.write_rows(tmp_path / "preferences", "preference/3", pairs, dropped={"exact_duplicate": 1})
    (tmp_path / "variants").mkdir()
    row = {"scheme": "int8", "chosen": True, "prefill_seconds": 0.012, "decode_seconds_per_token": None}
    (tmp_path / "variants" / "variants.json").write_text(json.dumps([{"scheme": "none", "chosen": False}, row]))
    artifact.seal(tmp_path / "variants", "variants/1")
    calls = iter(range(100))

    def table(rows):
        path = tmp_path / f"rows-{next(calls)}"
        artifact.write_rows(path, "eval_result/2", EvalResult.table(rows))
        return path

    def go(model, champion, version, candidate_rows, champion_rows, **gate):
        named = tmp_path / f"version-{next(calls)}"
        named.mkdir()
        (named / "champion.json").write_text(
            json.dumps({"registered_model": "shop", "champion_version": version, "started_from": version or ""})
        )
        artifact.seal(named, "registry/1")
        verdict = tmp_path / f"verdict-{next(calls)}"
        metrics = run(
            PromotionConfig(
                gate={"max_reject_share": 1.0, **gate},
                models_uri=str(tmp_path / "models"),
                model_card=ModelCardConfig(license="apache-2.0", intended_use="Questions about the shop."),
            ),
            model=model,
            parent=tmp_path / "other",
            tasks=tasks,
            curated=tmp_path / "curated",
            unique=tmp_path / "unique",
            duplicates=tmp_path / "duplicates",
            chats=tmp_path / "chats",
            preferences=tmp_path / "preferences",
            variants=tmp_path / "variants",
            candidate_results=table(candidate_rows),
            base_results=table(results(0)),
            champion_results=table(champion_rows),
            champion=champion,
            champion_version=named,
            verdict=verdict,
        )
        return metrics, json.loads((verdict / "verdict.json").read_text())

    return go


@pytest.fixture
def models(tmp_path, tiny_model):
    """An empty artifact, and two checkpoints of different content."""
    artifact.seal(tiny_model, "model/1")
    none = tmp_path / "none"
    none.mkdir()
    artifact.seal(none, "model/1")
    other = shutil.copytree(tiny_model, tmp_path / "other")
    (other / "note.txt").write_text("another model")
    artifact.seal(other, "model/1")
    return none, tiny_model, other


def test_a_candidate_is_promoted_once_and_a_weaker_one_refused(promote, models):
    none, first_model, other = models
    _, first = promote(first_model, none, None, results(60), [])
    assert first["status"] == "promoted", first["reason"]
    assert first["model"] == {"name": "shop", "version": "1", "aliases": ["candidate", "champion"]}
    assert str(registry.alias("shop", registry.CHAMPION).version) == "1"

    _, again = promote(first_model, first_model, "1", results(60), results(60))
    assert again["status"] == "promoted" and again["model"]["version"] == "1" and "nothing to do" in again["reason"]
    assert first["legs"] and again["legs"] == []
    assert len(registry.versions("shop")) == 1

    metrics, rejected = promote(other, first_model, "1", results(60), results(60))
    assert rejected["status"] == "rejected" and metrics["promotion/promoted"] == 0 and rejected["model"] is None
    assert len(registry.versions("shop")) == 1

    _, second = promote(other, first_model, "1", results(90), results(60))
    assert second["model"]["version"] == "2"
    assert str(registry.alias("shop", registry.PREVIOUS).version) == "1"
    change = registry.audit("shop")[0]
    assert (change["from"], change["to"], change["kind"]) == ("1", "2", "promote")
    tags = registry.versions("shop")[0]["tags"]
    assert artifact.read_manifest(Path(tags[registry.PARENT])).digest == artifact.read_manifest(other).digest
    assert tags["started_from"] == "version 1"
    assert change["verdict"] == second["digest"] and "legs passed" in change["why"] and "@" in change["who"]


def test_a_model_that_few_questions_promoted_is_told_with_their_number(promote, models, caplog):
    none, first_model, _ = models
    _, verdict = promote(first_model, none, None, results(29, 29), [])
    assert verdict["status"] == "promoted"
    assert "sql against base: judged by n = 29, where a score has a standard error of up to 9 points" in caplog.text


def test_one_that_was_overtaken_is_registered_but_told_why_it_is_not_champion(promote, models):
    none, first_model, other = models
    promote(first_model, none, None, results(60), [])
    _, late = promote(other, none, None, results(90), [])
    assert late["status"] == "rejected" and late["model"] == {"name": "shop", "version": "2", "aliases": []}
    assert "another promotion came first (promote by" in late["reason"]
    assert registry.champion("shop") == "1"


def test_a_version_carries_card_signature_example_and_lineage(promote, models, tmp_path):
    import mlflow

    none, first_model, _ = models
    _, verdict = promote(first_model, none, None, results(60), [])
    entry = registry.alias("shop", registry.CHAMPION)
    info = mlflow.models.get_model_info(entry.source)
    assert "messages" in info.signature.inputs.input_names()
    example = mlflow.models.Model.load(entry.source).load_input_example(entry.source)
    assert example == {"messages": [{"role": "user", "content": "question 0"}]}
    assert entry.tags["digest"] == artifact.read_manifest(first_model).digest
    assert entry.tags["sources_digest"] == "0" * 64 and entry.tags["verdict_digest"] == verdict["digest"]

    text = registry.card("shop", "champion")
    assert text == registry.card("shop", "1") == entry.description
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "apache-2.0" and front["language"] == ["en", "ko"]
    assert front["model-index"][0]["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.6}]
    assert "| sql.test | accuracy | 100 | 0.600 ± 0.049 | 0.000 ± 0.000 | – |" in text
    assert "| curation | 10 | 0 | language 7, empty 3 |" in text and "`web` (general text)" in text
    assert "12 ms" in text and "not measured" in text and "promotion.model_card.limits" in text
    # The card lies beside the checkpoint and is not of it.
    assert artifact.read_manifest(tmp_path / "models" / entry.source.rsplit("/", 1)[1]).digest == entry.tags["digest"]


def test_copies_are_counted_by_source_and_seeds_are_no_chats_that_were_read(promote, models):
    none, first_model, _ = models
    _, verdict = promote(first_model, none, None, results(60), [], max_duplicate_share=0.39)
    values = {leg["name"]: leg["value"] for leg in verdict["legs"] if leg["kind"] == "data"}
    # Two of four documents of `sheets`, none of `web`; of five chats and pairs that were read two are copies, one is
    # empty, and one chat and one pair are left.
    assert values["copies among the documents of a source"] == 0.5
    assert values["copies among chats and pairs"] == 0.4 and values["rejected share of chats and pairs"] == 0.2
    assert verdict["status"] == "rejected" and "2 of 4 rows of sheets were dropped as copies" in verdict["reason"]
    assert "2 of 5 rows of chats and pairs were dropped as copies" in verdict["reason"]


def test_a_limit_that_was_not_measured_is_not_met(promote, models):
    none, first_model, _ = models
    _, verdict = promote(
        first_model, none, None, results(60), [], max_prefill_seconds=0.1, max_decode_seconds_per_token=0.1
    )
    assert verdict["status"] == "rejected" and verdict["reason"].startswith("decode seconds per token: not measured")


def test_the_same_judgement_has_the_same_digest(promote, models):
    none, first_model, _ = models
    digests = {promote(first_model, none, None, results(0), [])[1]["digest"] for _ in range(2)}
    assert len(digests) == 1
