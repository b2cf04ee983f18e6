"""A run folder as a run leaves it: a journal, and artifacts written as the steps write them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bloomery.components.core import artifact
from bloomery.components.core.data.chats import chat
from bloomery.components.core.records import ROWS, content_id

ACCURACY = {"base": 0.04, "cpt": 0.06, "sft": 0.72, "sft_2": 0.8, "dpo": 0.82, "ptq": 0.81, "champion": 0.74}
QUESTIONS = {
    "en": (
        "How many orders did {} place in May?",
        "SELECT COUNT(*) FROM orders WHERE customer = '{}' AND month = 5",
    ),
    "ko": (
        "5월에 {} 고객이 주문한 건수는 몇 건인가요?",
        "SELECT COUNT(*) FROM orders WHERE customer = '{}' AND month = 5",
    ),
}
HOSTILE = "<script>alert('x')</script> & \"quoted\""


class Made:
    """A run folder that grows stage by stage."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lines, self.random = folder, [], random.Random(17)
        folder.mkdir(parents=True)

    def finish(
        self, stage: str, outputs: dict[str, Path], metrics=None, history=(), seconds=1.0, cached=False, warnings=()
    ) -> None:
        self.event(
            "finished",
            stage,
            cached=cached,
            metrics=metrics or {},
            history=list(history),
            warnings=list(warnings),
            seconds=seconds,
            peak_bytes=int(3e8 + 4e7 * seconds),
            outputs={name: str(path) for name, path in outputs.items()},
        )

    def event(self, kind: str, stage: str, **facts) -> None:
        line = {"time": 1_795_230_000.0 + len(self.lines), "event": kind, "stage": stage, **facts}
        self.lines.append(json.dumps(line, ensure_ascii=False))
        (self.folder / "journal.jsonl").write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def path(self, stage: str, name: str) -> Path:
        return self.folder / "pipeline" / stage / name

    def rows(self, stage: str, name: str, schema: str, rows: list[dict], inputs=None, **counts) -> Path:
        with artifact.lineage(stage, {}, inputs or {}):
            artifact.write_rows(self.path(stage, name), schema, ROWS[schema].table(rows), **counts)
        return self.path(stage, name)

    def files(self, stage: str, name: str, schema: str, files: dict[str, object]) -> Path:
        folder = self.path(stage, name)
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        with artifact.lineage(stage, {}, {}):
            artifact.seal(folder, schema)
        return folder

    def preflight(self) -> None:
        kinds = {
            "shop_sql": ("domain", "exact"),
            "handbook": ("domain", "perplexity"),
            "skills": ("general", "exact"),
            "general_text": ("general", "perplexity"),
        }
        tasks = {name: {"role": role, "verifier": {"kind": kind}} for name, (role, kind) in kinds.items()}
        self.finish(
            "preflight", {"tasks": self.files("preflight", "tasks", "tasks/1", {"tasks.json": tasks})}
        )

    def data(self) -> None:
        documents = [_document(i, "ko" if i % 3 else "en", i % 5 == 0) for i in range(900)]
        reasons = {"broken_json": 12, "too_short": 61, "boilerplate": 34, "wrong_language": 22, HOSTILE: 3}
        rejects = [_reject(f"{reason}{i}", reason) for reason, count in reasons.items() for i in range(count)]
        kept = self.rows("data_curation", "documents", "document/2", documents, rows_in=1032, dropped=reasons)
        dropped = self.rows("data_curation", "rejects", "reject/1", rejects)
        self.finish("data_curation", {"documents": kept, "rejects": dropped}, seconds=4.2, cached=True)
        found = {"documents": artifact.read_manifest(kept).digest}
        unique = self.rows(
            "dedup",
            "kept",
            "document/2",
            documents[:700],
            found,
            rows_in=900,
            dropped={"exact": 60, "near": 128, "evaluation_overlap": 12},
        )
        self.finish("dedup", {"kept": unique}, seconds=3.1)
        chats = [
            _chat(i, origin)
            for origin, n in (("seed", 120), ("document", 90), ("augmented", 140))
            for i in range(n)
        ]
        made = self.rows(
            "synthetic_data",
            "chats",
            "chat/2",
            chats,
            rows_in=120,
            rows_made=260,
            dropped={"not_grounded": 30},
        )
        self.finish("synthetic_data", {"chats": made}, seconds=2.4)
        failed = [_reject(f"r{i}", "no_right_sample") for i in range(41)]
        pool = self.rows(
            "rejection_sampling",
            "sampled_chats",
            "chat/2",
            chats + [_chat(i, "sampled") for i in range(400)],
            rows_in=350,
            rows_made=400,
        )
        self.finish(
            "rejection_sampling",
            {
                "sampled_chats": pool,
                "rejects": self.rows("rejection_sampling", "rejects", "reject/1", failed),
            },
            seconds=38.0,
        )

    def training(self) -> None:
        for stage, steps, floor, low in (
            ("cpt", 200, 1.9, None),
            ("sft", 160, 0.2, 96),
            ("sft_2", 160, 0.15, 160),
            ("dpo", 60, 0.45, None),
        ):
            self.finish(
                stage,
                {"model": self.files(stage, "model", "model/1", {"config.json": stage})},
                {f"{stage}/loss": floor},
                _history(steps, floor, low, self.random),
                seconds=20 + steps / 4,
            )

    def evaluate(self, model: str) -> None:
        rows = []
        for split, shift in (("test", 0.0), ("paraphrase", -0.15)):
            for i in range(150):
                language = "ko" if i % 2 else "en"
                question, answer = (text.format(f"C{i}") for text in QUESTIONS[language])
                difficulty = random.Random(f"{split}{i}").random()
                right = difficulty * 0.9 + self.random.random() * 0.1 < ACCURACY[model] + shift
                response = (
                    answer if right else answer.replace("COUNT(*)", "SUM(price)") + HOSTILE * (i % 40 == 3)
                )
                rows.append(
                    _result(
                        f"{split}{i}",
                        "shop_sql",
                        split,
                        language,
                        question,
                        answer,
                        response,
                        float(right),
                        1.0,
                        "equal rows" if right else "wrong rows",
                    )
                )
        for i in range(80):
            drop = {"sft": 0.06, "sft_2": 0.05, "dpo": 0.05, "ptq": 0.05}.get(model, 0.0)
            right = random.Random(f"skill{i}").random() < 0.62 - drop
            rows.append(
                _result(
                    f"k{i}",
                    "skills",
                    "test",
                    "",
                    f"{i} + {i} =",
                    str(2 * i),
                    str(2 * i if right else i),
                    float(right),
                    1.0,
                    "",
                )
            )
        for task, level in (
            ("handbook", 3.1 if model == "base" else 1.9),
            ("general_text", 2.2 if model == "base" else 2.35),
        ):
            for i in range(40):
                score = -level + 0.3 * random.Random(f"{task}{i}").random() + 0.02 * self.random.random()
                rows.append(
                    _result(
                        f"{task}{i}",
                        task,
                        "held_out",
                        "",
                        "",
                        "text",
                        "",
                        score,
                        60.0 + i,
                        "log-likelihood per token",
                    )
                )
        stage = f"evaluation_{model}"
        self.finish(
            stage,
            {"results": self.rows(stage, "results", "eval_result/2", rows, rows_in=0, rows_made=len(rows))},
            {"evaluation/shop_sql.test.accuracy": ACCURACY[model]},
            seconds=9.0,
            cached=model in ("base", "champion"),
        )

    def ptq(self) -> None:
        rows = [
            {
                "scheme": scheme,
                "bytes": size,
                "decode_seconds_per_token": 0.002,
                "score": score,
                "stderr": 0.031,
                "n": 160,
                "difference": score - 0.82,
                "difference_stderr": 0.012,
                "chosen": scheme == "int8_weight_only",
            }
            for scheme, size, score in (
                ("none", 8_400_000, 0.82),
                ("int8_weight_only", 2_200_000, 0.815),
                ("int8_dynamic_activation", 2_210_000, 0.80),
            )
        ]
        rows.append({"scheme": "fp8", "bytes": None, "skipped": "needs a GPU of compute capability 8.9"})
        self.finish(
            "ptq",
            {"variants": self.files("ptq", "variants", "variants/1", {"variants.json": rows})},
            seconds=12.5,
        )

    def promotion(self, status: str) -> None:
        leg = {
            "kind": "task",
            "value": 0.81,
            "baseline": 0.74,
            "difference": 0.07,
            "stderr": 0.02,
            "threshold": 0.034,
            "passed": True,
            "name": "shop_sql.test against champion",
        }
        general = {
            "kind": "forgetting",
            "name": "skills.test against base",
            "value": 0.57,
            "baseline": 0.62,
            "stderr": None,
            "difference": -0.05,
            "threshold": -0.02,
            "passed": status == "promoted",
        }
        legs = [
            {**one, "reason": f"{one['name']} {'meets' if one['passed'] else 'misses'} {one['threshold']}"}
            for one in (leg, general)
        ]
        reason = "all 2 legs passed" if status == "promoted" else legs[1]["reason"]
        facts = {
            "status": status,
            "reason": reason,
            "candidate_digest": "ab" * 32,
            "champion_version": "3",
            "started_from": "3",
            "legs": legs,
        }
        self.finish(
            "promotion", {"verdict": self.files("promotion", "verdict", "verdict/1", {"verdict.json": facts})}
        )

    def whole(self, status: str) -> None:
        self.preflight()
        self.data()
        self.training()
        self.ptq()
        for model in ACCURACY:
            self.evaluate(model)
        self.promotion(status)


def _document(i: int, language: str, general: bool) -> dict:
    return {
        "id": f"{i:016x}",
        "text": f"문서 {i}",
        "source": f"docs:a.jsonl#{i}",
        "language": language,
        "general": general,
        "time": "",
        "quality": None,
    }


def _reject(key: str, reason: str) -> dict:
    return {"id": content_id(key), "source": "docs:a#1", "reason": reason, "detail": "", "text": key}


def _chat(i: int, origin: str) -> dict:
    return {
        "id": content_id(origin, str(i)),
        "messages": chat("q", "a"),
        "tools": "",
        "task": "shop_sql",
        "origin": origin,
        "parent": "",
    }


def _result(key, task, split, group, prompt, reference, response, score, weight, reason) -> dict:
    return {
        "id": content_id(task, key),
        "task": task,
        "split": split,
        "group": group,
        "prompt": prompt,
        "reference": reference,
        "response": response,
        "metric": "accuracy" if weight == 1 else "log_likelihood",
        "repeat": 0,
        "score": score,
        "weight": weight,
        "reason": reason,
    }


def _history(steps: int, floor: float, lowest_at: int | None, noise: random.Random) -> list[dict]:
    entries = []
    for step in range(4, steps + 1, 4):
        loss = floor + 3.2 * 0.97**step
        entries.append({"step": step, "loss": loss + 0.05 * noise.random(), "num_steps": float(steps)})
        if lowest_at and step % 16 == 0:
            entries.append({"step": step, "eval_loss": loss + 0.15 + max(0, step - lowest_at) * 0.01})
    return entries


@pytest.fixture(scope="session")
def make_run() -> Callable[[Path], Made]:
    """Makes an empty run at a path; its stages are then finished one by one, or as a `whole`."""
    return Made
