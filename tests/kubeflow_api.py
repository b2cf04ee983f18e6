"""The part of Kubeflow Pipelines' API that is used here, over HTTP and in memory, with one profile or none."""

from __future__ import annotations

import json
import re
import threading
from datetime import datetime, timedelta
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from json_api import JsonHandler

IDENTITIES = {"experiments": "experiment_id", "runs": "run_id", "recurringruns": "recurring_run_id"}
WORKFLOW = "quickstart-x7k2p"
START = datetime(2026, 11, 28, 10)


class KubeflowAPI(ThreadingHTTPServer):
    """Its paths, its answers and its refusals are those of version 2.17."""

    def __init__(self, *, namespace: str = "", token: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.namespace, self.token, self.version = namespace, token, "2.17.0"
        self.kept: dict[str, list[dict[str, Any]]] = {}
        self.made = 0
        self.asked: list[str] = []
        """`METHOD kind` of every call."""
        self.faults: list[tuple[str, int, dict[str, Any], bool]] = []
        """(`METHOD kind`, status, body, whether the call is done all the same), each for one call."""
        self.workflows: dict[str, dict[str, Any]] = {}
        self.logs: dict[str, str] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> KubeflowAPI:
        return self

    def __exit__(self, *_: Any) -> None:
        self.shutdown()
        self.server_close()

    def play(
        self,
        run: dict[str, Any],
        state: str,
        nodes: dict[str, tuple[str, str]],
        times: dict[str, tuple[float, float]] | None = None,
    ) -> None:
        """Let a run be in `state`, with the Argo `nodes` (by their names below the root) in a phase, with a message;
        each takes 30 s and begins a minute after the one before, unless its `times` say the seconds of both."""
        run["state"] = state
        phases = {"Succeeded": "SUCCEEDED", "Failed": "FAILED", "Running": "RUNNING", "Pending": "PENDING"}
        told, details = {}, []
        for number, (name, (phase, message)) in enumerate(nodes.items()):
            is_pod = name.endswith(("executor", ")", "-driver"))
            begins, ends = (times or {}).get(name, (60 * number, 60 * number + 30))
            has_ended = phase in ("Succeeded", "Failed", "Error")
            start = _clock(begins)
            ended = _clock(ends) if has_ended else "0001-01-01T00:00:00Z"
            identity = f"{WORKFLOW}-{number + 1000}"
            told[identity] = {
                "id": identity,
                "name": f"{WORKFLOW}.root.{name}",
                "displayName": name.rpartition(".")[2],
                "type": "Pod" if is_pod else "DAG",
                "templateName": "system-container-driver"
                if name.endswith("-driver")
                else "retry-system-container-impl"
                if name.endswith(")")
                else "system-container-impl",
                "phase": phase,
                "message": message,
                "startedAt": start,
                "finishedAt": ended if has_ended else None,
            }
            details.append(
                {
                    "display_name": name.rpartition(".")[2],
                    "state": phases.get(phase, "FAILED"),
                    "start_time": start,
                    "end_time": ended,
                }
            )
        self.workflows[run["run_id"]] = {"metadata": {"name": WORKFLOW}, "status": {"nodes": told}}
        run["run_details"] = {"task_details": details}


def _clock(seconds: float) -> str:
    """As Kubernetes tells it: of whole seconds."""
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


class _Handler(JsonHandler):
    server: KubeflowAPI

    def refuse(self, status: int, message: str) -> None:
        self.answer({"error": message, "code": 3, "message": message, "details": []}, status)

    def call(self, method: str) -> None:
        address = urlsplit(self.path)
        version, _, path = address.path.removeprefix("/apis/").partition("/")
        kind, _, identity = path.partition("/")
        self.server.asked.append(f"{method} {kind}")
        query = {key: values[0] for key, values in parse_qs(address.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        fault = next((fault for fault in self.server.faults if fault[0] == f"{method} {kind}"), None)
        if fault is not None:
            self.server.faults.remove(fault)
            if fault[3]:
                self.make(kind, body)
            return self.answer(fault[2], fault[1])
        if kind == "healthz":
            told = {"commit_sha": "unknown", "tag_name": self.server.version, "pipeline_store": "database"}
            return self.answer({**told, "multi_user": bool(self.server.namespace)})
        if self.server.token and self.headers.get("Authorization") != f"Bearer {self.server.token}":
            return self.refuse(401, "Request header error: there is no user identity header.")
        if version != "v2beta1":
            return self.older(version, identity)
        if method == "DELETE":
            self.server.kept[kind] = [item for item in self.server.kept[kind] if item["id"] != identity]
            return self.answer({})
        if identity:
            return self.one(kind, identity)
        if problem := self.stranger(kind, body if method == "POST" else query, method):
            return self.refuse(*problem)
        return self.answer(self.make(kind, body) if method == "POST" else self.listed(kind, query))

    def stranger(self, kind: str, given: dict[str, Any], method: str) -> tuple[int, str] | None:
        """What the API says to who names no profile, another's, or one where there are none."""
        if method == "POST" and kind != "experiments":
            known = [item["experiment_id"] for item in self.server.kept.get("experiments", [])]
            return None if given.get("experiment_id") in known else (404, "Experiment not found")
        named = given.get("namespace", "")
        if named == self.server.namespace:
            return None
        if not self.server.namespace:
            return 400, f"In single-user mode, List{kind} cannot filter by namespace."
        return (403, f"User is not authorized in {named}") if named else (400, "Namespace is empty in multi-user mode")

    def make(self, kind: str, body: dict[str, Any]) -> dict[str, Any]:
        number = self.server.made = self.server.made + 1
        identity = f"00000000-0000-4000-8000-{number:012d}"
        made = {**body, IDENTITIES[kind]: identity, "id": identity}
        self.server.kept.setdefault(kind, []).append(made)
        return made

    def listed(self, kind: str, query: dict[str, str]) -> dict[str, Any]:
        items = self.server.kept.get(kind, [])
        if "filter" in query:
            (predicate,) = json.loads(query["filter"])["predicates"]
            value = predicate.get("string_value", predicate.get("stringValue"))
            items = [item for item in items if item.get(predicate["key"]) == value]
        return {{"recurringruns": "recurringRuns"}.get(kind, kind): items, "total_size": len(items)}

    def one(self, kind: str, identity: str) -> None:
        identity, _, verb = identity.partition(":")
        found = [item for item in self.server.kept.get(kind, []) if item["id"] == identity]
        if not found:
            return self.refuse(404, f"Run {identity} not found")
        if verb == "terminate":
            found[0]["state"] = "CANCELING"
            return self.answer({})
        return self.answer(found[0])

    def older(self, version: str, path: str) -> None:
        run, _, rest = path.partition("/")
        if version == "v1beta1":
            manifest = json.dumps(self.server.workflows.get(run, {}))
            return self.answer({"run": {"id": run}, "pipeline_runtime": {"workflow_manifest": manifest}})
        pod = re.fullmatch(r"nodes/(.+)/log", rest)
        if version != "v1alpha1" or pod is None or pod[1] not in self.server.logs:
            return self.answer({"error_message": f'pods "{pod and pod[1]}" not found', "error_details": ""}, 500)
        return self.answer(self.server.logs[pod[1]])
