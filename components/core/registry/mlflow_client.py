"""The client of the MLflow registry, and how its answers and its errors are read."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

from bloomery.components.core import errors
from bloomery.components.core.errors import BloomeryError, ServiceError


def all_pages(search: Callable[..., Any], **query: Any) -> list[Any]:
    """Every result of a search that answers in pages."""
    found, token = [], None
    while True:
        page = search(**query, page_token=token)
        found += page
        token = page.token
        if not token:
            return found


def is_code(error: Exception, code: str) -> bool:
    """True for MLflow's errors of this code, of a database or of a server."""
    return getattr(error, "error_code", None) == code


def or_none(get: Callable[[], Any]) -> Any | None:
    """What `get` returns, or None if MLflow says that there is no such thing."""
    try:
        return get()
    except Exception as error:
        if not is_code(error, "RESOURCE_DOES_NOT_EXIST"):
            raise
        return None


def connect() -> Any:
    """A client of the registry that MLflow is set to."""
    from mlflow import MlflowClient

    return MlflowClient()


@contextlib.contextmanager
def service() -> Iterator[None]:
    """Tell MLflow's and the network's own errors as `refused` does."""
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, requests.RequestException, SQLAlchemyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in errors.OF_A_DISK:
            raise errors.from_os_error(error, "writing what MLflow keeps") from error
        raise refused("registry", str(error).split("\n")[0][:300]) from error


def refused(what: str, reason: str) -> BloomeryError:
    """The error for a `reason` that MLflow gave: the disk, where that keeps it from its database, else a ServiceError
    that names the address."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    by_disk = errors.from_sqlite(reason, uri.removeprefix("sqlite:///"), "writing MLflow's database")
    return by_disk or ServiceError(f"the MLflow {what} at {uri} did not answer: {reason}; check MLFLOW_TRACKING_URI")
