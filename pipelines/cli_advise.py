"""`bloomery advise`: which method, and the recipe that it means."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from bloomery.components.core.errors import ConfigError, DataError
from bloomery.pipelines.cli_options import JsonOption

if TYPE_CHECKING:
    from bloomery.components.core.modelling.cards import Card
    from bloomery.pipelines.advise_decisions import Answers

FILES = ("chats", "documents", "preferences", "general")
COUNTED = {
    "examples": ("chats",),
    "document_tokens": ("documents",),
    "pairs": ("preferences",),
    "languages": ("chats", "documents"),
}
"""The files that answer a question, each of them alone."""


def advise(
    context: typer.Context,
    model: Annotated[
        str | None, typer.Option(help="The model that is adapted: a folder, which is measured, or a name on the hub.")
    ] = None,
    goal: Annotated[str | None, typer.Option(metavar="facts|behaviour|form", help="What it lacks.")] = None,
    fresh: Annotated[
        str | None, typer.Option(metavar="weekly|yearly|stable", help="How often what it has to know changes.")
    ] = None,
    chats: Annotated[str | None, typer.Option(metavar="FILE", help="Examples: counted and measured.")] = None,
    documents: Annotated[str | None, typer.Option(metavar="FILE", help="Documents: counted and measured.")] = None,
    preferences: Annotated[str | None, typer.Option(metavar="FILE", help="Preference pairs: counted.")] = None,
    general: Annotated[
        str | None, typer.Option(metavar="FILE", help="General text, of which nothing is to be forgotten.")
    ] = None,
    examples: Annotated[str | None, typer.Option(metavar="NUMBER", help="Examples, without their file.")] = None,
    document_tokens: Annotated[
        str | None, typer.Option(metavar="NUMBER", help="Tokens of documents, without their file.")
    ] = None,
    pairs: Annotated[str | None, typer.Option(metavar="NUMBER", help="Preference pairs, without their file.")] = None,
    verifier: Annotated[
        str | None,
        typer.Option(metavar="none|exact|numeric|label|sql_execution", help="How a program tells a right answer."),
    ] = None,
    serve_on: Annotated[str | None, typer.Option(metavar="cpu|CARD", help="What answers in the end.")] = None,
    serve_memory: Annotated[
        str | None, typer.Option(metavar="GB", help="Memory that it may take there; 0: what there is.")
    ] = None,
    latency: Annotated[
        str | None, typer.Option(metavar="MS", help="Longest time of a token, in milliseconds; 0: no limit.")
    ] = None,
    privacy: Annotated[
        str | None, typer.Option(metavar="open|inside|personal", help="Where the data may go, and what they hold.")
    ] = None,
    languages: Annotated[str | None, typer.Option(metavar="CODES", help="ISO codes with commas, en,ko.")] = None,
    gpu: Annotated[
        str, typer.Option(metavar="NAME", help="Card to train on, such as H100 or T4; else this machine.")
    ] = "",
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Recipe to write; a file that is there is left as it is.")
    ] = Path("advised.yaml"),
    as_json: JsonOption = False,
) -> None:
    """Recommend prompting, retrieval, tuning and compression, with reasons and sources, and write the recipe.

    On a terminal it asks for what neither flags nor files answer; elsewhere a missing answer is an error. A model's
    folder and files are measured: rows, tokens and languages by the model's own tokenizer, memory by `bloomery plan`.

    Examples:

        bloomery advise

        bloomery advise --model ./Qwen3-0.6B --chats faq.jsonl --goal behaviour --gpu T4 -o faq.yaml

        bloomery advise --model org/model --goal facts --fresh weekly --examples 0 --document-tokens 2000000 --pairs 0
        --verifier none --serve-on L4 --serve-memory 0 --latency 30 --privacy inside --languages en,ko
    """
    from bloomery.components.core.modelling import cards
    from bloomery.pipelines import advise as advice
    from bloomery.pipelines import advise_measured
    from bloomery.pipelines.advise_decisions import Answers

    given = {key: value for key, value in context.params.items() if key in Answers.model_fields and value is not None}
    files = {name: given.pop(name) for name in FILES if name in given}
    wanted = [name for name in _wanted(given) if not any(file in files for file in COUNTED.get(name, ()))]
    if problems := [*_unfit_flags(output, gpu, given, files), *(_missing(wanted) if not sys.stdin.isatty() else ())]:
        raise ConfigError("\n".join(problems))
    card = cards.named(gpu) if gpu else cards.here()
    given |= _asked(wanted)
    serving = _serving(given["serve_on"])
    measured, counted = advise_measured.measure(given["model"], advise_measured.Files(**files), card, serving)
    known = {**counted, **given}
    known |= _asked(_wanted(known))
    places = {name: _from(output, path) for name, path in files.items()}
    if Path(known["model"]).is_dir():
        places["model"] = _from(output, known["model"])
    answers = _parsed({**known, **places, "name": _name(output)})
    found = advice.advise(answers, measured)
    output.write_text(advice.written(answers, found), encoding="utf-8")
    if as_json:
        told = [one._asdict() for one in found.recommendations]
        typer.echo(json.dumps({"recommendations": told, "recipe": str(output)}, ensure_ascii=False))
    else:
        typer.echo(advice.described(found))
    typer.echo(f"recipe: {output}; next: bloomery validate {output}, bloomery plan {output}", err=True)


def _unfit_flags(output: Path, gpu: str, given: dict[str, Any], files: dict[str, str]) -> Iterator[str]:
    """What is wrong with each flag that was given, all of them before anything is measured or asked."""
    from pydantic import ValidationError

    from bloomery.components.core import config
    from bloomery.components.core.data.files import list_files
    from bloomery.components.core.modelling import cards
    from bloomery.pipelines.advise_decisions import Answers

    if output.exists():
        yield f"--output {output}: there is a file of that name, which is left as it is; give another"
    else:
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=output.parent).close()
        except OSError as error:
            yield f"--output {output}: cannot be written: {error.strerror}; give another"
    try:
        Answers.model_validate(given)
    except ValidationError as error:
        told = [line.partition(":") for line in config.problems(Answers, error)]
        yield from (f"{_flag(name)}:{rest}" for name, _, rest in told if name in given)
    looked_up: list[Callable[[], Any]] = [partial(cards.named, gpu)] if gpu else []
    looked_up += [partial(_serving, given["serve_on"])] if "serve_on" in given else []
    looked_up += [partial(list_files, path) for path in files.values() if "://" not in path]
    for look_up in looked_up:
        try:
            look_up()
        except (ConfigError, DataError) as error:
            yield str(error)


def _missing(names: list[str]) -> list[str]:
    return [f"{_flag(name)}: missing; {question}" for name, question in _questions(names).items()]


def _questions(names: list[str]) -> dict[str, str]:
    from bloomery.pipelines.advise_decisions import Answers

    return {name: " ".join((Answers.model_fields[name].description or "").split()) for name in names}


def _wanted(given: dict[str, Any]) -> list[str]:
    """The questions that have no answer yet."""
    from bloomery.pipelines.advise_decisions import Answers

    return [name for name, field in Answers.model_fields.items() if field.is_required() and name not in given]


def _asked(names: list[str]) -> dict[str, Any]:
    """The answers to these questions, asked on a terminal. Raises: ConfigError naming every flag without one."""
    if names and not sys.stdin.isatty():
        raise ConfigError("\n".join(_missing(names)))
    return {name: _answer(name, question) for name, question in _questions(names).items()}


def _answer(name: str, question: str) -> str:
    """What is answered on the terminal; what is no answer is asked again."""
    from pydantic import TypeAdapter, ValidationError

    from bloomery.pipelines.advise_decisions import Answers

    field = Answers.model_fields[name]
    choices = get_args(field.annotation)
    while True:
        told: str = typer.prompt(f"{question} [{', '.join(choices)}]" if choices else question, err=True)
        try:
            TypeAdapter(Annotated[field.annotation, field]).validate_python(told)
            if name == "serve_on":
                _serving(told)
            return told
        except ValidationError as error:
            typer.echo(error.errors()[0]["msg"], err=True)
        except ConfigError as error:
            typer.echo(str(error), err=True)


def _parsed(values: dict[str, Any]) -> Answers:
    """The answers. Raises: ConfigError naming every flag whose value is none."""
    from bloomery.components.core.config import parse
    from bloomery.pipelines.advise_decisions import Answers

    try:
        return parse(Answers, values)
    except ConfigError as error:
        told = (line.partition(":") for line in str(error).split("\n"))
        raise ConfigError("\n".join(f"{_flag(name)}:{rest}" for name, _, rest in told)) from None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _serving(serve_on: str) -> Card | None:
    """The card that answers, or None for a CPU."""
    from bloomery.components.core.modelling import cards

    return None if serve_on == "cpu" else cards.named(serve_on, "--serve-on")


def _from(output: Path, path: str) -> str:
    """A path as the recipe in `output` has to name it."""
    return path if "://" in path or path.startswith(("/", "~")) else os.path.relpath(path, output.parent)


def _name(output: Path) -> str:
    """The name of the recipe, from that of its file."""
    name = re.sub("[^a-z0-9]+", "-", output.stem.lower()).strip("-")[:60]
    return name if re.fullmatch("[a-z].*[a-z0-9]", name) else "advised"
