"""Neural architecture search: the best sub-network of a trained model that keeps a limit of size or time."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from bloomery.components.core import artifact, tracking
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import calibration, checkpoints, costs, importance, surgery, tensor_files
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.importance import Importance
from bloomery.components.core.modelling.surgery import Kept, Widths
from bloomery.components.core.modelling.tensor_files import Stored
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.nas.config import NasConfig
from bloomery.components.nas.search import Candidate, Space, front, search
from bloomery.components.nas.validation import Validation, Worth

logger = logging.getLogger(__name__)


@declare(accelerator=True)
def run(
    config: NasConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    chats: Annotated[Path, Reads("chat/2")],
    tasks: Annotated[Path, Reads("tasks/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Search the sub-networks of `base_model` that `config` allows, and write the best to `model`.

    A sub-network is cut out of the loaded model and judged as it is, without training: by the verifiers' score of
    greedy answers to rows of the `validation` splits and, of equal scores or where nothing is verified, by the loss.

    Reads:   base_model (model/1); chats (chat/2), on some of which importance is observed; tasks (tasks/1)
    Writes:  model (model/1)
    Returns: nas/parameters, nas/bytes, nas/prefill_seconds, nas/decode_seconds_per_token and each of them as
             nas/parent_… of base_model; nas/layers, nas/key_value_heads, nas/channels; nas/loss (nats a token) and,
             where answers are verified, nas/score with nas/score_stderr, loss and score as nas/parent_… too, on the
             rows that the search chose by; nas/judged (sub-networks).
    Raises:  ConfigError for an architecture whose layout is not known, a shape that the model does not have, or a limit
             that no sub-network keeps; DataError if there is no validation row.
    """
    found = _searched(config, base_model, chats, Tasks(tasks))
    surgery.write(base_model, found.kept, model)
    artifact.seal(model, "model/1")
    best = found.best
    return {
        **costs.compared("nas", base_model, model),
        "nas/layers": float(len(best.layers)),
        "nas/key_value_heads": float(best.groups),
        "nas/channels": float(best.channels),
        "nas/judged": float(found.judged),
        **_worth("nas/", found.worth),
        **_worth("nas/parent_", found.parent._replace(stderr=math.nan)),
    }


class Found(NamedTuple):
    """What a search found."""

    best: Candidate
    kept: Kept
    """The same, for what cuts it out."""
    worth: Worth
    parent: Worth
    """Of the whole model."""
    judged: int


def _searched(config: NasConfig, base_model: Path, chats: Path, tasks: Tasks) -> Found:
    """The best sub-network; the front is shown. The model is in memory no longer than this takes."""
    settings, whole = surgery.opened(base_model, "nas")
    stored = tensor_files.stored(base_model)
    surgery.shapes("nas", settings, stored, config.cut)
    space = Space(
        whole.layers,
        config.num_hidden_layers or [whole.layers],
        config.num_key_value_heads or [whole.groups],
        config.intermediate_size or [whole.channels],
    )
    network, tokenizer = checkpoints.load(base_model, on=checkpoints.device())
    validation = Validation(tasks, tokenizer, config.validation_rows)
    rows = calibration.calibration_rows(tokenizer, calibration.calibration_chats(chats, config.calibration_chats))
    order = importance.of_rows(network, whole, rows, config.importance)

    def cut(one: Candidate) -> Any:
        return surgery.network(network, _kept(order, one))

    limits = Limits(config, stored, whole, cut, tokenizer)
    if not any(limits.keep(Candidate(tuple(range(depth)), *rest)) for depth, *rest in space.shapes()):
        raise ConfigError(f"nas: no sub-network keeps the limit; the smallest takes {limits.told(space.shapes()[-1])}")
    judged = search(
        space,
        order.best_layers,
        lambda one: validation.worth(cut(one)),
        limits.keep,
        lambda worth: worth.key,
        population=config.population,
        generations=config.generations,
        seed=config.seed,
    )
    tracking.show("front", _front(judged, limits))
    best = max(judged, key=lambda one: judged[one].key)
    logger.info("best of %d: layers %s, %d groups, %d channels", len(judged), *best)
    return Found(best, _kept(order, best), judged[best], validation.worth(network), len(judged))


def _kept(order: Importance, one: Candidate) -> Kept:
    return order.kept(one.layers, one.groups, one.channels)


class Limits:
    """What sub-networks cost, by their shape, and whether that is accepted."""

    def __init__(
        self,
        config: NasConfig,
        stored: Mapping[str, Stored],
        whole: Widths,
        cut: Callable[[Candidate], Any],
        tokenizer: Any,
    ) -> None:
        self._config, self._stored, self._whole = config, stored, whole
        self._cut, self._tokenizer = cut, tokenizer
        self._bytes: dict[tuple[int, int, int], int] = {}
        self._seconds: dict[tuple[int, int, int], float] = {}

    def num_bytes(self, one: Candidate) -> int:
        """Of its weight file."""
        shape = (len(one.layers), one.groups, one.channels)
        if shape not in self._bytes:
            self._bytes[shape] = surgery.num_bytes(self._stored, self._whole, *shape)
        return self._bytes[shape]

    def seconds(self, one: Candidate) -> float:
        """Of a decoded token, measured once a shape."""
        shape = (len(one.layers), one.groups, one.channels)
        if shape not in self._seconds:
            self._seconds[shape] = costs.times(Generator(self._cut(one), self._tokenizer))["decode_seconds_per_token"]
        return self._seconds[shape]

    def keep(self, one: Candidate) -> bool:
        """Whether a sub-network keeps the limits."""
        most_bytes, most_ms = self._config.max_bytes, self._config.max_latency_ms
        if most_bytes is not None and self.num_bytes(one) > most_bytes:
            return False
        return most_ms is None or 1000 * self.seconds(one) <= most_ms

    def told(self, shape: tuple[int, int, int]) -> str:
        """What a shape takes, in words."""
        one = Candidate(tuple(range(shape[0])), *shape[1:])
        words = []
        if self._config.max_bytes is not None:
            words.append(f"{self.num_bytes(one):,} bytes (max_bytes {self._config.max_bytes:,})")
        if self._config.max_latency_ms is not None:
            words.append(f"{1000 * self.seconds(one):.3g} ms (max_latency_ms {self._config.max_latency_ms:g})")
        return " and ".join(words)

    def cost(self, one: Candidate) -> float:
        """What the front is drawn over: the time where that is limited, else the bytes."""
        return self.seconds(one) if self._config.max_latency_ms is not None else float(self.num_bytes(one))


def _front(judged: dict[Candidate, Worth], limits: Limits) -> list[dict[str, Any]]:
    """The sub-networks that none of the judged ones beats, the smallest first, for the report."""
    on_it = front([(limits.cost(one), worth.key) for one, worth in judged.items()])
    chosen = sorted((one for one, best in zip(judged, on_it, strict=True) if best), key=limits.cost)
    return [
        {
            "layers": ", ".join(map(str, one.layers)),
            "key_value_heads": one.groups,
            "channels": one.channels,
            "bytes": limits.num_bytes(one),
            **_worth("", judged[one]),
        }
        for one in chosen
    ]


def _worth(prefix: str, worth: Worth) -> dict[str, float]:
    """Its numbers by name, without a score where there is none."""
    told = {"score": worth.score, "score_stderr": worth.stderr, "loss": worth.loss}
    return {f"{prefix}{name}": value for name, value in told.items() if not math.isnan(value)}
