"""What a recipe names on this machine, which pods cannot read: told, or put on an object store and named there."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

from pydantic import BaseModel

from bloomery.components.core import s3
from bloomery.components.core.config import LocalPath, ModelName, TemplateName
from bloomery.components.core.data.files import list_files
from bloomery.components.core.errors import BloomeryError, ConfigError
from bloomery.components.core.modelling import faults
from bloomery.components.core.uploads import uploaded
from bloomery.pipelines.chain import Stage
from bloomery.pipelines.recipe import Recipe

logger = logging.getLogger(__name__)


class Here(NamedTuple):
    """A setting that names something on this machine."""

    key: str
    """Where it stands in the recipe."""
    path: str
    is_model: bool = False
    """Whether it is a checkpoint, of which all files count but weights that are not loaded."""


Change = Callable[[Here], str]
"""What takes the place of a path."""


def found(recipe: Recipe) -> list[Here]:
    """The settings of a recipe that name something on this machine, each path once."""
    told: dict[str, Here] = {}
    _changed(Recipe, recipe, "", lambda here: told.setdefault(here.path, here).path)
    return list(told.values())


def places(recipe: Recipe) -> list[Path]:
    """The files and folders of this machine that a recipe reads and that are there, of a glob the folder above it."""
    read = {_root(setting.path) for setting in found(recipe) if setting.key != MODELS}
    return sorted(place for place in read if place.exists())


def for_pods(recipe: Recipe, upload: str | None, *, in_image: bool = False) -> Recipe:
    """The recipe as pods can read it: what it names on this machine is put under the URI `upload`, once.

    With `in_image` paths are meant in the image of the tasks, and stay.
    Raises: ConfigError naming every such setting if there is no `upload`, or files that are not there.
    """
    here = found(recipe)
    if in_image or not here:
        return recipe
    if not upload:
        raise ConfigError("\n".join([*refusal(here), *HELP]))
    if not s3.is_uri(upload):
        raise ConfigError(f"--upload {upload}: expected s3://bucket/prefix, which pods reach")
    there: dict[str, str] = {}
    problems = []
    for setting in here:
        try:
            there[setting.path] = f"{upload.rstrip('/')}/models" if setting.key == MODELS else _put(setting, upload)
            logger.info("%s: %s is %s", setting.key, setting.path, there[setting.path])
        except BloomeryError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(f"{problem}" for problem in problems))
    return _changed(Recipe, recipe, "", lambda setting: there[setting.path])


MODELS = "promotion.models_uri"
HELP = (
    "give --upload s3://bucket/prefix, which puts them there under their content and submits the recipe with their "
    "URIs, or --in-image if the image of the tasks holds them",
)


def refusal(here: list[Here]) -> list[str]:
    """The lines that name what pods cannot read."""
    return [f"{setting.key}: {setting.path} is of this machine, and pods cannot read it" for setting in here]


def warning(recipe: Recipe) -> str:
    """What is told beside a pipeline that is compiled with paths of this machine; '' where it has none."""
    told = [f"warning: {line}" for line in refusal(found(recipe))]
    return "\n".join([*told, "--upload s3://bucket/prefix puts them where pods read them"]) if told else ""


def _put(setting: Here, prefix: str) -> str:
    """The URI of a file, of a folder with the files of it that would be read, or of what a glob names."""
    root = _root(setting.path)
    if setting.is_model and root.is_dir():
        files = sorted(file for file in _read(root) if not _is_hidden(file.relative_to(root)))
    else:
        files = [Path(file) for file in list_files(str(_path(setting.path)))]
    return uploaded(root, files, prefix)


def _read(checkpoint: Path) -> Iterator[Path]:
    """The files of a checkpoint folder, without weights that are not loaded."""
    for folder, inner, names in os.walk(checkpoint):
        left = faults.unread(folder, [*inner, *names])
        inner[:] = set(inner) - left
        yield from (Path(folder, name) for name in set(names) - left)


def _path(value: str) -> Path:
    return Path(value.removeprefix("file://")).expanduser()


def _root(value: str) -> Path:
    """The file or folder, of a glob the folder above it."""
    root = _path(value)
    while glob.has_magic(str(root)):
        root = root.parent
    return root


def _is_hidden(file: Path) -> bool:
    return any(part.startswith(".") for part in file.parts)


def _changed(hint: Any, value: Any, key: str, change: Change) -> Any:
    """`value`, which is annotated by `hint`, with every path of this machine in it changed."""
    if isinstance(value, str):
        kind = next((kind for kind in IS_LOCAL if kind in (hint, *get_args(hint))), None)
        if not value or kind is None or not IS_LOCAL[kind](value):
            return value
        return change(Here(key, value, is_model=kind is ModelName))
    if isinstance(value, BaseModel):
        hints = get_type_hints(type(value), include_extras=True)
        place = f"{value.name}." if isinstance(value, Stage) else f"{key}." if key else ""
        new = {}
        for name in type(value).model_fields:
            inner = place if isinstance(value, Stage) else f"{place}{name}"
            new[name] = _changed(hints[name], getattr(value, name), inner.rstrip("."), change)
        if key == "promotion" and "://" not in new["models_uri"]:
            new["models_uri"] = change(Here(MODELS, new["models_uri"]))
        return value.model_copy(update=new)
    inside = (get_args(hint) or (None,))[-1]
    if isinstance(value, dict):
        return {name: _changed(inside, item, f"{key}.{name}", change) for name, item in value.items()}
    if isinstance(value, list):
        return [_changed(inside, item, f"{key}.{index}", change) for index, item in enumerate(value)]
    return value


def _is_path(value: str) -> bool:
    return "://" not in value or value.startswith("file://")


def _is_model_folder(value: str) -> bool:
    is_no_hub_name = value.startswith((".", "/", "~", "file://")) or value.count("/") > 1
    return _is_path(value) and (is_no_hub_name or Path(value).exists())


IS_LOCAL: dict[Any, Callable[[str], bool]] = {
    LocalPath: _is_path,
    ModelName: _is_model_folder,
    TemplateName: lambda value: value != "chatml" and _is_path(value),
}
"""Whether a setting of each kind that holds paths names something on this machine."""
