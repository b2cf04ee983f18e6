"""The base of every config, and how its mistakes are told: all at once, each with its place and the nearest good
name."""

from __future__ import annotations

import base64
import difflib
import glob
import hashlib
import json
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo

from bloomery.components.core.errors import ConfigError


class Config(BaseModel):
    """A frozen, closed set of settings; the string under each field is its documentation."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=(), allow_inf_nan=False
    )


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""What chance begins with, as NumPy and torch both take it."""


def absolute(path: str, info: ValidationInfo) -> str:
    """`path` as `LocalPath` reads it: from the folder of the recipe that is being validated, if one is."""
    context = info.context or {}
    folder, absent = context.get("folder"), context.get("absent")
    if not path or "://" in path:
        return path
    found = path if folder is None or path.startswith(("/", "~")) else str((folder / path).resolve())
    if absent is not None and not glob.glob(str(Path(found).expanduser()), recursive=True):
        absent[path] = found
    return found


def _absolute_folder(name: str, info: ValidationInfo) -> str:
    folder = (info.context or {}).get("folder")
    is_folder = folder is not None and name and (name.startswith((".", "/", "~")) or (folder / name).is_dir())
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


def parse(
    model: type[ConfigT],
    values: Mapping[str, Any],
    *,
    where: str = "",
    folder: Path | None = None,
    absent: dict[str, str] | None = None,
) -> ConfigT:
    """Validate `values` as `model`; relative paths among them are made absolute from `folder`, where one is given, and
    those that lead to nothing here are put into `absent`, as they are written and made absolute.

    Raises: ConfigError listing every problem as `place: what was found; what was expected`.
    """
    try:
        return model.model_validate(values, context={"folder": folder, "absent": absent})
    except ValidationError as error:
        raise ConfigError("\n".join(problems(model, error, where=where))) from None


_PASSWORD = re.compile(r"https?://[^\s/?#]+@|://[^\s/?#]*:[^\s/?#]*@")


def passwords(value: Any, place: str = "") -> Iterator[str]:
    """A line for each address with a user or password in it of a raw recipe, which is copied into run folders,
    pipelines, MLflow and reports; a URL in running text is none."""
    if isinstance(value, str) and _PASSWORD.search(value) and not re.search(r"\s", value):
        yield (
            f"{place}: found a URL with a user or password in it, which would be written into run folders, pipelines "
            "and reports; take it out: credentials come from the environment (AWS_*, HF_TOKEN), and what needs a login "
            "of its own is fetched first"
        )
    parts = enumerate(value) if isinstance(value, list) else value.items() if isinstance(value, dict) else ()
    for key, item in parts:
        yield from passwords(item, f"{place}.{key}".lstrip("."))


ELSEWHERE = {
    "num_train_epochs": "epochs",
    "num_epochs": "epochs",
    "max_steps": "epochs",
    "per_device_train_batch_size": "batch_size",
    "lr": "learning_rate",
    "lr_scheduler_type": "schedule",
    "warmup_ratio": "warmup_fraction",
    "warmup_steps": "warmup_fraction",
    "optim": "optimizer",
    "bf16": "precision",
    "fp16": "precision",
    "max_seq_length": "max_length",
    "max_completion_length": "max_new_tokens",
    "peft_config": "adapter",
    "lora": "adapter",
    "r": "adapter.rank",
    "lora_r": "adapter.rank",
    "lora_rank": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "lora_dropout": "adapter.dropout",
    "lora_target_modules": "adapter.target_modules",
    "early_stopping_patience": "patience",
    "neftune_noise_alpha": "neftune_alpha",
    "loss_type": "loss",
    "num_return_sequences": "num_samples",
    "model_name_or_path": "base_model",
}
"""What TRL, transformers and PEFT call a setting of ours, by their name; `adapter.rank` is named `rank` where `adapter`
itself is being set."""


def nearest(key: str, known: Collection[str], cutoff: float = 0.6) -> str:
    """What is asked of one who wrote `key` where there is none: after the one of `known` that other libraries call so,
    or else the nearest one; "" where none is."""
    named = ELSEWHERE.get(key, "")
    ours = [name for name in (named, named.rpartition(".")[2]) if name.partition(".")[0] in known]
    near = ours[:1] or difflib.get_close_matches(key, known, n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else ""


SECRET = "secret"
"""The type of a pydantic error (`PydanticCustomError`) whose value is not to be shown."""


def problems(model: type[BaseModel], error: ValidationError, *, where: str = "") -> list[str]:
    """One line per problem of a pydantic error, in the order of the fields."""
    lines = []
    for keys, items in _by_place(model, error):
        item = items[0]
        place = ".".join(str(part) for part in (*([where] if where else []), *keys)) or "(top level)"
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, keys[:-1])
            hint = nearest(str(keys[-1]), known, cutoff=0.5) or f"known keys: {', '.join(sorted(known))}"
            lines.append(f"{place}: unknown key; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{place}: missing; this key has no default")
        elif not keys and item["type"] == "value_error":
            told = item["msg"].removeprefix("Value error, ").split("\n")
            lines += [f"{where}: {line}" if where else line for line in told]
        elif item["type"] == SECRET:
            lines.append(f"{place}: {item['msg']}")
        else:
            found = json.dumps(item["input"], ensure_ascii=False, default=str)
            found = found if len(found) <= 80 else found[:77] + "..."
            lines.append(f"{place}: found {found}; {_expected(items, _forms_at(model, keys))}")
    return lines


SHOULD = "Input should be "
"""How pydantic begins to say what it expected."""


def _by_place(model: type[BaseModel], error: ValidationError) -> list[tuple[tuple[Any, ...], list[Any]]]:
    """(keys, what is wrong there) of each problem; what each form of a value that may have several was found to lack is
    one problem, unless the value has one of the forms and is wrong inside."""
    found: dict[Any, list[tuple[tuple[Any, ...], Any]]] = {}
    for number, item in enumerate(error.errors()):
        keys, forms_at = _place(model, item["loc"])
        found.setdefault(number if forms_at is None else keys[:forms_at], []).append((keys, item))
    told: list[tuple[tuple[Any, ...], list[Any]]] = []
    for at, items in found.items():
        inside = [(keys, [item]) for keys, item in items if isinstance(at, tuple) and len(keys) > len(at)]
        told += inside or [(items[0][0], [item for _, item in items])]
    return told


def _expected(items: list[Any], forms: list[Any]) -> str:
    """What was expected of a value, in any of its `forms`, and the nearest of the words that it may be."""
    told = [item["msg"].removeprefix("Value error, ") for item in items]
    if items[0]["type"] == "model_type":
        return "expected settings, in braces or on indented lines" + _meant(items[0]["input"], forms)
    if len(told) > 1 and all(message.startswith(SHOULD) for message in told):
        kinds = [message.removeprefix(SHOULD).partition(", unable")[0] for message in told]
        named = [kind.replace("' or '", "', '").replace("a valid ", "a ").replace("a i", "an i") for kind in kinds]
        told = [SHOULD + " or ".join(", ".join(named).rsplit(", ", 1))]
    words = [word for item in items for word in re.findall("'([^']*)'", item.get("ctx", {}).get("expected", ""))]
    near = difflib.get_close_matches(str(items[0]["input"]), words, n=1)
    return "; or ".join(told) + (f"; did you mean '{near[0]}'?" if near else "")


def _meant(word: Any, forms: list[Any]) -> str:
    """The settings that a lone word is likely to stand for: the first that may be that word, or is called so."""
    for form in forms:
        for name, field in getattr(form, "model_fields", {}).items():
            if word in [choice for one in _forms(field.annotation) for choice in get_args(one)]:
                return f"; did you mean {{{name}: {word}}}?"
            if word == name:
                return f"; did you mean {{{name}: …}}?"
    return ""


def _place(model: type[BaseModel], location: tuple[Any, ...]) -> tuple[tuple[Any, ...], int | None]:
    """(keys and indices of a pydantic location, how many of them lead to the first value that may have several forms;
    None: to none), without the names that pydantic gives to forms and to functions."""
    keys: list[Any] = []
    forms_at: int | None = None
    forms: list[Any] = [model]
    for part in location:
        if len(forms) > 1:
            forms_at = len(keys) if forms_at is None else forms_at
            forms = [one for one in forms if str(part).startswith((get_origin(one) or one).__name__)][:1] or forms[:1]
        elif not str(part).startswith("function-"):
            keys.append(part)
            forms = _inside(forms[0], part) if forms else []
    return tuple(keys), forms_at


def _fields_at(model: type[BaseModel], keys: tuple[Any, ...]) -> list[str]:
    """Names of the fields of the config that `keys` lead to; empty where they lead to none."""
    return [name for one in _forms_at(model, keys) for name in getattr(one, "model_fields", {})]


def _forms_at(model: type[BaseModel], keys: tuple[Any, ...]) -> list[Any]:
    """The forms that the value may have that `keys` lead to."""
    forms: list[Any] = [model]
    for key in keys:
        forms = [found for one in forms for found in _inside(one, key)]
    return forms


def _inside(form: Any, key: Any) -> list[Any]:
    """The forms that the value at `key` may have, in a value of this form."""
    if isinstance(form, type) and issubclass(form, BaseModel):
        return _forms(form.model_fields[key].annotation) if key in form.model_fields else []
    origin, arguments = get_origin(form), get_args(form)
    if not (isinstance(origin, type) and arguments):
        return []
    return _forms(arguments[-1] if issubclass(origin, Mapping) else arguments[0])


def _forms(annotation: Any) -> list[Any]:
    """The forms that a value of this annotation may have, beside None."""
    if get_origin(annotation) is Annotated:
        return _forms(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [form for one in get_args(annotation) if one is not type(None) for form in _forms(one)]
    return [annotation]


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


def too_large(config: BaseModel) -> str:
    """What is told of a config that is too large for a pipeline parameter, with its longest key; '' if it fits."""
    values = parameters(config)
    return oversize(values, packed(values))


def oversize(values: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """What is told of `values` where a pipeline parameter that brings them as `given` would be too large, or ''."""
    num_bytes = len(json.dumps(given).encode())
    if num_bytes <= MOST_PACKED:
        return ""
    longest = max(values, key=lambda name: len(json.dumps(values[name])))
    return (
        f"its settings take {num_bytes:,} bytes when they are packed, and a pipeline parameter has at most "
        f"{MOST_PACKED:,}; shorten the longest of them, {longest}"
    )


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
