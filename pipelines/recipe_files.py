"""A recipe's file before it is a recipe: found by its name, read with its variables, and settings put over it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import chain
from bloomery.pipelines.settings import mapping, put

RECIPES = Path(__file__).parent / "recipes"


def is_path(recipe: str) -> bool:
    """Whether it is the path of a file, and no name of a recipe that comes with the package."""
    return Path(recipe).suffix in (".yaml", ".yml") or "/" in recipe


def dumped(recipe: BaseModel) -> str:
    """A recipe as the text of a file that is read as the same one."""
    values = recipe.model_dump(mode="json")
    for stage in values["stages"]:
        for key in ("chats", "preferences"):
            if values.get(key):  # which the stage that curates them is given from there
                stage.get("chat_curation", {}).pop(key, None)
    return yaml.safe_dump(values, allow_unicode=True, sort_keys=False)


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises: ConfigError naming the recipes that there are.
    """
    if is_path(recipe):
        if Path(recipe).is_file():
            return Path(recipe)
        raise ConfigError(f"{recipe}: no such recipe file")
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    if recipe in shipped:
        return shipped[recipe]
    near = difflib.get_close_matches(recipe, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "give a path to a YAML file"
    raise ConfigError(f"{recipe}: no recipe of this name; known: {', '.join(shipped)}; {hint}")


def read(recipe: str, variables: Mapping[str, str] | None, *, reads_data: bool) -> tuple[dict[str, Any], Path]:
    """(the raw values of a recipe's file, its folder); `variables` and `reads_data` are those of `recipe.load`.

    Raises: ConfigError with every problem, one a line.
    """
    path = find(recipe)
    text = _text(path)
    known = {**os.environ, **(variables or {})}
    missing = sorted({name for name in _variables(text) if name not in known})
    if missing and reads_data:
        raise ConfigError(
            "\n".join(f"{path}: ${{{name}}} is not set; export it as an environment variable" for name in missing)
        )
    text = re.sub(r"\$\{(\w+)\}", lambda match: known.get(match[1], match[0]), text)
    values = mapping(text, str(path), "recipe keys")
    return unshared(values), path.parent.absolute()


def unshared(value: Any, around: tuple[Any, ...] = ()) -> Any:
    """`value` without parts that stand in two places, as YAML's anchors make them: a setting is of one place.

    `around` is what `value` stands in. Raises: ConfigError if that is `value` itself."""
    if any(value is outer for outer in around):
        raise ConfigError("a YAML alias (`*name`) stands inside of what its anchor (`&name`) marks; write the part out")
    if isinstance(value, dict):
        return {key: unshared(item, (*around, value)) for key, item in value.items()}
    return [unshared(item, (*around, value)) for item in value] if isinstance(value, list) else value


def absent(values: dict[str, Any], lacking: Mapping[str, str], variables: Mapping[str, str] | None) -> list[str]:
    """A line for each path in the raw `values` that leads to nothing."""
    made_later = tuple(folder for folder in (variables or {}).values() if not Path(folder).is_dir())

    def places(value: Any, key: str) -> Iterator[tuple[str, str]]:
        if isinstance(value, dict | list):
            for name, item in value.items() if isinstance(value, dict) else enumerate(value):
                yield from places(item, f"{key}.{name}" if key else str(name))
        elif value in lacking and not lacking[value].startswith(made_later or "\0"):
            yield key, lacking[value]

    return [f"{key}: no file there: {path}; see to the path, or where it is run" for key, path in places(values, "")]


def uses(recipe: str, variable: str) -> bool:
    """True if the recipe's text contains `${variable}`. Raises: ConfigError if it is no text."""
    return variable in _variables(_text(find(recipe)))


def _text(path: Path) -> str:
    """The text of a recipe's file. Raises: ConfigError if there is none to be read."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no text in UTF-8 ({error}); a recipe is a YAML file") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None


def _variables(text: str) -> set[str]:
    body = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return set(re.findall(r"\$\{(\w+)\}", body))


def apply(values: dict[str, Any], setting: str, keys: Collection[str]) -> None:
    """Put the YAML value of `stage.key=value`, or of `key=value` of the recipe itself, into the raw recipe `values`,
    whose own keys are `keys`.

    Raises: ConfigError if it has another form, or names neither a stage nor a key.
    """
    head, _, rest = setting.partition(".")
    entries, _ = chain.written(values.get("stages", []))
    for _, name, stage in entries:
        if rest and name == head:
            put(stage, rest, told=setting)
            return
    key = setting.partition("=")[0].partition(".")[0]
    if key in [name for _, name, _ in entries]:
        raise ConfigError(f"--set {setting}: {key} is a stage; expected one of its settings, --set {key}.KEY=VALUE")
    if "=" in setting and key not in keys:
        known = [*(name for _, name, _ in entries), *keys]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        raise ConfigError(f"--set {setting}: no stage and no key {key}; {hint}")
    put(values, setting)
