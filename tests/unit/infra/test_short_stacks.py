"""kfp says the same about a setting in the wrong place, with and without the sources of the stack."""

from __future__ import annotations

import contextlib
import inspect

import pytest
from kfp import dsl
from kfp.dsl import pipeline_task

from bloomery.infra.short_stacks import short_stacks


@dsl.component
def nothing():
    pass


@dsl.pipeline(name="inner")
def inner():
    nothing()


@pytest.mark.parametrize("surroundings", [contextlib.nullcontext, short_stacks])
def test_the_caller_is_still_named(surroundings) -> None:
    with surroundings(), pytest.raises(ValueError, match="^set_env_variable can only be used on single-step"):

        @dsl.pipeline(name="outer")
        def outer():
            inner().set_env_variable("A", "1")

    assert pipeline_task.inspect is inspect
