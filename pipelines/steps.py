"""The steps that there are, found by their folders, and any of them from the command line.

What a step is, it says itself: its config and its ports are those of its `run`, which `declare` marks where it wants an
accelerator or must not be reused.
"""

from __future__ import annotations

import copy
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

import bloomery.components
from bloomery.components.core import artifact, repository_code
from bloomery.components.core.config import Config
from bloomery.components.core.declare import Declared, declared
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.step import config_class, execute
from bloomery.pipelines.settings import mapping, put

FRAME = ("preflight", "quantisation", "ptq", "evaluation", "promotion")
"""Steps that stand before, between and after the stages of every recipe, and have a key of their own there."""


@dataclass(frozen=True)
class Step:
    """What a step says of itself."""

    name: str
    run: Callable[..., dict[str, float]]
    config: type[Config]
    reads: dict[str, str]
    """Schema by input port."""
    optional: set[str]
    """Input ports that it can do without."""
    named: list[str]
    """Input ports for the models of stages that its config names, in order."""
    writes: dict[str, str]
    """Schema by output port."""
    accelerator: bool | Literal["all"]
    """It trains or generates; `all`: its training is shared by as many accelerators as it is given."""
    is_cached: bool
    """Whether a backend may take an earlier result; False for what looks at the world outside."""
    secrets: tuple[str, ...]
    """Credentials that it alone gets."""

    def component(self, task: str) -> Any:
        """Its kfp component, whose tasks a pipeline calls `task`: kfp would number those of one component.

        Raises: ConfigError if its folder has none that works."""
        try:
            found = getattr(importlib.import_module(f"bloomery.components.{self.name}.component"), self.name)
            named = copy.copy(found)
            named.component_spec = replace(found.component_spec, name=task)
            return named
        except Exception as error:  # a step is code, which may be the user's own
            raise _unfit(self.name, "component.py", error) from error


@functools.cache
def names() -> tuple[str, ...]:
    """Every step, by name. Raises: ConfigError for a folder that is not there, and for two of one name."""
    folders = [Path(folder) for folder in bloomery.components.__path__]
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"BLOOMERY_STEPS: no folder {folder}; expected one with a folder for each step")
        for file in sorted(folder.glob("*/step.py")):
            name = file.parent.name
            if name == "core":
                continue
            if name in found:
                raise ConfigError(f"BLOOMERY_STEPS: {file.parent} has the name of {found[name]}; rename the folder")
            if not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ConfigError(f"BLOOMERY_STEPS: {file.parent} names no step: small letters, digits and _ do")
            found[name] = file.parent
    return tuple(sorted(found))


def find(name: str) -> Step:
    """The step of that name. Raises: ConfigError naming the nearest one, or all."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names())}"
        raise ConfigError(f"{name}: no such step; {hint}")
    return _load(name)


@functools.cache
def _load(name: str) -> Step:
    try:
        run = importlib.import_module(f"bloomery.components.{name}.step").run
        said = declared(run)
        return _described(name, run, said)
    except Exception as error:  # a step is code, which may be the user's own
        raise _unfit(name, "step.py", error) from error


def _unfit(name: str, file: str, error: Exception) -> ConfigError:
    where = next((Path(f) / name for f in bloomery.components.__path__ if (Path(f) / name).is_dir()), name)
    return ConfigError(
        f"the step {name} cannot be used: {where}/{file}: {type(error).__name__}: {str(error)[:300]}; see "
        "CONTRIBUTING.md for what a step's folder holds"
    )


def _described(name: str, run: Callable[..., dict[str, float]], said: Declared) -> Step:
    step = Step(
        name=name,
        run=run,
        config=config_class(run),
        reads=artifact.ports(run, artifact.Reads),
        optional=artifact.optional_ports(run),
        named=artifact.named_ports(run),
        writes=artifact.ports(run, artifact.Writes),
        accelerator=said.accelerator,
        is_cached=said.reuse is not False,
        secrets=said.secrets,
    )
    taken = [key for key, given in inspect.signature(run).parameters.items() if given.kind is given.KEYWORD_ONLY]
    if unmarked := [key for key in taken if key not in {**step.reads, **step.writes}]:
        raise TypeError(f"run takes {', '.join(unmarked)}, which neither Reads nor Writes marks as an artifact")
    return step


def run_one(name: str, config: Path | None, settings: list[str], arguments: list[str]) -> dict[str, float]:
    """Run the step `name` on `--port FOLDER` arguments, repeated for a port that takes a list; returns its metrics.

    Raises: ConfigError for an unknown step, naming every port that is missing or unknown, for an output that would
    replace what is no artifact or lies in another port's folder, and for code of a model's own repository: who gives a
    folder by hand may have it from anywhere, and there is no recipe that consents to its code.
    """
    step = find(name)
    given = _ports(arguments)
    flags = {
        port: f"--{port.replace('_', '-')} FOLDER ({schema}{', optional' if port in step.optional else ''})"
        for port, schema in {**step.reads, **step.writes}.items()
    }
    missing = [flag for port, flag in flags.items() if port not in given and port not in step.optional]
    unknown = [f"--{port.replace('_', '-')}" for port in given if port not in flags]
    if missing or unknown:
        lines = [f"{name}: missing {flag}" for flag in missing] + [
            f"{name}: unknown argument {flag}" for flag in unknown
        ]
        raise ConfigError("\n".join([*lines, f"{name} takes: {', '.join(flags.values())}"]))
    _check_outputs(step, given)
    values = _values(config, settings)
    unset = [key for key, field in step.config.model_fields.items() if field.is_required() and key not in values]
    if unset:
        raise ConfigError(
            "\n".join(f"{name}.{key}: missing; give it with --set {key}=VALUE or in --config" for key in unset)
        )
    hints = get_type_hints(step.run)
    inputs = {
        port: given[port] if hints[port] == list[Path] else given[port][-1] for port in step.reads if port in given
    }
    for folder in [folder for port in inputs for folder in given[port]]:
        if any(folder.rglob(repository_code.CONSENT)):
            raise ConfigError(
                f"{name}: {folder} holds code of a model's own repository, to which a recipe alone consents "
                "(trust_remote_code); run the step as a stage of that recipe"
            )
    return execute(step.run, name, values, inputs, {port: given[port][-1] for port in step.writes})["metrics"]


def _check_outputs(step: Step, given: dict[str, list[Path]]) -> None:
    """Raise for folders that cannot be written, since what is there is deleted for them."""
    for port in step.writes:
        folder = given[port][-1].resolve()
        flag = f"--{port.replace('_', '-')} {given[port][-1]}"
        if folder.exists() and not (folder / artifact.MANIFEST).is_file() and not _is_empty(folder):
            raise ConfigError(f"{flag}: holds something that no step wrote; name an empty folder, or a new one")
        for other, others in given.items():
            for taken in (one.resolve() for one in others if other != port):
                if folder == taken or folder in taken.parents or taken in folder.parents:
                    raise ConfigError(
                        f"{flag}: {other} has the folder {taken}; name one of its own, and none inside of the other"
                    )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _ports(arguments: list[str]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    rest = iter(arguments)
    for argument in rest:
        key, separator, value = argument.partition("=")
        if not key.startswith("--"):
            raise ConfigError(f"found '{argument}'; expected --PORT FOLDER")
        folder = value if separator else next(rest, None)
        if folder is None:
            raise ConfigError(f"{key}: expected a folder after it")
        found.setdefault(key.removeprefix("--").replace("-", "_"), []).append(Path(folder))
    return found


def _values(config: Path | None, settings: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise ConfigError(f"{config}: no such config file")
        values = mapping(config.read_text(encoding="utf-8"), str(config), "the step's settings")
    for setting in settings:
        put(values, setting)
    return values
