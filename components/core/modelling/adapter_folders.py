"""Adapters on disk: the folder that PEFT writes, beside the model that was merged with it, and put on a base again."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact
from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import faults, tensor_files

FOLDER = "adapter"
"""Where the adapter of a stage's model lies, in the folder of its weights."""
SETTINGS = "adapter_config.json"
FORM = "adapter as PEFT writes it (adapter_config.json, adapter_model.safetensors)"


def write(model: Any, folder: Path) -> None:
    """Write the adapter of a PEFT model to `folder`, with the same bytes whenever it is the same.

    PEFT writes the path of the base and a page about it, and sets in random order. What an adapter was trained on
    stands in the manifest of its step, as the digest of `base_model`.
    """
    start = getattr(model, "started_from", None)
    changed = {"path_initial_model_for_weight_conversion": start.name} if start else {}
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False, **changed)
    (folder / "README.md").unlink()
    settings = faults.read_json(folder / SETTINGS)
    settings["base_model_name_or_path"] = None
    told = {key: sorted(value) if _is_of_names(value) else value for key, value in sorted(settings.items())}
    (folder / SETTINGS).write_text(json.dumps(told, indent=2, ensure_ascii=False), encoding="utf-8")


def _is_of_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def found(label: str, path: Path) -> Path:
    """Where an adapter lies: `path` itself, or `adapter/` beside the weights of a stage's model.

    Raises: ModelError if there is none.
    """
    place = next((place for place in (path, path / FOLDER) if (place / SETTINGS).is_file()), None)
    if place is None:
        raise ModelError(f"{label} holds no {SETTINGS}; expected an {FORM}, in its folder or in `{FOLDER}` within")
    settings(label, place)
    try:
        tensors = faults.tensors(place)
    except ValueError as error:
        raise ModelError(f"{label}: {error}; expected an {FORM}") from None
    if not tensors:
        raise ModelError(f"{label} has no weights in safetensors; expected an {FORM}")
    return place


def settings(label: str, folder: Path) -> dict[str, Any]:
    """What stands in the adapter's adapter_config.json. Raises: ModelError if that is no JSON object."""
    try:
        return faults.read_json(folder / SETTINGS)
    except ValueError as error:
        raise ModelError(f"{label}: {error}") from None


def check_low_rank(label: str, folder: Path) -> None:
    """Raise ModelError unless the adapter is a low-rank product and nothing else."""
    own = settings(label, folder)
    if own.get("peft_type") != "LORA":
        raise ModelError(f"{label} is an adapter of type {own.get('peft_type')}; expected a LoRA {FORM}")
    for key, plain in (("use_dora", False), ("modules_to_save", None), ("bias", "none")):
        if own.get(key, plain) not in (plain, []):
            raise ModelError(
                f"{label} has {key}: {own[key]}, which is no part of its low-rank product and would be lost; "
                "merge it into its base first, and give the merged model"
            )


def names(count: int) -> list[str]:
    """PEFT's names of that many adapters. It takes an adapter's name out of the names of tensors wherever it stands, so
    a name must be no part of theirs."""
    return [f"given_{index}" for index in range(count)]


def attached(network: Any, given: Sequence[tuple[str, Path]], base: str) -> Any:
    """`network` as a PEFT model with all adapters of `given`, (label, folder) each, under their `names`.

    `base` is how messages call the network.
    Raises: ModelError if an adapter does not fit it, by names or shapes, or the adapters are of two types.
    """
    from peft import PeftModel, get_peft_model_state_dict

    wrapped: Any = None
    for name, (label, path) in zip(names(len(given)), given, strict=True):
        try:
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(network, path, adapter_name=name)
            else:
                wrapped.load_adapter(path, adapter_name=name)
        except Exception as error:  # of any kind: an adapter is loaded by code of its type
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{label} does not fit {base}: {reason}; give the base that it was trained on") from None
        fitted = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
        if odd := sorted(fitted ^ set(faults.tensors(path))):
            raise ModelError(
                f"{label} does not fit {base}: {len(odd)} tensors are in one of the two alone, the first {odd[0]}; "
                "give the base that it was trained on"
            )
    return wrapped.eval()


def base_of(folder: Path) -> str | None:
    """Digest of the model that the adapter in `folder` was trained on, as the manifest of its step tells, in whose
    model it lies; None where nothing tells it."""
    if folder.name != FOLDER or not (folder.parent / artifact.MANIFEST).is_file():
        return None
    return artifact.read_manifest(folder.parent).inputs.get("base_model")


def is_on_other_weights(model: Any, name: str, merged: Path) -> bool:
    """Whether the first layer that the adapter `name` of a PEFT model changes comes out otherwise than in `merged`, the
    model that the adapter's training wrote: by more than rounding in its dtype explains. Of weights that are not plain
    numbers nothing can be told."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    stored = tensor_files.stored(merged)
    for place, layer in model.named_modules():
        kept = stored.get(f"{place.removeprefix('base_model.model.')}.weight")
        if kept is None or not isinstance(layer, BaseTunerLayer) or name not in layer._get_available_adapters():
            continue
        weight = getattr(layer.get_base_layer(), "weight", None)
        if type(weight) is not torch.nn.Parameter or not weight.is_floating_point():
            return False
        own: Any = copy.deepcopy(layer)
        own.float().merge(adapter_names=[name])
        wanted = kept.read().to(weight.device)
        rounding = max(torch.finfo(wanted.dtype).eps / 2, 1e-4)
        difference = (own.get_base_layer().weight.flatten() - wanted.float()).norm() / wanted.float().norm()
        return bool(difference > rounding)
    return False


@contextlib.contextmanager
def active(model: Any, name: str | None) -> Iterator[None]:
    """Let `model`, where `attached` made it, answer with the adapter `name`, with none for ''; None: as it is."""
    if name is None:
        yield
    elif name:
        model.set_adapter(name)
        yield
    else:
        with model.disable_adapter():
            yield
