"""What `bloomery doctor` finds on this machine, on stores and servers over HTTP, and on clusters that answer as real
ones do."""

import json
import re
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml
from json_api import JsonHandler
from kubeflow_api import KubeflowAPI
from typer.testing import CliRunner

from bloomery.components.core.errors import ServiceError
from bloomery.infra.images import CPU_IMAGE
from bloomery.infra.resources import ResourcesConfig
from bloomery.pipelines import doctor, doctor_cluster
from bloomery.pipelines.cli import app
from bloomery.pipelines.doctor import Finding, examined
from bloomery.pipelines.kubeflow import Access

K8S = Path(__file__).resolve().parents[3] / "infra" / "k8s"
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def manifests(kind):
    """Those of a kind that infra/k8s has, as its files hold them."""
    files = [file for folder in ("base", "components") for file in sorted((K8S / folder).rglob("*.yaml"))]
    return [one for file in files for one in yaml.safe_load_all(file.read_text()) if one and one.get("kind") == kind]


@pytest.fixture
def server():
    """A server that answers each path with (status, value), any other with 404; of a list those items that the
    selector of the request names, and a review of access by the rules of a Role."""

    class Handler(JsonHandler):
        def call(self, method):
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            address = urlsplit(self.path)
            status, value = self.server.answers.get(address.path, (404, {"reason": "NotFound"}))
            for selector in parse_qs(address.query).get("labelSelector", ()):
                label, names = re.fullmatch(r"(\S+) in \((.+)\)", selector).groups()
                of = [item for item in value["items"] if item["metadata"]["labels"].get(label) in names.split(",")]
                value = {**value, "items": of}
            if address.path == REVIEWS:
                asked = body["spec"]["resourceAttributes"]
                allowed = any(
                    asked["group"] in rule["apiGroups"]
                    and asked["resource"] in rule["resources"]
                    and asked["verb"] in rule["verbs"]
                    for rule in self.server.rules
                )
                status, value = 201, {**body, "status": {"allowed": allowed}}
            self.answer(value, status)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.answers, running.rules = {}, []
        running.url = f"http://127.0.0.1:{running.server_port}"
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield running
        running.shutdown()


def test_a_check_that_takes_too_long_or_fails_is_a_finding():
    def unanswered():
        raise ServiceError("s3://b: the store did not answer; check the network")

    def broken():
        raise ValueError("odd")

    findings = examined({"slow": lambda: time.sleep(5) or (), "store": unanswered, "odd": broken}, seconds=0.05)
    assert findings == [
        Finding("slow", "fix", "no answer in 0 s", "see to the network, or to the address"),
        Finding("store", "fix", "s3://b: the store did not answer", "check the network"),
        Finding("odd", "?", "ValueError: odd", "the check itself failed"),
    ]


def test_a_machine_with_all_it_needs(object_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    result = CliRunner().invoke(app, ["doctor", "--bucket", "s3://bucket/shop", "--json"])
    findings = {(one["what"], one["state"]) for one in json.loads(result.stdout)}
    assert {("versions", "ok"), ("shm", "ok"), ("store", "ok"), ("credentials", "ok"), ("MLflow", "ok")} <= findings
    assert ("webhook", "ok") in findings and result.exit_code == 0
    (sent,) = (request for request in object_store.requests if request.startswith("PUT"))
    assert sent.startswith("PUT /bucket/shop/doctor/") and not object_store.objects("")


def test_servers_that_are_not_there_or_refuse(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert [one.state for one in doctor.mlflow()] == ["fix"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("//", "//me:s3same@"))
    server.answers["/api/2.0/mlflow/experiments/search"] = 401, {}
    (found,) = doctor.mlflow()
    shown = server.url.replace("//", "//***@")
    assert found.state == "fix" and found.found == f"{shown} answers 401" and "USERNAME" in found.fix
    server.answers["/api/2.0/mlflow/experiments/search"] = 200, {}
    assert [one.state for one in doctor.mlflow()] == ["ok"]
    monkeypatch.setenv("ALERTS", f"{server.url}/services/s3same")
    assert [one.state for one in doctor.reachable("ALERTS")] == ["ok"]
    monkeypatch.delenv("ALERTS")
    (found,) = doctor.reachable("ALERTS")
    assert found.state == "fix" and found.found == "the environment variable ALERTS holds no http or https address"


def listed(*items):
    return 200, {"items": list(items)}


def pod(name, image, waiting=None, **labels):
    state = {"waiting": {"reason": waiting}} if waiting else {"running": {}}
    status = {"name": "main", "image": image, "imageID": "" if waiting else f"{image}@sha256:1", "ready": not waiting}
    status |= {"restartCount": 0, "state": state}
    return {"metadata": {"name": name, "labels": labels}, "status": {"phase": "Running", "containerStatuses": [status]}}


def node(cpu, memory):
    return {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": cpu, "memory": memory}}}


@pytest.fixture
def kubernetes(server, tmp_path, monkeypatch):
    """The API of a Kubernetes, of which a kubeconfig tells."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    return server


def test_a_cluster(kubernetes, monkeypatch):
    for name in ("KFP_ENDPOINT", "KFP_TOKEN", "KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    place = "/api/v1/namespaces/team-a"
    kubernetes.answers = {
        f"{place}/secrets/bloomery-credentials": (200, {"metadata": {}, "data": {"AWS_ACCESS_KEY_ID": "c2VjcmV0"}}),
        f"{place}/pods": listed(pod("run-1", CPU_IMAGE, "ImagePullBackOff")),
        f"{place}/resourcequotas": listed(
            {"metadata": {"name": "q"}, "status": {"hard": {"requests.cpu": "8"}, "used": {"requests.cpu": "7500m"}}}
        ),
        "/api/v1/nodes": listed(node("1930m", "7Gi")),
        "/api/v1/pods": (403, {"reason": "Forbidden"}),
    }
    resources = ResourcesConfig(accelerator="nvidia.com/gpu", cpu_request="1")
    with KubeflowAPI(namespace="team-a") as api:
        checks = doctor_cluster.of_the_cluster(Access(api.url, "team-a"), "team-a", resources)
        told = {(one.what, one.state): one.found for one in examined(checks)}
        assert told["pipelines", "ok"].endswith(": version 2.17.0, several users, profile team-a; runs can be listed")
        assert told["RBAC", "fix"].startswith("not allowed in team-a: create runs, list runs")
        assert told["secret", "fix"] == "bloomery-credentials lacks AWS_SECRET_ACCESS_KEY"
        assert told["image pull", "fix"] == f"ImagePullBackOff of {CPU_IMAGE} in run-1"
        assert told["quota", "fix"] == "q: requests.cpu 7500m of 8 used, a task takes 1"
        assert told["nodes", "fix"] == "no node has nvidia.com/gpu now"
        assert "c2VjcmV0" not in str(told) and "secret\n" not in str(told)

        (role,) = [one for one in manifests("Role") if one["metadata"]["name"] == "bloomery-submit"]
        kubernetes.rules = role["rules"]
        api.version = "2.16.1"
        workloads = [*manifests("Deployment"), *manifests("StatefulSet")]
        ours = {one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"] for one in workloads}
        assert set(ours) == {"mlflow", "mlflow-postgres", "bloomery-serve"}
        running = [pod(f"{name}-0", CPU_IMAGE, **labels) for name, labels in ours.items()]
        keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "eA==")
        kubernetes.answers |= {
            f"{place}/secrets/bloomery-credentials": (200, {"metadata": {}, "data": keys}),
            f"{place}/pods": listed(pod("run-2", CPU_IMAGE), *running),
            f"{place}/resourcequotas": listed(),
            "/api/v1/nodes": (403, {"reason": "Forbidden"}),
        }
        checks = doctor_cluster.of_the_cluster(Access(api.url, "team-a"), "team-a", ResourcesConfig())
        findings = list(examined(checks))
        states = {one.what: one.state for one in findings}
        assert {one.found for one in findings if one.what == "services"} == {f"{name}-0 is ready" for name in ours}
        runtime = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/team-a/trainingruntimes/bloomery"
        checks = doctor_cluster.of_the_cluster(Access(api.url, "team-a"), "team-a", ResourcesConfig(nodes=2))
        for answer, state in ((404, {}), "fix"), ((200, {}), "ok"):
            kubernetes.answers[runtime] = answer
            assert [one.state for one in examined({"trainer": checks["trainer"]})] == [state]
    assert states == {
        **dict.fromkeys(("RBAC", "secret", "image pull", "quota", "services"), "ok"),
        "pipelines": "fix",  # which is too old
        "nodes": "?",
    }


def test_a_node_that_others_have_filled_has_no_room_for_a_task(kubernetes, tmp_path):
    requests = [{"cpu": "1700m", "memory": "4Gi"}, {"cpu": "100m"}, {}]
    containers = [{"name": str(number), "resources": {"requests": given}} for number, given in enumerate(requests)]
    kubernetes.answers = {
        "/api/v1/nodes": listed(node("2", "8Gi")),
        "/api/v1/pods": listed(*({"spec": {"nodeName": "n", "containers": [one]}} for one in containers)),
    }
    from kubernetes import client

    assert doctor_cluster.reaches_kubernetes()
    (found,) = doctor_cluster.nodes(client.CoreV1Api(), ResourcesConfig())
    assert (found.state, found.found) == ("ok", "1 of 1 have 100m cores and 3Gi for a task")
    (found,) = doctor_cluster.nodes(client.CoreV1Api(), ResourcesConfig(cpu_request="250m"))
    assert found.state == "fix"
    assert found.found.startswith("none of 1 nodes has 250m cores and 3Gi free for a task")
    assert found.found.endswith("the one with most memory has 0.20 cores and 4.0 GiB")


def test_without_a_cluster_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none"))
    monkeypatch.setattr("bloomery.pipelines.kubeflow.WAITS", ())
    checks = doctor_cluster.of_the_cluster(Access("http://127.0.0.1:9"), "kubeflow", ResourcesConfig())
    states = {one.what: one.state for one in examined(checks)}
    assert states.pop("pipelines") == "fix" and set(states.values()) == {"?"}


def test_what_is_not_kubernetes_is_told(monkeypatch, tmp_path, caplog):
    file = tmp_path / "kubeconfig"
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(file))
    monkeypatch.setattr("bloomery.pipelines.kubeflow.WAITS", ())
    with KubeflowAPI(namespace="team-a") as pipelines:

        def found(url):
            cluster, context = {"name": "c", "cluster": {"server": url}}, {"cluster": "c", "user": "u"}
            contexts = {"contexts": [{"name": "x", "context": context}], "current-context": "x"}
            users = {"users": [{"name": "u", "user": {"token": "t"}}]}
            file.write_text(json.dumps({"clusters": [cluster], **contexts, **users}))
            access = Access(pipelines.url, "team-a")
            checks = doctor_cluster.of_the_cluster(access, "team-a", ResourcesConfig())
            return [one for one in examined(checks) if one.what != "pipelines"]

        page = found(f"{pipelines.url}/apis/v2beta1/healthz?")  # answers every path with JSON of its own
        assert [one.state for one in page] == ["?"] * 6
        assert all(one.found.startswith("what answers is not Kubernetes") for one in page)
        caplog.clear()
        assert all("does not answer" in one.found for one in found("http://127.0.0.1:9")) and not caplog.text
