"""Credentials as environment variables: the one Secret a task may read, and the keys it may hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

SECRET = "bloomery-credentials"
"""Name of the Secret that the kustomization expects in the namespace of the runs."""

KEYS = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",  # of an S3-compatible store; boto3, s3fs and MLflow all read this one
    "AWS_CA_BUNDLE",  # path in the pod of the certificate of whoever signed the store's
    "MLFLOW_TRACKING_URI",
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
)
"""Keys of the Secret, each the name of the environment variable it becomes. Absent keys stay unset."""


def mount(task: PipelineTask, secret: str = SECRET) -> None:
    """Give `task` the keys of `secret` as environment variables; a missing Secret or key is no error."""
    from kfp import kubernetes

    kubernetes.use_secret_as_env(
        task, secret_name=secret, secret_key_to_env={key: key for key in KEYS}, optional=True
    )
