"""Post-training quantisation: the variants, each measured as it will be served, are compared with the model that they
were made from, and the smallest good one goes on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.statistics import mean_stderr, paired_difference
from bloomery.components.ptq.config import PtqConfig

logger = logging.getLogger(__name__)

COSTS = (
    *("bytes", "memory_bytes", "weight_bytes", "kv_cache_bytes_per_token"),
    *("prefill_tokens", "prefill_seconds", "decode_seconds_per_token"),
)
"""What a variant costs, passed on from its measurement."""


def run(
    config: PtqConfig,
    *,
    models: Annotated[list[Path], Reads("model/1")],
    measurements: Annotated[list[Path], Reads("measurement/1")],
    model: Annotated[Path, Writes("model/1")],
    variants: Annotated[Path, Writes("variants/1")],
) -> dict[str, float]:
    """Pass on the smallest of `models` whose score falls by at most `tolerance` against the scheme `none`; of equally
    small ones, that with the smallest cache of keys and values.

    `measurements` are in the order of `models`. `none` itself is among them, so there always is a good one.
    Writes:  model; variants (variants.json, one entry a scheme: bytes on disk, memory, latencies, score with its
             error, bytes of the cache a token, the paired difference to `none`, perplexity, agreement (share of
             greedy answers equal to those of `none`), chosen, skipped (the reason, or "", and then every number is
             null)).
    Raises:  DataError unless exactly one of the variants has the scheme `none`.
    Returns: ptq/parent_bytes, ptq/bytes, ptq/ratio (parent over chosen), ptq/score_difference,
             ptq/score_difference_stderr, ptq/agreement (of the chosen one), ptq/skipped (schemes).
    """
    found = [json.loads((folder / "measurement.json").read_text(encoding="utf-8")) for folder in measurements]
    parents = [measured for measured in found if measured["scheme"] == "none"]
    if len(parents) != 1:
        raise DataError(f"ptq: found {len(parents)} variants of the scheme none, expected 1 to compare the others with")
    table = [compare(measured, parents[0]) for measured in found]
    good = [
        index for index, entry in enumerate(table) if not entry["skipped"] and entry["difference"] >= -config.tolerance
    ]
    best = min(good, key=lambda index: (table[index]["bytes"], table[index]["kv_cache_bytes_per_token"]))
    chosen = table[best]
    chosen["chosen"] = True
    parent_bytes = parents[0]["bytes"]
    logger.info("chosen: %s, %d bytes of %d", chosen["scheme"], chosen["bytes"], parent_bytes)
    artifact.link_tree(models[best], model)
    artifact.seal(model, "model/1")
    variants.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(variants / "variants.json", json.dumps(table, ensure_ascii=False, indent=1))
    artifact.seal(variants, "variants/1")
    return {
        "ptq/parent_bytes": float(parent_bytes),
        "ptq/bytes": float(chosen["bytes"]),
        "ptq/ratio": parent_bytes / chosen["bytes"],
        "ptq/score_difference": chosen["difference"],
        "ptq/score_difference_stderr": chosen["difference_stderr"],
        "ptq/agreement": chosen["agreement"],
        "ptq/skipped": float(sum(bool(entry["skipped"]) for entry in table)),
    }


def compare(measured: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
    """The entry of variants.json for a measured variant."""
    numbers: dict[str, Any] = dict.fromkeys(
        (*COSTS, "score", "stderr", "n", "difference", "difference_stderr", "perplexity", "agreement")
    )
    if not measured["skipped"]:
        numbers |= {name: measured[name] for name in (*COSTS, "perplexity")}
        numbers["score"], numbers["stderr"] = mean_stderr(measured["scores"])
        numbers["n"] = len(measured["scores"])
        difference, error, _ = paired_difference(measured["scores"], parent["scores"])
        numbers["difference"], numbers["difference_stderr"] = difference, error
        pairs = zip(measured["answers"], parent["answers"], strict=True)
        numbers["agreement"] = sum(answer == before for answer, before in pairs) / len(parent["answers"])
    return {"scheme": measured["scheme"], **numbers, "chosen": False, "skipped": measured["skipped"]}
