"""Settings of pruning."""

from __future__ import annotations

from pydantic import Field, model_validator

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.importance import By
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.modelling.surgery import Cut, Share

SHAPE = ("num_hidden_layers", "num_key_value_heads", "intermediate_size")
"""Settings that make a smaller shape."""


class PruningConfig(Config):
    """A smaller shape, in the words of config.json, or a share of weights that become zero."""

    num_hidden_layers: int | None = Field(default=None, gt=0)
    """Layers that are kept: those of the largest block influence (ShortGPT, arXiv 2403.03853); none given: all."""
    num_key_value_heads: int | None = Field(default=None, gt=0)
    """Key-value heads that each layer keeps, with the query heads that read them (whole groups, so that the sharing of
    keys and values stays as it was); none given: all."""
    intermediate_size: int | None = Field(default=None, gt=0)
    """Channels that the network of each layer keeps; none given: all. Kernels are fast at multiples of 64 or 128."""
    sparsity: Share | None = None
    """Share of the weights of every projection that become zero, or `2:4` or `4:8`: of 4 or 8 inputs that stand beside
    each other 2 or 4 (arXiv 2104.08378), a pattern that some GPUs multiply faster."""
    importance: By = "activation"
    """What groups, channels and weights matter by. `magnitude`: their weights alone. `activation`: what they add on
    chats (of single weights, |weight| x norm of its input: Wanda, 2306.11695, which loses far less than magnitude in
    models that were not trained to be pruned). `taylor`: how much the loss on chats would change to first order."""
    calibration_chats: int = Field(default=128, gt=0)
    """Chats of the training mix that are read for `activation`, `taylor` and the choice of layers, of each at most 512
    tokens; 128 is Wanda's number (section 4)."""
    rewind: NamedModel | None = None
    """An earlier model of the same shape whose weights are written in place of the stage's own, with the zeros that the
    stage's own model tells: a lottery ticket (1803.03635; of a model after some training: 1912.05671)."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> PruningConfig:
        shape = [getattr(self, name) for name in SHAPE]
        problems = []
        if (self.sparsity is None) == all(value is None for value in shape):
            problems.append(
                "expected a smaller shape (num_hidden_layers, num_key_value_heads, intermediate_size) or `sparsity`; "
                "for both, write two stages"
            )
        if isinstance(self.sparsity, float) and not 0 < self.sparsity < 1:
            problems.append(
                f"sparsity: found {self.sparsity:g}; expected a share between 0 and 1, such as 0.5, or '2:4' in quotes "
                "(without them YAML reads 124)"
            )
        if self.sparsity is not None and self.importance == "taylor":
            problems.append(
                "importance: taylor tells of heads and channels; for `sparsity` take activation or magnitude"
            )
        if self.rewind is not None and self.sparsity is None:
            problems.append("rewind: takes the zeros of a sparse model; give `sparsity` with it")
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def cut(self) -> Cut:
        """What is taken out."""
        told = {name: [getattr(self, name)] for name in SHAPE if getattr(self, name) is not None}
        return Cut(**told, sparsity=self.sparsity)

    @property
    def needed_inputs(self) -> set[str]:
        """Optional inputs of the step that these settings cannot do without."""
        return {"chats"} if self.importance != "magnitude" or self.num_hidden_layers is not None else set()
