"""The API of Kubeflow Pipelines: who asks, where, how long, and what its answers mean."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from bloomery.components.core.errors import BloomeryError, ConfigError, ServiceError

logger = logging.getLogger(__name__)

WAITS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt at a call that the API did not answer."""
SECONDS = 60
"""Time for one answer: a pipeline of twenty tasks is created in less than ten."""
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"
"""Where kfp expects the token of a pod's service account unless `KF_PIPELINES_SA_TOKEN_PATH` says otherwise."""
NAMESPACE_FILE = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
RUNTIME = "_KFP_RUNTIME"
"""Environment of a task, by which kfp leaves out of itself what only who submits needs: its client."""
UNKNOWN = "-"
"""A namespace, where none is known yet: without one kfp's client asks what the API is five times, five seconds apart,
with a traceback each."""


class Access(NamedTuple):
    """Where the API is and who asks; what is left out comes from the environment."""

    endpoint: str | None = None
    """Its address; none: `KFP_ENDPOINT`, `KF_PIPELINES_ENDPOINT`, else as kfp finds it."""
    namespace: str | None = None
    """The profile, where the API has several users; none: `KFP_NAMESPACE`, else the namespace of this pod."""
    token: str | None = None
    """A bearer token; none: `KFP_TOKEN`, else that of this pod's service account, else none."""

    @property
    def address(self) -> str:
        """The address, or '' for kfp's own search."""
        given = self.endpoint or os.environ.get("KFP_ENDPOINT") or os.environ.get("KF_PIPELINES_ENDPOINT") or ""
        return given.strip()


@contextlib.contextmanager
def connected(access: Access) -> Iterator[Any]:
    """kfp's client; every call of it inside ends in time, and those that change nothing are tried again.

    Raises: ConfigError with the API's own reason for what it refuses (4xx), ServiceError if it does not answer.
    """
    where = access.address or "its default address"
    try:
        yield _client(access)
    except BloomeryError:
        raise
    except Exception as error:  # kfp passes on whatever urllib3, its own client or the API raised
        raise _told(error, where) from error


def quietly() -> contextlib.redirect_stdout[io.StringIO]:
    """Without the links that kfp prints to what it makes, which hold the address as it was given."""
    return contextlib.redirect_stdout(io.StringIO())


def whole() -> None:
    """Let kfp have its client in a task, too: what it has imported without is imported again."""
    if os.environ.pop(RUNTIME, None):
        for name in [name for name in sys.modules if name.partition(".")[0] == "kfp"]:
            del sys.modules[name]


def _client(access: Access) -> Any:
    _check_address(access.address)
    token, file = _token(access), os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN_FILE)
    whole()
    import kfp
    from kfp.client import ServiceAccountTokenVolumeCredentials

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "only works with v2.0.0-beta.2 and later"
        client = kfp.Client(
            host=access.address or None,
            namespace=UNKNOWN,
            existing_token=token,
            credentials=ServiceAccountTokenVolumeCredentials(file) if not token and Path(file).is_file() else None,
        )
    rest = client._run_api.api_client.rest_client
    rest.request = _patient(rest.request)
    rest.pool_manager.connection_pool_kw["retries"] = 0  # urllib3 would try three times more within each attempt
    client._context_setting["namespace"] = _namespace(client, access)
    return client


def _check_address(address: str) -> None:
    """Raise ConfigError for what is no address, before anybody waits for its answer."""
    try:
        parts = urlsplit(address if "://" in address else f"https://{address}")
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if address and (not is_one or not address.isprintable() or " " in address):
        raise ConfigError(f"--endpoint {address}: no address of Kubeflow Pipelines; expected such as http://host:8888")


def _token(access: Access) -> str | None:
    """The token that was given, which is never shown. Raises: ConfigError if it, or the file of one, can be none."""
    token = (access.token or os.environ.get("KFP_TOKEN") or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError("--token or KFP_TOKEN: expected a token, which is one line of letters, digits and marks")
    file = Path(os.environ.get("KF_PIPELINES_SA_TOKEN_PATH", TOKEN_FILE))
    if not token and file.is_file() and not file.read_text(encoding="utf-8", errors="replace").strip():
        raise ConfigError(f"{file}: empty; expected the token of this pod's service account, or KFP_TOKEN")
    return token or None


def _namespace(client: Any, access: Access) -> str:
    """The profile to ask for; '' where the API knows none, and refuses questions that name one."""
    if not client._healthz_api.healthz_service_get_healthz().multi_user:
        return ""
    given = access.namespace or os.environ.get("KFP_NAMESPACE")
    if given:
        return given
    if Path(NAMESPACE_FILE).is_file():
        return Path(NAMESPACE_FILE).read_text(encoding="utf-8").strip()
    raise ConfigError(
        f"Kubeflow Pipelines at {access.address or 'its default address'} has several users; name your profile by "
        "--namespace or KFP_NAMESPACE"
    )


def _patient(request: Callable[..., Any]) -> Callable[..., Any]:
    """`request` of the generated client with a limit of time, and further attempts for what may be asked twice."""

    def ask(method: str, url: str, *rest: Any, **options: Any) -> Any:
        options["_request_timeout"] = options.get("_request_timeout") or SECONDS
        is_once = options.pop("once", False)
        waits = WAITS if not is_once and (method == "GET" or url.endswith(":terminate")) else ()
        for wait in (*waits, None):
            try:
                return _from_the_api(request(method, url, *rest, **options), url)
            except Exception as error:
                if getattr(error, "body", "") is None:
                    error.body = b""  # type: ignore[attr-defined]  # which the client decodes, whatever it is
                if wait is None or not is_passing(error):
                    raise
                logger.info("Kubeflow Pipelines, %s %s: %s; again in %.0f s", method, url, reason_of(error), wait)
                time.sleep(wait)
        raise AssertionError("unreachable: the last attempt returns or raises")

    return ask


def _from_the_api(answer: Any, url: str) -> Any:
    """The answer, if it is the API's: JSON, or the log of a pod. The client takes the page of a login for nothing, and
    a run that is there for none. Raises: ConfigError."""
    if not url.endswith("/log"):
        data = answer.data or b""
        text = data.decode("utf-8", "replace") if isinstance(data, bytes) else str(data)
        try:
            is_object = not text or isinstance(json.loads(text), dict)
        except ValueError:
            is_object = False
        if not is_object:
            raise ConfigError(
                f"{url} answers what Kubeflow Pipelines does not: {' '.join(text.split())[:80]}; is it the page of a "
                "login? see to the address, and give a token by KFP_TOKEN or --token"
            )
    return answer


def is_passing(error: Exception) -> bool:
    """Whether a call that ended so may succeed later: no answer, or an error of the API's own."""
    from kfp_server_api.exceptions import ApiException
    from urllib3.exceptions import HTTPError

    if isinstance(error, ApiException):
        return not error.status or error.status >= 500 or error.status in (408, 429)
    return isinstance(error, HTTPError | OSError)


def reason_of(error: Exception) -> str:
    """What the API said, on one line: of its JSON the message, without the places in its sources."""
    body = getattr(error, "body", None) or b""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else str(body)
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(text)
        text = found.get("message") or found.get("error_message") or found.get("error") or ""
    told = " ".join((text or str(getattr(error, "reason", "") or error)).split())
    return told[:500]


def _told(error: Exception, where: str) -> BloomeryError:
    status = getattr(error, "status", None)
    if is_passing(error):
        code = f" ({status})" if status else ""
        return ServiceError(f"Kubeflow Pipelines at {where} did not answer{code}: {reason_of(error)}")
    if status is None:
        return ServiceError(f"Kubeflow Pipelines at {where} cannot be used: {reason_of(error)}")
    login = "; it asks for a login elsewhere: give a token by KFP_TOKEN or --token, or see to the address"
    advice = {
        **dict.fromkeys((301, 302, 303, 307, 308), login),
        401: "; give a token by KFP_TOKEN or --token, or run in a pod with the token of its service account",
        403: "; the service account or user needs the verbs that infra/k8s binds, in the namespace of --namespace",
    }.get(status, "")
    return ConfigError(f"Kubeflow Pipelines at {where} refuses ({status}): {reason_of(error)}{advice}")


def run_named(client: Any, name: str) -> Any | None:
    """The newest run of that name that the user may see, or None."""
    found = client.list_runs(page_size=1, sort_by="created_at desc", filter=equals("display_name", name))
    return found.runs[0] if found.runs else None


def check_pipeline(known: Any, pipeline: str) -> None:
    """Raise ConfigError if the run that is there is one of another pipeline, as far as the API tells."""
    spec = known.pipeline_spec or {}
    found = spec.get("pipeline_spec", spec).get("pipelineInfo", {}).get("name", pipeline)
    if found != pipeline:
        raise ConfigError(
            f"--key {known.display_name}: the run of that name, {known.run_id}, is one of {found}, and this is "
            f"{pipeline}; a key names one run, so take another"
        )


def equals(key: str, value: str) -> str:
    """The API's filter for what has this value."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": key, "stringValue": value}]})


def get(client: Any, path: str, *, once: bool = False) -> bytes:
    """The body at a path of the API that its client has no method for; with `once` it is asked for a single time.

    Raises: ApiException.
    """
    api = client._run_api.api_client
    headers: dict[str, str] = {}
    api.update_params_for_auth(headers, [], ["Bearer"])
    return api.rest_client.request("GET", f"{api.configuration.host}{path}", headers=headers, once=once).data
