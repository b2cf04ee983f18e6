"""What the stages of a chain do to the shapes of models, followed from stage to stage by configs and by the heads of
weight files, so that what cannot be is told before anything is trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core.config import Config
from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.modelling import checkpoints, surgery, tensor_files
from bloomery.components.core.modelling.named_models import START, NamedModel
from bloomery.components.core.modelling.surgery import Cut
from bloomery.components.core.modelling.tensor_files import Stored


class Reshaping(Config):
    """What a stage that writes a model does to its shape, and what it wants of others."""

    stage: str
    """Name of the stage, as messages call it and others name its model."""
    goes_on_from: str = ""
    """The stage whose model it reads, or `start`; empty: the newest."""
    cut: Cut | None = None
    """What is taken out of the model."""
    rewind: NamedModel | None = None
    """A model that has to have the same shape."""
    teacher: NamedModel | None = None
    """A model that has to have the same tokens."""
    adopted: NamedModel | None = None
    """The model that takes its place."""
    depth: tuple[int, int] | None = None
    """Layers that the model then has, as (a, b) of n: a n + b."""

    @classmethod
    def of(cls, stage: str, goes_on_from: str, config: Any) -> Reshaping:
        """That of a step's config, which says any of these by an attribute of the name and kind."""
        kinds = {"cut": Cut, "rewind": NamedModel, "teacher": NamedModel, "adopted": NamedModel, "depth": tuple}
        told = {name: getattr(config, name, None) for name in kinds}
        told = {name: value for name, value in told.items() if isinstance(value, kinds[name])}
        return cls(stage=stage, goes_on_from=goes_on_from, **told)

    @property
    def is_plain(self) -> bool:
        """Whether the shape stays, and no other model is wanted."""
        return not any((self.cut, self.rewind, self.teacher, self.adopted, self.depth))


class Followed(NamedTuple):
    """A model as far as it is known before it is made."""

    config: Any
    """transformers' config."""
    tensors: Mapping[str, Stored]
    """Names, dtypes and shapes of its tensors; empty where its config alone is here."""
    tokens: Path
    """The folder whose tokenizer it has."""


def opened(folder: Path) -> Followed:
    """The model in a checkpoint folder. Raises: ModelError if config.json or the weights' heads cannot be read."""
    config = checkpoints.load_config(folder)
    tensors = tensor_files.stored(folder)
    if config.get_text_config().tie_word_embeddings:  # every stage that trains leaves the copy out
        tensors.pop("lm_head.weight", None)
    return Followed(config, tensors, folder)


def followed(
    stages: Sequence[Reshaping], start: Followed, outside: Callable[[NamedModel], Followed]
) -> tuple[dict[str, tuple[Followed, Followed]], list[BloomeryError]]:
    """(the model that each of `stages` reads and the one that it writes, what cannot be); of several shapes that a
    stage may choose from the largest is followed, and after one that cannot be the model as it was.

    `outside` finds a model from outside.
    """
    models, problems = {START: start}, []
    newest = start
    told: dict[str, tuple[Followed, Followed]] = {}
    for stage in stages:
        given = made = models[stage.goes_on_from] if stage.goes_on_from else newest
        try:
            made = _made(stage, given, lambda named: models[named.stage] if named.stage else outside(named))
        except BloomeryError as error:
            problems.append(error)
        newest = models[stage.stage] = made
        told[stage.stage] = given, made
    return told, problems


def _made(stage: Reshaping, given: Followed, find: Callable[[NamedModel], Followed]) -> Followed:
    """The model that a stage writes. Raises: BloomeryError as the stage would."""
    if stage.adopted:
        return find(stage.adopted)
    if stage.teacher:
        teacher = find(stage.teacher).tokens
        if teacher != given.tokens:
            tokenizers = (checkpoints.load_tokenizer(folder) for folder in (given.tokens, teacher))
            checkpoints.check_same_tokens(stage.stage, *tokenizers, stage.teacher.stage or stage.teacher.model)
    if stage.depth and given.config.model_type in surgery.KINDS:
        of_each, more = stage.depth
        return _stacked(given, of_each * given.config.num_hidden_layers + more)
    if stage.cut is None:
        return given
    surgery.check_layout(stage.stage, given.config, given.tokens)
    largest = surgery.shapes(stage.stage, given.config, given.tensors, stage.cut)[0]
    if stage.rewind:
        surgery.check_rewound(stage.stage, given.tensors, find(stage.rewind).tensors)
    whole = surgery.widths(given.config)
    if largest == whole:
        return given
    kept = surgery.first(largest.layers, largest.groups, largest.channels)
    return Followed(surgery.config_of(given.config, kept), surgery.heads(given.tensors, whole, kept), given.tokens)


def _stacked(given: Followed, layers: int) -> Followed:
    """The model with so many layers, all of the shape of the first."""
    if layers < 1:  # its own stage says so
        return given
    config, count = copy.deepcopy(given.config), given.config.num_hidden_layers
    config.num_hidden_layers = layers
    for key, values in surgery.by_layer(given.config).items():
        setattr(config, key, [values[number % count] for number in range(layers)])
    tensors = {}
    for name, one in given.tensors.items():
        found = surgery.LAYER.fullmatch(name)
        if found is None:
            tensors[name] = one
        elif found[2] == "0":
            tensors |= {f"{found[1]}{number}.{found[3]}": one for number in range(layers)}
    return Followed(config, tensors, given.tokens)
