"""What a step says of itself beside its ports and its config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar


class Declared(NamedTuple):
    """A step's own word on how it is run."""

    accelerator: bool | Literal["all"] = False
    """It trains or generates, and runs on the accelerator where the recipe names one. `all`: it trains once, by
    `training.train`, and as many processes share that as the recipe gives it accelerators."""
    reuse: bool | Callable[[Any], bool] = True
    """Whether a finished result may stand for a new one, or that as a function of the config; False for steps that look
    at the world outside."""
    secrets: tuple[str, ...] = ()
    """Credentials that it uses beside those of the store and the tracker, by the names of their environment variables:
    on a cluster no other step gets them."""


RunT = TypeVar("RunT", bound=Callable[..., dict[str, float]])


def declare(
    *,
    accelerator: bool | Literal["all"] = False,
    reuse: bool | Callable[[Any], bool] = True,
    secrets: tuple[str, ...] = (),
) -> Callable[[RunT], RunT]:
    """Say about a step's `run` what `Declared` holds."""

    def mark(run: RunT) -> RunT:
        run.declared = Declared(accelerator, reuse, secrets)  # type: ignore[attr-defined]
        return run

    return mark


def declared(run: Callable[..., Any]) -> Declared:
    """What a step's `run` was declared with."""
    return getattr(run, "declared", Declared())
