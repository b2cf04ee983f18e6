"""Settings of merging."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, model_validator

from bloomery.components.core.config import Config, Seed
from bloomery.components.core.modelling import named_models
from bloomery.components.core.modelling.named_models import NamedModel


class MergedModel(NamedModel):
    """A model that is merged, or for `lora_concatenation` an adapter: a PEFT folder, or a stage that wrote one."""

    weight: float = Field(default=1.0, ge=-1_000, le=1_000)
    """How much it counts: its share of the weighted mean (`linear`, `ties`, `dare_ties`), or what its difference to the
    stage's own model, or its adapter's, is multiplied by (`task_arithmetic`, `dare_linear`, `lora_concatenation`),
    where a negative number takes away (arXiv 2212.04089, section 3)."""


class Slice(Config):
    """A run of layers of one model."""

    layers: tuple[int, int]
    """First layer, and the one after the last, counted from 0: [0, 24] are the first 24."""
    of: NamedModel | None = None
    """The model that they are taken from; none: the stage's own."""

    @model_validator(mode="after")
    def _is_a_run(self) -> Slice:
        first, end = self.layers
        if not 0 <= first < end:
            raise ValueError(f"layers [{first}, {end}] hold none; expected the first, from 0, and that after the last")
        return self


Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "passthrough",
    "depth_up_scaling",
    "lora_concatenation",
]
USED = {
    "linear": {"models"},
    "slerp": {"models", "t"},
    "task_arithmetic": {"models", "scale"},
    "ties": {"models", "scale", "density"},
    "dare_linear": {"models", "scale", "density"},
    "dare_ties": {"models", "scale", "density"},
    "passthrough": {"slices"},
    "depth_up_scaling": {"removed_layers"},
    "lora_concatenation": {"models"},
}
"""Settings that each method reads."""
FEWEST = {"linear": 2, "slerp": 2, "ties": 2, "dare_ties": 2}
"""Models without which a method would change nothing; of others one will do."""


class MergingConfig(Config):
    """Merging of weights: of models that share an architecture and, for all but `linear` and `slerp`, an ancestor.

    The stage's own model (the newest, or that of `from`) gives tokenizer, config and the dtype of each weight, and is
    what differences are taken from."""

    method: Method
    """`linear`: weighted mean (model soups, arXiv 2203.05482). `slerp`: along the arc from the first to the second
    model (Shoemake 1985). `task_arithmetic`: sum of differences to the stage's own model (2212.04089). `ties`:
    differences trimmed, signs elected (2306.01708). `dare_linear`, `dare_ties`: differences dropped at random and
    rescaled (2311.03099), then summed or elected. `passthrough`: layers stacked as `slices` say. `depth_up_scaling`:
    all but the last layers, then all but the first (SOLAR, 2312.15166). `lora_concatenation`: LoRA adapters side by
    side, added to the stage's own model."""
    models: list[MergedModel] = []
    """The models that are merged."""
    t: float | None = Field(default=None, ge=0, le=1)
    """For `slerp`: 0 is the first model, 1 the second."""
    density: float | None = Field(default=None, gt=0, le=1)
    """Share of each tensor's differences that stays: the largest for `ties` (0.2 in its paper), random ones for `dare`
    (1 - p of its paper, where 0.1 of small differences is enough). It has no default as it differs by method."""
    scale: float = Field(default=1.0, ge=-1_000, le=1_000)
    """The merged difference is multiplied by it: λ of task arithmetic and TIES, to be chosen on validation rows.
    Without any, 1 for TIES and 0.4 for sums of many differences (both 2306.01708)."""
    slices: list[Slice] = []
    """For `passthrough`: the layers of the new model, in their order. Embeddings, last norm and head are those of the
    stage's own model."""
    removed_layers: int | None = Field(default=None, gt=0)
    """For `depth_up_scaling`: layers that are left out of either copy, so that n layers become 2 (n - removed_layers);
    SOLAR leaves out 8 of 32 (section 2). It has no default as it differs by depth."""
    seed: Seed = 17
    """Seed of what `dare_linear` and `dare_ties` drop."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> MergingConfig:
        if problems := [*self._unused(), *self._missing(), *self._unfit_weights()]:
            raise ValueError("\n".join(problems))
        return self

    @property
    def depth(self) -> tuple[int, int] | None:
        """Layers of the new model, as (a, b) of n: a n + b; None: those of the stage's own."""
        if self.removed_layers is not None:
            return 2, -2 * self.removed_layers
        return (0, sum(end - first for first, end in (one.layers for one in self.slices))) if self.slices else None

    @property
    def needed_adapters(self) -> list[str]:
        """The stages whose LoRA adapter it takes in place of their model."""
        return named_models.stages(self) if self.method == "lora_concatenation" else []

    def _unused(self) -> Iterator[str]:
        fields = type(self).model_fields
        for name in ("models", "t", "density", "scale", "slices", "removed_layers"):
            default = fields[name].get_default()
            if name not in USED[self.method] and getattr(self, name) != default:
                yield f"{name}: {self.method} does not read it; leave it out"

    def _missing(self) -> Iterator[str]:
        used, fewest = USED[self.method], FEWEST.get(self.method, 1)
        if "models" in used and len(self.models) < fewest:
            yield f"models: found {len(self.models)}; {self.method} needs {fewest} or more"
        if self.method == "slerp" and len(self.models) > 2:
            yield f"models: found {len(self.models)}; slerp takes 2, the ends of its arc"
        if "slices" in used and not self.slices:
            yield "slices: found none; passthrough needs one or more, such as {layers: [0, 24]}"
        usual = {"t": "0.5", "density": "0.2 for ties, 0.1 to 0.5 for dare", "removed_layers": "8 of 32"}
        for name, value in usual.items():
            if name in used and getattr(self, name) is None:
                yield f"{name}: missing; {self.method} needs it (usual is {value})"

    def _unfit_weights(self) -> Iterator[str]:
        weights = [merged.weight for merged in self.models]
        if self.method == "linear" and weights and abs(sum(weights)) < 1e-6:
            yield "models: the weights add up to 0, and linear divides by their sum"
        if self.method in ("ties", "dare_ties") and any(weight <= 0 for weight in weights):
            yield f"models: weights of {self.method} are shares of a mean; expected numbers above 0"
        if self.method == "slerp" and any(weight != 1 for weight in weights):
            yield "models: slerp reads no weights; set t"
