"""Post-training quantisation: each scheme is exported, loaded again from disk and measured; the smallest good one
goes on."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact, models
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.errors import DataError
from bloomery.components.core.generation import Generator
from bloomery.components.core.statistics import mean_stderr, paired_difference
from bloomery.components.core.tasks import Tasks
from bloomery.components.ptq.config import PtqConfig, Scheme

logger = logging.getLogger(__name__)


def run(
    config: PtqConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    model: Annotated[Path, Writes("model/1")],
    variants: Annotated[Path, Writes("variants/1")],
) -> dict[str, float]:
    """Quantise `base_model` by every scheme and write the smallest variant whose score falls by at most `tolerance`.

    The score is that on the `validation` split. If no variant is good enough, `base_model` itself is passed on.
    Writes:  model; variants (variants.json: scheme, bytes, score, stderr, difference to the parent and its stderr,
             chosen).
    Raises:  DataError if no task has a validation split: the drop could not be measured.
    Returns: ptq/parent_bytes, ptq/bytes, ptq/ratio (parent over chosen), ptq/score_difference,
             ptq/score_difference_stderr.
    """
    known = Tasks(tasks)
    parent = _scores(base_model, known)
    parent_bytes = models.num_bytes(base_model)
    table = [_variant("none", parent_bytes, parent, parent)]
    for scheme in config.schemes:
        folder = variants / scheme
        quantise(base_model, folder, scheme)
        table.append(_variant(scheme, models.num_bytes(folder), _scores(folder, known), parent))
    good = [entry for entry in table if entry["difference"] >= -config.tolerance]
    chosen = min(good, key=lambda entry: entry["bytes"])
    chosen["chosen"] = True
    logger.info("chosen: %s, %d bytes of %d", chosen["scheme"], chosen["bytes"], parent_bytes)
    artifact.link_tree(base_model if chosen["scheme"] == "none" else variants / chosen["scheme"], model)
    artifact.seal(model, "model/1")
    artifact.write_atomically(variants / "variants.json", json.dumps(table, indent=1))
    artifact.seal(variants, "variants/1")
    return {
        "ptq/parent_bytes": float(parent_bytes),
        "ptq/bytes": float(chosen["bytes"]),
        "ptq/ratio": parent_bytes / chosen["bytes"],
        "ptq/score_difference": chosen["difference"],
        "ptq/score_difference_stderr": chosen["difference_stderr"],
    }


def quantise(source: Path, target: Path, scheme: Scheme) -> None:
    """Write `source` quantised by `scheme` to `target`, as `AutoModelForCausalLM.from_pretrained` loads it."""
    warnings.filterwarnings("ignore", module="torchao")
    import torch
    from torchao.quantization import FqnToConfig, Int8DynamicActivationIntxWeightConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerAxis
    from transformers import AutoModelForCausalLM, AutoTokenizer, TorchAoConfig

    weights = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
    linear = {
        "int8_weight_only": weights,
        "int8_dynamic_activation": Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int8, weight_granularity=PerAxis(0)
        ),
    }[scheme]
    settings = TorchAoConfig(
        FqnToConfig({"model.embed_tokens": weights, "_default": linear}), include_input_output_embeddings=True
    )
    network = AutoModelForCausalLM.from_pretrained(source, quantization_config=settings, dtype="auto")
    network.save_pretrained(target)
    AutoTokenizer.from_pretrained(source).save_pretrained(target)
    if network.config.tie_word_embeddings:
        _drop_tied_head(target)
    for file in target.glob("*.safetensors"):
        _sort_header(file)


def _drop_tied_head(folder: Path) -> None:
    """Take the second copy of tied embeddings out of a quantised checkpoint.

    transformers 5.23 writes both, and on loading compares them with torch.equal, which torchao's tensors do not
    implement; without the copy it ties them. Can go when a quantised tied model saves and loads as it is.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as stored:
            metadata = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys() if not name.startswith("lm_head.")}
        names = [name for name in json.loads(metadata["tensor_names"]) if name != "lm_head.weight"]
        metadata.pop("lm_head.weight", None)
        save_file(tensors, file, metadata={**metadata, "tensor_names": json.dumps(names)})
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] = {k: v for k, v in content["weight_map"].items() if not k.startswith("lm_head.")}
        index.write_text(json.dumps(content, indent=1))


def _sort_header(file: Path) -> None:
    """Write a safetensors header in the order of its keys: the library leaves metadata in the random order of a hash
    map, and equal weights would have different digests."""
    content = file.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(json.loads(content[8:start]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # tensors stay aligned to 8 bytes
    file.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def _scores(folder: Path, tasks: Tasks) -> list[float]:
    """Score of each verifiable validation prompt, answered by the checkpoint as it stands on disk."""
    generator = Generator.load(folder)
    scores = []
    for name, task in tasks.configs.items():
        prompts = [] if tasks.is_scored_by_likelihood(name) else tasks.prompts("validation", task=name)
        texts = generator.generate([row.prompt for row in prompts], max_new_tokens=task.max_new_tokens)
        scores += [tasks.verify(name, text, row.reference)[0] for row, (text,) in zip(prompts, texts, strict=True)]
    if not scores:
        raise DataError(
            "ptq: no task has a `validation` split to measure the variants on; add one to the recipe's tasks"
        )
    return scores


def _variant(scheme: str, num_bytes: int, scores: list[float], parent: list[float]) -> dict[str, Any]:
    mean, stderr = mean_stderr(scores)
    difference, error, _ = paired_difference(scores, parent)
    return {
        "scheme": scheme,
        "bytes": num_bytes,
        "score": mean,
        "stderr": stderr,
        "n": len(scores),
        "difference": difference,
        "difference_stderr": error,
        "chosen": False,
    }
