"""The loop closes, for real: questions change, one retraining starts, its model passes the gate, the server follows.

Nothing is acted: the server, the clients, the check, the retraining and the registry are those of every other use.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import requests
from markupsafe import Markup

from bloomery.components.core.artifact import write_atomically
from bloomery.components.core.data.chats import for_template
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.tables import read_rows
from bloomery.components.core.errors import ConfigError, GateError, ServiceError
from bloomery.components.core.registry import registry
from bloomery.components.core.scoring.statistics import mean_stderr
from bloomery.components.core.scoring.tasks import TaskConfig, ask
from bloomery.components.core.scoring.verify import verify
from bloomery.monitoring.check import check
from bloomery.monitoring.trigger import program
from bloomery.pipelines import charts, history, keys, launch
from bloomery.pipelines.recipe_files import find

RECIPE, TASK = "quickstart", "shop_sql"
CLIENTS = 64
"""Questions that are asked at the same time."""
NEW = "gift_card"
"""Families of questions on the table that nobody asked for before week 3 begin so."""
SERVING = ("serving.max_batch=64", "serving.poll_seconds=2", "serving.flush_seconds=1")
"""A demonstration does not wait: the server answers all clients in one batch, and looks at the registry and writes its
log more often."""
LAST_WEEK = 5

Tell = Callable[[str], None]


class Asked(NamedTuple):
    """A question of the traffic, answered."""

    week: int
    is_new: bool
    """On the new table."""
    score: float
    version: str
    """Of the model that answered."""
    seconds: float
    """Since the demonstration began."""


def drift(workdir: Path, settings: Sequence[str], tell: Tell) -> dict[str, Any]:
    """Serve the champion of `workdir`, ask it five weeks of traffic, and let the check do what it decides.

    Reads the quickstart's traffic; writes the prediction log, the check's pages, the retraining's run and
    `workdir/demo/drift.html`.
    Returns: weeks ((week, accuracy in words)), recovery (accuracy of the last week minus that of the first two, and its
             standard error), events ((seconds, text)), versions (served before and after), decision (page of the check
             that started the retraining), report (of the retraining), page.
    Raises:  ConfigError if there is no champion; GateError if the candidate was refused; ServiceError if the server,
             the check or the retraining failed.
    """
    recipe = launch.load(RECIPE, settings, prepare=False)
    workdir = workdir.absolute()
    log = workdir / "predictions"
    os.environ["MLFLOW_TRACKING_URI"] = launch.tracking_uri(workdir)
    champion = registry.alias(recipe.registered_model, registry.CHAMPION)
    if champion is None:
        name = recipe.registered_model
        raise ConfigError(f"{workdir}: no champion of {name} to serve; `bloomery run {RECIPE}` first")
    task = launch.load(RECIPE, settings, prepare=True).tasks[TASK]
    weeks = _weeks(Path(task.verifier.databases[0]).parent / "traffic.jsonl")
    began = time.monotonic()
    asked: list[Asked] = []
    story: dict[str, Any] = {"events": [], "versions": [str(champion.version)]}

    def event(text: str) -> None:
        story["events"].append((time.monotonic() - began, text))
        tell(f"{story['events'][-1][0]:5.0f} s  {text}")

    with _served(workdir, log, settings) as url:
        event(f"{recipe.registered_model} version {champion.version} answers at {url}")
        for week, rows in weeks.items():
            if week == LAST_WEEK and "report" not in story:
                raise ServiceError(f"no retraining was started in {week - 1} weeks: {story['events'][-1][1]}")
            asked += _ask(url, task, rows, began)
            event(f"week {week}: {_accuracy(asked, week)}")
            if week in (1, LAST_WEEK):
                continue
            num_logged = 2 * len(asked)  # answers, and their labels
            _wait(lambda count=num_logged: _health(url)["log"]["written"] >= count, 60, "the prediction log")
            found = check(find(RECIPE), workdir, str(log), recipe.monitoring, settings=settings)
            event(f"check: {found['action']}, {found['reason']}")
            if found["started_now"]:
                run = _retrained(workdir, found["started"], event)
                story |= {"decision": found["decision_page"], "report": run["report"]}
                version = run["model"]["version"]
                story["versions"].append(version)
                _wait(lambda wanted=version: _health(url)["version"] == wanted, 60, "the server's new version")
                event(f"the server answers with version {version}")
    story["weeks"] = [(week, _accuracy(asked, week)) for week in weeks]
    story["recovery"] = _recovery(asked)
    story["page"] = str(_write_page(workdir, asked, story))
    return story


def _weeks(traffic: Path) -> dict[int, list[dict[str, Any]]]:
    weeks: dict[int, list[dict[str, Any]]] = {}
    for raw in read_rows(str(traffic)):
        if raw.value is not None:
            weeks.setdefault(int(raw.value["week"]), []).append(raw.value)
    return weeks


@contextlib.contextmanager
def _served(workdir: Path, log: Path, settings: Sequence[str]) -> Iterator[str]:
    """The address of a server that is ended afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [program(), "serve", RECIPE, "--port", str(port), "--workdir", str(workdir), "--log", str(log)]
    command += [part for setting in (*SERVING, *settings) for part in ("--set", setting)]
    url = f"http://127.0.0.1:{port}"
    (workdir / "demo").mkdir(parents=True, exist_ok=True)
    output = workdir / "demo" / "serve.log"
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        _wait(lambda: process.poll() is not None or _answers(url), 120, "the server")
        if process.poll() is not None:
            raise ServiceError(f"the server ended with {process.returncode}; see {output}")
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return _health(url)["status"] == "ok"
    except requests.RequestException:
        return False


def _health(url: str) -> dict[str, Any]:
    return requests.get(f"{url}/health", timeout=10).json()


def _ask(url: str, task: TaskConfig, rows: list[dict[str, Any]], began: float) -> list[Asked]:
    """Ask as many clients at once do, and send the right answers, as labels that arrive later."""
    sessions = threading.local()
    databases = [Path(file) for path in task.verifier.databases for file in list_files(path)]
    template = task.templates[0]

    def post(path: str, body: dict[str, Any]) -> requests.Response:
        if not hasattr(sessions, "own"):
            sessions.own = requests.Session()
        response = sessions.own.post(url + path, json=body, timeout=120)
        if not response.ok:
            raise ServiceError(f"{url}{path} answered {response.status_code}: {response.text[:300]}")
        return response

    def one(row: dict[str, Any]) -> tuple[dict[str, Any], Asked]:
        asked = ask(template, row)
        body = {"messages": for_template(asked.messages), "max_tokens": task.max_new_tokens}
        answer = post("/v1/chat/completions", body).json()
        text = answer["choices"][0]["message"]["content"]
        score, _ = verify(task.verifier, text, asked.reference, databases)
        is_new, version = row["family"].startswith(NEW), answer["system_fingerprint"].rpartition(":")[2]
        found = Asked(row["week"], is_new, score, version, time.monotonic() - began)
        return {"id": answer["id"], "label": asked.reference}, found

    with ThreadPoolExecutor(CLIENTS) as pool:
        found = list(pool.map(one, rows))
        list(pool.map(lambda label: post("/v1/feedback", label), [label for label, _ in found]))
    return [asked for _, asked in found]


def _retrained(workdir: Path, started: dict[str, Any], event: Tell) -> dict[str, Any]:
    """The summary of the run that the check started, when it has ended; ServiceError or GateError if not promoted."""
    log = Path(started["log"])
    event(f"retraining started: {' '.join(started['command'][:3])} … --key {started['key']}")
    key = started["key"]
    _wait(lambda: keys.run_of(workdir, key) is not None, 120, f"the run of {key}; see {log}")
    run = str(keys.run_of(workdir, key))
    summary = workdir / "runs" / run / "summary.json"
    _wait(lambda: summary.is_file() or not _is_alive(started["pid"]), 3600, f"the run {run}; see {log}")
    found = history.summary_of(workdir, run)
    event(f"{run}: {found['status']} in {found['seconds']:.0f} s")
    if found["status"] != "promoted":
        kind = GateError if found["status"] == "rejected" else ServiceError
        raise kind(f"the retraining was {found['status']}: {found['reason']}; see {found['report']}")
    return found


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):  # a child of ours that has ended is there until it is waited for
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _wait(done: Callable[[], bool], seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            raise ServiceError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.25)


def _accuracy(asked: Sequence[Asked], week: int) -> str:
    rows = [row for row in asked if row.week == week]
    mean, stderr = mean_stderr([row.score for row in rows])
    told = f"{100 * mean:.1f} ± {100 * stderr:.1f} % of {len(rows)} questions answered rightly"
    new = [row.score for row in rows if row.is_new]
    return told + (f", {100 * sum(new) / len(new):.0f} % of {len(new)} on the new table" if new else "")


def _recovery(asked: Sequence[Asked]) -> tuple[float, float]:
    """(accuracy of the last week minus that of the first two, its standard error), in [-1, 1]."""
    first, first_error = mean_stderr([row.score for row in asked if row.week <= 2])
    last, last_error = mean_stderr([row.score for row in asked if row.week == LAST_WEEK])
    return last - first, math.hypot(first_error, last_error)


def _write_page(workdir: Path, asked: Sequence[Asked], story: dict[str, Any]) -> Path:
    """The timeline as one HTML page: accuracy over the questions in their order, and what happened when."""
    new = [row for row in asked if row.is_new]
    series = [
        charts.Series("all", _means(asked, asked), "validation"),
        charts.Series("new table", _means(asked, new), "train"),
    ]
    moved = next(index for index, row in enumerate(asked) if row.version == story["versions"][1])
    drifted = next(index for index, row in enumerate(asked) if row.is_new)
    marks = [(drifted, "new questions"), (moved, f"version {story['versions'][1]}")]
    chart = charts.lines("Answered rightly", series, "question", "%", marks)
    difference, stderr = story["recovery"]
    loader = jinja2.PackageLoader("bloomery.pipelines", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("demo_template.html").render(
        chart=Markup(chart),
        weeks=story["weeks"],
        events=[(charts.duration(seconds), text) for seconds, text in story["events"]],
        recovery=f"{100 * difference:+.1f} ± {100 * stderr:.1f} points",
        decision=story["decision"],
        report=story["report"],
    )
    target = workdir / "demo" / "drift.html"
    write_atomically(target, page)
    return target


def _means(asked: Sequence[Asked], rows: Sequence[Asked]) -> list[tuple[float, float]]:
    """(number of the last question, % answered rightly) of every half week that holds 20 of `rows` or more."""
    places = {id(row): index for index, row in enumerate(asked)}
    half = len(asked) // (2 * LAST_WEEK)
    found = []
    for part in range(2 * LAST_WEEK):
        scores = [row.score for row in rows if places[id(row)] // half == part]
        if len(scores) >= 20:
            found.append(((part + 1) * half, 100 * sum(scores) / len(scores)))
    return found
