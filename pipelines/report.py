"""The report of a run: one HTML page that an engineer reads in two minutes.

It is made from the journal and the artifacts that the journal names. The page needs no network: style and
charts are inline (`report_template.html`, `charts.py`), and whatever comes from data is escaped by the
template. A run that failed or was rejected is reported with what it left; a part whose artifact is missing
says so in one line.
"""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from bloomery.components.core import artifact, provenance
from bloomery.components.core.errors import DataError
from bloomery.components.core.parallel import num_cores
from bloomery.pipelines import charts, compression_section, data_section, run_outputs, variants_section
from bloomery.pipelines.charts import duration, number, percent, size
from bloomery.pipelines.run_outputs import Output
from bloomery.pipelines.scores import Scores

CHANGE_FRACTION = 0.02
"""Rise over the lowest validation loss, or fall in the last third, that is called over- or under-fitting.

A reading aid of our own, in parts of the loss: smaller changes are hard to see in the picture as well."""


def write_report(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Write `run_dir/report.html` and return its path.

    `summary` is what `bloomery run --json` prints: status, model, cached_steps, seconds, recipe, error.
    Reads:   run_dir/journal.jsonl and the artifacts that its `finished` events point at.
    """
    events, finished, outputs = run_outputs.read(run_dir)
    scores = Scores(run_outputs.results(outputs), run_outputs.tasks(outputs), run_outputs.chain(summary))
    gate = _or_missing(lambda: _json(outputs, "promotion", "verdict"))
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": number, "percent": percent, "size": size}
    page = environment.get_template("report_template.html").render(
        head=_head(run_dir, summary, events, finished, scores, gate),
        sets=scores.parts(),
        confusions=scores.confusions(),
        forgetting=_or_missing(scores.forgetting),
        losses=_losses(finished),
        warnings=[(stage, told) for stage, event in finished.items() for told in event.get("warnings", ())],
        data=data_section.read(outputs, finished),
        answers=_or_missing(scores.cards),
        compression=_or_missing(lambda: compression_section.read(finished, scores)),
        variants=_or_missing(lambda: variants_section.read(outputs, finished, summary.get("chain", ["ptq"]))),
        gate=gate,
        cost=_cost(finished),
        outputs=outputs.values(),
        lost=sum(len(event["outputs"]) for event in finished.values()) - len(outputs),
        stages=finished,
        recipe=yaml.safe_dump(summary.get("recipe") or {}, allow_unicode=True, sort_keys=False),
    )
    target = run_dir / "report.html"
    artifact.write_atomically(target, page)
    return target


def _json(outputs: dict[tuple[str, str], Output], stage: str, name: str) -> dict[str, Any]:
    """The JSON file that is the content of an output; a list comes as `rows`."""
    if (stage, name) not in outputs:
        raise DataError(f"{stage} did not finish, or its output `{name}` is gone.")
    value = json.loads((outputs[stage, name].path / f"{name}.json").read_text(encoding="utf-8"))
    return {"rows": value} if isinstance(value, list) else value


def _or_missing(build: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `build` found, or `missing`: why there is nothing."""
    try:
        return {"missing": "", **build()}
    except DataError as error:
        return {"missing": str(error)}


def _head(
    run_dir: Path,
    summary: dict[str, Any],
    events: list[dict[str, Any]],
    finished: dict[str, Any],
    scores: Scores,
    gate: dict[str, Any],
) -> dict[str, Any]:
    """Verdict, the numbers that matter most, and what the run was made with."""
    tiles = []
    if model := summary.get("model"):
        aliases = ", ".join(model.get("aliases") or []) or "no alias"
        tiles.append({"name": "model", "value": f"{model['name']} v{model['version']}", "note": aliases})
    tiles += [tile for key in scores.answered()[:3] if (tile := scores.change(key))]
    reused = f"{len(summary.get('cached_steps') or [])} of {len(finished)} steps reused"
    tiles.append({"name": "total time", "value": duration(summary.get("seconds") or 0), "note": reused})
    commit = provenance.commit()
    version = artifact.version() + (f", commit {commit}" if commit else "")
    facts = [("Run", run_dir.name), ("Bloomery", version), ("Hardware", _hardware())]
    if events:
        facts.insert(1, ("Started", f"{datetime.fromtimestamp(events[0]['time'], UTC):%Y-%m-%d %H:%M} UTC"))
    if start := gate.get("started_from"):
        facts.append(("Training", f"went on from version {start}, the champion, as it was before quantisation"))
    recipe, status = summary.get("recipe") or {}, summary["status"]
    told = {"promoted": "The gate let it pass", "rejected": "The gate refused it"}.get(status, status)
    reason = gate["missing"] or f"{told}: {gate['reason']}."
    if status == "failed":
        failures = [f"{event['stage']}: {event['message']}" for event in events if event["event"] == "failed"]
        reason = summary.get("error") or (failures or ["the run ended without a word"])[-1]
        lines = [line for line in reason.splitlines() if line.strip()]
        reason = lines[-1] if "Traceback" in reason else "\n".join(lines)
    icon = {"promoted": "✓", "rejected": "✗"}.get(status, "!")
    name = recipe.get("name") or run_dir.name
    return {"recipe": name, "status": status, "icon": icon, "reason": reason, "tiles": tiles, "facts": facts}


def _hardware() -> str:
    cpus = num_cores()
    threads = os.environ.get("OMP_NUM_THREADS") or cpus
    return f"{cpus} CPUs, {threads} torch threads, {platform.platform()}, Python {platform.python_version()}"


def _losses(finished: dict[str, Any]) -> list[dict[str, Any]]:
    """A chart and a sentence for every stage that recorded a loss."""
    found = []
    for stage, event in finished.items():
        train, validation = (
            [
                (entry["step"], entry[key])
                for entry in event["history"]
                if math.isfinite(entry.get(key, math.nan))
            ]
            for key in ("loss", "eval_loss")
        )
        if train:
            curves = [charts.Series("training", train, "train")]
            curves += [charts.Series("validation", validation, "validation", ring=True)] if validation else []
            is_preference = any(name.startswith("dpo/") for name in event["metrics"])
            unit = "loss" if is_preference else "loss, nats per token"
            chart = charts.lines(stage, curves, "optimiser step", unit)
            shown = event.get("shown", {})
            sentence, positions = fit_sentence(train, validation), _positions(shown.get("perplexity_by_position", {}))
            item = {"stage": stage, "chart": Markup(chart), "sentence": sentence, "example": shown.get("example")}
            found.append({**item, "positions": positions})
    return found


def _positions(shown: dict[str, list[list[float]]]) -> list[Markup]:
    """A chart for each kind of text whose perplexity was told in more than one part of its positions."""
    found = []
    for kind, rows in shown.items():
        if len(rows) > 1:
            before, after = ([(row[0], row[column]) for row in rows] for column in (1, 2))
            curves = [charts.Series("before", before, "train"), charts.Series("after", after, "validation")]
            note = "beginning of the part, tokens from the beginning of a text"
            found.append(Markup(charts.lines(f"{kind} text", curves, note, "perplexity")))
    return found


def fit_sentence(train: list[tuple[float, float]], validation: list[tuple[float, float]]) -> str:
    """One sentence on over- and under-fitting, read from the (step, loss) points of the two curves."""
    falling = f"Training loss went from {train[0][1]:.3g} to {train[-1][1]:.3g}"
    if len(validation) < 3:
        seen = f"{len(validation) or 'no'} validation loss{'es' if len(validation) != 1 else ''}"
        return f"{falling}; with {seen}, over- and under-fitting cannot be told apart."
    step, lowest = min(validation, key=lambda point: point[1])
    last = validation[-1][1]
    if last > lowest * (1 + CHANGE_FRACTION):
        return (
            f"Over-fitting after step {step:g}: validation loss rose from {lowest:.3g} to {last:.3g} while "
            f"training loss ended at {train[-1][1]:.3g}; train for less long or on more data."
        )
    before = validation[-1 - len(validation) // 3][1]
    if before - last > last * CHANGE_FRACTION:
        return (
            f"Under-fitting: validation loss was still falling, {before:.3g} to {last:.3g}; train for longer."
        )
    return f"{falling}, validation loss levelled off at {last:.3g}: no sign of over- or under-fitting."


def _cost(finished: dict[str, Any]) -> list[Markup]:
    """Seconds and peak memory of each stage."""
    seconds, memory = [], []
    for stage, event in finished.items():
        reused = event["cached"]
        told = duration(event["seconds"]) + (", reused" if reused else "")
        seconds.append(charts.Bar(stage, event["seconds"], told, reused))
        memory.append(charts.Bar(stage, event["peak_bytes"], size(event["peak_bytes"]), reused))
    if not seconds:
        return []
    note = "hollow: found in the store and reused"
    pictures = (
        charts.bars("Time", seconds, note),
        charts.bars("Peak memory", memory, "resident, of the step's process"),
    )
    return [Markup(picture) for picture in pictures]
