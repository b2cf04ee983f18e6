"""`bloomery check`: a model before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines.cli_options import JsonOption, SetOption


def check(
    model: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder, or the name of a model on the Hugging Face hub; else the recipe's."),
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="Recipe whose training rows are rendered and measured, instead of an example.")
    ] = None,
    set: SetOption = [],  # noqa: A002, B006
    revision: Annotated[str, typer.Option(help="Revision of a hub model.")] = "main",
    chat_template: Annotated[
        str, typer.Option(help="Template for a model that has none: chatml, or a file; else the recipe's.")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Tell what a model is, which tokens of a chat it would be trained on, what it lacks, and why it is refused.

    Nothing is trained and no weight is read. Exit code 4 if the model is refused, 3 if no row of a file of the recipe
    is a chat, or a pair.

    Examples:

        bloomery check ./SmolLM2-135M-Instruct

        bloomery check --recipe my.yaml

        bloomery check Qwen/Qwen3-0.6B --recipe my.yaml --json

        bloomery check ./base-model --chat-template chatml
    """
    from bloomery.components.core.modelling import checkpoints, inspection

    rows: dict[str, Any] = {}
    consents: Sequence[Any] = ()
    if recipe:
        from bloomery.components.core.data import chat_forms
        from bloomery.pipelines import launch

        loaded = launch.load(recipe, set, prepare=model is None)
        if model is None:
            model, revision = loaded.base_model, loaded.revision
        chat_template = chat_template or loaded.chat_template
        consents = loaded.trust_remote_code
        checked = loaded.preflight()
        for source in checked.chat_sources:
            chat_forms.check_source(source, chat_forms.read_chat)
        for source in checked.preference_sources:
            chat_forms.check_source(source, chat_forms.pair_reader(checked.pair_kinds))
        rows = {
            "chats": [*training_chats(loaded.tasks), *own_chats(checked.chat_sources)],
            "pairs": own_pairs(checked.preference_sources),
            "max_length": checked.max_length,
            "train_on": checked.train_on,
            "train_reasoning": checked.train_reasoning,
            "pair_max_length": checked.pair_max_length,
            "pair_kinds": checked.pair_kinds,
        }
    if model is None:
        raise ConfigError("expected MODEL (a checkpoint folder or a hub name), or --recipe, whose base_model is meant")
    folder = checkpoints.named("MODEL", model, revision, consents)
    facts = inspection.look(folder, chat_template=chat_template, **rows)
    typer.echo(json.dumps(facts, ensure_ascii=False) if as_json else inspection.describe(facts))
    if facts["refused"]:
        raise typer.Exit(4)


def training_chats(tasks: dict[str, Any]) -> list[tuple[list[dict[str, Any]], str]]:
    """The `train` rows of a recipe's tasks as chats with their tools, in every phrasing."""
    from bloomery.components.core.data.chats import message
    from bloomery.components.core.data.tables import rows_of
    from bloomery.components.core.scoring.tasks import ask

    found: list[tuple[list[dict[str, Any]], str]] = []
    for task in tasks.values():
        for split, source in task.splits.items():
            if task.counted_to(split) != "train" or task.verifier.kind == "perplexity":
                continue
            for row in rows_of(source):
                for template in source.templates or task.templates if row.value is not None else ():
                    asked = ask(template, row.value)
                    if not asked.problem:
                        found.append(([*asked.messages, message("assistant", asked.reference)], asked.tools))
    return found


def own_chats(sources: Sequence[Any]) -> list[tuple[list[dict[str, Any]], str]]:
    """The chats of a recipe's sources of chats with their tools, without what is no chat."""
    from bloomery.components.core.data.chat_forms import chats_of
    from bloomery.components.core.data.tables import rows_of

    # What is no chat, chat_curation counts.
    return [chat for source in sources for chat in chats_of(rows_of(source))]


def own_pairs(sources: Sequence[Any]) -> list[dict[str, Any]]:
    """The preference pairs of a recipe's sources of pairs, without what is no pair."""
    from bloomery.components.core.data.chat_forms import pairs_of
    from bloomery.components.core.data.tables import rows_of

    return [pair._asdict() for source in sources for pair in pairs_of(rows_of(source))]
