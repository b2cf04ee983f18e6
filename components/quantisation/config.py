"""Settings of one quantised variant."""

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

Scheme = Literal[
    "none",
    "int8_weight_only",
    "int8_dynamic_activation",
    "float8_weight_only",
    "int4_weight_only",
    "mixed_int4",
    "bitsandbytes_nf4",
    "bitsandbytes_int8",
    "gptq_int4",
    "awq_int4",
    "smoothquant_int8",
    "fp8_dynamic",
    "gguf_q8_0",
    "gguf_q4_0",
    "gguf_q6_k",
    "gguf_q4_k_m",
]

GROUPED = ("int4_weight_only", "mixed_int4", "gptq_int4", "awq_int4")
"""Schemes with one scale for `group_size` weights."""
APART = ("gptq_int4", "awq_int4", "smoothquant_int8", "fp8_dynamic")
"""Schemes of llm-compressor."""


class CannotRun(Exception):
    """This machine, or this model, cannot run the scheme; the message is the reason."""


class QatConfig(FineTuningConfig):
    """Quantisation-aware training: fine-tuning on the training mix while the weights are rounded as the export will
    round them, and the gradient passes straight through the rounding."""

    learning_rate: float = Field(default=2e-5, gt=0)
    """Peak learning rate; 2e-5 is that of LLM-QAT (arXiv 2305.17888, run_train.sh) and of torchtune's QAT recipe, both
    for models of 7 to 8 billion parameters; smaller ones take more: at 1.1 M, 2e-4 with Muon gave 5.6 points more."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the training mix; one as in LLM-QAT."""

    @field_validator("adapter")
    @classmethod
    def _weights_themselves_are_trained(cls, adapter: AdapterConfig | None) -> AdapterConfig | None:
        if adapter:
            raise ValueError("what is rounded is the merged weight, which an adapter is not; remove adapter")
        return adapter


class QuantisationConfig(Config):
    """One variant: a scheme and its settings."""

    scheme: Scheme
    """How weights are stored. `none`: as they are. torchao: `int8_weight_only` (one scale a row),
    `int8_dynamic_activation` (also the inputs of the linear layers, scaled by token as they arrive: LLM.int8-style
    absmax, arXiv 2208.07339), `float8_weight_only` (e4m3). compressed-tensors: `int4_weight_only` (rounded, scales by
    least squared error), `mixed_int4` (the layers that hurt most stay in 16 bits). bitsandbytes: `bitsandbytes_nf4`
    (arXiv 2305.14314), `bitsandbytes_int8` (arXiv 2208.07339). llm-compressor: `gptq_int4` (arXiv 2210.17323),
    `awq_int4` (arXiv 2306.00978), `smoothquant_int8` (arXiv 2211.10438), `fp8_dynamic`. GGUF for llama.cpp, of Llama,
    Qwen 2 and Qwen 3 models: `gguf_q8_0`, `gguf_q4_0` (32 weights share a scale), `gguf_q6_k`, `gguf_q4_k_m` (scales
    of scales; rows of a multiple of 256, else Q8_0 for Q6_K and Q5_0 for Q4_K)."""
    group_size: int = Field(default=32, gt=0)
    """Weights that share a scale, in the int4 schemes: 32 (as in GGUF Q4_0) costs 4.5 bits a weight, 128 (as in GPTQ)
    4.125 and is coarser."""
    embeddings: bool = True
    """Quantise the embeddings and the output head too, in the schemes of torchao, compressed-tensors and GGUF; false
    where the server takes no quantised embeddings, as vLLM."""
    loss_tolerance: float = Field(default=0.1, ge=0)
    """`mixed_int4`: layers are kept in 16 bits, the most sensitive first, until the loss on the calibration chats
    rises by no more than this part of it. Relative, as a fine-tuned model's loss on its own training mix is near 0."""
    qat: QatConfig | None = None
    """`int4_weight_only`: fine-tune first, with the rounding in the forward pass, for when rounding alone loses too
    much; none: round the model as it is."""
    calibration_chats: int = Field(default=128, gt=0)
    """Chats of the training mix that `mixed_int4` and the llm-compressor schemes calibrate on; 128 as GPTQ
    (arXiv 2210.17323, section 4)."""

    kv_cache_bits: Literal[8] | None = None
    """Bits of a number in the cache of keys and values: 8 (float8 e4m3; a layer's keys have one scale and its values
    one, set by the prompts of the batch, and what exceeds it later is clipped), or null for the model's own type.
    Stored in the checkpoint's generation_config.json, which evaluation and `bloomery serve` follow; vLLM is told by
    `--kv-cache-dtype fp8`, llama.cpp by `--cache-type-k` and `--cache-type-v`."""

    @field_validator("qat")
    @classmethod
    def _scheme_is_trained(cls, qat: QatConfig | None, info: ValidationInfo) -> QatConfig | None:
        scheme = info.data.get("scheme", "int4_weight_only")
        if qat and scheme != "int4_weight_only":
            raise ValueError(f"quantisation-aware training is for int4_weight_only; remove qat from {scheme}")
        return qat

    @property
    def takes_no_code(self) -> str:
        """Why the scheme takes no model that is code of its own repository; '' if it does."""
        if self.scheme.startswith("gguf"):
            return f"{self.name}: llama.cpp knows architectures by name, and this model is code of its own repository"
        if self.scheme in APART:
            return f"{self.name}: llm-compressor runs apart, where code of the model's own repository is not run"
        return ""

    @property
    def name(self) -> str:
        """What the variant is called in stages and tables: the scheme, with its group size where it has one, `qat`
        where it is trained for it and `kv8` where the cache is quantised."""
        scheme = f"{self.scheme}_g{self.group_size}" if self.scheme in GROUPED else self.scheme
        scheme = f"{scheme}_qat" if self.qat else scheme
        return f"{scheme}_kv{self.kv_cache_bits}" if self.kv_cache_bits else scheme
