"""What pods are told beside their credentials: the ConfigMap that infra/k8s makes, where each address stands once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

CONFIG_MAP = "bloomery-settings"
"""Name of the ConfigMap in the namespace of the runs."""

KEYS = (
    "AWS_ENDPOINT_URL",  # of an S3-compatible store; boto3, s3fs and MLflow all read this one
    "AWS_DEFAULT_REGION",
    "AWS_REQUEST_CHECKSUM_CALCULATION",  # for stores that know no trailing checksums
    "AWS_RESPONSE_CHECKSUM_VALIDATION",
    "AWS_CA_BUNDLE",  # of a store with an authority of its own: CA_FOLDER/ca.crt
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",  # of components/ray, where an overlay has it; the data steps send their batches there
)
"""Keys that every task gets, each the name of the environment variable it becomes. Absent keys stay unset."""

API = ("KF_PIPELINES_ENDPOINT", "BLOOMERY_BUCKET")
"""And what a task needs that submits runs itself."""


CA_MAP, CA_FOLDER = "bloomery-ca", "/etc/bloomery/ca"
"""ConfigMap with the certificates of an authority of one's own, under `ca.crt`, and where every pod has it; it may be
absent."""


def mount_ca(task: PipelineTask) -> None:
    """Give `task` the certificates of the ConfigMap, if it is there."""
    from kfp import kubernetes

    kubernetes.use_config_map_as_volume(task, CA_MAP, CA_FOLDER, optional=True)


def mount(task: PipelineTask, keys: tuple[str, ...] = KEYS) -> None:
    """Give `task` these keys of the ConfigMap as environment variables; a missing ConfigMap or key is no error."""
    from kfp import kubernetes

    kubernetes.use_config_map_as_env(task, CONFIG_MAP, {key: key for key in keys}, optional=True)
