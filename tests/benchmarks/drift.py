"""How soon drift is found, and how often it is seen where there is none, on real texts; and what a check costs.

    python tests/benchmarks/drift.py $BLOOMERY_DATA [QUICKSTART_TRAFFIC]

Traffic is 60 % English bank questions (banking77, 61 of its 77 intents) and 40 % Korean chat. A window has
1,000 rows and the reference 2,000, drawn without replacement, anew in every trial. A shift replaces English rows of
the window. `caught`: the window counts as drifted, or its data as broken, which is what a person is told. Shares carry
their binomial standard error; where no trial of n failed, the upper end of the 95 % interval is 3 / n.
"""

from __future__ import annotations

import csv
import io
import json
import lzma
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from bloomery.components.core.records import Prediction, content_id
from bloomery.monitoring import drift, trigger
from bloomery.monitoring.check import check
from bloomery.monitoring.config import MonitoringConfig, PolicyConfig
from bloomery.monitoring.snapshot import Window

HERE = Path(__file__).parent
ROWS = 1_000
TRIALS = 6
NULL_TRIALS = 200
WORKERS = 2
LOGGED = 1_000_000
CONFIG = MonitoringConfig(encoder="", num_examples=0)
START = datetime(2026, 1, 5, tzinfo=UTC)
SPAM = "WIN a free phone today, click http://prize.example/{} now!!!"


class Traffic:
    """Pools of real texts; `usual` draws without replacement, so that reference and window share none."""

    def __init__(self, data: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        rows = [row for name in ("train", "test") for row in csv.DictReader(_text(data / f"banking77/{name}.csv.xz"))]
        intents = sorted({row["category"] for row in rows})
        new = set(random.Random(7).sample(intents, 16))
        self.bank = [row["text"] for row in rows if row["category"] not in new]
        self.new_intents = [row["text"] for row in rows if row["category"] in new]
        clinc = json.load(_text(data / "clinc150/data_full.json.xz"))
        self.other_topics = [text for split in sorted(clinc) for text, _ in clinc[split]]
        with (data / "ko_chatbot_songys/ChatbotData.csv").open(encoding="utf-8-sig") as stream:
            self.korean = [row["Q"] for row in csv.DictReader(stream)]

    def pair(self, korean_share: float = 0.4) -> tuple[list[str], list[str]]:
        """Texts of a reference and of a window that is like it but for its share of Korean."""
        sizes = (2 * ROWS, ROWS)
        korean = [round(size * share) for size, share in zip(sizes, (0.4, korean_share), strict=True)]
        english = [size - count for size, count in zip(sizes, korean, strict=True)]
        all_korean, all_english = self.rng.sample(self.korean, sum(korean)), self.rng.sample(self.bank, sum(english))
        old = all_english[: english[0]] + all_korean[: korean[0]]
        return old, all_english[english[0] :] + all_korean[korean[0] :]

    def replaced(self, pool: Sequence[str], share: float) -> tuple[list[str], list[str], set[int]]:
        """Reference, window whose first rows, English ones, are drawn from `pool` to that share, and where those
        stand."""
        old, new = self.pair()
        places = range(round(share * ROWS))
        new[: len(places)] = self.rng.sample(pool, len(places))
        return old, new, set(places)


def main(data: Path, quickstart: Path | None) -> int:
    """Measure everything, write drift.json; 0 if the targets are met."""
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "rows": ROWS,
            "shifts": shifts(data),
            "quickstart": on_quickstart(quickstart) if quickstart else [],
            "scale": scale(data, Path(folder)),
            "at_once": at_once(data, Path(folder)),
        }
    (HERE / "drift.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(table(report))
    sudden = [entry for entry in report["shifts"] if entry["share"] >= 0.2 and entry["kind"] == "sudden"]
    none = next(entry for entry in report["shifts"] if entry["kind"] == "none")
    return int(any(entry["caught"] < entry["trials"] for entry in sudden) or none["caught"] > 0.01 * none["trials"])


def shifts(data: Path) -> list[dict[str, Any]]:
    """One entry a kind of shift: trials, how many were caught in the first window, by which signals, how late."""
    traffic = Traffic(data, seed=11)
    spam = [SPAM.format(number) for number in range(3)] * ROWS
    found = [measure("none", "no shift", 0.0, NULL_TRIALS, lambda: (*traffic.pair(), set()))]
    pools = {"new domain": traffic.other_topics, "new intents, same domain": traffic.new_intents, "spam burst": spam}
    for name, pool in pools.items():
        for share in (0.1, 0.2, 0.3):
            found.append(measure("sudden", name, share, TRIALS, lambda p=pool, s=share: traffic.replaced(p, s)))
    for korean in (0.5, 0.6):
        name = f"language mix: 40 % Korean, then {korean:.0%}"
        found.append(measure("sudden", name, abs(korean - 0.4), TRIALS, lambda k=korean: (*traffic.pair(k), set())))
    found.append(gradual(traffic))
    found += seasonal(traffic)
    return found


def measure(
    kind: str, name: str, share: float, trials: int, make: Callable[[], tuple[list[str], list[str], set[int]]]
) -> dict[str, Any]:
    made = [(*make(), trial) for trial in range(trials)]
    caught, signals, hits, taken, planted = 0, {}, 0, 0, 0
    with ProcessPoolExecutor(WORKERS, get_context("fork")) as workers:
        for compared, (_, new, places, _) in zip(workers.map(_look, made), made, strict=True):
            names = [*compared.report.drifted, *compared.report.suspicions]
            caught += bool(names)
            for signal in names:
                signals[signal] = signals.get(signal, 0) + 1
            texts = {new[place] for place in places}
            hits += sum(row.prompt in texts for row in compared.drifted)
            taken += len(compared.drifted)
            planted += len(texts)
    entry = {"kind": kind, "name": name, "share": round(share, 3), "trials": trials, "caught": caught}
    entry["stderr"] = round(math.sqrt(caught / trials * (1 - caught / trials) / trials), 4)
    entry["signals"] = dict(sorted(signals.items(), key=lambda item: -item[1])[:5])
    if planted:
        entry["slice_precision"] = round(hits / max(1, taken), 3)
        entry["slice_recall"] = round(hits / planted, 3)
    print(json.dumps(entry, ensure_ascii=False), flush=True)
    return entry


def gradual(traffic: Traffic) -> dict[str, Any]:
    """A new domain grows by 3 % of the traffic a window: in which window is it caught?"""
    delays = []
    for trial in range(TRIALS // 2):
        for window in range(1, 12):
            old, new, _ = traffic.replaced(traffic.other_topics, 0.03 * window)
            if look(old, new, 100 * trial + window).report.drifted:
                delays.append(window)
                break
    mean = sum(delays) / len(delays)
    spread = math.sqrt(sum((delay - mean) ** 2 for delay in delays) / len(delays))
    entry = {
        "kind": "gradual",
        "name": "new domain, 3 % more each window",
        "share": 0.03,
        "trials": len(delays),
        "mean_delay_windows": round(mean, 2),
        "stderr": round(spread / math.sqrt(len(delays)), 2),
        "max_delay_windows": max(delays),
    }
    print(json.dumps(entry), flush=True)
    return entry


def seasonal(traffic: Traffic) -> list[dict[str, Any]]:
    """A domain that comes and goes (10 to 30 %): against a reference of the low season, and one of a whole season."""

    def season(reference_share: float, share: float) -> tuple[list[str], list[str], set[int]]:
        old, new, places = traffic.replaced(traffic.other_topics, share)
        shown = round(reference_share * len(old))
        old[:shown] = traffic.rng.sample(traffic.other_topics, shown)
        return old, new, places

    return [
        measure("seasonal", "peak (30 %) against the low season (10 %)", 0.2, TRIALS, lambda: season(0.1, 0.3)),
        measure("seasonal", "low season again", 0.0, TRIALS, lambda: season(0.1, 0.1)),
        measure("seasonal", "a whole season (20 %) against a whole one", 0.0, TRIALS, lambda: season(0.2, 0.2)),
        measure("seasonal", "peak (30 %) against a whole season (20 %)", 0.1, TRIALS, lambda: season(0.2, 0.3)),
    ]


def on_quickstart(file: Path) -> list[dict[str, Any]]:
    """The quickstart's traffic: weeks 1 and 2 alike, then 30, 40 and 50 % new questions; 400 rows a window."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
    weeks = {week: [row["question"] for row in rows if row["week"] == week] for week in range(1, 6)}
    rng = random.Random(3)

    def halves() -> tuple[list[str], list[str], set[int]]:
        both = rng.sample(weeks[1] + weeks[2], 800)
        return both[:400], both[400:], set()

    found = [measure("none", "weeks 1 and 2, halved at random", 0.0, 3 * TRIALS, halves)]
    for week, share in ((3, 0.3), (4, 0.4), (5, 0.5)):
        old = weeks[1] + weeks[2]
        found.append(
            measure("sudden", f"week {week}", share, 5, lambda o=old, w=week: (rng.sample(o, 700), weeks[w], set()))
        )
    return found


def scale(data: Path, folder: Path) -> dict[str, Any]:
    """A log of a million predictions in ten days, checked by day: CPU seconds, wall seconds and memory of the whole
    process; beside it Evidently alone on the same columns of the same rows, the columns being given to it."""
    write_log(data, folder / "log")
    workdir = folder / "work"
    ours = measured(CHECK, str(folder / "log"), str(workdir))
    (report,) = workdir.glob("monitoring/*/drift.json")
    numbers = [s for s in json.loads(report.read_text())["signals"] if s["method"] != "classifier"]
    alone = measured(ALONE, str(len(numbers)), str(LOGGED))
    found = {"rows": LOGGED, "columns": len(numbers), "check": ours, "evidently_alone": alone}
    print(json.dumps(found), flush=True)
    return found


CHECK = """
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from bloomery.monitoring.check import check
from bloomery.monitoring.config import MonitoringConfig, PolicyConfig
config = MonitoringConfig(reference_days=1, window_days=1, encoder="", policy=PolicyConfig(consecutive_windows=1))
check("r", Path(sys.argv[2]), sys.argv[1], config, now=datetime(2026, 1, 15, 1, tzinfo=UTC), start=False)
"""

ALONE = """
import sys, warnings
warnings.simplefilter("ignore")
import numpy as np, pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
rng = np.random.default_rng(1)
columns, rows = int(sys.argv[1]), int(sys.argv[2])
frame = pd.DataFrame({f"c{i}": rng.poisson(40, rows) / 40 for i in range(columns)})
definition = DataDefinition(numerical_columns=list(frame))
sides = [Dataset.from_pandas(f, data_definition=definition) for f in (frame[: rows // 10], frame[rows // 10 :])]
preset = DataDriftPreset(columns=list(frame), num_method="ks", num_threshold=0.0003)
Report([preset], include_tests=True).run(sides[1], sides[0]).save_html("/dev/null")
"""


def measured(code: str, *arguments: str) -> dict[str, float]:
    """A Python program as a process of its own: what the kernel counted for it."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "OMP_NUM_THREADS": "2"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"the measured program ended with {status}")
    return {
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "wall_seconds": round(time.perf_counter() - started, 1),
        "peak_gib": round(usage.ru_maxrss / 2**20, 2),
    }


def write_log(data: Path, log: Path, num_rows: int = LOGGED, num_days: int = 10) -> None:
    """A prediction log of the usual traffic, a file a day."""
    import pyarrow.parquet as pq

    traffic, rng = Traffic(data, seed=3), random.Random(5)
    for day in range(num_days):
        texts = rng.choices(traffic.bank, k=num_rows * 6 // 10 // num_days)
        texts += rng.choices(traffic.korean, k=num_rows // num_days - len(texts))
        rng.shuffle(texts)
        begin, step = START + timedelta(days=day), timedelta(days=1) / len(texts)
        rows = [prediction(text, f"{day}-{i}", begin + i * step, rng).model_dump() for i, text in enumerate(texts)]
        file = log / f"date={begin:%Y-%m-%d}" / "20260105T000000-bench-000001.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(Prediction.table(rows), file, compression="zstd")


def at_once(data: Path, folder: Path) -> dict[str, int]:
    """A hundred processes check one drifted window at once; the retraining that starts is a real program that uses the
    key and records its start. How many checks said that they started it, and how many starts there were."""
    traffic = Traffic(data, seed=21)
    old, new, _ = traffic.replaced(traffic.other_topics, 0.5)
    rows = [*predictions(old, "r", 0), *predictions(new, "c", 0)]
    for number, row in enumerate(rows):
        rows[number] = row.model_copy(update={"time": (START + timedelta(minutes=number)).isoformat()})
    log, workdir = folder / "drifted.jsonl", folder / "at-once"
    log.write_text("".join(row.model_dump_json() + "\n" for row in rows), encoding="utf-8")
    program = folder / "bloomery"
    program.write_text(PROGRAM.format(python=sys.executable, workdir=str(workdir)), encoding="utf-8")
    program.chmod(0o755)
    trigger.sysconfig.get_path = lambda _: str(folder)  # the program that is found beside the interpreter
    config = CONFIG.model_copy(
        update={"reference_rows": 2 * ROWS, "window_rows": ROWS, "policy": PolicyConfig(consecutive_windows=1)}
    )
    check("r", workdir, log, config, start=False)
    children, said = [], []
    for _ in range(100):
        child = os.fork()
        if child == 0:
            os._exit(int(check("r", workdir, log, config)["started_now"]))
        children.append(child)
    said = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    time.sleep(3)
    starts = len((workdir / "starts").read_text())
    found = {
        "checks": len(said),
        "said_that_they_started": sum(said),
        "failed": sum(s > 1 for s in said),
        "starts": starts,
    }
    print(json.dumps(found), flush=True)
    return found


PROGRAM = """#!{python}
import sys
from pathlib import Path
from bloomery.pipelines import keys
keys.claim(Path({workdir!r}), sys.argv[sys.argv.index("--key") + 1], "run")
open({workdir!r} + "/starts", "a").write("x")
"""


def table(report: dict[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "| shift | share of traffic | windows | caught in the first | signals that saw it most |",
        "|---|---|---|---|---|",
    ]
    for entry in [*report["shifts"], *report["quickstart"]]:
        if entry["kind"] == "gradual":
            delay = (
                f"after {entry['mean_delay_windows']} ± {entry['stderr']} windows, at most {entry['max_delay_windows']}"
            )
            lines.append(f"| gradual: {entry['name']} | 3 % more each | {entry['trials']} runs | {delay} | |")
            continue
        share = entry["caught"] / entry["trials"]
        error = f" ± {entry['stderr']:.1%}" if 0 < share < 1 else ""
        signals = ", ".join(f"{name} {count}" for name, count in list(entry["signals"].items())[:3])
        cells = [
            f"{entry['kind']}: {entry['name']}",
            f"{entry['share']:.0%}",
            str(entry["trials"]),
            f"{share:.1%}{error}",
        ]
        lines.append(f"| {' | '.join([*cells, signals])} |")
    return "\n".join(lines)


def _look(trial: tuple[list[str], list[str], set[int], int]) -> drift.Compared:
    old, new, _, number = trial
    return look(old, new, number)


def look(old: Sequence[str], new: Sequence[str], number: int) -> drift.Compared:
    return drift.compare(predictions(old, "r", number), Window("w", predictions(new, "c", number)), "m:1", CONFIG)


def predictions(texts: Sequence[str], side: str, number: int) -> list[Prediction]:
    rng = random.Random(f"{side}{number}")
    return [
        prediction(text, f"{side}{number}-{index}", START + timedelta(seconds=index), rng)
        for index, text in enumerate(texts)
    ]


def prediction(text: str, name: str, moment: datetime, rng: random.Random) -> Prediction:
    return Prediction.model_construct(
        id=content_id(name),
        time=moment.isoformat(),
        model_name="m",
        model_version="1",
        prompt=text,
        response=f"Let me look: {text[:40]}",
        latency_seconds=rng.uniform(0.1, 0.3),
        prompt_tokens=len(text) // 3,
        response_tokens=rng.randint(5, 30),
        mean_log_probability=-rng.expovariate(2),
        mean_entropy=rng.expovariate(1),
        feedback=None,
        label=None,
    )


def _text(file: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(lzma.open(file), encoding="utf-8", newline="")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
