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
import math
import os
import random
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from bloomery.components.core import (
    artifact,
    processes,
    repository_code,
    s3,
    scratch,
    sources,
    store,
    tracking,
    train_job,
    unfinished,
)
from bloomery.components.core.config import Config, canonical, digest, parse, unpacked
from bloomery.components.core.declare import declared
from bloomery.components.core.errors import BloomeryError, ConfigError, DataError, ServiceError, from_os_error, masked

logger = logging.getLogger(__name__)

MOST_WARNINGS = 20
"""Different warnings of a step that are passed on; its log holds all."""
TRIAL = "BLOOMERY_TRIAL"
"""Environment of the tasks of a search's trial on a cluster: one that fails ends well, and hands on why."""
FAILED = "failed.txt"
"""In the place of a failed trial's artifacts: why there are none. Its metrics have the same under `failed`."""
TERMINATION_LOG = Path("/dev/termination-log")
"""Where Kubernetes reads a container's last words."""
MOST_LAST_WORDS = 2048
"""Bytes of them that are kept, half of what Kubernetes does."""
REUSED = "reused: the result is that of an earlier run"
"""How the last line of a log begins, after the stage, where it is so: `bloomery status` finds it on a cluster, and the
seconds that it ends with."""
CHATTY = (
    "torchao",
    "bitsandbytes",
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
DEPRECATED = ("`is_gradient_checkpointing` is deprecated",)
"""How warnings of libraries about each other begin, which no user can act on either."""


def configure_logging(level: str | None = None) -> None:
    """Plain lines on stderr, or JSON lines where `LOG_FORMAT=json`, no progress bars but on a terminal, and MLflow's
    telemetry off; called by entry points only."""
    chosen = level or os.environ.get("LOG_LEVEL", "INFO")
    handler = logging.StreamHandler(sys.stderr)
    if os.environ.get("LOG_FORMAT") == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(_PlainFormatter("%(levelname).1s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("bloomery").setLevel(chosen)
    # A run tells nobody what it does; and the thread that would tell reads the environment for its address while a run
    # writes to it, which ends the process now and then (glibc, getenv beside setenv).
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not sys.stderr.isatty():  # huggingface_hub reads it when it is imported, and transformers asks there
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if chosen != "DEBUG":
        for message in DEPRECATED:
            warnings.filterwarnings("ignore", message)
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "CRITICAL")  # it sets up its own logger when it is imported
        for chatty in CHATTY:
            logging.getLogger(chatty).setLevel(logging.CRITICAL)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": record.created,
            "level": record.levelname,
            "logger": record.name,
            "message": masked(record.getMessage()),
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
    Returns the metrics. A BloomeryError is logged without traceback and ends the process with its exit code; in a trial
    of a search it is handed on, so that the trial fails and not the search.
    """
    started = time.perf_counter()
    with ending(stage):
        try:
            given = {name: _path(item) for name, item in inputs.items() if item is not None}
            _raise_if_failed(given)
            result = execute(run, stage, config, given, _paths(outputs))
        except Exception as error:
            if not os.environ.get(TRIAL):
                raise
            if not isinstance(error, BloomeryError):
                logger.exception("%s failed", stage)
            _hand_on(_tell(stage, error), _paths(outputs), metrics)
            return {}
    seconds = time.perf_counter() - started
    how = f"{REUSED}, since code, config and inputs are as before" if result["cached"] else "done"
    logger.info("%s: %s; %.2f s", stage, how, seconds)
    tracking.journal(
        "finished",
        stage,
        cached=result["cached"],
        metrics=result["metrics"],
        history=result["history"],
        warnings=result["warnings"],
        shown=result["shown"],
        seconds=round(seconds, 2),
        peak_bytes=_peak_bytes(),
        outputs={name: str(path) for name, path in _paths(outputs).items()},
    )
    if metrics is not None:
        Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
        Path(metrics.path).write_text(json.dumps(result["metrics"], indent=1))
        metrics.metadata.update(result["metrics"])
    return result["metrics"]


def _raise_if_failed(inputs: Mapping[str, Path | list[Path]]) -> None:
    """Raise what has ended the trial of a search before this stage of it."""
    for name, given in inputs.items():
        for _, path in _each(name, given):
            if (path / FAILED).is_file():
                raise DataError((path / FAILED).read_text(encoding="utf-8"))


def _finite(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that are numbers: neither JSON nor Kubeflow Pipelines knows others."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            logger.warning("%s is %s, and is left out", name, value)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _hand_on(why: str, outputs: Mapping[str, Path], metrics: Any) -> None:
    """In a trial of a search, put why it failed in the place of what it would have written.

    A process that is killed hands on nothing, and its task fails.
    """
    for path in outputs.values():
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True, exist_ok=True)
        (path / FAILED).write_text(masked(why), encoding="utf-8")
    if metrics is not None:
        Path(metrics.path).parent.mkdir(parents=True, exist_ok=True)
        Path(metrics.path).write_text(json.dumps({"failed": masked(why)}), encoding="utf-8")


@contextlib.contextmanager
def ending(task: str) -> Iterator[None]:
    """Run a task: why it fails, if it does, is told everywhere, and a BloomeryError ends the process without traceback
    and with its exit code."""
    configure_logging()
    try:
        yield
    except BloomeryError as error:
        _tell(task, error)
        sys.exit(error.exit_code)
    except Exception as error:
        _tell(task, error)
        raise


def _tell(task: str, error: Exception) -> str:
    """Tell the log, the journal and the pod why a task fails; returns it, in one line but for a BloomeryError."""
    if isinstance(error, BloomeryError):
        told = why = str(error).removeprefix(f"{task}: ")  # a message may begin with the section of the recipe
        code, word = error.exit_code, f"{type(error).__name__}: {told}"
        logger.error("%s: %s", task, told)
    else:
        code, told = 1, traceback.format_exc()
        why = word = f"{type(error).__name__}: {error}"
    tracking.journal("failed", task, error=type(error).__name__, message=told, exit_code=code)
    leave_word(word)
    return why


def leave_word(message: str, file: Path = TERMINATION_LOG) -> None:
    """Leave in a pod, by Kubernetes' own way, why it ends: its status, Argo's node and `bloomery status` then tell it.
    Elsewhere there is no such file, and nothing is written."""
    with contextlib.suppress(OSError):
        if file.exists():
            file.write_bytes(masked(message).encode()[:MOST_LAST_WORDS])


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
        return _unkept(work, outputs, stage)
    name = run.__module__.split(".")[-2]
    shared: list[Any] = [number] if number > 1 else []  # an optimiser step has the rows of all processes
    shared += ["sharded"] if processes.is_sharded(number) else []  # and checkpoints of another kind
    shared += [f"{job.nodes} nodes"] if job else []  # of which each keeps a part
    key = digest([name, code_digest(run), settings.model_dump(mode="json"), digests, *shared])
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


def _unkept(work: store.Work, outputs: Mapping[str, Path], stage: str) -> dict[str, Any]:
    """The result of `work`, whose artifacts take the place of what is at `outputs` when all of them are whole."""
    try:
        with contextlib.ExitStack() as stack:
            made = {port: stack.enter_context(scratch.beside(path)) / port for port, path in outputs.items()}
            result = work(made)
            for port, path in outputs.items():
                shutil.rmtree(path, ignore_errors=True)
                os.replace(made[port], path)
    except OSError as error:
        raise from_os_error(error, f"{stage} writing its outputs") from error
    return result


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
    warned = _Warnings(stage)
    bloomery = logging.getLogger("bloomery")
    bloomery.addHandler(warned)
    with artifact.lineage(stage, resolved, digests), tracking.track(stage, resolved) as tracker:
        try:
            given = (path for port, item in inputs.items() for _, path in _each(port, item))
            with repository_code.believing(given):
                metrics = _finite(run(settings, **inputs, **outputs))
        except OSError as error:
            if isinstance(error, ConnectionError):
                raise
            raise from_os_error(error, f"running {stage}") from error
        finally:
            unfinished.settle()  # what it warns of is told with the step
            bloomery.removeHandler(warned)
        tracker.finish(metrics)
    history, shown = tracker.history, tracker.shown
    return {"metrics": metrics, "history": history, "shown": shown, "warnings": warned.messages, "cached": False}


class _Warnings(logging.Handler):
    """Tells at once what a step warns of, and keeps it for the report: nobody reads its log while all goes well."""

    def __init__(self, stage: str) -> None:
        super().__init__(logging.WARNING)
        self.stage = stage
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = masked(record.getMessage()).removeprefix(f"{self.stage}: ")
        if message not in self.messages and len(self.messages) < MOST_WARNINGS:
            self.messages.append(message)
            tracking.journal("warned", self.stage, message=message)


@functools.cache
def code_digest(run: Callable[..., Any]) -> str:
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
