from typing import Literal

import pytest
from pydantic import Field

from bloomery.components.core.config import Config, digest, parameters, parse
from bloomery.components.core.errors import ConfigError

SETTINGS = "expected settings, in braces or on indented lines"


class Inner(Config):
    beta: float = Field(default=0.1, gt=0)
    """Strength."""


class Adapter(Config):
    rank: int = 8
    """Size."""
    kind: Literal["lora", "vera"] = "lora"
    """A word."""


class Outer(Config):
    learning_rate: float
    """Rate."""
    inner: Inner = Inner()
    """Section."""
    limit: int | None = None
    """Bound."""
    kind: Literal["mean", "median"] | Literal["mode"] = "mean"
    """A word of two sets."""
    share: float | Literal["2:4"] | list[Inner] = 0.5
    """A number, a word or a list."""
    by_name: dict[str, Inner | None] = {}
    """Sections."""
    adapter: Adapter | None = None
    """A section with a kind."""


def test_every_problem_is_told_at_once_with_its_place_and_the_nearest_name():
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"learning_rat": 1, "inner": {"beta": -1, "bta": 2}})
    lines = str(caught.value).split("\n")
    assert "learning_rate: missing; this key has no default" in lines
    assert "learning_rat: unknown key; did you mean 'learning_rate'?" in lines
    assert "inner.bta: unknown key; did you mean 'beta'?" in lines
    assert any(line.startswith("inner.beta: found -1;") for line in lines)


def test_a_key_without_a_near_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match="zzz: unknown key; known keys: adapter, by_name, inner, kind, learning_r"):
        parse(Outer, {"learning_rate": 1, "zzz": 2})


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kind": "meen"}, "kind: found \"meen\"; Input should be 'mean', 'median' or 'mode'; did you mean 'mean'?"),
        ({"kind": 3}, "kind: found 3; Input should be 'mean', 'median' or 'mode'"),
        ({"share": "2:5"}, "share: found \"2:5\"; Input should be a number, '2:4' or a list; did you mean '2:4'?"),
        ({"share": [{"beta": 0}]}, "share.0.beta: found 0; Input should be greater than 0"),
        ({"share": [{"bta": 1}]}, "share.0.bta: unknown key; did you mean 'beta'?"),
        ({"by_name": {"a": 3}}, "by_name.a: found 3; expected settings, in braces or on indented lines"),
        ({"by_name": {"a": {"bta": 1}}}, "by_name.a.bta: unknown key; did you mean 'beta'?"),
        ({"adapter": "vera"}, f'adapter: found "vera"; {SETTINGS}; did you mean {{kind: vera}}?'),
        ({"adapter": "rank"}, f'adapter: found "rank"; {SETTINGS}; did you mean {{rank: …}}?'),
        ({"adapter": "wide"}, f'adapter: found "wide"; {SETTINGS}'),
        ({"lr": 1}, "lr: unknown key; did you mean 'learning_rate'?"),
        ({"lora_r": 8}, "lora_r: unknown key; did you mean 'adapter.rank'?"),
        ({"adapter": {"r": 8}}, "adapter.r: unknown key; did you mean 'rank'?"),
    ],
)
def test_a_value_of_several_forms_is_one_problem_in_the_words_of_the_recipe(values, told):
    with pytest.raises(ConfigError) as caught:
        parse(Outer, {"learning_rate": 1, **values})
    assert str(caught.value) == told


def test_parameters_survive_the_way_through_a_kfp_struct():
    config = Outer(learning_rate=1, inner=Inner(beta=2))
    sent = parameters(config)
    assert sent == {"learning_rate": 1.0, "inner": {"beta": 2.0}, "kind": "mean", "share": 0.5, "by_name": {}}
    assert parse(Outer, {"learning_rate": 1.0, "inner": {"beta": 2.0}, "limit": 3.0}).limit == 3


def test_digest_ignores_key_order_and_integral_floats_but_not_values():
    assert digest({"a": 1, "b": [2.0]}) == digest({"b": [2], "a": 1.0})
    assert digest({"a": 1}) != digest({"a": 1.5})
    assert digest({"a": True}) != digest({"a": "True"})
