"""Post-training quantisation: the variants, each measured as it will be served, are compared with the model that they
were made from, and the smallest good one goes on."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.errors import DataError
from bloomery.components.core.scoring.statistics import lowest_difference, lowest_share, mean_stderr, paired_difference
from bloomery.components.ptq.config import PtqConfig

logger = logging.getLogger(__name__)

COSTS = (
    *("bytes", "memory_bytes", "weight_bytes", "kv_cache_bytes_per_token"),
    *("prefill_tokens", "prefill_seconds", "decode_seconds_per_token"),
)
"""What a variant costs, passed on from its measurement."""
SCORES = ("score", "stderr", "n", "difference", "difference_stderr", "difference_low")
AGREEMENT = ("agreement", "agreement_n", "agreement_low")
PERPLEXITY = ("perplexity", "perplexity_ratio", "perplexity_ratio_high")
TOLD = {
    "ptq/score_difference": "difference",
    "ptq/score_difference_stderr": "difference_stderr",
    "ptq/agreement": "agreement",
    "ptq/perplexity_ratio": "perplexity_ratio",
}
"""Metrics by what they are called in variants.json."""


def run(
    config: PtqConfig,
    *,
    models: Annotated[list[Path], Reads("model/1")],
    measurements: Annotated[list[Path], Reads("measurement/1")],
    model: Annotated[Path, Writes("model/1")],
    variants: Annotated[Path, Writes("variants/1")],
) -> dict[str, float]:
    """Pass on the smallest of `models` that is shown to be no worse than the scheme `none` (`judge` says when); of
    equally small ones, that with the smallest cache of keys and values.

    `measurements` are in the order of `models`. `none` itself is among them, so there always is a good one.
    Writes:  model; variants (variants.json, one entry a scheme: bytes on disk, memory, latencies, score with its
             error on the `validation` split, bytes of the cache a token, the paired difference to `none` and its
             lower bound, perplexity with its ratio to that of `none` and the upper bound of that, agreement (share of
             greedy answers equal to those of `none`) with its lower bound, chosen, refused (why it must not go on, or
             ""), skipped (the reason, or "", and then every number is null)). What could not be measured is null.
    Raises:  DataError unless exactly one of the variants has the scheme `none`.
    Returns: ptq/parent_bytes, ptq/bytes, ptq/ratio (parent over chosen), ptq/score_difference,
             ptq/score_difference_stderr, ptq/agreement, ptq/perplexity_ratio (of the chosen one, as far as measured),
             ptq/refused and ptq/skipped (schemes); ptq/prefill_seconds and
             ptq/decode_seconds_per_token of the chosen one, and as ptq/parent_… of `none`.
    """
    found = [json.loads((folder / "measurement.json").read_text(encoding="utf-8")) for folder in measurements]
    parents = [measured for measured in found if measured["scheme"] == "none"]
    if len(parents) != 1:
        raise DataError(f"ptq: found {len(parents)} variants of the scheme none, expected 1 to compare the others with")
    table = [compare(measured, parents[0], config.confidence) for measured in found]
    for entry in table:
        entry["refused"] = "" if entry["scheme"] == "none" or entry["skipped"] else judge(entry, config)
        if entry["refused"]:
            logger.warning("%s is refused: %s", entry["scheme"], entry["refused"])
    good = [index for index, entry in enumerate(table) if not entry["skipped"] and not entry["refused"]]
    best = min(good, key=lambda index: (table[index]["bytes"], table[index]["kv_cache_bytes_per_token"]))
    chosen = table[best]
    chosen["chosen"] = True
    parent_bytes = parents[0]["bytes"]
    times = ("prefill_seconds", "decode_seconds_per_token")
    told = {name: chosen[name] for name in times} | {f"parent_{name}": parents[0][name] for name in times}
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
        **{f"ptq/{name}": value for name, value in told.items() if value is not None},
        **{name: chosen[key] for name, key in TOLD.items() if chosen[key] is not None},
        "ptq/refused": float(sum(bool(entry["refused"]) for entry in table)),
        "ptq/skipped": float(sum(bool(entry["skipped"]) for entry in table)),
    }


def compare(measured: dict[str, Any], parent: dict[str, Any], confidence: float) -> dict[str, Any]:
    """The entry of variants.json for a measured variant; `confidence` is that of its bounds."""
    numbers: dict[str, Any] = dict.fromkeys((*COSTS, *SCORES, *AGREEMENT, *PERPLEXITY))
    if not measured["skipped"]:
        numbers |= {name: measured[name] for name in COSTS}
        if scores := measured["scores"]:
            difference, error, _ = paired_difference(scores, parent["scores"])
            low = lowest_difference(scores, parent["scores"], confidence)
            numbers |= dict(zip(SCORES, (*mean_stderr(scores), len(scores), difference, error, low), strict=True))
        if answers := measured["answers"]:
            equal = sum(answer == before for answer, before in zip(answers, parent["answers"], strict=True))
            low = lowest_share(equal, len(answers), confidence)
            numbers |= dict(zip(AGREEMENT, (equal / len(answers), len(answers), low), strict=True))
        if measured["likelihoods"]:
            numbers |= dict(zip(PERPLEXITY, _perplexity(measured, parent, confidence), strict=True))
    return {"scheme": measured["scheme"], **numbers, "chosen": False, "refused": "", "skipped": measured["skipped"]}


def _perplexity(measured: dict[str, Any], parent: dict[str, Any], confidence: float) -> tuple[float, float, float]:
    """(perplexity a token, its ratio to the parent's, the upper bound of that, NaN of a single text)."""
    from scipy.special import stdtrit

    ours, theirs = (np.array(one["likelihoods"], float) for one in (measured, parent))
    tokens = ours[:, 1]
    lost, error = mean_stderr((theirs[:, 0] - ours[:, 0]) / tokens, tokens)
    quantile = float(stdtrit(max(1, len(tokens) - 1), confidence))
    # exp of more than 700 is no number any more; who lost 50 nats a token knows nothing.
    rise, highest = (math.exp(min(50.0, value)) for value in (lost, lost + quantile * error))
    return math.exp(min(50.0, -float(ours[:, 0].sum() / tokens.sum()))), rise, highest


def judge(entry: dict[str, Any], config: PtqConfig) -> str:
    """Why a variant must not go on, or "" if it may: nothing speaks against it, and something for it.

    Against it speak a mean score lower by more than `tolerance` and a perplexity above `max_perplexity_ratio`. For it
    speaks a score that at the lower bound is within `tolerance`; where there are too few answers to say so, answers
    that are equal in at least `min_agreement` at the lower bound; where nothing was asked, a perplexity within
    `max_perplexity_ratio` at the upper bound.
    """
    difference, ratio = entry["difference"], entry["perplexity_ratio"]
    if difference is not None and not difference >= -config.tolerance:
        return f"its score fell by {-100 * difference:.1f} points, accepted are {100 * config.tolerance:g}"
    if ratio is not None and not ratio <= config.max_perplexity_ratio:
        return f"its perplexity is {ratio:.4g} times that before, accepted is {config.max_perplexity_ratio:g}"
    if difference is not None and entry["difference_low"] >= -config.tolerance:
        return ""
    if entry["agreement"] is not None:
        if entry["agreement_low"] >= config.min_agreement:
            return ""
        told = (
            f"{entry['agreement_n']} answers do not show that it is as good as before: "
            f"{100 * entry['agreement']:.0f} % are equal, {100 * entry['agreement_low']:.0f} % at the lower bound, "
            f"expected {100 * config.min_agreement:g}"
        )
        if difference is not None:
            told += f", and its score may have fallen by {-100 * entry['difference_low']:.1f} points"
        return f"{told}; add rows to the `validation` split, or accept more (ptq.tolerance, ptq.min_agreement)"
    if ratio is None:
        return "nothing shows that it is as good as before; add a `validation` split to the recipe's tasks"
    if entry["perplexity_ratio_high"] <= config.max_perplexity_ratio:
        return ""
    return (
        f"its perplexity may be {entry['perplexity_ratio_high']:.4g} times that before, accepted is "
        f"{config.max_perplexity_ratio:g}; add texts or questions to the `validation` split"
    )
