"""Sub-networks of Llama's kin: layers, heads and channels taken out of a trained model, exactly.

A head or a channel adds its own part to what its layer writes, and nothing else reads it. So the model without it gives
the logits that the whole one gives where what it hands to the layer's last projection is zero. Every layer keeps as
many, so that config.json says the new shape and any engine that reads it loads the result.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from bloomery.components.core import repository_code
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints, tensor_files, wholeness
from bloomery.components.core.modelling.tensor_files import Made, Stored

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

KINDS = (
    *("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"),
    *("gemma", "gemma2", "gemma3_text"),
)
"""Architectures, by model_type, whose layers have four projections of attention, with norms over one head at most (in
OLMo 2 they span all heads, so that each changes the others), and three of a gated network."""
LAYER = re.compile(r"(.*\blayers\.)(\d+)\.(.+)")
ROWS = {"q_proj": "heads", "k_proj": "groups", "v_proj": "groups", "gate_proj": "channels", "up_proj": "channels"}
"""What the outputs of each projection are."""
COLUMNS = {"o_proj": "heads", "down_proj": "channels"}
"""What the inputs of those are that write to the residual stream."""


Share = float | Literal["2:4", "4:8"]
"""Of the inputs of a projection, how many become zero: a share, or n:m, of which n of m that stand together stay."""


class Cut(Config):
    """What may be taken out of a model, in the words of config.json; of each list one number is chosen."""

    num_hidden_layers: list[int] = []
    """Numbers of layers; none given: all stay."""
    num_key_value_heads: list[int] = []
    """Numbers of key-value heads; none given: all stay."""
    intermediate_size: list[int] = []
    """Numbers of channels; none given: all stay."""
    max_bytes: int | None = None
    """Largest weight file that is accepted; none: any."""
    sparsity: Share | None = None
    """Share of the weights of every projection that become zero; none: of none."""


class Widths(NamedTuple):
    """How wide a model is."""

    layers: int
    groups: int
    """Key-value heads, each with the query heads that read it."""
    heads: int
    """Query heads."""
    head_size: int
    channels: int
    """Of the gated network."""

    @property
    def of_group(self) -> int:
        """Numbers that a group hands to the last projection of attention."""
        return self.heads // self.groups * self.head_size


class Kept(NamedTuple):
    """A sub-network: what it keeps of the whole one, by numbers counted from 0."""

    layers: Sequence[int]
    groups: Sequence[Sequence[int]]
    """Of each kept layer."""
    channels: Sequence[Sequence[int]]
    """Of each kept layer."""


class Piece(NamedTuple):
    """What a sub-network keeps of a tensor."""

    name: str
    """There."""
    axis: int = 0
    places: Sequence[int] | None = None
    """Along `axis`; none: all."""


def opened(path: Path, where: str) -> tuple[Any, Widths]:
    """(transformers' config, widths) of the checkpoint folder `path`; `where` names the step in errors.

    Raises: ConfigError for an architecture that is not known here, ModelError for a checkpoint whose weights are no
    numbers to reckon with, or not those of its config.json.
    """
    checkpoints.check(path, to_train=True, has_chats=False)
    wholeness.check(path)
    config = checkpoints.load_config(path)
    check_layout(where, config, path)
    return config, widths(config)


def check_layout(where: str, config: Any, path: Path) -> None:
    """Raise ConfigError for an architecture that is not known here: `config` is that of the model in `path`."""
    is_own = repository_code.is_allowed(path)
    if is_own or config.model_type not in KINDS:
        told = f"{config.model_type}{', which is code of its own repository,' if is_own else ''}"
        raise ConfigError(f"{where}: the layout of {told} is not known; expected one of {', '.join(KINDS)}")


def widths(config: Any) -> Widths:
    """Those of one of KINDS, by its config."""
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    groups = config.num_key_value_heads or heads
    return Widths(config.num_hidden_layers, groups, heads, size, config.intermediate_size)


def shapes(where: str, config: Any, stored: Mapping[str, Stored], cut: Cut) -> list[Widths]:
    """The shapes that `cut` lets the model of `config` and of the tensors `stored` take, the largest first. Without any
    tensors bytes and zeros are not looked at.

    Raises: ConfigError, naming each key under `where`: as `checked` and `zeros_of`, or if no shape keeps `max_bytes`.
    """
    problems: dict[str, None] = {}
    wanted = {
        "layers": cut.num_hidden_layers,
        "groups": cut.num_key_value_heads,
        "channels": cut.intermediate_size,
    }
    looked_at: list[Callable[[], Any]] = []
    for key, values in wanted.items():
        looked_at += [partial(checked, where, config, **{key: value}) for value in values]
    if (share := cut.sparsity) is not None:
        inputs = {one.shape[1] for name, one in stored.items() if is_pruned(name)}
        looked_at += [partial(zeros_of, where, share, count) for count in sorted(inputs)]
    for look in looked_at:
        try:
            look()
        except ConfigError as error:
            problems[str(error)] = None
    if problems:
        raise ConfigError("\n".join(problems))
    as_it_is: list[int | None] = [None]
    chosen = itertools.product(*(values or as_it_is for values in wanted.values()))
    found = {checked(where, config, layers=layers, groups=groups, channels=size) for layers, groups, size in chosen}
    if cut.max_bytes is not None and stored:
        whole = widths(config)
        smallest = min(num_bytes(stored, whole, one.layers, one.groups, one.channels) for one in found)
        if smallest > cut.max_bytes:
            raise ConfigError(
                f"{where}: no sub-network keeps the limit; the smallest takes {smallest:,} bytes (max_bytes "
                f"{cut.max_bytes:,})"
            )
    return sorted(found, reverse=True)


def checked(
    where: str, config: Any, *, layers: int | None = None, groups: int | None = None, channels: int | None = None
) -> Widths:
    """The widths of a sub-network of the model of `config` with so many of each; none: all.

    Raises: ConfigError, naming the key under `where`, if the model has fewer, or its architecture allows no such number
    of heads.
    """
    whole = widths(config)
    asked = {
        "num_hidden_layers": (layers, whole.layers),
        "num_key_value_heads": (groups, whole.groups),
        "intermediate_size": (channels, whole.channels),
    }
    for key, (wanted, there) in asked.items():
        if wanted is not None and wanted > there:
            raise ConfigError(f"{where}.{key}: found {wanted}; the model has {there}, expected as many or fewer")
    found = Widths(
        layers or whole.layers,
        groups or whole.groups,
        whole.heads // whole.groups * (groups or whole.groups),
        whole.head_size,
        channels or whole.channels,
    )
    if not _is_allowed(config, found.heads):
        fit = [n for n in range(1, whole.groups) if _is_allowed(config, whole.heads // whole.groups * n)]
        raise ConfigError(
            f"{where}.num_key_value_heads: found {groups}, with {found.heads} query heads; {config.model_type} wants a "
            f"number that divides its hidden_size of {config.hidden_size}; "
            + (f"expected one of {', '.join(map(str, fit))}" if fit else "no other number does, so leave the key out")
        )
    return found


def _is_allowed(config: Any, heads: int) -> bool:
    """Whether the architecture's config may say so many query heads: that of Llama wants hidden_size to be a multiple,
    even beside a `head_dim`."""
    changed = copy.deepcopy(config)
    changed.num_attention_heads = heads
    try:
        changed.validate_architecture()
    except ValueError:
        return False
    return True


def is_pruned(name: str) -> bool:
    """Whether single weights of the tensor may become zero: it is a matrix of a layer; embeddings, head, biases and
    norms stay whole, as in Wanda."""
    *_, part, kind = name.split(".")
    return bool(LAYER.fullmatch(name)) and part in ROWS | COLUMNS and kind == "weight"


def zeros_of(where: str, share: Share, inputs: int) -> tuple[int, int]:
    """(how many of the inputs of a projection stand together, how many of these become zero); a share of all is rounded
    to whole weights. Raises: ConfigError, naming the key under `where`, if none or all would, or they do not divide."""
    if isinstance(share, str):
        most, group = map(int, share.split(":"))
        zeros = group - most
    else:
        group, zeros = inputs, round(share * inputs)
    if zeros in (0, inputs):
        raise ConfigError(
            f"{where}.sparsity: found {share}; of the {inputs} inputs of a projection {'all' if zeros else 'none'} "
            "would be zero, as a share is rounded to whole weights of an output"
        )
    if inputs % group:
        raise ConfigError(
            f"{where}.sparsity: found {share}; {inputs} inputs of a projection are no multiple of {group}"
        )
    return group, zeros


def check_rewound(where: str, judged: Mapping[str, Stored], written: Mapping[str, Stored]) -> None:
    """Raise ModelError, naming the first, if a tensor of the model that is gone back to has another shape than the
    stage's own, `judged`."""
    for name in sorted(filter(is_pruned, judged.keys() | written.keys())):
        shapes = [found[name].shape if name in found else "not there" for found in (written, judged)]
        if shapes[0] != shapes[1]:
            raise ModelError(
                f"{where}.rewind: {name} is {shapes[0]} in the model that is gone back to and {shapes[1]} in the "
                "stage's own; name a model that the stage's own was trained from"
            )


def by_layer(config: Any) -> dict[str, list[Any]]:
    """What a config says of each layer, such as which of them slide, by its keys."""
    return {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == config.num_hidden_layers and ("layer" in key or "block" in key)
    }


def config_of(config: Any, kept: Kept) -> Any:
    """The config of a sub-network of the model of `config`."""
    whole, small = widths(config), copy.deepcopy(config)
    groups = len(kept.groups[0])
    small.num_hidden_layers = len(kept.layers)
    small.num_attention_heads = whole.heads // whole.groups * groups
    small.num_key_value_heads = groups
    small.head_dim = whole.head_size
    small.intermediate_size = len(kept.channels[0])
    for key, values in by_layer(config).items():
        setattr(small, key, [values[number] for number in kept.layers])
    return small


def piece(name: str, whole: Widths, kept: Kept) -> Piece | None:
    """What is kept of the tensor `name` of a model of widths `whole`; None: nothing, as its layer is left out."""
    found = LAYER.fullmatch(name)
    if found is None:
        return Piece(name)
    before, number, rest = found[1], int(found[2]), found[3]
    if number not in kept.layers:
        return None
    place = list(kept.layers).index(number)
    own = f"{before}{place}.{rest}"
    *_, part, kind = rest.split(".")
    if part in ROWS:
        return Piece(own, 0, _numbers(ROWS[part], whole, kept, place))
    if part in COLUMNS and kind == "weight":
        return Piece(own, 1, _numbers(COLUMNS[part], whole, kept, place))
    return Piece(own)


def _numbers(kind: str, whole: Widths, kept: Kept, place: int) -> Sequence[int]:
    """The places of what the layer at `place` keeps, along an axis of `kind`."""
    if kind == "channels":
        return kept.channels[place]
    size = whole.of_group if kind == "heads" else whole.head_size
    return [group * size + offset for group in kept.groups[place] for offset in range(size)]


def write(path: Path, kept: Kept, target: Path) -> None:
    """Write a sub-network of the checkpoint `path`, which `opened` has found good, to `target`, a tensor at a time. It
    is whole once it is sealed."""
    config = checkpoints.load_config(path)
    stored = tensor_files.stored(path)
    if len(kept.groups[0]) < widths(config).groups and not hasattr(type(config)(), "head_dim"):
        logger.warning(
            "config.json of %s usually tells no head_dim: transformers reads the one that is written now, and engines "
            "that divide hidden_size by the heads (vLLM's qwen2 did) will not load the model",
            config.model_type,
        )
    target.mkdir(parents=True, exist_ok=True)
    config_of(config, kept).save_pretrained(target)
    tensor_files.write(target, _made(stored, widths(config), kept), like=path)


def first(layers: int, groups: int, channels: int) -> Kept:
    """The sub-network of the first so many of each."""
    return Kept(range(layers), [range(groups)] * layers, [range(channels)] * layers)


def num_bytes(stored: Mapping[str, Stored], whole: Widths, layers: int, groups: int, channels: int) -> int:
    """Bytes of the weight file of a sub-network, with so many of each, of a model of the tensors `stored`."""
    return tensor_files.num_bytes(_made(stored, whole, first(layers, groups, channels)))


def heads(stored: Mapping[str, Stored], whole: Widths, kept: Kept) -> dict[str, Stored]:
    """Names, dtypes and shapes of the tensors of a sub-network; no file holds them."""
    return {one.name: Stored(Path(), 0, one.dtype, one.shape) for one in _made(stored, whole, kept)}


def _made(stored: Mapping[str, Stored], whole: Widths, kept: Kept) -> Iterator[Made]:
    for name, one in stored.items():
        own = piece(name, whole, kept)
        if own is None:
            continue
        if own.places is None:
            yield Made(own.name, one.dtype, one.shape, one.parts)
        else:
            shape = [len(own.places) if axis == own.axis else size for axis, size in enumerate(one.shape)]
            yield Made(own.name, one.dtype, shape, partial(_cut, one, own))


def _cut(one: Stored, own: Piece) -> Iterator[torch.Tensor]:
    import torch

    yield one.read().view(one.shape).index_select(own.axis, torch.tensor(own.places)).flatten()


def network(whole: Any, kept: Kept) -> Any:
    """A sub-network of the loaded model `whole`, to be asked and not trained; the weights that it keeps all of are
    shared."""
    import torch

    of_whole = widths(whole.config)
    with torch.device("meta"):
        small = type(whole)(config_of(whole.config, kept))
    weights = {}
    for name, weight in whole.state_dict().items():
        if (own := piece(name, of_whole, kept)) is not None:
            index = None if own.places is None else torch.tensor(own.places, device=weight.device)
            weights[own.name] = weight if index is None else weight.index_select(own.axis, index)
    small.load_state_dict(weights, assign=True)
    small.tie_weights()
    buffers = dict(whole.named_buffers())  # of positions and embeddings: no layer has any
    for name, _ in list(small.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        small.get_submodule(parent)._buffers[leaf] = buffers[name]
    small.generation_config = whole.generation_config
    return small.eval()
