"""The base of every config, and how its mistakes are told: all at once, each with its place and the nearest good
name."""

from __future__ import annotations

import base64
import difflib
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, ValidationInfo

from bloomery.components.core.errors import ConfigError


class Config(BaseModel):
    """A frozen, closed set of settings; the string under each field is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


def absolute(path: str, info: ValidationInfo) -> str:
    """`path` as `LocalPath` reads it: from the folder of the recipe that is being validated, if one is."""
    folder = (info.context or {}).get("folder")
    if folder is None or not path or "://" in path or path.startswith(("/", "~")):
        return path
    return str((folder / path).resolve())


def _absolute_folder(name: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get("folder")
    is_folder = folder is not None and name and (name.startswith(".") or (folder / name).is_dir())
    return absolute(name, info) if is_folder else name


def _absolute_template(name: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get("folder")
    is_file = folder is not None and name and name != "chatml" and (folder / name).is_file()
    return absolute(name, info) if is_file else name


LocalPath = Annotated[str, AfterValidator(absolute)]
"""A path or URI; a relative one in a recipe is meant from the recipe's folder."""
ModelName = Annotated[str, AfterValidator(_absolute_folder)]
"""A checkpoint folder, relative ones as those of `LocalPath`, or the name of a model on a hub."""
TemplateName = Annotated[str, AfterValidator(_absolute_template)]
"""`chatml`, or the path of a chat template, relative ones as those of `LocalPath`."""

ConfigT = TypeVar("ConfigT", bound=BaseModel)


def parse(model: type[ConfigT], values: Mapping[str, Any], *, where: str = "", folder: Path | None = None) -> ConfigT:
    """Validate `values` as `model`; relative paths among them are made absolute from `folder`, where one is given.

    Raises: ConfigError listing every problem as `place: what was found; what was expected`.
    """
    try:
        return model.model_validate(values, context={"folder": folder})
    except ValidationError as error:
        raise ConfigError("\n".join(problems(model, error, where=where))) from None


def problems(model: type[BaseModel], error: ValidationError, *, where: str = "") -> list[str]:
    """One line per problem of a pydantic error, in the order of the fields."""
    lines = []
    for item in error.errors():
        location = tuple(part for part in item["loc"] if not str(part).startswith("function-"))
        place = ".".join(str(part) for part in (*([where] if where else []), *location)) or "(top level)"
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, location[:-1])
            near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(sorted(known))}"
            lines.append(f"{place}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing; this key has no default")
        elif not location and item["type"] == "value_error":
            told = item["msg"].removeprefix("Value error, ").split("\n")
            lines += [f"{where}: {line}" if where else line for line in told]
        else:
            found = json.dumps(item["input"], ensure_ascii=False, default=str)
            found = found if len(found) <= 80 else found[:77] + "..."
            lines.append(f"{place}: found {found}; {item['msg'].removeprefix('Value error, ')}")
    return lines


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the config that `location` points into; empty where it points at no config."""
    current: Any = model
    for part in location:
        field = getattr(current, "model_fields", {}).get(part)
        if field is not None:
            current = field.annotation
        candidates = [current, *_nested(current)]
        current = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), current)
    return list(getattr(current, "model_fields", {}))


def _nested(annotation: Any) -> list[Any]:
    found: list[Any] = []
    for argument in get_args(annotation):
        found += [argument, *_nested(argument)]
    return found


def parameters(config: BaseModel) -> dict[str, Any]:
    """The config as a pipeline parameter: JSON types only, without None, which kfp rejects inside a struct.

    A field whose default is not None must therefore not accept None; a contract test holds this.
    """
    return config.model_dump(mode="json", exclude_none=True)


PACKED_FROM = 32_768
"""Bytes of JSON from which a parameter is packed: an argument of a process ends at 131,072 (Linux, MAX_ARG_STRLEN), and
kfp passes a task's parameters in one, quoted."""
MOST_PACKED = 65_536
"""Bytes that a packed parameter may have, so that the rest of the argument has room."""


def packed(values: dict[str, Any]) -> dict[str, Any]:
    """A pipeline parameter as it is, or where it is large compressed under one key, from which `unpacked` makes it."""
    text = json.dumps(canonical(values), ensure_ascii=False)
    if len(text.encode()) < PACKED_FROM:
        return values
    return {"packed": base64.b64encode(zlib.compress(text.encode(), 9)).decode()}


def unpacked(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `packed` was given."""
    if set(values) != {"packed"}:
        return values
    return json.loads(zlib.decompress(base64.b64decode(values["packed"])))


def digest(value: Any) -> str:
    """Hex sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(canonical(value), ensure_ascii=False).encode()).hexdigest()


def canonical(value: Any) -> Any:
    """A JSON value as kfp cannot change it: keys sorted, as their order is lost in a struct; integral floats as
    integers."""
    if isinstance(value, Mapping):
        return {str(key): canonical(item) for key, item in sorted(value.items(), key=lambda pair: str(pair[0]))}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
