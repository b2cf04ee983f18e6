"""Ways to run a recipe: compile it, or run it on this machine."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bloomery.components.core import errors, store, tracking
from bloomery.components.core.config import digest, parameters
from bloomery.components.core.errors import BloomeryError, ConfigError
from bloomery.components.core.uploads import cache_folder
from bloomery.infra import images, surroundings, words
from bloomery.pipelines import containers, keys, parent_run, recipe_files
from bloomery.pipelines import recipe as recipes
from bloomery.pipelines.progress import Journal
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)

DEMOS = ("quickstart", "smollm2")
"""Packages that make a folder in the cache on first use, and its name as a variable of recipes."""


MOST_BYTES = 1_572_864
"""Of one object in Kubernetes (etcd's `--max-request-bytes`), as which a run with its whole pipeline is kept."""


def load(
    recipe: str, settings: Iterable[str] = (), *, prepare: bool, reads_data: bool = True, is_here: bool = False
) -> Recipe:
    """Load a recipe; one that uses `${quickstart}` (the demo domain) or `${smollm2}` (a real pre-trained model) gets
    their folders, which `prepare` makes on first use. `reads_data` and `is_here` are those of `recipe.load`."""
    folders = {name: _folder(name, prepare) for name in DEMOS if recipe_files.uses(recipe, name)}
    return recipes.load(recipe, settings, folders, reads_data=reads_data, is_here=is_here)


def placed(path: str) -> Path:
    """A path in which `${quickstart}` or `${smollm2}` stands for the folder that a recipe gets for it."""
    for name in DEMOS:
        if f"${{{name}}}" in path:
            path = path.replace(f"${{{name}}}", _folder(name, prepare=False))
    return Path(path)


def _folder(name: str, prepare: bool) -> str:
    """The folder in the cache that the package `name` of this one fills."""
    made = importlib.import_module(f"bloomery.pipelines.{name}.prepare")
    folder = cache_folder() / f"{name}-{made.source_digest()[:12]}"
    if prepare:
        if not folder.is_dir():
            logger.info("first use: %s, in %s", made.DOING, folder)
        try:
            made.prepare(folder)
        except OSError as error:
            raise errors.from_os_error(error, f"making {folder}") from error
        except sqlite3.Error as error:
            told = errors.from_sqlite(str(error), str(folder), f"making {folder}")
            if told is None:
                raise
            raise told from error
    return str(folder)


def compile_to(recipe: Recipe, target: Path) -> None:
    """Write the recipe's pipeline as KFP IR YAML."""
    compile_pipeline(built(recipe), target)


def compile_pipeline(pipeline: Any, target: Path) -> None:
    """Write a pipeline as KFP IR YAML; an image that is named by a tag is told, since a run could not be repeated.

    Raises: ConfigError for a file that is not called .yaml or .yml, an image of no name that Kubernetes takes, or a
    pipeline that is larger than what it keeps, and what an error of the file system is.
    """
    from kfp import compiler

    executors = pipeline.pipeline_spec.deployment_spec["executors"]
    used = sorted({executors[name]["container"]["image"] for name in executors})
    if wrong := [image for image in used if not words.is_image(image)]:
        raise ConfigError(
            f"{wrong[0]}: no name of an image; {images.CPU} and {images.GPU} name those of tasks, such as "
            "registry.example.com/bloomery-cpu:0.1.0"
        )
    if (size := pipeline.pipeline_spec.ByteSize()) > MOST_BYTES:
        raise ConfigError(
            f"the pipeline takes {size:,} bytes at least, and Kubernetes keeps {MOST_BYTES:,} of one run; leave out "
            "stages, or put what is long in their settings into files"
        )
    if target.suffix not in (".yaml", ".yml") or target.is_dir():
        raise ConfigError(f"{target}: expected the name of a file that ends with .yaml or .yml")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        compiler.Compiler().compile(pipeline, str(target))
    except OSError as error:
        raise errors.from_os_error(error, f"writing {target}") from error
    for image in used:
        if "@sha256:" not in image:
            logger.warning("%s is a tag, which may be another image tomorrow: name images by digest", image)


def name_of_compiled(file: Path) -> str:
    """The name of the pipeline in a compiled file; '' of any other file, or none."""
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8", errors="replace")
    found = re.search(r"^pipelineInfo:\n(?:  .*\n)*?  name: (\S+)", text, re.MULTILINE)
    return found[1] if found else ""


def built(recipe: Recipe, until: str | None = None) -> Any:
    """The recipe's pipeline."""
    from bloomery.pipelines.post_training import build

    return build(recipe, until)


def run_local(
    recipe: Recipe,
    workdir: Path,
    show: Callable[[dict[str, Any]], None],
    key: str | None = None,
    until: str | None = None,
    network: str | None = None,
    trial: parent_run.Trial | None = None,
) -> dict[str, Any]:
    """Run the recipe's pipeline on this machine and write its report: each task is a process, within
    `fork_server.running` a fork, or where a `network` is named (as `docker run --network` has it) a container.

    `workdir`, which the caller holds (`workdirs.held`), keeps what runs share (the MLflow database, promoted models,
    and finished results unless BLOOMERY_STORE names another place for them) and a folder for each run. `show` is called
    with each event of the journal as it happens. A `key` starts one run in a workdir. `until` names the last stage that
    runs: nothing is evaluated then, or promoted, and there is no report. A `trial` of a search is told as one.
    Returns: the summary: status (promoted, rejected, failed, finished), model, stages, cached_steps, report, seconds,
             error, exit_code.
    Raises:  ConfigError if the key was used; what `containers.check` does.
    """
    started = time.perf_counter()
    workdir = workdir.absolute()
    if network is not None:
        containers.check(recipe, network)
    run_dir = workdir / "runs" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{recipe.name}"
    if key is not None:
        keys.claim(workdir, key, run_dir.name)
    (run_dir / "pipeline").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(recipe_files.dumped(recipe), encoding="utf-8")
    journal = Journal(run_dir / "journal.jsonl", show)
    error: BloomeryError | None = None
    with _environment(workdir, run_dir), journal.following():
        try:
            tags = {"recipe_digest": digest(recipe.model_dump(mode="json"))}
            parent_run.opened(recipe.name, run_dir, tags, trial)
            _execute(_at(recipe, workdir), workdir, run_dir, until, network)
            error = journal.lacking([until] if until else _stages(recipe))
        except BloomeryError as problem:
            error = problem
        except (
            Exception
        ) as problem:  # kfp raises a bare RuntimeError for a failed task: the journal knows which and why
            error = journal.failure() or _failure(problem)
            logger.debug("the pipeline failed", exc_info=problem)
        except BaseException:  # Ctrl-C
            _tell_end(recipe, "interrupted")
            parent_run.closed(run_dir, "KILLED")
            raise
        summary = _summary(recipe, journal, error, run_dir, time.perf_counter() - started)
        if until is None:
            _write_report(run_dir, summary)
        else:
            summary |= {} if error else {"status": "finished", "exit_code": 0, "report": None}
            _tell_end(recipe, summary["status"])
        parent_run.closed(run_dir, "FAILED" if summary["status"] == "failed" else "FINISHED", summary)
    return summary


def _failure(problem: Exception) -> BloomeryError:
    """Why a pipeline failed of which no task has told it."""
    if isinstance(problem, OSError) and problem.errno in errors.OF_A_DISK:
        return errors.from_os_error(problem, "running the pipeline")
    return BloomeryError(f"the pipeline failed: {problem}")


def _tell_end(recipe: Recipe, status: str) -> None:
    """Tell the journal how a run has ended that leaves no summary."""
    with contextlib.suppress(OSError):  # a full disk
        tracking.journal("ended", recipe.name, status=status)


def _stages(recipe: Recipe) -> tuple[str, ...]:
    from bloomery.pipelines import post_training  # kfp, which the forks' server is to import first

    return post_training.stages(recipe)


def _execute(recipe: Recipe, workdir: Path, run_dir: Path, until: str | None, network: str | None) -> None:
    from kfp import local

    processes = contextlib.nullcontext(local.SubprocessRunner(use_venv=False))
    with processes if network is None else containers.runner(recipe, workdir, network) as runner:
        local.init(runner=runner, pipeline_root=str(run_dir / "pipeline"), raise_on_error=True)
        with _quiet(run_dir / "pipeline.log"):
            built(recipe, until)()


def _at(recipe: Recipe, workdir: Path) -> Recipe:
    """The recipe with relative stores under `workdir`, no retries: on one machine a failing step would fail again; one
    quantised variant at a time, and one node."""
    promotion = recipe.promotion
    if "://" not in promotion.models_uri:
        promotion = promotion.model_copy(update={"models_uri": str(workdir / promotion.models_uri)})
    alone = {name: own.model_copy(update={"nodes": 1}) for name, own in recipe.resources.steps.items()}
    here = {"retries": 0, "parallel_variants": 1, "nodes": 1, "steps": alone}
    resources = recipe.resources.model_copy(update=here)
    return recipe.model_copy(update={"promotion": promotion, "resources": resources})


def tracking_uri(workdir: Path) -> str:
    """The MLflow of a workdir: `MLFLOW_TRACKING_URI` where it is set, else a SQLite file in the workdir."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{workdir.absolute() / 'mlflow.db'}"


@contextlib.contextmanager
def _environment(workdir: Path, run_dir: Path) -> Iterator[None]:
    """The variables that steps find their surroundings by; restored afterwards."""
    values = {
        **surroundings.missing(),
        "BLOOMERY_STORE": store.named() or str(workdir / "store"),
        "BLOOMERY_JOURNAL": str(run_dir / "journal.jsonl"),
        "MLFLOW_TRACKING_URI": tracking_uri(workdir),
        "TOKENIZERS_PARALLELISM": "false",
        "KFP_LOG_LEVEL": "ERROR",
    }
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _summary(
    recipe: Recipe, journal: Journal, error: BloomeryError | None, run_dir: Path, seconds: float
) -> dict[str, Any]:
    finished = journal.finished()
    verdict: dict[str, Any] = {}
    if "promotion" in finished:
        verdict = json.loads((Path(finished["promotion"]["outputs"]["verdict"]) / "verdict.json").read_text())
    status = "failed" if error else verdict.get("status", "failed")
    return {
        "status": status,
        "reason": str(error) if error else verdict.get("reason", ""),
        "model": verdict.get("model"),
        "stages": {stage: event["metrics"] for stage, event in finished.items()},
        "chain": list(_stages(recipe)),
        "cached_steps": [stage for stage, event in finished.items() if event["cached"]],
        "report": str(run_dir / "report.html"),
        "seconds": round(seconds, 1),
        "peak_bytes": max((event["peak_bytes"] for event in finished.values()), default=0),
        "run": str(run_dir),
        "recipe": parameters(recipe),
        "error": str(error) if error else None,
        "exit_code": error.exit_code if error else (errors.GateError.exit_code if status == "rejected" else 0),
    }


def _write_report(run_dir: Path, summary: dict[str, Any]) -> None:
    from bloomery.pipelines.report import write_report

    try:
        (run_dir / "summary.json").write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
        write_report(run_dir, summary)
    except OSError as error:
        logger.warning("the report was not written: %s", error)
        summary["report"] = None
    except Exception:  # a fault of the report must not turn a promoted model into a failed run
        logger.exception("the report was not written")
        summary["report"] = None


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Send what kfp and the steps print to a file: the journal is what a person reads."""
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with log.open("ab") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved[0], 1)
            os.dup2(saved[1], 2)
            os.close(saved[0])
            os.close(saved[1])
