"""LoRA adapters side by side, added to the weights that they were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core.errors import ModelError
from bloomery.components.core.modelling import checkpoints, faults

SETTINGS = "adapter_config.json"
FORM = "a LoRA adapter as PEFT writes it (adapter_config.json, adapter_model.safetensors)"


def folder(label: str, path: Path) -> Path:
    """Where the adapter lies: `path` itself, or `adapter/` beside the weights of a stage's model.

    Raises: ModelError if there is none, or one that cannot be concatenated.
    """
    found = next((place for place in (path, path / "adapter") if (place / SETTINGS).is_file()), None)
    if found is None:
        raise ModelError(f"{label} holds no {SETTINGS}; expected {FORM}, in its folder or in `adapter` within")
    try:
        settings = faults.read_json(found / SETTINGS)
    except ValueError as error:
        raise ModelError(f"{label}: {error}") from None
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{label} is an adapter of type {settings.get('peft_type')}; expected {FORM}")
    for key, plain in (("use_dora", False), ("modules_to_save", None), ("bias", "none")):
        if settings.get(key, plain) not in (plain, []):
            raise ModelError(
                f"{label} has {key}: {settings[key]}, which is no part of its low-rank product and would be lost; "
                "merge it into its base first, and give the merged model to another method"
            )
    if not faults.tensors(found):
        raise ModelError(f"{label} has no weights in safetensors; expected {FORM}")
    return found


def added(base: Path, adapters: Sequence[tuple[str, Path]], weights: Sequence[float]) -> tuple[Any, Any]:
    """(model with all adapters merged, tokenizer): W + Σ wᵢ sᵢ Bᵢ Aᵢ, in 32 bits.

    PEFT's `add_weighted_adapter` with `cat` puts the Aᵢ, times weight and scaling, one above the other and the Bᵢ side
    by side, so that the product is the sum of the products, of whatever ranks, exactly.
    Raises: ModelError if an adapter does not fit the model.
    """
    from peft import PeftModel, get_peft_model_state_dict

    network, tokenizer = checkpoints.load(base, dtype="float32")
    wrapped: Any = None
    # PEFT takes an adapter's name out of the names of tensors wherever it stands, so it must be no number of a layer.
    names = [f"given_{index}" for index in range(len(adapters))]
    for name, (label, path) in zip(names, adapters, strict=True):
        try:
            if wrapped is None:
                wrapped = PeftModel.from_pretrained(network, path, adapter_name=name)
            else:
                wrapped.load_adapter(path, adapter_name=name)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelError(f"{label} does not fit {base}: {reason}; give the adapters' own base by `from`") from None
        fitted = set(get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=False))
        if odd := sorted(fitted ^ set(faults.tensors(path))):
            raise ModelError(
                f"{label} does not fit {base}: {len(odd)} tensors are in one of the two alone, the first {odd[0]}; "
                "give the adapters' own base by `from`"
            )
    wrapped.add_weighted_adapter(names, list(weights), "merged", combination_type="cat")
    return wrapped.merge_and_unload(adapter_names=["merged"]), tokenizer
