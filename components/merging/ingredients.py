"""What is merged: the tensors of each model under names that are the same in all, and whether they fit together."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bloomery.components.core import repository_code
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints, tensor_files
from bloomery.components.core.modelling.tensor_files import Stored

logger = logging.getLogger(__name__)

DECISIVE = (
    *("model_type", "tie_word_embeddings", "hidden_act", "num_attention_heads", "num_key_value_heads", "head_dim"),
)
"""Keys of a config that change what equal shapes compute: models that differ here are not merged."""
INCIDENTAL = (
    *("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings", "vocab_size", "id2label", "label2id"),
    *("num_hidden_layers", "layer_types", "initializer_range", "output_router_logits"),
)
"""Keys of a config that may differ, or that shapes tell."""


class Ingredient(NamedTuple):
    """A model that is merged."""

    label: str
    """As messages call it."""
    path: Path
    config: Any
    """transformers' config of its text part."""
    tensors: dict[str, Stored]
    """By name without the prefix of the base model's class, which some files have and others leave out."""
    full_names: dict[str, str]
    """As they stand in its files, by the names of `tensors`."""


def opened(label: str, path: Path) -> Ingredient:
    """The model in the folder `path`, without weights that are no parameters (masks, frequencies) and without a head
    that is tied to the embeddings: loaders ignore them all.

    Raises: ModelError if it is no checkpoint that can be trained, so that its weights are numbers to reckon with.
    """
    checkpoints.check(path, to_train=True, has_chats=False)
    whole = checkpoints.load_config(path)
    kind = repository_code.causal_class(path, whole)
    text = whole.get_text_config()
    patterns = (r"rotary_emb\.inv_freq$", *(kind._keys_to_ignore_on_load_unexpected or ()))
    ignored = [rf"(?:^|\.)(?:{pattern})" for pattern in patterns]
    if text.tie_word_embeddings:
        ignored += [f"^{re.escape(name)}$" for name in kind._tied_weights_keys or ()]
    tensors, full_names = {}, {}
    for name, stored in tensor_files.stored(path).items():
        if not any(re.search(pattern, name) for pattern in ignored):
            short = name.removeprefix(f"{kind.base_model_prefix}.")
            tensors[short], full_names[short] = stored, name
    return Ingredient(label, path, text, tensors, full_names)


def check_alike(base: Ingredient, others: Iterable[Ingredient]) -> None:
    """Raise ModelError, naming the first tensor, config key or token that differs, unless every tensor of `base` has
    one of the same name and shape in each of `others`, and none has more."""
    for other in others:
        for name in sorted(base.tensors.keys() | other.tensors.keys()):
            _check_tensor(name, base.tensors.get(name), base.label, other.tensors.get(name), other.label)
        check_compatible(base, other)


def _check_tensor(name: str, ours: Stored | None, our_label: str, theirs: Stored | None, their_label: str) -> None:
    told = "merging needs one architecture; give models that were trained from one base"
    if ours is None or theirs is None:
        have, lack = (our_label, their_label) if theirs is None else (their_label, our_label)
        raise ModelError(f"{lack} has no tensor {name}, which {have} has; {told}")
    if ours.shape != theirs.shape:
        raise ModelError(f"{name} is {theirs.shape} in {their_label} and {ours.shape} in {our_label}; {told}")


def check_compatible(base: Ingredient, other: Ingredient) -> None:
    """Raise ModelError if equal shapes would compute something else, or a token means another; other differences of the
    configs, and another chat template, are warned of."""
    for key in DECISIVE:
        ours, theirs = (getattr(one.config, key, None) for one in (base, other))
        if ours != theirs:
            raise ModelError(
                f"{key} is {theirs!r} in {other.label} and {ours!r} in {base.label}; merging needs one architecture; "
                "give models that were trained from one base"
            )
    if repository_code.digest_of(base.path) != repository_code.digest_of(other.path):
        raise ModelError(
            f"the code (*.py) in {other.label} is other code than in {base.label}; merging needs one architecture; "
            "give models that were trained from one base"
        )
    known, given = base.config.to_dict(), other.config.to_dict()
    differing = sorted(key for key in known.keys() | given.keys() if known.get(key) != given.get(key))
    if told := [key for key in differing if key not in INCIDENTAL]:
        logger.warning(
            "%s has another %s than %s, whose config the merged model gets", other.label, ", ".join(told), base.label
        )
    _check_vocabulary(base, other)


def _check_vocabulary(base: Ingredient, other: Ingredient) -> None:
    ours, theirs = (checkpoints.load_tokenizer(one.path) for one in (base, other))
    if differing := checkpoints.differing_token(ours, theirs):
        token, wants, has = ("not there" if part is None else part for part in differing)
        raise ModelError(
            f"the vocabularies differ: token {token!r} is {has} in {other.label} and {wants} in {base.label}, "
            "whose tokenizer the merged model gets; give models of one tokenizer"
        )
    if ours.chat_template != theirs.chat_template:
        logger.warning(
            "%s has another chat template than %s, whose template the merged model gets", other.label, base.label
        )


def first_number(name: str) -> int | None:
    """The place of the first number in a dotted name: that of a layer's index, for which its experts come later."""
    return next((place for place, part in enumerate(name.split(".")) if part.isdigit()), None)


def layers(model: Ingredient) -> tuple[str, list[dict[str, Stored]]]:
    """(what stands before the index in the names of layers, such as `layers.`; the tensors of each layer by the rest of
    their names). Raises: ModelError if no one list of tensors is as long as the config says."""
    found: dict[str, dict[int, dict[str, Stored]]] = {}
    for name, stored in model.tensors.items():
        place = first_number(name)
        if place is not None:
            parts = name.split(".")
            before = ".".join(parts[:place])
            found.setdefault(before, {}).setdefault(int(parts[place]), {})[".".join(parts[place + 1 :])] = stored
    count = model.config.num_hidden_layers
    fitting = [before for before, by_index in found.items() if sorted(by_index) == list(range(count))]
    if len(fitting) != 1:
        raise ModelError(
            f"{model.label}: {len(fitting)} lists of tensors have the {count} layers that config.json tells of, "
            "expected 1; layers of such a model are not stacked here"
        )
    return fitting[0], [found[fitting[0]][index] for index in range(count)]


def parameters(tensors: Sequence[Stored]) -> int:
    """Numbers in all of them."""
    return sum(stored.size for stored in tensors)
