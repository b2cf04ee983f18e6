"""The part of Kubernetes' API that asks Kubeflow Trainer for a job, over HTTP and in memory."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import trainer_schema
import yaml
from json_api import JsonHandler

NAMESPACE = "team-a"
JOBS = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{NAMESPACE}/trainjobs"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
Job = dict[str, Any]


class TrainerAPI(ThreadingHTTPServer):
    """Its paths, answers and refusals are those of Kubernetes with Trainer 2.3; `play` is what its controller does with
    a job, in a thread. A job that is deleted is gone when `goes` is set."""

    def __init__(self, play: Callable[[TrainerAPI, Job], None] = lambda api, job: None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon_threads = True
        self.play = play
        self.jobs: dict[str, Job] = {}
        self.pods: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, list[tuple[str, str]]] = {}
        """By pod: (time, line)."""
        self.asked: list[str] = []
        self.faults: list[tuple[str, int, str]] = []
        """(beginning of `METHOD path`, status, message), each for one call."""
        self.goes = threading.Event()
        self.goes.set()
        self.changed = threading.Condition()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> TrainerAPI:
        return self

    def __exit__(self, *_: Any) -> None:
        with self.changed:
            self.pods.clear()
            self.changed.notify_all()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # who asked was killed
            super().handle_error(request, client_address)

    def kubeconfig(self, file: Path) -> Path:
        """A kubeconfig of this server, written to `file`."""
        entry = {"name": "here", "cluster": {"server": self.url}}
        context = {"name": "here", "context": {"cluster": "here", "user": "me", "namespace": NAMESPACE}}
        user = {"name": "me", "user": {"token": "secret"}}
        whole = {"clusters": [entry], "contexts": [context], "users": [user], "current-context": "here"}
        file.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **whole}))
        return file

    def condition(self, job: Job, kind: str, reason: str = "", message: str = "") -> None:
        """Let a job be in this state."""
        state = {"type": kind, "status": "True", "reason": reason, "message": message}
        job["status"] = {"conditions": [{**state, "lastTransitionTime": "2026-11-28T10:00:00Z"}]}

    def pod(self, job: Job, rank: int, phase: str = "Running", **status: Any) -> str:
        """Let a job have a pod in this phase; its name. Its container has ended if `terminated` is given."""
        name = f"{job['metadata']['name']}-node-0-{rank}-x7k2p"
        labels = {
            "jobset.sigs.k8s.io/jobset-name": job["metadata"]["name"],
            "batch.kubernetes.io/job-completion-index": str(rank),
        }
        if "terminated" in status:
            state = {"terminated": {"exitCode": 0, **status.pop("terminated")}}
            container = {"name": "node", "image": "i", "imageID": "i", "ready": False, "restartCount": 0}
            status["containerStatuses"] = [{**container, "state": state}]
        with self.changed:
            self.logs.setdefault(name, [])
            self.pods[name] = {"metadata": {"name": name, "labels": labels}, "status": {"phase": phase, **status}}
            self.changed.notify_all()
        return name

    def tell(self, pod: str, line: str) -> None:
        """Let a pod log a line."""
        with self.changed:
            self.logs[pod].append((datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z"), line))
            self.changed.notify_all()


class _Handler(JsonHandler):
    server: TrainerAPI
    protocol_version = "HTTP/1.1"

    def refuse(self, status: int, message: str) -> None:
        self.answer({"kind": "Status", "status": "Failure", "message": message, "code": status}, status)

    def call(self, method: str) -> None:
        address = urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        asked = f"{method} {address.path}"
        self.server.asked.append(asked)
        for fault in self.server.faults:
            if asked.startswith(fault[0]):
                self.server.faults.remove(fault)
                return self.refuse(*fault[1:])
        if self.headers.get("Authorization") != "Bearer secret":
            return self.refuse(401, "Unauthorized")
        name = address.path.rpartition("/")[2]
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        if address.path == JOBS and method == "DELETE":
            label, _, value = query["labelSelector"].partition("=")
            for job in [job for job in self.server.jobs.values() if job["metadata"]["labels"].get(label) == value]:
                del self.server.jobs[job["metadata"]["name"]]
            return self.answer({"kind": "TrainJobList", "apiVersion": "trainer.kubeflow.org/v1alpha1", "items": []})
        if address.path == JOBS:
            return self.create(body)
        if address.path.startswith(JOBS):
            found = self.server.jobs.get(name)
            if found is None:
                return self.refuse(404, f'trainjobs.trainer.kubeflow.org "{name}" not found')
            return self.delete(found) if method == "DELETE" else self.answer(found)
        if address.path == PODS:
            label, _, value = query["labelSelector"].partition("=")
            pods = [pod for pod in self.server.pods.values() if pod["metadata"]["labels"].get(label) == value]
            return self.answer({"kind": "PodList", "apiVersion": "v1", "items": pods})
        if not address.path.endswith("/log"):
            pod = self.server.pods.get(name)
            return self.answer(pod) if pod else self.refuse(404, f'pods "{name}" not found')
        return self.log(address.path.removeprefix(f"{PODS}/").removesuffix("/log"), query)

    def create(self, job: Job) -> None:
        name = job["metadata"]["name"]
        if problems := trainer_schema.problems(job):
            return self.refuse(400, f"strict decoding error: {problems[0]}")
        if name in self.server.jobs:
            return self.refuse(409, f'trainjobs.trainer.kubeflow.org "{name}" already exists')
        self.server.jobs[name] = job
        threading.Thread(target=self.server.play, args=(self.server, job), daemon=True).start()
        return self.answer(job, 201)

    def delete(self, job: Job) -> None:
        job["metadata"]["deletionTimestamp"] = "2026-11-28T10:00:00Z"
        self.answer({"kind": "Status", "status": "Success"})

        def go() -> None:
            self.server.goes.wait(60)
            with self.server.changed:
                self.server.jobs.pop(job["metadata"]["name"], None)
                for name in [name for name in self.server.pods if name.startswith(job["metadata"]["name"])]:
                    del self.server.pods[name]
                self.server.changed.notify_all()

        threading.Thread(target=go, daemon=True).start()

    def log(self, pod: str, query: dict[str, str]) -> None:
        """The lines of a pod, and those to come for as long as it runs."""
        if pod not in self.server.pods:
            return self.refuse(404, f'pods "{pod}" not found')
        assert query["follow"] == query["timestamps"] == "True" and query["container"] == "node"
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        told = 0
        while True:
            with self.server.changed:
                lines = self.server.logs[pod]
                runs = self.server.pods.get(pod, {}).get("status", {}).get("phase") == "Running"
                if told == len(lines) and runs:
                    self.server.changed.wait(5)
                fresh, told = lines[told:], len(lines)
            for at, line in fresh:
                text = f"{at} {line}\n".encode()
                self.wfile.write(f"{len(text):x}\r\n".encode() + text + b"\r\n")
            if not runs and not fresh:
                self.wfile.write(b"0\r\n\r\n")
                return
