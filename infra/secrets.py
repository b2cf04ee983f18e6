"""Credentials as environment variables: the one Secret a task may read, and which of its keys a step gets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kfp.dsl import PipelineTask

SECRET = "bloomery-credentials"
"""Name of the Secret that the kustomization expects in the namespace of the runs."""

STUDIES = "BLOOMERY_STUDIES"
"""URL of the database, such as postgresql://…, that keeps the studies of searches which choose by earlier results: for
the tasks that ask and tell it, and no others."""

TRACKER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", *TRACKER)
"""Keys that every step gets, each the name of the environment variable it becomes: the store keeps what any step has
finished, and the tracker what it measures. What a step needs beyond them it says by `declare(secrets=…)`. Absent keys
stay unset."""


def mount(task: PipelineTask, keys: Iterable[str], secret: str = SECRET) -> None:
    """Give `task` these keys of `secret` as environment variables; a missing Secret or key is no error."""
    from kfp import kubernetes

    if named := {key: key for key in keys}:
        kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env=named, optional=True)
