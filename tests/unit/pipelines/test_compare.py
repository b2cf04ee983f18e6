"""Two runs side by side, over artifacts written as the steps write them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.pipelines.compare import compare_runs, describe, write_page

RIGHT = {"one": 8 * [1.0] + 2 * [0.0], "two": 10 * [1.0]}


@pytest.fixture
def workdir(make_run, tmp_path) -> Path:
    """Run one: a final model with 8 of 10 right; run two: all right, and perplexity lower by half a nat."""
    for run, scores in RIGHT.items():
        made = make_run(tmp_path / "runs" / run)
        rows = [row("q", i, score, 1.0, "accuracy") for i, score in enumerate(scores)]
        gain = 0.5 if run == "two" else 0.0
        rows += [row("text", i, -1.0 - 0.01 * i + gain, 5.0, "log_likelihood") for i in range(4)]
        rows += [{**row("q", 0, 0.0, 1.0, "accuracy"), "repeat": 1}]
        for model in ("base", "sft"):
            path = made.rows(f"evaluation_{model}", "results", "eval_result/2", rows, rows_in=0, rows_made=len(rows))
            made.finish(f"evaluation_{model}", {"results": path})
        summarise(made.folder)
    return tmp_path


def summarise(folder: Path) -> None:
    (folder / "summary.json").write_text(json.dumps({"run": str(folder), "status": "promoted", "seconds": 1.0}))


def row(task, index, score, weight, metric) -> dict:
    text = dict.fromkeys(("group", "prompt", "reference", "response", "reason"), "")
    facts = {"id": f"{index}", "task": task, "split": "test", "metric": metric, "repeat": 0}
    return {**facts, "score": score, "weight": weight, **text}


def test_differences_are_paired_and_adjusted(workdir):
    found = compare_runs(workdir, "one", "last")
    assert (found["a"], found["b"]) == ("one, sft", "two, sft")
    answers, text = found["sets"]
    assert (answers["a"], answers["b"], answers["n"], answers["p"]) == (0.8, 1.0, 10, 0.5)
    assert answers["difference"] == pytest.approx(0.2) and answers["p_adjusted"] == 0.5
    assert text["metric"] == "perplexity" and text["difference"] == pytest.approx(0.5)
    assert text["a"] / text["b"] == pytest.approx(1.6487, abs=1e-4)


def test_it_is_told_and_drawn(workdir, tmp_path):
    found = compare_runs(workdir, "one", "two")
    told = describe(found)
    assert "q.test" in told and "+20.0 (−6.1 to +46.1)" in told and "text.test (perplexity)" in told
    (tmp_path / "link.html").symlink_to(tmp_path / "d.html")
    write_page(found, tmp_path / "link.html")
    with pytest.raises(ConfigError, match="found a folder or a device, expected the name of a file"):
        write_page(found, tmp_path)
    page = (tmp_path / "d.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2 and "<script" not in page and "+20.0" in page and 'class="guide"' in page


def test_runs_that_share_nothing_say_so(workdir, make_run):
    made = make_run(workdir / "runs" / "three")
    path = made.rows("evaluation_sft", "results", "eval_result/2", [row("other", 1, 1.0, 1.0, "accuracy")])
    made.finish("evaluation_sft", {"results": path})
    summarise(made.folder)
    with pytest.raises(DataError, match="no prompt in common; one, sft has the sets q.test, text.test"):
        compare_runs(workdir, "one", "three")
    empty = make_run(workdir / "runs" / "four")
    empty.finish("preflight", {})
    summarise(empty.folder)
    with pytest.raises(DataError, match="four: there is no evaluated model"):
        compare_runs(workdir, "four", "one")
    with pytest.raises(ConfigError, match="no finished run five"):
        compare_runs(workdir, "one", "five")


def test_a_judge_has_a_word(workdir):
    def prefers_the_second(prompts):
        return ["[[2]]"] * len(prompts)

    found = compare_runs(workdir, "one", "two", prefers_the_second, 5)
    answers, text = found["sets"]
    # The answers of the two are equal, so nothing is asked.
    assert answers["judge"]["n"] == 5 and answers["judge"]["win_rate"] == 0.5 and "judge" not in text
    assert "q.test, judged: b wins 50.0 ± 0.0 % of 5" in describe(found)
