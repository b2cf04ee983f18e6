"""A model of the layers of others, one above the other: passthrough merging and depth up-scaling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, surgery
from bloomery.components.core.modelling.tensor_files import Made, Stored
from bloomery.components.merging.config import MergingConfig
from bloomery.components.merging.ingredients import Ingredient, check_compatible, layers


class Layer(NamedTuple):
    """A layer of the new model."""

    model: Ingredient
    number: int
    """Which it is in its model."""
    tensors: dict[str, Stored]
    """By what stands after the index in their names."""


def chosen(config: MergingConfig, base: Ingredient, others: Mapping[Any, Ingredient]) -> list[Layer]:
    """The layers that `config` stacks, from `base` and from `others` by the named model of a slice.

    Depth up-scaling takes two copies of the base's n layers, leaves the last `removed_layers` out of the first and the
    first out of the second (SOLAR 10.7B, Kim et al. 2023, arXiv 2312.15166, section 2: n = 32 and 8 give 48).
    Raises: ConfigError for layers that a model does not have, ModelError if layers differ in their tensors.
    """
    if config.removed_layers is not None:
        count = len(layers(base)[1])
        if config.removed_layers >= count:
            raise ConfigError(f"merging.removed_layers: found {config.removed_layers}; {base.label} has {count} layers")
        wanted = [(base, 0, count - config.removed_layers), (base, config.removed_layers, count)]
    else:
        wanted = [(others[piece.of] if piece.of else base, *piece.layers) for piece in config.slices]
    stacked: list[Layer] = []
    for model, first, end in wanted:
        held = layers(model)[1]
        if end > len(held):
            raise ConfigError(
                f"merging.slices: found layers [{first}, {end}]; {model.label} has {len(held)}, counted from 0"
            )
        stacked += [Layer(model, index, held[index]) for index in range(first, end)]
    _check_layers(stacked)
    for model in {layer.model.path: layer.model for layer in stacked}.values():
        check_compatible(base, model)
    return stacked


def _check_layers(stacked: Sequence[Layer]) -> None:
    first = stacked[0]
    for layer in stacked:
        for name in sorted(first.tensors.keys() | layer.tensors.keys()):
            ours, theirs = first.tensors.get(name), layer.tensors.get(name)
            if ours is None or theirs is None or ours.shape != theirs.shape:
                shapes = [one.shape if one else "not there" for one in (theirs, ours)]
                raise ModelError(
                    f"{name} is {shapes[0]} in layer {layer.number} of {layer.model.label} and {shapes[1]} in layer "
                    f"{first.number} of {first.model.label}; layers that are stacked have to be of one shape"
                )


def tensors(base: Ingredient, stacked: Sequence[Layer]) -> Iterator[Made]:
    """The tensors of the new model: those of `base` that are of no layer, and the stacked layers, in the dtypes of the
    base's own."""
    before, own = layers(base)
    of_layers = {f"{before}.{index}.{name}" for index, layer in enumerate(own) for name in layer}
    for name, stored in base.tensors.items():
        if name not in of_layers:
            yield Made(base.full_names[name], stored.dtype, stored.shape, stored.parts)
    any_layer = next(name for name in of_layers)
    prefix = base.full_names[any_layer].removesuffix(any_layer)
    for index, layer in enumerate(stacked):
        for name, stored in layer.tensors.items():
            dtype = own[0][name].dtype if name in own[0] else stored.dtype
            yield Made(f"{prefix}{before}.{index}.{name}", dtype, stored.shape, stored.parts)


def write_config(base: Ingredient, stacked: Sequence[Layer], target: Path) -> None:
    """Write config.json of the new model: that of `base` with the new number of layers, and what it says of each layer
    (such as which of them slide) from the model of the layer."""
    whole = checkpoints.load_config(base.path)
    text = whole.get_text_config()
    by_layer = {
        key: [getattr(layer.model.config, key)[layer.number] for layer in stacked] for key in surgery.by_layer(text)
    }
    text.num_hidden_layers = len(stacked)
    for key, values in by_layer.items():
        setattr(text, key, values)
    target.mkdir(parents=True, exist_ok=True)
    whole.save_pretrained(target)
