"""Models that a stage reads beside the one that it goes on from: its config names them, and ports of `run` bring them.

Those of stages come by ports marked `Reads("model/1", optional=True, named=True)`, one each, since kfp makes a list of
artifacts of loops alone; those from outside by a port marked `Reads("models/1", optional=True)`, which preflight writes
and which is read where the config names one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, model_validator

from bloomery.components.core.config import Config, ModelName, digest
from bloomery.components.core.errors import ConfigError

START = "start"
"""The name of the model that training starts from, which no stage may have."""

OUTSIDE = "models/1"
"""The schema of the models from outside that a recipe's stages name, each in a folder of its own."""


class NamedModel(Config):
    """A model by its name: of an earlier stage of the recipe, or from outside."""

    stage: str = ""
    """Stage before this one whose model is meant, or `start`: the model that the recipe's training starts from."""
    model: ModelName = ""
    """Checkpoint folder, or the name of a model on the Hugging Face hub, in place of `stage`."""
    revision: str = "main"
    """Revision of a hub model; a commit hash makes the run repeatable."""

    @model_validator(mode="after")
    def _has_one_name(self) -> NamedModel:
        if bool(self.stage) == bool(self.model):
            raise ValueError("expected one of `stage` (a stage of the recipe) and `model` (a folder or hub name)")
        return self

    @property
    def folder(self) -> str:
        """Where a model from outside lies in the artifact of schema models/1 that preflight writes."""
        return digest([self.model, self.revision])[:16]


def within(value: Any) -> Iterator[NamedModel]:
    """Every named model in a config, in the order of its fields."""
    if isinstance(value, NamedModel):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from within(getattr(value, name))
    elif isinstance(value, Mapping | Sequence) and not isinstance(value, str):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from within(item)


def stages(config: Config) -> list[str]:
    """The stages that a config names, each once, in the order in which the named ports of `run` bring their models."""
    return list(dict.fromkeys(named.stage for named in within(config) if named.stage))


def located(config: Config, brought: Sequence[Path | None], outside: Path | None) -> dict[NamedModel, Path]:
    """The folder of every model that `config` names: `brought` by the named ports in their order, or within `outside`
    (models/1). Raises: ConfigError if one was not brought."""
    given, names = [path for path in brought if path is not None], stages(config)
    lacking = names[len(given) :]
    lacking += [named.model for named in within(config) if named.model and outside is None]
    if lacking:
        raise ConfigError(
            f"{', '.join(lacking)}: named in the settings, and not among the inputs; give a folder of each"
        )
    folders = dict(zip(names, given, strict=True))
    return {
        named: folders[named.stage] if named.stage else (outside or Path()) / named.folder for named in within(config)
    }
