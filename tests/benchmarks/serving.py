"""Throughput and latency of `bloomery serve`: 32 clients at once against one at a time.

    python tests/benchmarks/serving.py CHECKPOINT TRAFFIC.jsonl [--rounds 3]

CHECKPOINT is a trained model of the quickstart, TRAFFIC.jsonl its questions (`question` of each row). The server is
the real one, in a process of its own, over HTTP; rounds of both kinds alternate, so that a slow hour of the machine
falls on both, and on a busy one the server's CPU seconds a request tell more than the clock. Answers are greedy and
must be the same either way.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from bloomery.infra import surroundings

CLIENTS = 32
MAX_TOKENS = 64
SERVER = """
import sys
from bloomery.components.core.step import configure_logging
from bloomery.monitoring.serving import serve
from bloomery.monitoring.serving_config import ServingConfig
configure_logging()
serve("bench", sys.argv[1], ServingConfig(), host="127.0.0.1", port=int(sys.argv[2]))
"""


def main() -> None:
    """Print the numbers as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("traffic", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    lines = options.traffic.read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line)["question"] for line in lines[: CLIENTS * 4]]
    with tempfile.TemporaryDirectory() as folder, running(options.checkpoint.absolute(), Path(folder)) as server:
        ask(server[0], questions[0])
        alone = questions[:CLIENTS]
        rounds = [(measure(*server, alone, 1), measure(*server, questions, CLIENTS)) for _ in range(options.rounds)]
    result = {
        "clients": CLIENTS,
        "max_tokens": MAX_TOKENS,
        "requests_per_second_alone": [alone["requests_per_second"] for alone, _ in rounds],
        "requests_per_second_together": [together["requests_per_second"] for _, together in rounds],
        "ratio": [
            round(together["requests_per_second"] / alone["requests_per_second"], 2) for alone, together in rounds
        ],
        "cpu_seconds_alone": [alone["cpu_seconds"] for alone, _ in rounds],
        "cpu_seconds_together": [together["cpu_seconds"] for _, together in rounds],
        "median_seconds_alone": [alone["median_seconds"] for alone, _ in rounds],
        "median_seconds_together": [together["median_seconds"] for _, together in rounds],
        "same_answers": all(
            together["answers"][question] == answer
            for alone, together in rounds
            for question, answer in alone["answers"].items()
        ),
    }
    print(json.dumps(result, indent=1))


@contextlib.contextmanager
def running(checkpoint: Path, folder: Path) -> Iterator[tuple[str, int]]:
    """(address, process id) of a server of `checkpoint`, with a registry of its own in `folder`."""
    from mlflow import MlflowClient

    registry = f"sqlite:///{folder / 'mlflow.db'}"
    client = MlflowClient(registry)
    client.create_registered_model("bench")
    client.create_model_version("bench", str(checkpoint))
    client.set_registered_model_alias("bench", "champion", "1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder / "log"), str(port)],
        env={**os.environ, **surroundings.missing(), "MLFLOW_TRACKING_URI": registry},
    )
    try:
        while process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"{url}/health", timeout=1)
                break
            time.sleep(0.2)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


_sessions = threading.local()


def ask(url: str, question: str) -> str:
    """The answer to `question`, over a connection that the thread keeps."""
    if not hasattr(_sessions, "session"):
        _sessions.session = requests.Session()
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": MAX_TOKENS}
    response = _sessions.session.post(f"{url}/v1/chat/completions", json=body)
    response.raise_for_status()
    return response.json()["choices"][0]["message"]["content"]


def cpu_seconds(process: int) -> float:
    """CPU seconds that a process has used (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(url: str, process: int, questions: list[str], clients: int) -> dict:
    """Requests a second, CPU seconds a request, median latency and answers, with `clients` asking at the same time."""
    def timed(question: str) -> tuple[str, float]:
        start = time.perf_counter()
        return ask(url, question), time.perf_counter() - start

    start, before = time.perf_counter(), cpu_seconds(process)
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(timed, questions))
    seconds = time.perf_counter() - start
    return {
        "requests_per_second": round(len(questions) / seconds, 2),
        "cpu_seconds": round((cpu_seconds(process) - before) / len(questions), 4),
        "median_seconds": round(statistics.median(took for _, took in found), 3),
        "answers": dict(zip(questions, (answer for answer, _ in found), strict=True)),
    }


if __name__ == "__main__":
    main()
