"""The model registry: which version is champion, and how that changes.

Three aliases in MLflow: `candidate` is the newest version that the gate accepted, `champion` the one to serve,
`previous` the champion before it. Every change names the champion that the decision was taken against, and is
refused if that has changed.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from bloomery.components.core.errors import GateError, ServiceError

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


def available() -> bool:
    """True if a tracking server or database is configured (`MLFLOW_TRACKING_URI`)."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def alias(name: str, which: str) -> Any | None:
    """The model version that `which` points to, or None."""
    from mlflow.exceptions import MlflowException

    with _service():
        try:
            return _client().get_model_version_by_alias(name, which)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def versions(name: str | None = None) -> list[dict[str, Any]]:
    """Every version of one registered model or of all: name, version, aliases, source, tags; newest first."""
    with _service():
        client = _client()
        found = []
        for model in client.search_registered_models(filter_string=f"name = '{name}'" if name else None):
            by_version: dict[str, list[str]] = {}
            for key, version in dict(model.aliases).items():
                by_version.setdefault(str(version), []).append(key)
            found += [
                {
                    "name": model.name,
                    "version": str(version.version),
                    "aliases": sorted(by_version.get(str(version.version), [])),
                    "source": version.source,
                    "tags": dict(version.tags),
                }
                for version in client.search_model_versions(f"name = '{model.name}'")
            ]
        return sorted(found, key=lambda entry: (entry["name"], -int(entry["version"])))


def register(name: str, source: str, tags: dict[str, str]) -> str:
    """Register the checkpoint at the URI `source` as a new version of `name`; returns the version."""
    from mlflow.exceptions import MlflowException

    with _service():
        client = _client()
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = client.create_model_version(
            name, source=source, run_id=os.environ.get("BLOOMERY_PARENT_RUN_ID"), tags=tags
        )
        return str(version.version)


def promote(name: str, version: str, *, expected_champion: str | None) -> None:
    """Make `version` the champion and the old champion `previous`.

    Raises: GateError if the champion is no longer `expected_champion`, the version that the decision was taken against.
    """
    with _service():
        client = _client()
        current = alias(name, CHAMPION)
        found = str(current.version) if current else None
        if found != expected_champion:
            raise GateError(
                f"{name}: the champion is version {found}, but this decision was taken against "
                f"{expected_champion}; another "
                "promotion came first: evaluate again"
            )
        if found is not None and found != version:
            client.set_registered_model_alias(name, PREVIOUS, found)
        client.set_registered_model_alias(name, CHAMPION, version)
        client.set_registered_model_alias(name, CANDIDATE, version)


def rollback(name: str) -> tuple[str, str]:
    """Make `previous` the champion again; returns (old champion, new champion). GateError if there is no previous
    version."""
    champion, previous = alias(name, CHAMPION), alias(name, PREVIOUS)
    if champion is None or previous is None:
        have = "no champion" if champion is None else "no previous version"
        raise GateError(f"{name}: {have}, so there is nothing to roll back to; see `bloomery models list`")
    with _service():
        client = _client()
        client.set_registered_model_alias(name, CHAMPION, previous.version)
        client.set_registered_model_alias(name, PREVIOUS, champion.version)
    return str(champion.version), str(previous.version)


def _client() -> Any:
    from mlflow import MlflowClient

    return MlflowClient()


@contextlib.contextmanager
def _service() -> Iterator[None]:
    """Tell MLflow's and the network's own errors as a ServiceError that names the address."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        uri = os.environ.get("MLFLOW_TRACKING_URI", "")
        reason = str(error).split("\n")[0][:300]
        raise ServiceError(
            f"the MLflow registry at {uri} did not answer: {reason}; check MLFLOW_TRACKING_URI"
        ) from error
