"""What is trained of a model where not all of it is: an adapter, merged into the weights in the end, or some of the
weights themselves."""

from __future__ import annotations

import ctypes
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from bloomery.components.core import repository_code, tracking
from bloomery.components.core.config import Config
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.extras import need_bitsandbytes
from bloomery.components.core.modelling import adapter_folders, soft_prompts

MAMBA = ("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h")
"""Architectures, by model_type, in which some projections take no adapter (PEFT, tuners_utils.py)."""
WITH_ALPHA = ("lora", "rslora", "dora", "pissa", "olora", "qlora", "loha", "lokr", "gralora")
"""Kinds whose update is scaled by `alpha`."""
LOW_RANK = ("lora", "rslora", "pissa", "olora", "qlora")
"""Kinds that are written as LoRA's low-rank product alone, as `adapter_folders.check_low_rank` asks for."""
CLASSES = {
    "loha": "LoHaConfig",
    "lokr": "LoKrConfig",
    "gralora": "GraloraConfig",
    "vera": "VeraConfig",
    "randlora": "RandLoraConfig",
    "hra": "HRAConfig",
    "miss": "MissConfig",
    "delora": "DeloraConfig",
    "oft": "OFTConfig",
    "ia3": "IA3Config",
}
"""PEFT's class of each kind that is not one of LoRA's; all of them merge."""
RANK_WITHIN = ("pissa", "olora", "miss")
"""Kinds whose rank a matrix has to have: the first two begin as a part of it."""
SOFT = ("prompt", "p_tuning")
"""Kinds that are embeddings of new tokens; see `soft_prompts`."""
MERGE_TOLERANCE, MERGE_TOLERANCE_16_BITS = 1e-3, 0.05
"""Largest change of a logit by the merge, as a part of the largest logit, that is taken for rounding: merges in 32 bits
change 1e-6, in bfloat16, which has 8 bits of mantissa, some hundredths."""


def _no_truth(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected all, bias, head or a number of layers")
    return value


Trained = Annotated[Literal["all", "bias", "head"] | Annotated[int, Field(ge=1)], BeforeValidator(_no_truth)]


class AdapterConfig(Config):
    """An adapter, merged into the weights when training ends, and written beside them."""

    kind: Literal[
        "lora", "rslora", "dora", "pissa", "olora", "qlora",
        "loha", "lokr", "gralora", "vera", "randlora", "hra", "miss", "delora", "oft", "ia3",
        "prompt", "p_tuning",
    ] = "lora"  # fmt: skip
    """LoRA (arXiv 2106.09685), rank-stabilised LoRA (2312.03732), DoRA (2402.09353), PiSSA (2404.02948), OLoRA
    (2406.01775); QLoRA (2305.14314: the base in NF4 with double quantisation while it trains; what is merged and
    written comes from the base as it is); LoHa (2108.06098), LoKr (2212.10650), GraLoRA (2505.20355), VeRA
    (2310.11454), RandLoRA (2502.00987), HRA (2405.17484), MiSS (2409.15371), DeLoRA (2503.18225), OFT (2306.07280),
    IA3 (2205.05638, which has no rank). Soft prompts, the embeddings of `tokens` new tokens at the start of every chat:
    by themselves (`prompt`: prompt tuning, 2104.08691), or out of a small network while they are trained (`p_tuning`,
    2103.10385)."""
    rank: int = Field(default=16, gt=0)
    """Rank r; 16 is within the plateau of LoRA table 6 and of 'LoRA Learns Less and Forgets Less' (2405.09673)."""
    alpha: int = Field(default=32, gt=0)
    """Scale numerator: the update is scaled by alpha / r (by alpha / sqrt(r) for rslora); of LoRA's kinds alone."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, where the kind has one."""
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Linear layers that get an adapter: all but the head, or those whose names end so, such as `[q_proj, v_proj]`."""
    tokens: int = Field(default=20, gt=0)
    """Of a soft prompt: tokens that it has; more than 20 bring little (2104.08691, section 3.2)."""
    text: str = ""
    """Of `prompt`: what its embeddings begin as, such as a prompt that works, repeated or cut to `tokens`. None: as
    tokens drawn from the vocabulary's 5,000 most common ones (2104.08691, section 3.2, which finds both near each
    other in large models, and words better in small ones)."""

    @property
    def is_soft(self) -> bool:
        """Whether it is embeddings of tokens, and not a part of layers."""
        return self.kind in SOFT

    @field_validator("kind", mode="before")
    @classmethod
    def _can_be_served(cls, kind: Any) -> Any:
        if kind == "prefix":
            raise ValueError(
                "kind: prefix puts keys and values of its own into every layer (Li and Liang, arXiv 2101.00190), which "
                "no token and no weight of the model stands for: what is served (transformers, vLLM, GGUF) would "
                "answer without them; take prompt or p_tuning, which learn tokens at the start, or lora"
            )
        return kind

    @model_validator(mode="after")
    def _has_what_is_set(self) -> AdapterConfig:
        # Not what was given: between two tasks of a pipeline every field is.
        changed = {name for name, field in type(self).model_fields.items() if getattr(self, name) != field.default}
        of_layers = {"rank", "alpha", "dropout", "target_modules"} & changed if self.is_soft else set()
        of_tokens = {"tokens", "text"} & changed if not self.is_soft else set()
        if self.kind == "p_tuning" and self.text:
            of_tokens = {"text"}  # what goes through the network comes out as something else
        if odd := sorted(of_layers | of_tokens):
            raise ValueError(f"{', '.join(odd)}: {self.kind} has no such thing; leave it out")
        if "alpha" in changed and self.kind not in WITH_ALPHA:
            raise ValueError(f"alpha: found {self.alpha}, but {self.kind} has no such scale; leave it out")
        if "rank" in changed and self.kind == "ia3":
            raise ValueError(f"rank: found {self.rank}, but ia3 has none; leave it out")
        if self.kind == "gralora" and self.rank % 2:
            raise ValueError(f"rank: found {self.rank}, and gralora halves it; give an even number")
        return self


def peft_config(adapter: AdapterConfig | None, network: Any) -> Any:
    """The PEFT config of `adapter` for `network`, or None.

    Raises: ConfigError if a name in `target_modules` is that of no linear layer, or `rank` is more than one has room
            for.
    """
    if adapter is None or adapter.is_soft:
        return None
    import peft

    named = adapter.target_modules
    if not isinstance(named, str):
        _check_names(named, network)
    if adapter.kind in RANK_WITHIN:
        _check_rank(adapter, network)
    # With the latter, PEFT trains the head of a reward model whole.
    task = "CAUSAL_LM" if network.can_generate() else "SEQ_CLS"
    shared: dict[str, Any] = {"task_type": task, "target_modules": named}
    if network.config.model_type in MAMBA:
        # A fused kernel of these reads its weights past any adapter, and PEFT refuses them by these names.
        shared["exclude_modules"] = ["out_proj", "conv1d"]
    if adapter.kind == "ia3":
        every = [name for name, _ in _linear_layers(network)] if named == "all-linear" else named
        return peft.IA3Config(**{**shared, "target_modules": every}, feedforward_modules=[])
    if adapter.kind == "oft":
        return peft.OFTConfig(**shared, r=0, oft_block_size=adapter.rank, module_dropout=adapter.dropout)
    if adapter.kind not in CLASSES:
        return peft.LoraConfig(
            **shared,
            r=adapter.rank,
            lora_alpha=adapter.alpha,
            lora_dropout=adapter.dropout,
            use_dora=adapter.kind == "dora",
            use_rslora=adapter.kind == "rslora",
            init_lora_weights=adapter.kind if adapter.kind in ("pissa", "olora") else True,
        )
    scale = {"alpha": adapter.alpha} if adapter.kind in WITH_ALPHA else {}
    return getattr(peft, CLASSES[adapter.kind])(**shared, r=adapter.rank, **scale)


def freeze(network: Any, trained: Trained) -> None:
    """Leave a gradient to those weights of `network` alone that `trained` names.

    Raises: ConfigError if there is nothing of the kind.
    """
    if trained == "all":
        return
    layers = blocks(network)
    if isinstance(trained, int) and trained > len(layers):
        raise ConfigError(f"trained: found {trained}, and the model has {len(layers)} layers; give a number up to that")
    network.requires_grad_(False)
    if trained == "bias":  # BitFit, arXiv 2106.10199
        for name, weight in network.named_parameters():
            weight.requires_grad_(name.endswith("bias"))
    else:
        last = layers[len(layers) - trained :] if isinstance(trained, int) else []
        for module in (*last, _head(network)):
            module.requires_grad_(True)
    if not any(weight.requires_grad for weight in network.parameters()):
        raise ConfigError("trained: bias, and the model has no biases; use an adapter, `head` or a number of layers")


def embeddings_learn(network: Any, adapter: AdapterConfig | None, trained: Trained) -> bool:
    """Whether the embeddings of all tokens are among the weights that are trained."""
    if adapter or trained == "bias":
        return False
    return trained == "all" or _head(network).weight is network.get_input_embeddings().weight


def load_in_4_bits(path: Path) -> Any:
    """The model of a checkpoint folder in NF4 with double quantisation, to be trained under an adapter.

    Raises: MissingExtraError without bitsandbytes.
    """
    from transformers import AutoModelForCausalLM

    settings, trust = settings_of_4_bits(), repository_code.allowed(path)
    return trainable_in_4_bits(AutoModelForCausalLM.from_pretrained(path, use_safetensors=True, **settings, **trust))


def settings_of_4_bits() -> dict[str, Any]:
    """What transformers is told to load the layers of a model, but for its head, in NF4 with double quantisation.

    Raises: MissingExtraError without bitsandbytes.
    """
    need_bitsandbytes("adapter.kind: qlora")
    import torch
    from transformers import BitsAndBytesConfig

    on_gpu = torch.cuda.is_available()
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if on_gpu else torch.float32,
    )
    return {"quantization_config": settings, "dtype": "auto" if on_gpu else torch.float32}


def trainable_in_4_bits(network: Any) -> Any:
    """`network`, which was loaded with `settings_of_4_bits`, when gradients pass through it on a CPU too."""
    import torch

    if not torch.cuda.is_available():
        for module in network.modules():
            # Where a processor has AVX512-BF16, bitsandbytes 0.50 packs a matrix at the first answer asked of it, and
            # no gradient passes through it any more.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        for weight in network.parameters():
            if weight.is_floating_point():  # as it was stored: a view of the file, all pages of which it would keep
                weight.data = weight.data.clone()
    return network


def in_32_bits(model: Any) -> None:
    """Let the weights of an adapter learn in 32 bits: over a base in 4, TRL's trainers have made them ones of 16, in
    which AdamW's small steps are lost."""
    if hasattr(model, "peft_config"):
        for weight in model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.float()


def remember_start(model: Any) -> None:
    """Keep what the adapter of `model` begins as, where the weights under it are changed by it: PiSSA and OLoRA take
    their first product out of the weights, and what is written is to be added to the weights as they were."""
    own = getattr(model, "peft_config", {}).get("default")
    if getattr(own, "init_lora_weights", True) in ("pissa", "olora"):
        model.started_from = tempfile.TemporaryDirectory(prefix="bloomery-")
        model.save_pretrained(model.started_from.name)


def merged(model: Any, beside: Path | None = None) -> Any:
    """The model with its adapter, if any, folded into its weights; where those are in 4 bits, into the ones that they
    were made of, as they are stored: each is added to in 32 bits and rounded once. The adapter alone is written to
    `adapter/` in the folder `beside`, but for a soft prompt, which is nothing without its tokens.

    Raises: ModelError if the merged model does not answer as the adapter did.
    """
    soft = getattr(model, "soft_prompt", None)
    if soft is None and not hasattr(model, "merge_and_unload"):
        return model
    import torch

    if soft is None:
        if beside is not None:
            adapter_folders.write(model, beside / adapter_folders.FOLDER)
        if getattr(model.get_base_model(), "is_loaded_in_4bit", False):
            model = _on_whole_weights(model)
    model.eval()
    ids = torch.arange(1, 9, device=model.device)[None] % model.config.get_text_config().vocab_size
    if soft is not None:
        ids = torch.cat([torch.tensor([soft.tokens], device=model.device), ids], 1)
    with torch.inference_mode():
        before = model(input_ids=ids).logits.float()
        whole = model.merge_and_unload() if soft is None else soft_prompts.folded(model)
        change = (whole(input_ids=ids).logits.float() - before).abs().max() / before.abs().max().clamp(min=1e-6)
    tolerance = MERGE_TOLERANCE if whole.dtype == torch.float32 else MERGE_TOLERANCE_16_BITS
    if not change <= tolerance:
        raise ModelError(
            f"merging the adapter changed the logits by {change:.2g} of the largest, and {tolerance:g} is what "
            "rounding explains; train with precision: fp32, or another adapter.kind"
        )
    tracking.show("merge", [float(change), tolerance])
    return whole


def _on_whole_weights(model: Any) -> Any:
    """The adapter of `model` on the checkpoint that its base was loaded from."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    base = model.get_base_model()
    path = Path(base.name_or_path)
    kind: Any = AutoModelForCausalLM
    given: dict[str, Any] = repository_code.allowed(path)
    if not base.can_generate():  # a reward model, whose head the adapter holds whole
        kind, given = AutoModelForSequenceClassification, {**given, "num_labels": base.num_labels}
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what training has freed, which glibc would keep beside the weights that come
    with tempfile.TemporaryDirectory(prefix="bloomery-") as folder:
        model.save_pretrained(folder)
        network = kind.from_pretrained(path, dtype="auto", use_safetensors=True, **given)
        network.config.get_text_config().pad_token_id = base.config.get_text_config().pad_token_id
        return PeftModel.from_pretrained(network, folder)


def _check_names(named: list[str], network: Any) -> None:
    layers = _linear_layers(network)
    for wanted in named:
        if not _targets([wanted], layers):
            known = ", ".join(sorted({name.rpartition(".")[2] for name, _ in layers}))
            raise ConfigError(f"adapter.target_modules: found {wanted}, and the linear layers are called {known}")


def _check_rank(adapter: AdapterConfig, network: Any) -> None:
    chosen = _targets(adapter.target_modules, _linear_layers(network))
    name, smallest = min(((name, min(module.weight.shape)) for name, module in chosen), key=lambda found: found[1])
    if adapter.rank > smallest:
        raise ConfigError(
            f"adapter.rank: found {adapter.rank}, and {adapter.kind} can have at most {smallest}, the width of {name}"
        )


def _targets(named: str | list[str], layers: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Those of the `layers` that get an adapter: all, or those that are called so or whose last parts are, as PEFT
    reads it."""
    if isinstance(named, str):
        return layers
    ends = tuple(f".{wanted}" for wanted in named)
    return [layer for layer in layers if f".{layer[0]}".endswith(ends)]


def _linear_layers(network: Any) -> list[tuple[str, Any]]:
    """Names and modules of the linear layers but the head."""
    from torch.nn import Linear
    from transformers.pytorch_utils import Conv1D

    head, modules = _head(network), network.named_modules()
    return [(name, module) for name, module in modules if isinstance(module, Linear | Conv1D) and module is not head]


def _head(network: Any) -> Any:
    """What the last states go through: to the vocabulary, or to the score of a reward model."""
    return network.get_output_embeddings() or network.score


def blocks(network: Any) -> Any:
    """The list of the model's blocks: the longest one of modules of one class."""
    from torch.nn import ModuleList

    lists = [module for module in network.modules() if isinstance(module, ModuleList)]
    return max((found for found in lists if len({type(block) for block in found}) == 1), key=len)
