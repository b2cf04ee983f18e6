"""Where a task runs and what it may use: the only place that knows nodes, accelerators, retries and caching.

Under `kfp.local` nodes, accelerators, limits and secrets are ignored, so one DAG serves the laptop and the
cluster. Retries are not ignored there: a local run sets `retries: 0`, for a failing step would fail again.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from bloomery.components.core import processes, store
from bloomery.components.core.config import Config
from bloomery.infra import images, secrets, surroundings

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

QUANTITY = r"^\d+(\.\d+)?(m|k|K|Ki|M|Mi|G|Gi|T|Ti)?$"
Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if type(value) in (int, float) else value),
    Field(pattern=QUANTITY),
    WithJsonSchema({"anyOf": [{"type": "string", "pattern": QUANTITY}, {"type": "number", "minimum": 0}]}),
]
"""A Kubernetes quantity, as far as CPU and memory need it, also written as a number: `cpu: 8`."""


class Toleration(Config):
    """A taint that the accelerator nodes carry and our tasks accept."""

    key: str
    """Key of the taint, such as `nvidia.com/gpu`."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """`Exists` accepts any value of the taint."""
    value: str | None = None
    """Value of the taint where `operator` is `Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"
    """Effect of the taint; managed clusters taint GPU nodes with `NoSchedule`."""


class StepResources(Config):
    """What one step needs where it differs from the rest."""

    cpu: Quantity | None = None
    """Cores requested and the limit; none: those of the recipe."""
    memory: Quantity | None = None
    """Memory requested and the limit; none: that of the recipe."""
    accelerators: int | None = Field(default=None, ge=0)
    """Accelerators on one node; 0 keeps the step on the CPU pool; none: those of the recipe. Of more than one a step
    makes use whose training is shared."""


class ResourcesConfig(Config):
    """The recipe's `resources:` section."""

    cpu: Quantity = "2"
    """Cores of every task, request and limit; 2 is what the quickstart was measured on."""
    memory: Quantity = "8Gi"
    """Memory of every task, request and limit; request equals limit so that a node is never overcommitted."""
    accelerator: str | None = None
    """Resource name of the accelerator, such as `nvidia.com/gpu`; none: every step runs on CPUs."""
    accelerators: int = Field(default=1, ge=1)
    """Accelerators on one node of every task whose training is shared by processes, one for each (cpt, sft, dpo,
    reward_model): an optimiser step then has as many times `batch_size` rows. What generates or trains alone gets
    one."""
    cpu_pool: dict[str, str] = {}
    """Node labels of the CPU pool; empty: any node."""
    node_pool: dict[str, str] = {}
    """Node labels of the accelerator pool; empty: any node that has the accelerator."""
    tolerations: list[Toleration] = []
    """Taints of the accelerator pool."""
    shm_gib: int = Field(default=8, ge=0)
    """Size of /dev/shm on accelerator tasks in GiB, counted in their memory; the runtime's 64 MB are too
    few for data-loader workers and NCCL."""
    retries: int = Field(default=2, ge=0)
    """Attempts after the first, 30 s later and doubling: nodes go away and stores time out."""
    parallel_variants: int = Field(default=0, ge=0)
    """Quantised variants that are made and measured at once; 0: all. One machine measures one at a time, for a
    neighbour on the same cores would be part of its latencies."""
    image: str | None = None
    """Image of every task; none: the CPU or GPU image of `images.py`."""
    secret: str = secrets.SECRET
    """Secret with store and tracking credentials; tasks start without it, too."""
    store: str | None = Field(default=None, pattern=r"^s3://[^/]+(/.*)?$")
    """Place of finished results on an object store, such as `s3://bucket/prefix`, which all runs share; none: what
    BLOOMERY_STORE says where the pipeline is compiled, if that is on an object store, else each run does all anew. It
    is used with the keys of `secret`, or the role of the pods' service account."""
    steps: dict[str, StepResources] = {}
    """Differences by step name."""

    @model_validator(mode="after")
    def _accelerator_is_named(self) -> ResourcesConfig:
        if self.accelerator is None and (self.node_pool or self.tolerations):
            raise ValueError("node_pool and tolerations are the accelerator's; name it, e.g. nvidia.com/gpu")
        return self


def place(
    task: PipelineTask,
    step_name: str,
    resources: ResourcesConfig,
    *,
    accelerated: bool | Literal["all"],
    cached: bool,
) -> PipelineTask:
    """Say where `task`, an instance of the step `step_name` (the name of its folder), runs; returns the task.

    `accelerated` steps get the recipe's accelerator, where it names one, and those of `all` as many as it says; of
    `cached` ones an earlier result may be taken.
    """
    from kfp import kubernetes
    from kubernetes.utils import parse_quantity

    own = resources.steps.get(step_name, StepResources())
    wanted = resources.accelerators if own.accelerators is None else own.accelerators
    most = 0 if resources.accelerator is None else wanted if accelerated == "all" else int(accelerated)
    accelerators = min(wanted, most)
    cpu, memory = own.cpu or resources.cpu, own.memory or resources.memory
    task.set_cpu_request(cpu).set_cpu_limit(cpu).set_memory_request(memory).set_memory_limit(memory)
    for name, value in surroundings.of(math.ceil(parse_quantity(cpu))).items():
        task.set_env_variable(name, value)
    task.set_container_image(resources.image or (images.GPU_IMAGE if accelerators else images.CPU_IMAGE))
    for label, value in (resources.node_pool if accelerators else resources.cpu_pool).items():
        kubernetes.add_node_selector(task, label, value)
    if accelerators:
        task.set_accelerator_type(resources.accelerator).set_accelerator_limit(accelerators)
        if accelerators > 1:
            task.set_env_variable(processes.GIVEN, str(accelerators))
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
    secrets.mount(task, resources.secret)
    if resources.retries:
        task.set_retry(
            resources.retries, backoff_duration="30s", backoff_factor=2, backoff_max_duration="600s"
        )
    task.set_caching_options(cached)
    return task
