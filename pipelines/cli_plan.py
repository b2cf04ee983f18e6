"""`bloomery plan`: what a recipe will take, before it takes anything."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from bloomery.components.core.errors import ConfigError
from bloomery.pipelines.cli_options import JsonOption, RecipeArgument, SetOption


def plan(
    recipe: RecipeArgument,
    gpu: Annotated[
        str,
        typer.Option(metavar="NAME", help="Card to plan for, such as H100 or T4; else resources.card or this machine."),
    ] = "",
    set: SetOption = [],  # noqa: A002, B006
    tokens: Annotated[
        list[str], typer.Option(metavar="STAGE=NUMBER", help="Tokens of an epoch of a stage; else counted, repeatable.")
    ] = [],  # noqa: B006
    utilisation: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Share of the card's peak that training reaches; else 0.4.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="What the card costs an hour, in any currency.")] = None,
    scale: Annotated[
        bool, typer.Option("--scale", help="Tell instead how the chain grows: 1 B to 10 T tokens on 1 to 512 cards.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Tell what each stage takes of memory, arithmetic and time, whether it fits, and the cheapest change if not.

    Only config.json and the heads of the weight files are read; of a hub's model config.json alone is fetched. Exit
    code 0, also where something does not fit: it is an estimate.

    Examples:

        bloomery plan my.yaml --gpu H100 --price 2.5

        bloomery plan my.yaml --gpu T4 --set sft.batch_size=4 --tokens sft=2000000 --json

        bloomery plan my.yaml --scale --gpu H100 --price 4.9
    """
    from bloomery.components.core.modelling import cards
    from bloomery.components.core.modelling import plan as plans
    from bloomery.pipelines import launch, planned, scaling

    loaded = launch.load(recipe, set, prepare=False)
    wanted = gpu or loaded.resources.card
    card = cards.named(wanted) if wanted else cards.here()
    share = utilisation or plans.UTILISATION
    of = scaling if scale else planned
    told = of.of_recipe(loaded, card, tokens=_numbers(tokens), utilisation=share, price=price)
    typer.echo(json.dumps(told, ensure_ascii=False) if as_json else of.described(told))


def _numbers(given: list[str]) -> dict[str, float]:
    found = {}
    for item in given:
        name, _, number = item.partition("=")
        try:
            found[name] = float(number.replace("_", ""))
        except ValueError:
            raise ConfigError(f"--tokens {item}: expected STAGE=NUMBER, such as --tokens sft=2000000") from None
        if not found[name] > 0 or found[name] == float("inf"):
            raise ConfigError(f"--tokens {item}: expected a number above zero")
    return found
