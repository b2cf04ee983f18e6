"""The only adapter between a step and its surroundings: kfp, the command line and tests all come in here.

`run_step` does, in order: logging, config, input manifests, reuse of a finished result, seeds, tracking, `run` (in
several processes, where accelerators share a training, or on other machines, where nodes do), output manifests,
metrics. A finished result is found by content: the code that the step can reach, its config and the digests of its
inputs. So a changed file or setting re-runs exactly the steps that it reaches, and a killed run goes on where it was.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from bloomery.components.core import artifact, processes, s3, sources, store, tracking, train_job
from bloomery.components.core.config import Config, canonical, digest, parse, unpacked
from bloomery.components.core.declare import declared
from bloomery.components.core.errors import BloomeryError, ConfigError, ServiceError, from_os_error

logger = logging.getLogger(__name__)

MOST_WARNINGS = 20
"""Different warnings of a step that are passed on; its log holds all."""
TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words."""
MOST_LAST_WORDS = 2048
"""Bytes of them that are kept, half of what Kubernetes does."""
CHATTY = (
    "torchao",
    "torch.utils._pytree",
    "torch.distributed.elastic",
    "urllib3",
    "alembic",
    "mlflow",
    "sqlalchemy",
    "httpx",
)
"""Libraries whose logs tell a user nothing that he could act on: kernels of GPUs that are not there, retries,
tracebacks of errors that are raised as well."""


def configure_logging(level: str | None = None) -> None:
    """Plain lines on stderr, or JSON lines where `LOG_FORMAT=json`, and MLflow's telemetry off; called by entry points
    only."""
    chosen = level or os.environ.get("LOG_LEVEL", "INFO")
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("LOG_FORMAT") == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(levelname).1s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("bloomery").setLevel(chosen)
    # A run tells nobody what it does; and the thread that would tell reads the environment for its address while a run
    # writes to it, which ends the process now and then (glibc, getenv beside setenv).
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if chosen != "DEBUG":
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # it sets up its own logger when it is imported
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.CRITICAL)


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        return json.dumps(facts, ensure_ascii=False)


def run_step(
    run: Callable[..., dict[str, float]],
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    metrics: Any = None,
) -> dict[str, float]:
    """Run a step as `stage` of a pipeline, or reuse its finished result.

    `inputs` and `outputs` map the argument names of `run` to paths, or to kfp artifacts with a `.path`, an input also
    to a list of them, or to None where an optional one is not there; `metrics` is a kfp Metrics artifact or None.
    Returns the metrics. A BloomeryError is logged without traceback and ends the process with its exit code.
    """
    configure_logging()
    started = time.perf_counter()
    with ending(stage):
        given = {name: _path(item) for name, item in inputs.items() if item is not None}
        result = execute(run, stage, config, given, _paths(outputs))
    tracking.journal(
        "finished",
        stage,
        cached=result["cached"],
        metrics=result["metrics"],
        history=result["history"],
        warnings=result["warnings"],
        shown=result["shown"],
        seconds=round(time.perf_counter() - started, 2),
        peak_bytes=_peak_bytes(),
        outputs={name: str(path) for name, path in _paths(outputs).items()},
    )
    if metrics is not None:
        Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
        Path(metrics.path).write_text(json.dumps(result["metrics"], indent=1))
        metrics.metadata.update(result["metrics"])
    return result["metrics"]


@contextlib.contextmanager
def ending(stage: str) -> Iterator[None]:
    """Tell everywhere why what runs inside failed, if it does, and end the process: after a BloomeryError without a
    traceback, and with its exit code."""
    try:
        yield
    except BloomeryError as error:
        told = str(error).removeprefix(f"{stage}: ")  # a message may begin with the section of the recipe
        logger.error("%s: %s", stage, told)
        tracking.journal("failed", stage, error=type(error).__name__, message=told, exit_code=error.exit_code)
        leave_word(told)
        sys.exit(error.exit_code)
    except Exception as error:
        tracking.journal("failed", stage, error=type(error).__name__, message=traceback.format_exc(), exit_code=1)
        leave_word(f"{type(error).__name__}: {error}")
        raise


def leave_word(message: str, file: Path = TERMINATION_LOG) -> None:
    """Leave in a pod, by Kubernetes' own way, why it ends: its status, Argo's node and `bloomery status` then tell it
    beside the exit code. Elsewhere there is no such file, and nothing is written."""
    with contextlib.suppress(OSError):
        if file.exists():
            file.write_bytes(message.encode()[:MOST_LAST_WORDS])


def execute(
    run: Callable[..., dict[str, float]],
    stage: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, Path | list[Path]],
    outputs: Mapping[str, Path],
) -> dict[str, Any]:
    """The part of `run_step` that raises instead of ending the process; returns metrics, history, warnings and whether
    it was reused. `inputs` holds the ports that there are."""
    settings = parse(config_class(run), canonical(unpacked(config)), where=stage)
    needed: set[str] = getattr(settings, "needed_inputs", set())
    if lacking := needed - set(inputs):
        raise ConfigError(f"{stage}: its settings need the input {', '.join(sorted(lacking))}, and there is none")
    reuse = declared(run).reuse
    reads, writes = artifact.ports(run, artifact.Reads), artifact.ports(run, artifact.Writes)
    digests = {
        name: artifact.read_manifest(path, schema).digest
        for port, schema in reads.items()
        if port in inputs
        for name, path in _each(port, inputs[port])
    }
    is_reused = reuse(settings) if callable(reuse) else reuse
    job = train_job.asked(run)
    number = job.processes if job else processes.asked(run)

    def work(given: Mapping[str, Path]) -> dict[str, Any]:
        result = _run(number, run, stage, settings, inputs, given, digests)
        for port, schema in writes.items():
            artifact.read_manifest(given[port], schema)
        return result

    place = store.named() if is_reused else None
    if job and not (place and s3.is_uri(place)):
        raise ConfigError(
            f"{stage}: found BLOOMERY_STORE {place or 'not set'}; several nodes share nothing but an object store: set "
            "resources.store to s3://bucket/prefix"
        )
    if place is None:
        return work(outputs)
    name = run.__module__.split(".")[-2]
    shared: list[Any] = [number] if number > 1 else []  # an optimiser step has the rows of all processes
    shared += ["sharded"] if processes.is_sharded(number) else []  # and checkpoints of another kind
    shared += [f"{job.nodes} nodes"] if job else []  # of which each keeps a part
    key = digest([name, _code_digest(run), settings.model_dump(mode="json"), digests, *shared])
    entry = store.entry(place, f"{name}/{key[:24]}", writes)
    try:
        found = entry.take(outputs)
        if found is None and job and isinstance(entry, store.OnObjects):
            facts = {"step": run.__module__, "stage": stage, "config": settings.model_dump(mode="json")}
            parts = dict(part for port, given in inputs.items() for part in _each(port, given))
            train_job.train(job, entry.uri, {**facts, "digests": digests}, parts)
            return _left(entry, outputs)
        if found is None:
            return entry.make(outputs, work)
    except OSError as error:
        raise from_os_error(error, f"{stage} writing to {place}") from error
    return {"warnings": [], "shown": {}, **found, "cached": True}


def _left(entry: store.OnObjects, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """The result that other machines have left in the store."""
    found = entry.take(outputs)
    if found is None:
        raise ServiceError(f"the nodes have ended well, and their result is not in {entry.uri}")
    return found


def config_class(run: Callable[..., Any]) -> type[Config]:
    """The config class of a step: the annotation of the first argument of its `run`."""
    return next(iter(get_type_hints(run).values()))


def _run(number: int, *work: Any) -> dict[str, Any]:
    return perform(*work) if number == 1 else processes.launch(work, number)


def perform(
    run: Callable[..., dict[str, float]],
    stage: str,
    settings: Config,
    inputs: Mapping[str, Path | list[Path]],
    outputs: Mapping[str, Path],
    digests: dict[str, str],
) -> dict[str, Any]:
    """Run a step on what has been checked; `digests` are those of its inputs, for lineage. Returns as `execute`."""
    seed = getattr(settings, "seed", 0)
    random.seed(seed)
    tracking.journal("started", stage, pid=os.getpid())
    resolved = settings.model_dump(mode="json")
    warnings = _Warnings(stage)
    bloomery = logging.getLogger("bloomery")
    bloomery.addHandler(warnings)
    with artifact.lineage(stage, resolved, digests), tracking.track(stage, resolved) as tracker:
        try:
            metrics = run(settings, **inputs, **outputs)
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise from_os_error(error, f"running {stage}") from error
        finally:
            bloomery.removeHandler(warnings)
        tracker.finish(metrics)
    history, shown = tracker.history, tracker.shown
    return {"metrics": metrics, "history": history, "shown": shown, "warnings": warnings.messages, "cached": False}


class _Warnings(logging.Handler):
    """Tells at once what a step warns of, and keeps it for the report: nobody reads its log while all goes well."""

    def __init__(self, stage: str) -> None:
        super().__init__(logging.WARNING)
        self.stage = stage
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.messages and len(self.messages) < MOST_WARNINGS:
            self.messages.append(message)
            tracking.journal("warned", self.stage, message=message.removeprefix(f"{self.stage}: "))


@functools.cache
def _code_digest(run: Callable[..., Any]) -> str:
    """Digest of the sources that a result depends on."""
    return digest([[file.name, artifact.file_digest(file)] for file in sources.files_of(run.__module__)])


def _paths(items: Mapping[Any, Any]) -> dict[Any, Path]:
    return {name: Path(getattr(item, "path", item)) for name, item in items.items()}


def _path(item: Any) -> Path | list[Path]:
    return list(_paths(dict(enumerate(item))).values()) if isinstance(item, list) else _paths({"": item})[""]


def _each(port: str, given: Path | list[Path]) -> list[tuple[str, Path]]:
    """The artifacts of an input with the names that lineage has them under: `models[0]`, `models[1]` of a list."""
    if isinstance(given, list):
        return [(f"{port}[{index}]", path) for index, path in enumerate(given)]
    return [(port, given)]


def _peak_bytes() -> int:
    """Of this process, or of the largest that it has started."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024
