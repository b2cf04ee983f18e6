"""Two runs side by side: what their last models answered to the same prompts, and whether the difference is more than
chance."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from bloomery.components.core import artifact, errors
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.scoring.statistics import Z95, holm, mean_stderr
from bloomery.components.evaluation.judge import Ask, Pair, judge, tally
from bloomery.pipelines import charts, history, run_outputs
from bloomery.pipelines.scores import SIGNIFICANT, Rows, Scores, compare, is_perplexity


def compare_runs(
    workdir: Path, run_a: str, run_b: str, ask: Ask | None = None, judge_limit: int = 100
) -> dict[str, Any]:
    """The last model of `run_b` against that of `run_a`, on every evaluation set that both answered.

    Returns: a, b (run and model), sets: one entry a set with task, split, metric, n (prompts that both answered), a
             and b (mean score, or perplexity, over these), difference (b - a; of perplexities in nats per token, where
             more is better), stderr, low and high (95 % interval), p (two-sided) and p_adjusted (Holm, over the sets).
             With a judge to `ask`, answered sets have `judge`: `judge.tally` of b over a, on `judge_limit` prompts.
    Raises:  ConfigError for a run that there is not; DataError if a run evaluated no model, or the two share no prompt.
    """
    sides = [_last_model(workdir, run) for run in (run_a, run_b)]
    (name_a, sets_a), (name_b, sets_b) = sides
    entries = []
    for key in (key for key in sets_b if key in sets_a):
        found = compare(sets_b[key], sets_a[key])
        if found:
            shared = {row["id"] for row in sets_a[key]} & {row["id"] for row in sets_b[key]}
            half = Z95 * found.stderr
            judged = {}
            if ask and not is_perplexity(sets_b[key]):
                judged = {"judge": _judge(ask, sets_a[key], sets_b[key], judge_limit)}
            entries.append(
                {
                    "task": key[0],
                    "split": key[1],
                    "metric": "perplexity" if is_perplexity(sets_b[key]) else sets_b[key][0]["metric"],
                    "n": found.n,
                    "a": _value(sets_a[key], shared),
                    "b": _value(sets_b[key], shared),
                    "difference": found.difference,
                    "stderr": found.stderr,
                    "low": found.difference - half,
                    "high": found.difference + half,
                    "p": found.p,
                    **judged,
                }
            )
    if not entries:
        raise DataError(
            f"{name_a} and {name_b} answered no prompt in common; {name_a} has the sets {_names(sets_a)}, {name_b} "
            f"{_names(sets_b)}: compare runs of recipes with the same tasks"
        )
    for entry, adjusted in zip(entries, holm([entry["p"] for entry in entries]), strict=True):
        entry["p_adjusted"] = adjusted
    return {"a": name_a, "b": name_b, "sets": entries}


def describe(found: dict[str, Any]) -> str:
    """A comparison as text: a line a set."""
    lines = [
        f"a: {found['a']}",
        f"b: {found['b']}",
        "",
        f"{'set':<36} {'n':>6} {'a':>9} {'b':>9}  {'b - a, 95 % interval':<30} {'p':>7} {'adjusted':>9}",
    ]
    for entry in found["sets"]:
        told = _tell(entry)
        lines.append(
            f"{told['name']:<36} {told['n']:>6} {told['a']:>9} {told['b']:>9}  {told['difference']:<30} "
            f"{told['p']:>7} {told['p_adjusted']:>9}"
        )
    for entry in found["sets"]:
        if judged := entry.get("judge"):
            lines.append(
                f"{entry['task']}.{entry['split']}, judged: b wins {100 * judged['win_rate']:.1f} ± "
                f"{100 * judged['stderr']:.1f} % of {judged['n']:.0f}, ties half; for the answer shown first "
                f"{100 * judged['first_fraction']:.0f} %, inconsistent {100 * judged['inconsistent_fraction']:.0f} %, "
                f"unreadable {100 * judged['unreadable_fraction']:.0f} %"
            )
    return "\n".join(lines)


def write_page(found: dict[str, Any], target: Path) -> None:
    """Write a comparison as one HTML page with its intervals drawn; of a link, to where it leads.

    Raises: ConfigError if `target` is something else than a file."""
    target = target.resolve()
    if target.exists() and not target.is_file():
        raise ConfigError(f"{target}: found a folder or a device, expected the name of a file to write")
    pictures = []
    for perplexity, title, axis in (
        (False, "Scores", "b - a, in points; more is better"),
        (True, "Perplexities", "change from a to b; less is better"),
    ):
        rows = [_interval(entry) for entry in found["sets"] if (entry["metric"] == "perplexity") == perplexity]
        if rows:
            write = _relative if perplexity else _points
            pictures.append(Markup(charts.ladder(title, rows, axis, write, guide=0.0)))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("compare_template.html").render(
        found=found, charts=pictures, rows=[_tell(entry) for entry in found["sets"]]
    )
    try:
        artifact.write_atomically(target, page)
    except OSError as error:
        raise errors.from_os_error(error, f"writing {target}") from error


def _last_model(workdir: Path, run: str) -> tuple[str, dict[tuple[str, str], Rows]]:
    """(run and model, eval_result/2 rows by set) of the last model that a run evaluated."""
    summary = history.summary_of(workdir, run)
    folder = workdir / "runs" / Path(summary["run"]).name
    _, finished, outputs = run_outputs.read(folder)
    scores = Scores(run_outputs.results(outputs), run_outputs.tasks(outputs), run_outputs.chain(summary))
    if not scores.final:
        older = [o.manifest.schema_name for o in outputs.values() if o.manifest.schema_name.startswith("eval_result/")]
        why = (
            f"its evaluations are {older[0]}, expected eval_result/2: run it again"
            if older
            else ("no evaluation of it finished" if finished else "its journal is gone")
        )
        raise DataError(f"{folder.name}: there is no evaluated model to compare; {why}")
    sets = {key: rows[scores.final] for key, rows in scores.sets.items() if scores.final in rows}
    return f"{folder.name}, {scores.final}", sets


def _judge(ask: Ask, rows_a: Rows, rows_b: Rows, limit: int) -> dict[str, float]:
    answers = {row["id"]: row["response"] for row in rows_a}
    shared = sorted((row for row in rows_b if row["id"] in answers), key=lambda row: row["id"])[:limit]
    return tally(judge(ask, [Pair(row["prompt"], row["response"], answers[row["id"]]) for row in shared]))


def _value(rows: Rows, shared: set[str]) -> float:
    """Mean score over the shared prompts, or their perplexity."""
    both = [row for row in rows if row["id"] in shared]
    mean, _ = mean_stderr([row["score"] for row in both], [row["weight"] for row in both])
    return math.exp(-mean) if is_perplexity(rows) else mean


def _tell(entry: dict[str, Any]) -> dict[str, str]:
    perplexity = entry["metric"] == "perplexity"
    form = charts.number if perplexity else charts.percent
    interval = _interval(entry)
    write = _relative if perplexity else _points
    note = "" if entry["metric"] == "accuracy" else f" ({entry['metric']})"
    return {
        "name": f"{entry['task']}.{entry['split']}{note}",
        "n": f"{entry['n']:,}",
        "a": form(entry["a"]),
        "b": form(entry["b"]),
        "difference": f"{write(interval.value)} ({write(interval.low)} to {write(interval.high)})",
        **{name: "<0.001" if entry[name] < 0.001 else f"{entry[name]:.3f}" for name in ("p", "p_adjusted")},
    }


def _interval(entry: dict[str, Any]) -> charts.Interval:
    """An entry as a row of a chart: points of a score, or the relative change of a perplexity."""
    name, kind = f"{entry['task']}.{entry['split']}", "final" if entry["p_adjusted"] < SIGNIFICANT else "stage"
    if entry["metric"] != "perplexity":
        return charts.Interval(name, entry["difference"], entry["low"], entry["high"], kind)
    value, low, high = (math.exp(-entry[end]) - 1 for end in ("difference", "high", "low"))
    return charts.Interval(name, value, low, high, kind)


def _points(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "−")


def _relative(value: float) -> str:
    return f"{100 * value:+.1f} %".replace("-", "−")


def _names(sets: dict[tuple[str, str], Rows]) -> str:
    return ", ".join(".".join(key) for key in sets)
