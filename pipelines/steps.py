"""Any step from the command line, derived from the signature of its `run` and from its config."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from bloomery.components.core import artifact
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.step import config_class, execute

STEPS = (
    "preflight",
    "data_curation",
    "dedup",
    "synthetic_data",
    "cpt",
    "sft",
    "rejection_sampling",
    "dpo",
    "quantisation",
    "ptq",
    "evaluation",
    "promotion",
)
"""Every step, in the order of the DAG."""


def run_one(name: str, config: Path | None, settings: list[str], arguments: list[str]) -> dict[str, float]:
    """Run the step `name` on `--port FOLDER` arguments, repeated for a port that takes a list; returns its metrics.

    Raises: ConfigError for an unknown step, and naming every port that is missing or unknown.
    """
    if name not in STEPS:
        near = difflib.get_close_matches(name, STEPS, n=1)
        raise ConfigError(
            f"{name}: no such step; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(STEPS)}")
        )
    run = importlib.import_module(f"bloomery.components.{name}.step").run
    reads, writes = artifact.ports(run, artifact.Reads), artifact.ports(run, artifact.Writes)
    given = _ports(arguments)
    flags = {port: f"--{port.replace('_', '-')} FOLDER ({schema})" for port, schema in {**reads, **writes}.items()}
    missing = [flag for port, flag in flags.items() if port not in given]
    unknown = [f"--{port.replace('_', '-')}" for port in given if port not in flags]
    if missing or unknown:
        lines = [f"{name}: missing {flag}" for flag in missing] + [
            f"{name}: unknown argument {flag}" for flag in unknown
        ]
        raise ConfigError("\n".join([*lines, f"{name} takes: {', '.join(flags.values())}"]))
    values = _values(config, settings)
    fields = config_class(run).model_fields
    unset = [key for key, field in fields.items() if field.is_required() and key not in values]
    if unset:
        raise ConfigError(
            "\n".join(f"{name}.{key}: missing; give it with --set {key}=VALUE or in --config" for key in unset)
        )
    hints = get_type_hints(run)
    inputs = {port: given[port] if hints[port] == list[Path] else given[port][-1] for port in reads}
    return execute(run, name, values, inputs, {port: given[port][-1] for port in writes})["metrics"]


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
        values = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    from bloomery.pipelines.recipe import apply_setting

    for setting in settings:
        apply_setting(values, setting)
    return values
