"""What a run needs of a cluster, asked of Kubeflow Pipelines and of Kubernetes, as far as either answers."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from bloomery.components.core.train_job import KIND
from bloomery.infra import images, secrets, train_jobs
from bloomery.infra.resources import ResourcesConfig
from bloomery.pipelines import kubeflow
from bloomery.pipelines.doctor import ANSWER_SECONDS, Check, Finding
from bloomery.pipelines.kubeflow import Access, connected

VERBS = (
    *((verb, "runs") for verb in ("create", "list", "get", "readLog", "terminate")),
    *((verb, "experiments") for verb in ("create", "list", "get")),
    *((verb, "jobs") for verb in ("create", "list", "delete")),
)
"""What submitting, following, ending and scheduling ask of Kubeflow Pipelines, which several users have as rights of
Kubernetes."""
OLDEST = (2, 17)
"""Version of Kubeflow Pipelines that is needed at least."""
SERVICES = ("mlflow", "mlflow-postgres", "bloomery-serve", "bloomery-ray")
"""Names that the pods of infra/k8s have as their label `app.kubernetes.io/name`."""
UNPULLED = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
NOWHERE = "neither in a pod nor with a kubeconfig that can be read; set KUBECONFIG, or run it in the cluster"


def of_the_cluster(access: Access, namespace: str, resources: ResourcesConfig) -> dict[str, Check]:
    """The checks of a cluster, for runs in `namespace` with these resources."""
    checks: dict[str, Callable[[Any], Iterable[Finding]]] = {
        "RBAC": lambda core: rights(access, namespace),
        "secret": lambda core: secret(core, namespace, resources.secret),
        "image pull": lambda core: pulled(core, namespace, resources),
        "quota": lambda core: quota(core, namespace, resources),
        "nodes": lambda core: nodes(core, resources),
        "services": lambda core: services(core, namespace),
    }
    if resources.most_nodes > 1:
        checks["trainer"] = lambda core: trainer(namespace)
    return {
        "pipelines": lambda: api(access),
        **{what: lambda what=what, check=check: _asked(what, check) for what, check in checks.items()},  # type: ignore
    }


def own_namespace(access: Access) -> str:
    """Where runs start: the profile, or `kubeflow` where there are none."""
    given = access.namespace or os.environ.get("KFP_NAMESPACE")
    if not given and Path(kubeflow.NAMESPACE_FILE).is_file():
        given = Path(kubeflow.NAMESPACE_FILE).read_text(encoding="utf-8").strip()
    return given or "kubeflow"


def api(access: Access) -> Iterable[Finding]:
    """Whether Kubeflow Pipelines answers and shows runs to this user."""
    with connected(access) as client:
        told = json.loads(kubeflow.get(client, "/apis/v2beta1/healthz"))
        client.list_runs(page_size=1)
        profile = client.get_user_namespace()
    users = f"several users, profile {profile}" if profile else "one user"
    version = told.get("tag_name", "unknown")
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    is_old = bool(numbers) and tuple(map(int, numbers.groups())) < OLDEST
    advice = f"upgrade it to {'.'.join(map(str, OLDEST))} or later" if is_old else ""
    where = access.address or "its default address"
    found = f"{where}: version {version}, {users}; runs can be listed"
    yield Finding("pipelines", "fix" if is_old else "ok", found, advice)


def _asked(what: str, check: Callable[[Any], Iterable[Finding]]) -> Iterator[Finding]:
    """What a check finds that asks Kubernetes, or why it cannot."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    if not reaches_kubernetes():
        yield Finding(what, "?", "Kubernetes cannot be asked from here", NOWHERE)
        return
    settings = client.Configuration.get_default_copy()
    settings.retries = False  # urllib3 would tell of three more, for each check
    client.Configuration.set_default(settings)
    try:
        yield from check(client.CoreV1Api())
    except ApiException as error:
        reason = f"Kubernetes answers {error.status} {error.reason}"
        refused = "this user may not look; whoever runs the cluster may"
        yield Finding(what, "?", reason, "renew the kubeconfig's credentials" if error.status == 401 else refused)
    except ValueError as error:  # the client's, of an object without what each has
        reason = f"what answers is not Kubernetes: {str(error)[:100]}"
        yield Finding(what, "?", reason, "see to the address in KUBECONFIG; it may be the page of a login")
    except HTTPError as error:
        yield Finding(what, "?", f"Kubernetes does not answer: {str(error)[:200]}", "see to KUBECONFIG and the network")


def reaches_kubernetes() -> bool:
    """Whether this is a pod with a token, or there is a kubeconfig; the client of Kubernetes then uses it."""
    from kubernetes import config

    for load in (config.load_incluster_config, config.load_kube_config):
        with contextlib.suppress(Exception):  # each raises others where it finds nothing
            load()
            return True
    return False


def rights(access: Access, namespace: str) -> Iterable[Finding]:
    """What this user may do with runs, as Kubernetes sees it."""
    from kubernetes import client

    with connected(access) as pipelines:
        if not pipelines.get_user_namespace():
            yield Finding("RBAC", "ok", "Kubeflow Pipelines has one user here, and asks for no rights")
            return
    lacking = []
    for verb, resource in VERBS:
        wanted = {"group": "pipelines.kubeflow.org", "resource": resource, "verb": verb, "namespace": namespace}
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        body = {**review, "spec": {"resourceAttributes": wanted}}
        answer = client.AuthorizationV1Api().create_self_subject_access_review(body, _request_timeout=ANSWER_SECONDS)
        if not answer.status.allowed:
            lacking.append(f"{verb} {resource}")
    if lacking:
        advice = "bind the Role bloomery-submit of infra/k8s, or kubeflow-edit, in that namespace"
        yield Finding("RBAC", "fix", f"not allowed in {namespace}: {', '.join(lacking)}", advice)
    else:
        yield Finding("RBAC", "ok", f"runs of {namespace} may be created, read, ended and scheduled")


def secret(core: Any, namespace: str, name: str) -> Iterable[Finding]:
    """Which keys the Secret of the tasks has; no value is looked at."""
    from kubernetes.client.exceptions import ApiException

    try:
        found = core.read_namespaced_secret(name, namespace, _request_timeout=ANSWER_SECONDS)
        if found.metadata is None:
            raise ValueError("an object without a name")
        keys = set(found.data or {})
    except ApiException as error:
        if error.status != 404:
            raise
        yield Finding("secret", "fix", f"{namespace} has no Secret {name}", "make it as infra/README.md says")
        return
    lacking = sorted({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & set(secrets.KEYS) - keys)
    if lacking:
        advice = "add them, unless the service account of the pods has a role of its own"
        yield Finding("secret", "fix", f"{name} lacks {', '.join(lacking)}", advice)
    else:
        yield Finding("secret", "ok", f"{name}: {', '.join(sorted(keys))}")


def pulled(core: Any, namespace: str, resources: ResourcesConfig) -> Iterable[Finding]:
    """Whether pods of the namespace have got, or wait for, the images of the tasks."""
    wanted = {resources.image} if resources.image else {images.CPU_IMAGE}
    if not resources.image and resources.accelerator:
        wanted.add(images.GPU_IMAGE)
    got: set[str] = set()
    waiting: dict[str, str] = {}
    for pod in core.list_namespaced_pod(namespace, limit=500, _request_timeout=ANSWER_SECONDS).items:
        for status in pod.status.container_statuses or ():
            reason = status.state.waiting.reason if status.state and status.state.waiting else ""
            if reason in UNPULLED:
                waiting[status.image] = f"{reason} of {status.image} in {pod.metadata.name}"
            elif status.image_id:
                got.add(status.image)
    for told in waiting.values():
        advice = "see to the name, push the image, or name a pull secret in the service account of the pods"
        yield Finding("image pull", "fix", told, advice)
    for image in sorted(wanted - set(waiting)):
        if image in got:
            yield Finding("image pull", "ok", f"{image} was pulled by a pod of {namespace}")
        else:
            told = f"no pod of {namespace} has tried {image} yet"
            yield Finding("image pull", "?", told, "only a node can tell: the first run will")


def quota(core: Any, namespace: str, resources: ResourcesConfig) -> Iterable[Finding]:
    """Whether the quotas of the namespace leave room for one task."""
    from kubernetes.utils import parse_quantity

    found = core.list_namespaced_resource_quota(namespace, _request_timeout=ANSWER_SECONDS).items
    if not found:
        yield Finding("quota", "ok", f"{namespace} has none")
        return
    requests = {"cpu": resources.cpu_request, "memory": resources.memory, "pods": "1"}
    if resources.accelerator:
        requests[resources.accelerator] = "1"
    limits = {"limits.cpu": resources.cpu, "limits.memory": resources.memory}
    needs = requests | {f"requests.{name}": need for name, need in requests.items()} | limits
    for one in found:
        used, short = one.status.used or {}, []
        for name, hard in (one.status.hard or {}).items():
            need = needs.get(name)
            if need and parse_quantity(hard) - parse_quantity(used.get(name, "0")) < parse_quantity(need):
                short.append(f"{name} {used.get(name, '0')} of {hard} used, a task takes {need}")
        told = f"{one.metadata.name}: {'; '.join(short)}" if short else f"{one.metadata.name} has room for a task"
        advice = "raise the quota, wait for other runs, or lower `resources` of the recipe" if short else ""
        yield Finding("quota", "fix" if short else "ok", told, advice)


def nodes(core: Any, resources: ResourcesConfig) -> Iterable[Finding]:
    """Whether a task fits on any node that there is now, beside what runs there."""
    from kubernetes.utils import parse_quantity

    listed = core.list_node(_request_timeout=ANSWER_SECONDS).items
    found = {node.metadata.name: node.status.allocatable for node in listed}
    needs = {"cpu": resources.cpu_request, "memory": resources.memory}
    wanted = f"{resources.cpu_request} cores and {resources.memory}"
    taken = _requested(core)
    free = {
        node: {name: parse_quantity(has.get(name, "0")) - taken[node][name] for name in needs}
        for node, has in found.items()
    }
    fit = [has for has in free.values() if all(has[name] >= parse_quantity(need) for name, need in needs.items())]
    if fit:
        yield Finding("nodes", "ok", f"{len(fit)} of {len(found)} have {wanted} for a task")
    else:
        most = max(free.values(), key=lambda has: has["memory"], default=dict.fromkeys(needs, 0))
        most_free = f"{float(most['cpu']):.2f} cores and {float(most['memory']) / 2**30:.1f} GiB"
        told = f"none of {len(found)} nodes has {wanted} free for a task; the one with most memory has {most_free}"
        advice = "lower `resources.cpu_request` and `resources.memory`, end what else runs, or add a node"
        yield Finding("nodes", "fix", told, f"{advice} (an autoscaler may)")
    name = resources.accelerator
    if name and not any(parse_quantity(has.get(name, "0")) >= 1 for has in found.values()):
        yield Finding("nodes", "fix", f"no node has {name} now", "add a pool, with its device plugin (autoscalers may)")


def _requested(core: Any) -> dict[str, dict[str, Any]]:
    """By node what its pods request of each resource; nothing where this user may not look at all namespaces."""
    from kubernetes.client.exceptions import ApiException
    from kubernetes.utils import parse_quantity

    total: dict[str, dict[str, Any]] = defaultdict(lambda: defaultdict(int))
    running = "status.phase!=Succeeded,status.phase!=Failed"
    try:
        pods = core.list_pod_for_all_namespaces(field_selector=running, _request_timeout=ANSWER_SECONDS).items
    except ApiException as error:
        if error.status != 403:
            raise
        return total
    for pod in pods:
        for container in pod.spec.containers:
            for name, quantity in ((container.resources and container.resources.requests) or {}).items():
                total[pod.spec.node_name][name] += parse_quantity(quantity)
    return total


def trainer(namespace: str) -> Iterable[Finding]:
    """Whether the nodes that share a training can be asked for."""
    from kubernetes import client
    from kubernetes.client.exceptions import ApiException

    wanted = (*KIND, namespace, "trainingruntimes", train_jobs.RUNTIME)
    try:
        client.CustomObjectsApi().get_namespaced_custom_object(*wanted, _request_timeout=ANSWER_SECONDS)
    except ApiException as error:
        if error.status != 404:
            raise
        told = f"{namespace} has no TrainingRuntime {train_jobs.RUNTIME}"
        advice = "install Kubeflow Trainer 2.2 or later, and put components/multi-node into the overlay"
        yield Finding("trainer", "fix", told, advice)
        return
    yield Finding("trainer", "ok", f"{namespace} has the TrainingRuntime {train_jobs.RUNTIME}")


def services(core: Any, namespace: str) -> Iterable[Finding]:
    """Whether the pods of infra/k8s are ready."""
    selector = f"app.kubernetes.io/name in ({','.join(SERVICES)})"
    found = core.list_namespaced_pod(namespace, label_selector=selector, _request_timeout=ANSWER_SECONDS).items
    running = [pod for pod in found if pod.status.phase in ("Running", "Pending")]
    if not running:
        advice = "`kubectl apply -k` an overlay of infra/k8s, unless MLflow is elsewhere"
        yield Finding("services", "?", f"no pod of infra/k8s in {namespace}", advice)
    for pod in running:
        ready = all(status.ready for status in pod.status.container_statuses or ()) and pod.status.phase == "Running"
        advice = "" if ready else f"kubectl -n {namespace} describe pod {pod.metadata.name}"
        told = f"{pod.metadata.name} is {'ready' if ready else 'not ready'}"
        yield Finding("services", "ok" if ready else "fix", told, advice)
