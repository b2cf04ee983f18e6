"""Where a task runs and what it may use: the only place that knows nodes, accelerators, retries and caching.

Under `kfp.local` nodes, accelerators, limits and secrets are ignored, so one DAG serves the laptop and the
cluster. Retries are not ignored there: a local run sets `retries: 0`, for a failing step would fail again.
"""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from bloomery.components.core import processes, provenance, store, train_job
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import cards
from bloomery.infra import images, secrets, settings, surroundings, train_jobs
from bloomery.infra.words import Cpu, ImageName, Key, Labels, Memory, ObjectName, ResourceName, cores, size, times

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

RETRY_WAIT, RETRY_WINDOW = "60s", "1209600s"
"""Between two attempts, always the same: Argo doubles without a bound, so that after ten it waited for hours. And 14
days, since Argo counts its `maxDuration` from the start of the first attempt: it tries nothing again after that, and
ends an attempt that is running then."""
MOST = 100_000
"""Of anything that is counted here: more is a slip, and Kubeflow Pipelines takes no number above 2**31."""

_ONE_GPU = {
    "cpu_request": "1",
    "memory": "16Gi",
    "cpu_per_accelerator": "8",
    "memory_per_accelerator": "64Gi",
    "accelerator": "nvidia.com/gpu",
    "shm_gib": 16,
}
PROFILES: dict[str, dict[str, Any]] = {
    "cpu-small": {},
    "gpu-1": _ONE_GPU,
    "gpu-8": {**_ONE_GPU, "accelerators": 8, "shm_gib": 64},
    "multi-node": {**_ONE_GPU, "accelerators": 8, "shm_gib": 64, "nodes": 2, "sharding": "full"},
}
"""What a recipe's `resources:` have where they do not say otherwise. `cpu-small`, the defaults below: a node of two
cores that holds Kubeflow Pipelines too. `gpu-1` and `gpu-8`: one card of a node of eight, or all of them, with
their share of its cores and memory. `multi-node`: two such nodes, whose sixteen cards share out the weights."""


class Toleration(Config):
    """A taint that the accelerator nodes carry and our tasks accept."""

    key: Key
    """Key of the taint, such as `nvidia.com/gpu`."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Exists` accepts any value of the taint."""
    value: str | None = None
    """Value of the taint where `operator` is `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint; managed clusters taint GPU nodes with `NoSchedule`."""

    @model_validator(mode="after")
    def _value_is_compared(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError(
                f"operator: Exists accepts any value, and {self.value} is given; set operator: Equal, or leave it out"
            )
        return self


class StepResources(Config):
    """What one step needs where it differs from the rest."""

    cpu: Cpu | None = None
    """Cores requested and the limit; none: those of the recipe."""
    memory: Memory | None = None
    """Memory requested and the limit; none: that of the recipe."""
    accelerators: int | None = Field(default=None, ge=0, le=MOST)
    """Accelerators on one node; 0 keeps the step on the CPU pool; none: those of the recipe. Of more than one a step
    makes use whose training is shared."""
    nodes: int | None = Field(default=None, ge=1, le=MOST)
    """Nodes that share the training of the step, each with those accelerators; none: those of the recipe."""


class ResourcesConfig(Config):
    """The recipe's `resources:` section."""

    profile: Literal["cpu-small", "gpu-1", "gpu-8", "multi-node"] = "cpu-small"
    """Name of a set of values for what this section leaves out: `cpu-small`, `gpu-1` (one card for each step that uses
    one), `gpu-8` (eight of one node for a training that can be shared) or `multi-node` (eight of each of two nodes, and
    the weights shared out among them)."""
    cpu: Cpu = "2"
    """Cores that a task may use at most, and the number of its threads; 2 is what the quickstart was measured on."""
    cpu_request: Cpu = "100m"
    """Cores that a node must have free for a task; as many as `cpu` where only that is given. A tenth: of two cores the
    system and Kubeflow Pipelines request 1.7, and MLflow 0.2; what they leave idle a task uses, up to `cpu`."""
    memory: Memory = "3Gi"
    """Memory of every task, request and limit; request equals limit so that a node is never overcommitted. The
    quickstart takes 1.5 GiB in its largest process."""
    cpu_per_accelerator: Cpu | None = None
    """Cores, request and limit, for each accelerator of a task that has any; none: `cpu`, whatever their number."""
    memory_per_accelerator: Memory | None = None
    """Memory for each accelerator of a task that has any; none: `memory`, whatever their number."""
    accelerator: ResourceName | None = None
    """Resource name of the accelerator, such as `nvidia.com/gpu`; none: every step runs on CPUs."""
    card: str | None = None
    """Which card the accelerator is, in the words of `bloomery plan --gpu`, such as `H100`: where a pipeline is
    compiled the planned memory of each stage is held against it, and `bloomery plan` takes it; none: only the memory
    of tasks is looked at."""
    accelerators: int = Field(default=1, ge=1, le=MOST)
    """Accelerators on one node of every task whose training is shared by processes, one for each (cpt, sft, dpo,
    grpo, reward_model): an optimiser step then has as many times `batch_size` rows. What generates or trains alone gets
    one."""
    nodes: int = Field(default=1, ge=1, le=MOST)
    """Nodes that share a training, each with `accelerators` of them, or one process on its cores where there are none:
    an optimiser step then has as many times the rows. Of more than one the task asks Kubeflow Trainer for them by a
    TrainJob and waits; they need a `store` on objects, and infra/k8s/components/multi-node in the cluster. On one
    machine (`bloomery run`) it is one node whatever stands here."""
    sharding: Literal["none", "full"] = "none"
    """What each of the accelerators that share a training holds: `none`: all weights, gradients and optimiser states
    (DDP), so that more of them are faster; `full`: its part of them (FSDP2, arXiv 2304.11277), so that they train what
    one cannot hold; for each forward and backward pass they send each other all weights twice and all gradients. Goes
    with optimizer adamw or radam, and without an adapter or with lora or rslora."""
    cpu_pool: Labels = {}
    """Node labels of the CPU pool; empty: any node."""
    node_pool: Labels = {}
    """Node labels of the accelerator pool; empty: any node that has the accelerator."""
    tolerations: list[Toleration] = []
    """Taints of the accelerator pool."""
    shm_gib: int = Field(default=8, ge=0, le=MOST)
    """Size of /dev/shm on accelerator tasks in GiB, counted in their memory; the runtime's 64 MB are too
    few for data-loader workers and NCCL."""
    retries: int = Field(default=50, ge=0, le=MOST)
    """Attempts after the first, each a minute after the one before has ended: how often the node of a task may go away.
    Kubeflow Pipelines tries errors of the node again, and not what ended by itself with an exit code."""
    parallel_variants: int = Field(default=0, ge=0, le=MOST)
    """Quantised variants that are made and measured at once; 0: all. One machine measures one at a time, for a
    neighbour on the same cores would be part of its latencies."""
    image: ImageName | None = None
    """Image of every task; none: the CPU or GPU image of `images.py`."""
    labels: Labels = {}
    """Labels of every task's pod, such as `kueue.x-k8s.io/queue-name: bloomery` for a queue of Kueue."""
    secret: ObjectName = secrets.SECRET
    """Secret with store and tracking credentials; tasks start without it, too."""
    store: str | None = Field(default=None, pattern=r"^s3://[^/]+(/.*)?$")
    """Place of finished results on an object store, such as `s3://bucket/prefix`, which all runs share; none: what
    BLOOMERY_STORE says where the pipeline is compiled, if that is on an object store, else each run does all anew. It
    is used with the keys of `secret`, or the role of the pods' service account."""
    steps: dict[str, StepResources] = {}
    """Differences by step name."""

    @model_validator(mode="before")
    @classmethod
    def _profile_fills_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        own = PROFILES.get(str(values.get("profile", "cpu-small")), {})
        if "cpu" in values and "cpu_request" not in values:
            own = {**own, "cpu_request": values["cpu"]}
        return {**own, **values}

    @field_validator("card")
    @classmethod
    def _card_is_known(cls, name: str | None) -> str | None:
        try:
            return cards.named(name, "found").name if name else None
        except ConfigError as error:
            raise ValueError(str(error)) from None

    @field_validator("cpu_request")
    @classmethod
    def _request_is_within(cls, request: str, info: ValidationInfo) -> str:
        if "cpu" in info.data and cores(request) > cores(info.data["cpu"]):
            raise ValueError(f"expected at most cpu, which is {info.data['cpu']}")
        return request

    @model_validator(mode="after")
    def _accelerator_is_named(self) -> ResourcesConfig:
        if self.accelerator is None and (self.node_pool or self.tolerations or self.card):
            raise ValueError("card, node_pool and tolerations are the accelerator's; name it, e.g. nvidia.com/gpu")
        most = max([self.accelerators, *(own.accelerators or 0 for own in self.steps.values())])
        if self.sharding == "full" and self.most_nodes == 1 and (self.accelerator is None or most == 1):
            raise ValueError(
                "sharding: found full, and no training has several accelerators; name the accelerator, e.g. "
                "nvidia.com/gpu, and set accelerators to 2 or more, or nodes"
            )
        return self

    def given(self, step_name: str, accelerated: bool | Literal["all"]) -> int:
        """Accelerators of a task of the step: none, one, or of one whose training is shared as many as there are."""
        own = self.steps.get(step_name, StepResources()).accelerators
        most = self.accelerators if own is None else own
        return 0 if self.accelerator is None else most if accelerated == "all" else min(most, int(accelerated))

    def room(self, step_name: str, accelerators: int) -> tuple[float, float]:
        """(cores, bytes of memory) that a task of the step may use at most, with so many accelerators of its node."""
        cpu, _, memory = _size(self.steps.get(step_name, StepResources()), self, accelerators)
        return float(cores(cpu)), float(size(memory))

    @property
    def most_nodes(self) -> int:
        """Nodes of the step that has the most."""
        return max([self.nodes, *(own.nodes or 1 for own in self.steps.values())])

    def spread(self, step_name: str, accelerated: bool | Literal["all"]) -> int:
        """Nodes that a task of the step trains on."""
        return (self.steps.get(step_name, StepResources()).nodes or self.nodes) if accelerated == "all" else 1


def place(
    task: PipelineTask,
    step_name: str,
    resources: ResourcesConfig,
    *,
    accelerated: bool | Literal["all"],
    cached: bool,
    credentials: tuple[str, ...] = (),
    shared: tuple[str, ...] = secrets.KEYS,
) -> PipelineTask:
    """Say where `task`, an instance of the step `step_name` (the name of its folder), runs; returns the task.

    `accelerated` steps get the recipe's accelerator, where it names one, and those of `all` as many as it says; of
    `cached` ones an earlier result may be taken; `credentials` are keys of the Secret that this step alone gets,
    `shared` those that it has in common with others: of what is no step, fewer. Where several nodes share a training,
    the task waits for them on the CPU pool.
    Raises: ConfigError if they have nothing to share their work by.
    """
    from kfp import kubernetes

    is_spread = resources.spread(step_name, accelerated) > 1
    own = StepResources() if is_spread else resources.steps.get(step_name, StepResources())
    accelerators = 0 if is_spread else resources.given(step_name, accelerated)
    cpu, request, memory = _size(own, resources, accelerators)
    task.set_cpu_request(request).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    image = _image(resources, accelerators)
    task.set_container_image(image)
    for name, value in _surroundings(cpu, image).items():
        task.set_env_variable(name, value)
    if pull_secret := os.environ.get(images.PULL_SECRET):
        kubernetes.set_image_pull_secrets(task, [pull_secret])
    # With what the backend sets itself (RuntimeDefault, no capabilities, no escalation) all that `restricted` asks for.
    kubernetes.set_security_context(task, run_as_non_root=True)
    kubernetes.use_field_path_as_env(task, provenance.PIPELINE_RUN, "metadata.labels['pipeline/runid']")
    for label, value in resources.labels.items():
        kubernetes.add_pod_label(task, label, value)
    for label, value in (resources.node_pool if accelerators else resources.cpu_pool).items():
        kubernetes.add_node_selector(task, label, value)
    if accelerators:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(accelerators)
        if accelerators > 1:
            task.set_env_variable(processes.GIVEN, str(accelerators))
            if resources.sharding == "full":
                task.set_env_variable(processes.SHARDING, "full")
        for toleration in resources.tolerations:
            kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
        if resources.shm_gib:
            kubernetes.empty_dir_mount(
                task,
                volume_name="shm",
                mount_path="/dev/shm",
                medium="Memory",
                size_limit=f"{resources.shm_gib}Gi",
            )
    kept = resources.store or store.named() or ""
    if "://" in kept:  # a folder of this machine is none of a pod
        task.set_env_variable("BLOOMERY_STORE", kept)
    if is_spread:
        _leave_to_nodes(task, step_name, resources, credentials)
    settings.mount(task)
    settings.mount_ca(task)
    secrets.mount(task, (*shared, *credentials), resources.secret)
    if resources.retries:
        task.set_retry(
            resources.retries, backoff_duration=RETRY_WAIT, backoff_factor=1.0, backoff_max_duration=RETRY_WINDOW
        )
    task.set_caching_options(cached)
    return task


def _leave_to_nodes(
    task: PipelineTask, step_name: str, resources: ResourcesConfig, credentials: tuple[str, ...]
) -> None:
    """Give a task that is otherwise placed the TrainJob that it asks for and waits for."""
    environment = dict(task.container_spec.env)
    if "BLOOMERY_STORE" not in environment:
        raise ConfigError(
            f"resources.nodes: the nodes that share the training of {step_name} share nothing but an object store; set "
            "resources.store to s3://bucket/prefix, or BLOOMERY_STORE where the pipeline is compiled"
        )
    accelerators = resources.given(step_name, "all")
    size = _size(resources.steps.get(step_name, StepResources()), resources, accelerators)
    image = _image(resources, accelerators)
    if resources.sharding == "full":
        task.set_env_variable(processes.SHARDING, "full")
        environment[processes.SHARDING] = "full"
    job = train_jobs.train_job(
        image=image,
        nodes=resources.spread(step_name, "all"),
        accelerators={resources.accelerator: accelerators} if resources.accelerator and accelerators else {},
        size=size,
        environment={**environment, **_surroundings(size[0], image)},
        keys=credentials,
        secret=resources.secret,
        labels=resources.labels,
        node_pool=resources.node_pool if accelerators else resources.cpu_pool,
        tolerations=[one.model_dump(exclude_none=True) for one in resources.tolerations] if accelerators else [],
        shm_gib=resources.shm_gib,
    )
    task.set_env_variable(train_job.GIVEN, json.dumps(job))


def _image(resources: ResourcesConfig, accelerators: int) -> str:
    return resources.image or (images.GPU_IMAGE if accelerators else images.CPU_IMAGE)


def _surroundings(cpu: str, image: str) -> dict[str, str]:
    """What a process of ours is told of its pod: the threads that its cores are good for, and its image."""
    return {**surroundings.of(math.ceil(cores(cpu))), provenance.TASK_IMAGE: image}


def _size(own: StepResources, resources: ResourcesConfig, accelerators: int) -> tuple[str, str, str]:
    """(limit of cores, cores requested, memory) of a task."""
    cpu, request, memory = resources.cpu, resources.cpu_request, resources.memory
    if accelerators and resources.cpu_per_accelerator:
        cpu = request = times(resources.cpu_per_accelerator, accelerators)
    if accelerators and resources.memory_per_accelerator:
        memory = times(resources.memory_per_accelerator, accelerators)
    return own.cpu or cpu, own.cpu or request, own.memory or memory
