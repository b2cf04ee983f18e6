"""Four bits a weight, packed on disk as compressed-tensors, which transformers and vLLM load.

torchao 0.18 has no int4 tensor that is made on a CPU and saved: its plain and tiled ones need CUDA kernels, and int4 in
`IntxWeightOnlyConfig` is stored a byte each. transformers 5.23 unpacks compressed-tensors into the model's own type as
it loads, so memory and speed of such a variant are the parent's there; vLLM computes on the packed weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bloomery.components.core.modelling.calibration import calibration_rows
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.likelihood import log_likelihoods
from bloomery.components.quantisation.calibration import calibration_chats
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.rounding import in_16_bits, quantisable, rounded, scales

logger = logging.getLogger(__name__)


def export(
    config: QuantisationConfig, source: Path, chats: Path | None, target: Path, *, tasks: Path | None = None
) -> dict[str, Any]:
    """Write `source` to `target` with its linear layers, and where told its embeddings, in four bits; with `qat` it is
    fine-tuned first, on `chats`, with the loss watched on `tasks`.

    Returns: with `qat`, what `fine_tune` measures; for `mixed_int4`: loss (of the parent on the calibration chats,
             nats a token of the assistant), loss_quantised (of what is written), kept (layers left in 16 bits, the
             most sensitive first), sensitivity (rise of the loss by layer, each quantised alone); else nothing.
    Raises:  CannotRun if the group size does not divide the columns of a layer.
    """
    generator = Generator.load(source)
    layers = quantisable(generator.model, embeddings=config.embeddings)
    for name, layer in layers.items():
        if layer.weight.shape[1] % config.group_size:
            raise CannotRun(
                f"{config.name}: {name} has {layer.weight.shape[1]} columns, no multiple of group_size "
                f"{config.group_size}; give a group size that divides them"
            )
    details: dict[str, Any] = {}
    if config.qat:
        from bloomery.components.quantisation import qat

        if tasks is None or chats is None:
            raise CannotRun("qat trains on the chats of the training mix, and no stage of this recipe writes any")
        details = qat.train(config.qat, generator, layers, config.group_size, chats=chats, tasks=tasks)
    if config.scheme == "mixed_int4":
        details = choose_kept(generator, layers, calibration_chats(chats, config.calibration_chats), config)
    write(generator, layers, set(details.get("kept", ())), config, target)
    return details


def choose_kept(
    generator: Generator, layers: dict[str, Any], chats: list[Any], config: QuantisationConfig
) -> dict[str, Any]:
    """Measure what each layer alone costs in loss, and find the fewest layers that have to stay in 16 bits.

    The most sensitive are kept first; how many, is found by bisection, which takes the loss to fall with each.
    Costs one reading of `chats` for each layer, and the logarithm of their number for the bisection.
    """
    rows = calibration_rows(generator.tokenizer, chats)

    def loss_with(names: Collection[str]) -> float:
        whole = {name: layers[name].weight.data for name in names}
        for name, weight_NK in whole.items():
            layers[name].weight.data = rounded(weight_NK, config.group_size)
        nats = _answer_loss(generator.model, rows)
        for name, weight_NK in whole.items():
            layers[name].weight.data = weight_NK
        return nats

    loss = loss_with(())
    sensitivity = {name: loss_with((name,)) - loss for name in layers}
    order = sorted(layers, key=lambda name: (-sensitivity[name], name))
    fewest, most = 0, len(order)
    while fewest < most:
        middle = (fewest + most) // 2
        if loss_with(order[middle:]) <= loss * (1 + config.loss_tolerance):
            most = middle
        else:
            fewest = middle + 1
    logger.info("mixed_int4: %d of %d layers stay in 16 bits", fewest, len(order))
    return {
        "loss": loss,
        "loss_quantised": loss_with(order[fewest:]),
        "kept": order[:fewest],
        "sensitivity": {name: sensitivity[name] for name in order},
    }


def _answer_loss(model: Any, rows: list[tuple[list[int], list[bool]]]) -> float:
    """Mean loss of the assistant's tokens in nats: the loss that the model was fine-tuned by."""
    found = log_likelihoods(model, [ids for ids, _ in rows], [trained for _, trained in rows])
    return -sum(nats for nats, _ in found) / max(1, sum(count for _, count in found))


def write(
    generator: Generator, layers: dict[str, Any], kept: Collection[str], config: QuantisationConfig, target: Path
) -> None:
    """Write the model with every layer but `kept` packed, and its tokenizer; kept ones in 16 bits."""
    import torch
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme
    from safetensors.torch import save_file

    weights = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=config.group_size)
    names = [name for name in layers if name not in kept]
    kinds = sorted({type(layers[name]).__name__ for name in names})
    scheme = QuantizationScheme(targets=kinds, weights=weights, format="pack-quantized")
    state = generator.model.state_dict()
    if generator.model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    for name in names:
        weight_NK = state.pop(f"{name}.weight")
        scale_NG = scales(weight_NK, config.group_size)
        packed = PackedQuantizationCompressor.compress(
            {"weight": weight_NK.float(), "weight_scale": scale_NG.float()}, scheme
        )
        state |= {f"{name}.{part}": tensor for part, tensor in packed.items()}
        state[f"{name}.weight_scale"] = scale_NG
    linear = {name for name, module in generator.model.named_modules() if isinstance(module, torch.nn.Linear)}
    settings = QuantizationConfig(
        config_groups={"group_0": scheme},
        ignore=sorted((linear | set(layers)) - set(names)),
        format="pack-quantized",
        quantization_status="compressed",
    ).model_dump(mode="json", exclude_none=True)
    generator.model.config.save_pretrained(target)
    generator.model.generation_config.save_pretrained(target)
    generator.tokenizer.save_pretrained(target)
    stored = {name: in_16_bits(tensor).contiguous() for name, tensor in state.items()}
    save_file(stored, target / "model.safetensors", {"format": "pt"})
    file = target / "config.json"
    # transformers 5.23 keeps the layers packed unless told, and then fails to initialise packed embeddings.
    content = {**json.loads(file.read_text()), "quantization_config": {**settings, "dequantize": True}}
    file.write_text(json.dumps(content, indent=1, sort_keys=True))
