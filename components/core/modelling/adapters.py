"""Adapters: small weights that are trained in place of the model's own, and merged into them in the end."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from bloomery.components.core.config import Config

MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Architectures, by model_type, in which some projections take no adapter (PEFT, tuners_utils.py)."""


class AdapterConfig(Config):
    """A low-rank adapter, merged into the weights when training ends."""

    kind: Literal["lora", "dora", "rslora"] = "lora"
    """LoRA (arXiv 2106.09685), DoRA (2402.09353), rank-stabilised LoRA (2312.03732)."""
    rank: int = Field(default=16, gt=0)
    """Rank r; 16 is within the plateau of LoRA table 6 and of 'LoRA Learns Less and Forgets Less' (2405.09673)."""
    alpha: int = Field(default=32, gt=0)
    """Scale numerator: the update is scaled by alpha / r (by alpha / sqrt(r) for rslora)."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input."""


def peft_config(adapter: AdapterConfig | None, network: Any) -> Any:
    """The PEFT config of `adapter` for `network`, or None."""
    if adapter is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        # With the latter, PEFT trains the head of a reward model whole.
        task_type="CAUSAL_LM" if network.can_generate() else "SEQ_CLS",
        target_modules="all-linear",
        # A fused kernel of these reads its weights past any adapter, and PEFT refuses them by these names.
        exclude_modules=["out_proj", "conv1d"] if network.config.model_type in MAMBA else None,
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_dora=adapter.kind == "dora",
        use_rslora=adapter.kind == "rslora",
    )


def merged(model: Any) -> Any:
    """The model with its adapter, if any, folded into the weights."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
