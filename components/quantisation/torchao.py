"""torchao's schemes, in the form that `AutoModelForCausalLM.from_pretrained` loads."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from bloomery.components.core import repository_code
from bloomery.components.core.modelling import checkpoints, faults
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig


def export(config: QuantisationConfig, source: Path, target: Path) -> None:
    """Write `source` to `target` with the weights of `config.scheme`, 8 bits each and one scale a row.

    Raises: CannotRun for an architecture whose layers do not take such weights, which is seen on one token.
    """
    warnings.filterwarnings("ignore", module="torchao")
    import torch
    from torchao.quantization import FqnToConfig
    from transformers import AutoModelForCausalLM, TorchAoConfig

    embeddings, linear = _weights(config.scheme)
    names = dict.fromkeys(_names_of_embeddings(source), embeddings) if config.embeddings else {}
    # transformers 5.24 rounds biases as it does weights, which torchao refuses.
    names |= {r"re:.*\.bias": None, "_default": linear}
    settings = TorchAoConfig(FqnToConfig(names), include_input_output_embeddings=config.embeddings)
    try:
        trust = repository_code.allowed(source)
        network = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype="auto", **trust)
        with torch.inference_mode():
            network(input_ids=torch.zeros(1, 1, dtype=torch.long, device=network.device))
    except (RuntimeError, ValueError, TypeError, AttributeError, AssertionError) as error:
        kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
        reason = str(error).splitlines()[0][:200]
        raise CannotRun(f"{config.name}: the layers of {kind} do not take torchao's weights: {reason}") from None
    network.save_pretrained(target)
    checkpoints.load_tokenizer(source).save_pretrained(target)
    if network.config.tie_word_embeddings:
        _drop_tied_head(target)


def _names_of_embeddings(source: Path) -> list[str]:
    """What the architecture of a checkpoint calls its embeddings, of tokens and of positions."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(checkpoints.load_config(source), **repository_code.allowed(source))
    return [name for name, module in network.named_modules() if isinstance(module, torch.nn.Embedding)]


def _weights(scheme: str) -> tuple[Any, Any]:
    """torchao's configs of the embeddings and of the linear layers."""
    import torch
    from torchao.quantization import Float8WeightOnlyConfig, Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis

    int8 = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    return {
        "int8_weight_only": (int8, int8),
        "int8_dynamic_activation": (
            int8,
            Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int8, weight_granularity=PerAxis(0)),
        ),
        # torchao 0.18 looks no rows up in float8 embeddings: theirs are int8, of the same size.
        "float8_weight_only": (int8, Float8WeightOnlyConfig()),
    }[scheme]


def _drop_tied_head(folder: Path) -> None:
    """Take the second copy of tied embeddings out of a quantised checkpoint.

    transformers 5.23 writes both, and on loading compares them with torch.equal, which torchao's tensors do not
    implement; without the copy it ties them. Can go when a quantised tied model saves and loads as it is.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in faults.safetensors_files(folder):
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys() if not name.startswith("lm_head.")}
        names = [name for name in json.loads(metadata["tensor_names"]) if name != "lm_head.weight"]
        metadata.pop("lm_head.weight", None)
        save_file(tensors, file, metadata={**metadata, "tensor_names": json.dumps(names)})
    index = folder / faults.INDEX
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {k: v for k, v in content["weight_map"].items() if not k.startswith("lm_head.")}
        index.write_text(json.dumps(content, indent=1))
