"""A program for an interpreter that has llm-compressor: `python llm_compressor.py JOB.json`; see `apart.export`.

It imports nothing of this project, which is not installed there.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def modifiers(scheme: str, group_size: int) -> list[Any]:
    """llm-compressor's recipe of a scheme. Migrating activations by SmoothQuant: strength 0.5 (arXiv 2211.10438,
    section 5.1)."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    weights = {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": group_size}
    int4 = {"ignore": ["lm_head"], "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}
    if scheme == "gptq_int4":
        return [GPTQModifier(**int4)]
    if scheme == "awq_int4":
        return [AWQModifier(), QuantizationModifier(**int4)]
    if scheme == "smoothquant_int8":
        return [
            SmoothQuantModifier(smoothing_strength=0.5),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=["lm_head"]),
        ]
    return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=["lm_head"])]


def main() -> None:
    """Do the job that the file of the command line describes."""
    with open(sys.argv[1], encoding="utf-8") as stream:
        job = json.load(stream)
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(job["source"])
    # Scales are stored in the type of the weights, and what is served in four or eight bits computes in 16.
    model = AutoModelForCausalLM.from_pretrained(job["source"], dtype=torch.bfloat16)
    data = (
        {}
        if job["scheme"] == "fp8_dynamic"
        else {
            "dataset": Dataset.from_list([{"text": text} for text in job["texts"]]),
            "num_calibration_samples": len(job["texts"]),
            "max_seq_length": job["max_length"],
        }
    )
    oneshot(model=model, processor=tokenizer, recipe=modifiers(job["scheme"], job["group_size"]), **data)
    model.save_pretrained(job["target"], save_compressed=True)
    tokenizer.save_pretrained(job["target"])


if __name__ == "__main__":
    main()
