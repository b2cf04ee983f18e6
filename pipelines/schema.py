"""The JSON Schema of a recipe, by which editors complete and check it, and the documentation of its keys and steps.

`pipelines/recipes/recipe.schema.json` and `components/README.md`, which says what each step reads and writes, are
written by `python -m bloomery.pipelines.schema`; tests keep them true.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic.json_schema import models_json_schema

from bloomery.components.core.config import ELSEWHERE, Config, LocalPath, ModelName, TemplateName, nearest
from bloomery.components.core.errors import ConfigError
from bloomery.pipelines import steps
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.recipe_files import RECIPES

FILE = RECIPES / "recipe.schema.json"
STEPS_FILE = RECIPES.parents[1] / "components" / "README.md"
NAME = {"type": "string", "description": "Name of the stage, where its step is used twice; none: that of the step."}

FROM = {
    "type": "string",
    "description": "Stage whose model it goes on from, or `start`, what training starts from; none: the newest.",
}


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe's YAML, with every step as a possible stage."""
    stages = {name: steps.find(name).config for name in steps.names() if name not in steps.FRAME}
    used = [Recipe, *dict.fromkeys(stages.values())]
    places, schema = models_json_schema([(model, "validation") for model in used], ref_template="#/$defs/{model}")
    definitions = schema["$defs"]
    root = definitions.pop("Recipe")
    definitions.pop("Stage")
    entries: list[dict[str, Any]] = [{"enum": [name for name, config in stages.items() if not _required(config)]}]
    for name, config in stages.items():
        place = places[config, "validation"]["$ref"].rpartition("/")[2]
        definitions[place]["properties"].setdefault("as", NAME)
        if "model/1" in steps.find(name).reads.values():
            definitions[place]["properties"].setdefault("from", FROM)
        settings = {"$ref": f"#/$defs/{place}"}
        entry = {"properties": {name: settings}, "required": [name], "additionalProperties": False}
        entries.append({"type": "object", "title": name, "description": config.__doc__, **entry})
    root["properties"]["stages"]["items"] = {"anyOf": entries}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def written() -> str:
    """The schema as its file holds it."""
    return json.dumps(recipe_schema(), ensure_ascii=False, indent=1) + "\n"


def documentation(key: str) -> str:
    """What a key of the recipe means, as text: `sft.learning_rate`, `tasks.verifier.kind`, `promotion.gate`; without a
    key, what the recipe's keys mean.

    Raises: ConfigError for a key that there is not, naming the nearest one.
    """
    config: Any = Recipe
    field: FieldInfo | None = None
    parts = [part for part in key.split(".") if part and not part.isdigit()]
    if parts[:1] == ["stages"] and parts[1:2] and parts[1] in steps.names():
        parts = parts[1:]
    for depth, part in enumerate(parts):
        if depth == 0 and part in steps.names() and part not in Recipe.model_fields:
            config, field = steps.find(part).config, None
            continue
        known = getattr(config, "model_fields", {})
        if part not in known and field is not None and _is_mapping(field.annotation):
            continue  # the name of a task, a split, a step
        if part not in known:
            names = [*known, *(name for name in (steps.names() if depth == 0 else ()) if name not in known)]
            where = ".".join(parts[:depth]) or "the recipe"
            hint = nearest(part, names) or (_inner(part) if depth == 0 else "") or f"known: {', '.join(names)}"
            raise ConfigError(f"{key}: {where} has no key {part}; {hint}")
        field = known[part]
        config = _config_in(field.annotation)
    lines = [] if field is None else [_told(parts[-1], field)]
    if parts == ["stages"]:
        return "\n".join([*lines, "", *(_ports(steps.find(name)) for name in steps.names() if name not in steps.FRAME)])
    if config is not None:
        lines += [] if field is not None else [config.__doc__ or ""]
        lines += ["", *(_told(name, inner) for name, inner in config.model_fields.items())]
    return "\n".join(lines)


def _inner(part: str) -> str:
    """Which sections and steps have the key that a lone `part` is taken for, or "" where none has."""
    sections = {name: _config_in(field.annotation) for name, field in Recipe.model_fields.items()}
    configs = {**{name: steps.find(name).config for name in steps.names() if name not in steps.FRAME}, **sections}
    found = [
        f"{name}.{ours}"
        for name, config in configs.items()
        for ours in [ELSEWHERE.get(part, part)]
        if config and ours.partition(".")[0] in config.model_fields
    ]
    return f"a key of that meaning is {', '.join(found)}" if found else ""


STEPS = """# Steps

Any of these may stand in a recipe's list `stages`, once or often, in the order that their schemas allow: a stage reads
the newest artifact of each schema. What stands before the first stage is made of the recipe's own files and model by
preflight. This page is written by `python -m bloomery.pipelines.schema` from what the steps declare.

"""
FRAME = """
And these stand around the stages of every recipe.

"""
TABLE = """| step | reads | writes | what it does |
|---|---|---|---|
"""


def steps_page() -> str:
    """What each step reads, writes and does, as Markdown."""
    stages = [name for name in steps.names() if name not in steps.FRAME]
    rows, frame = ("".join(map(_row, names)) for names in (stages, steps.FRAME))
    return f"{STEPS}{TABLE}{rows}{FRAME}{TABLE}{frame}"


def _row(name: str) -> str:
    step = steps.find(name)
    reads, writes = (", ".join(ports) or "–" for ports in (_reads(step), _shown(step.writes)))
    return f"| [{name}]({name}/README.md) | {reads} | {writes} | {_about(step)} |\n"


def _shown(ports: dict[str, str], optional: Collection[str] = ()) -> list[str]:
    """Names and schemas of ports."""
    return [f"{port} ({schema}{', optional' if port in optional else ''})" for port, schema in ports.items()]


def _told(name: str, field: FieldInfo) -> str:
    default = "" if field.is_required() else f", default {_short(field.get_default(call_default_factory=True))}"
    kind = _kind(Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation)
    text = " ".join((field.description or "").split())
    return f"{name} ({kind}{', required' if field.is_required() else default})\n    {text}"


PATHS = {
    LocalPath: "path from the recipe's folder",
    ModelName: "hub name or path from the recipe's folder",
    TemplateName: "chatml or path from the recipe's folder",
}
"""How the types of settings are called that may name a file or folder."""


def _kind(annotation: Any) -> str:
    """A type in few words: its forms, the words that it may be, and of a path where it begins."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return next((told for kind, told in PATHS.items() if get_args(kind)[1] in arguments), _kind(arguments[0]))
    if origin in (Union, UnionType):
        return " | ".join(dict.fromkeys(map(_kind, arguments)))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if arguments:
        return f"{origin.__name__}[{', '.join(map(_kind, arguments))}]"
    return "None" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def _ports(step: steps.Step) -> str:
    """A step as a possible stage: what it reads, what it writes, what it is for."""
    return f"{step.name}: {', '.join(_reads(step))} -> {', '.join(_shown(step.writes))}\n    {_about(step)}"


def _reads(step: steps.Step) -> list[str]:
    named = [f"models of up to {len(step.named)} stages that it names"] if step.named else []
    return [*_shown({p: s for p, s in step.reads.items() if p not in step.named}, step.optional), *named]


def _about(step: steps.Step) -> str:
    """The first paragraph of what its `run` says of itself."""
    return " ".join((step.run.__doc__ or "").split("\n\n")[0].split())


def _short(value: Any) -> str:
    if isinstance(value, BaseModel):
        return "as its keys say"
    return json.dumps(value, ensure_ascii=False, default=lambda item: item.model_dump(mode="json"))


def _required(config: type[Config]) -> bool:
    return any(field.is_required() for field in config.model_fields.values())


def _is_mapping(annotation: Any) -> bool:
    return getattr(annotation, "__origin__", None) is dict


def _config_in(annotation: Any) -> type[Config] | None:
    """The config that an annotation holds, also inside a list, a mapping or a union."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for part in get_args(annotation) if (found := _config_in(part)) is not None), None)


if __name__ == "__main__":
    FILE.write_text(written(), encoding="utf-8")
    STEPS_FILE.write_text(steps_page(), encoding="utf-8")
