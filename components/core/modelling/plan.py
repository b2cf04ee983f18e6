"""What a training or a generation will take of memory, arithmetic and time, before anything is loaded.

The peak is that of the moment which takes most: the end of the forward pass, where all activations stand; the step of
the optimiser, where all gradients do; the loading, and a pass over the validation rows. Activations are counted tensor
by tensor as torch keeps them for the backward pass, in the manner of arXiv 2205.05198 (section 4), whose own formula is
that of a GPT in 16 bits with dropout. Arithmetic: 2 operations for each number that a token is multiplied with, twice
as many in the backward pass (2001.08361, section 2.1), and attention's (2204.02311, appendix B). What was measured on
CPUs is in tests/benchmarks/plan.json. On GPUs the same counts are taken with autocast's dtypes; they are not measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from bloomery.components.core.config import Config
from bloomery.components.core.modelling import adapter_numbers, checkpoints, likelihood, named_models
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.shapes import Shape
from bloomery.components.core.modelling.training import LOSS_TILE_BYTES, TrainingConfig

STATES = {
    "adamw": 2.0, "radam": 2.0, "lion": 1.0, "muon": 1.0, "adafactor": 0.01,
    "adamw_8bit": 0.5, "paged_adamw_8bit": 0.5, "lion_8bit": 0.25,
}  # fmt: skip
"""Numbers that an optimiser keeps for each that it trains, in 32 bits' worth: two moments of AdamW (1711.05101), one
of Lion (2302.06675) and of Muon, a row and a column of Adafactor (1804.04235), a quarter in 8 bits (2110.02861)."""
NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
"""Of a number in QLoRA's base: 4 bits, and of each 64 a scale in 8 bits, of each 256 scales one in 32 (2305.14314)."""
IMPORTS = 580e6
"""Bytes of a process that has imported torch, transformers, PEFT and TRL: 567 MB, see tests/benchmarks/plan.json."""
CUDA_CONTEXT = 900e6
"""Bytes of a GPU that torch's context, cuBLAS's workspaces and the kernels take before a tensor is made; 0.5 to 1 GB by
card and version."""
TILES, TILE_HOLES = 3, 6
"""Tiles of the loss on a CPU that are held at once (`loss_tiles`), and those worth of holes that they leave in glibc's
heap: what fits the trainings of tests/benchmarks/plan.json, where half of the tokens of a row have a loss and all are
counted."""
HOLES = 0.75
"""Of the activations under an adapter on a CPU: short-lived tensors of many sizes leave holes in the heap, which those
of the loss then fit into. Of LoRA 76, 63 and 89 % (20 M parameters, a row of 1,024 tokens; 135 M, two of 512, and 32
of 128), beside the same training with each tensor mapped by itself, which has no holes and takes twice the time."""
TRITON_TOKENS = 4_096
"""Tokens of a tile of the loss on a GPU, whose kernel holds one."""
COLUMNS = 32_768
"""Columns of the vocabulary in a tile."""
ROOM = 0.9
"""Share of the memory that a change has to stay within to be proposed: what is predicted may be a tenth off."""
UTILISATION = 0.4
"""Share of a card's peak that training reaches: 38 to 43 % of H100s in Llama 3's (2407.21783, table 4), 46 % of
TPUs in PaLM's (2204.02311, table 3). Short rows and models below a billion parameters reach less."""


class Training(Config):
    """What the memory of a training depends on."""

    batch_size: int = Field(gt=0)
    """Sequences of a forward pass."""
    accumulation: int = Field(default=1, gt=0)
    """Forward passes of an optimiser step."""
    max_length: int = Field(gt=1)
    """Tokens of the longest sequence."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the weights while they are trained."""
    optimizer: str = "adamw"
    """Name of the optimiser."""
    adapter: AdapterConfig | None = None
    """The adapter that is trained; none: the weights themselves."""
    trained: str | int = "all"
    """Of the weights themselves: all, `bias`, `head`, or so many of the last layers."""
    checkpointing: bool = False
    """Activations are computed again in the backward pass."""
    pairs: bool = False
    """A row is two sequences."""
    scores: bool = False
    """A row is given one number, by a head of one, and no token any logits."""
    reference: Literal["before", "beside"] | None = None
    """What is trained is compared with the model that it began as: `before`: that has read the rows before the first
    step, and no copy of it is kept; `beside`: it reads them in every step, under an adapter as the model without that,
    else as a second copy of the weights."""
    best: bool = False
    """A copy of the best weights is kept, and validation rows are read."""
    answers: bool = False
    """The model answers between its steps, each device with all weights."""
    teachers: list[str] = []
    """Models that read along, each by its folder; '': one that is not here, counted as large as the trained one."""
    shards: int | None = Field(default=None, gt=1)
    """Devices that share out weights, gradients and optimiser states; none: each holds all of them."""

    @classmethod
    def of(cls, config: TrainingConfig, shards: int | None = None) -> Training:
        """That of a step's config, its weights shared out among `shards` devices."""
        validates = bool(getattr(config, "num_validations", 0))
        is_preference, is_scored = config.METHOD == "preference", config.METHOD == "reward_model"
        is_beside = config.METHOD == "reinforcement" and getattr(config, "beta", 0) > 0
        return cls(
            batch_size=config.batch_size,
            accumulation=config.gradient_accumulation_steps,
            max_length=config.max_length,
            precision=config.precision,
            optimizer=config.optimizer,
            adapter=config.adapter,
            trained=getattr(config, "trained", "all"),
            checkpointing=config.gradient_checkpointing,
            pairs=is_scored or (is_preference and getattr(config, "loss", "") != "kto"),  # at most: scores come alone
            scores=is_scored,
            reference="before" if is_preference else "beside" if is_beside else None,
            best=validates and getattr(config, "keep", "") == "best",
            answers=config.METHOD == "reinforcement",
            teachers=[one.model if Path(one.model).is_dir() else "" for one in named_models.within(config)],
            shards=shards,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the largest forward pass."""
        return self.batch_size * (2 if self.pairs else 1) * self.max_length


@dataclass(frozen=True)
class Need:
    """Bytes by part, and what they add up to where most of them stand at once."""

    parts: dict[str, float]
    peak: float
    moment: str
    """When that is."""
    trained: int
    """Numbers that are trained."""
    dtype: str
    """Of the weights."""


def of_training(shape: Shape, training: Training, card: Card) -> Need:
    """What `training` of a model takes of one device of `card`'s kind."""
    trained = trained_numbers(shape, training)
    width, dtype = _weight_width(shape, training, card)
    parameters = _parameters(shape, training)
    base = parameters * width
    if training.adapter and training.adapter.kind == "qlora":
        inner = sum(rows * columns * count for _, rows, columns, count in shape.linear)
        base, dtype = inner * NF4_BYTES + (parameters - inner) * width, "nf4"
    if training.adapter and training.adapter.is_soft and shape.tied:
        base += shape.embedded * width  # the head is taken apart
    own = 4 if training.adapter else width
    states = STATES.get(training.optimizer, 2.0) * own
    if training.optimizer == "muon" and not training.adapter:  # AdamW's for what is no hidden matrix
        states += own * (1 - sum(r * c * n for _, r, c, n in shape.linear) / shape.parameters)
    layer, kept = activations(shape, training, card, width)
    shards = training.shards or 1
    is_mixed = _is_mixed(training, card, width)
    parts = {
        "runtime": CUDA_CONTEXT if card.is_gpu else IMPORTS,
        "weights": (base + (trained * own if training.adapter else 0)) / shards,
        "gradients": trained * own / shards,
        "optimiser": trained * states / shards,
        "activations": kept,
        "logits": 0.0 if training.scores else _loss(shape, training, card),
        "holes": 0.0 if card.is_gpu else _holes(shape, training, kept),
        "reference": base if training.reference == "beside" and not training.adapter else 0.0,
        "best": trained * own / shards if training.best else 0.0,
        "teacher": float(sum(_teacher_bytes(shape, training))),
        "autocast": 2.0 * shape.active if is_mixed and shards == 1 else 0.0,
        "gathered": _gathered(shape, training, 2 if is_mixed else width) if shards > 1 else 0.0,
    }
    standing = sum(parts[name] for name in ("runtime", "weights", "optimiser", "reference", "best", "teacher"))
    passing = standing + parts["autocast"] + parts["gathered"]
    collected = parts["gradients"] if training.accumulation > 1 else 0.0
    largest = max((rows * columns for _, rows, columns, _ in shape.linear), default=0)
    moments = {
        "forward and backward": passing + kept + parts["holes"] + parts["logits"] + collected,
        "last gradients": passing + parts["gradients"] + layer + _head(shape, training) * own,
        "optimiser step": standing + parts["gradients"] + _step_bytes(shape, training, own, largest) / shards,
    }
    if training.best:
        rows = min(64 * training.max_length, max(likelihood.BATCH_TOKENS, training.max_length))
        numbers = rows * _forward_numbers(shape)
        moments["validation"] = standing + parts["gathered"] + numbers * (2 if card.is_gpu else width)
    if training.answers and shards > 1:
        moments["answers"] = standing + parameters * (2 if is_mixed else width)
    if dtype == "nf4" and not card.is_gpu:
        moments["merge"] = standing + parameters * shape.own_bytes  # the base as it is, beside that in 4 bits
    moment = max(moments, key=lambda name: moments[name])
    return Need({name: value for name, value in parts.items() if value}, moments[moment], moment, trained, dtype)


def _gathered(shape: Shape, training: Training, width: float) -> float:
    """Bytes of what stands whole on each of the devices that share out the weights: embeddings and head, a layer that
    computes, the next that is fetched, and one on its way; where they learn the gradients of a layer and of embeddings
    apart from the head, whose own the loss holds."""
    ends = shape.embedded * (1 if shape.tied else 2)
    layer = (shape.parameters - ends) / shape.layers
    return width * (ends + 3 * layer) + (0 if training.adapter else 4 * (layer + ends - shape.embedded))


def _teacher_bytes(shape: Shape, training: Training) -> list[float]:
    """Bytes of the weights of each model that reads along, as they are stored."""
    own = shape.parameters * shape.own_bytes
    return [checkpoints.num_bytes(Path(folder)) if folder else own for folder in training.teachers]


def _parameters(shape: Shape, training: Training) -> int:
    """Numbers of the model: of one that scores without a head of the vocabulary that is apart from the embeddings."""
    return shape.parameters - (shape.embedded if training.scores and not shape.tied else 0)


def trained_numbers(shape: Shape, training: Training) -> int:
    """Numbers that are trained: those of the adapter, or some or all of the model's own."""
    if training.adapter is not None:
        return adapter_numbers.of_adapter(shape, training.adapter)
    if training.trained == "all":
        return _parameters(shape, training)
    if training.trained == "bias":
        return shape.biases
    head = shape.embedded
    inner = (shape.parameters - head * (1 if shape.tied else 2)) // shape.layers
    return head + inner * training.trained if isinstance(training.trained, int) else head


def _weight_width(shape: Shape, training: Training, card: Card) -> tuple[float, str]:
    """(bytes, name) of a weight while it is trained, as `training.weights_dtype` chooses it."""
    if training.precision != "auto":
        return (4, "fp32") if training.precision == "fp32" else (2, "bf16")
    wanted, free = shape.parameters * (4 if training.adapter else 16) / (training.shards or 1), card.memory_bytes
    if shape.own_bytes == 4 or (not (training.adapter and card.is_gpu) and wanted <= free):
        return 4, "fp32"
    return shape.own_bytes, "bf16"


def _is_mixed(training: Training, card: Card, width: float) -> bool:
    """Whether products are of 16 bits while the weights, and what flows past the layers, are of 32."""
    return card.is_gpu and training.precision != "fp32" and width == 4


def activations(shape: Shape, training: Training, card: Card, width: float) -> tuple[float, float]:
    """(bytes of one layer, bytes of all at the end of the forward pass) that the backward pass needs."""
    hidden, query, key = shape.hidden, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    full = training.adapter is None
    stream, inner = width, 2 if _is_mixed(training, card, width) else width
    # Of each of two norms: its input in 32 bits, that before its weight (if the weight learns), and what goes on.
    norms = 2 * hidden * (4 + (stream if full else 0) + inner)
    # Queries, keys, values, output; beside padding keys and values as wide as queries, and a mask in 32 bits.
    is_padded = training.batch_size > 1 or training.pairs
    attention = inner * 4 * query + 4 * training.max_length if is_padded else inner * (2 * query + 2 * key)
    network = inner * shape.intermediate * (4 if shape.gated else 2)
    adapters = 4 * _adapter_widths(shape, training) / shape.layers
    scores = 0.0
    if shape.eager:
        scores = shape.heads * min(training.max_length, shape.window or training.max_length) * (4 + inner)
    layer = training.tokens * (norms + attention + network + adapters + scores)
    ends = training.tokens * hidden * stream * 3  # embeddings, last norm, what the head reads
    if training.checkpointing:
        return layer, layer + ends + shape.layers * training.tokens * hidden * stream
    return layer, shape.layers * layer + ends


def _adapter_widths(shape: Shape, training: Training) -> float:
    """Numbers that all adapters together keep of a token: what lies between their two matrices."""
    if training.adapter is None or training.adapter.is_soft:
        return 0
    return sum(count for *_, count in shape.linear) * training.adapter.rank


def _loss(shape: Shape, training: Training, card: Card) -> float:
    """Logits that stand at once, and the gradients of hidden states and head that go with them."""
    tokens = training.tokens
    if card.is_gpu:
        tiles = 2.0 * min(tokens, TRITON_TOKENS) * min(shape.vocabulary, COLUMNS)
    else:
        tiles = TILES * _tile(shape, tokens)
    return tiles + 4.0 * tokens * shape.hidden + 4.0 * _head(shape, training)


def _tile(shape: Shape, tokens: int) -> float:
    """Bytes of a tile of the loss on a CPU."""
    columns = min(shape.vocabulary, COLUMNS)
    return 4.0 * min(tokens, max(1, min(4_096, LOSS_TILE_BYTES // (4 * columns)))) * columns


def _holes(shape: Shape, training: Training, kept: float) -> float:
    """What stands free in the heap of a CPU and is not given back: after the forward pass under an adapter, or after
    the tiles of the loss, which go into those holes as far as there are any."""
    of_loss = 0.0 if training.scores else TILE_HOLES * _tile(shape, training.tokens)
    return max(of_loss, HOLES * kept if training.adapter else 0.0)


def _head(shape: Shape, training: Training) -> int:
    """Numbers of the vocabulary's head, if it learns."""
    return 0 if training.adapter or training.scores or training.trained == "bias" else shape.embedded


def _step_bytes(shape: Shape, training: Training, own: float, largest: int) -> float:
    """What an optimiser step takes beside the states: of Muon all matrices of one shape, three times."""
    if training.optimizer == "muon" and not training.adapter:
        counted: dict[tuple[int, int], int] = {}
        for _, rows, columns, count in shape.linear:
            counted[rows, columns] = counted.get((rows, columns), 0) + count
        return own * 4 * max((rows * columns * count for (rows, columns), count in counted.items()), default=0)
    return own * 2 * largest


def _forward_numbers(shape: Shape) -> float:
    """Numbers of a token that stand at once while nothing is kept for a backward pass."""
    return 3 * shape.hidden + 3 * shape.intermediate


def of_host(shape: Shape, training: Training, card: Card, processes: int) -> float:
    """Bytes beside the GPUs of a node: each of its processes reads all weights before it gives them to its card.
    QLoRA's go there as they are read, and in the end whole, to the one that merges. It is counted and was not
    measured."""
    if training.adapter and training.adapter.kind == "qlora":
        return processes * IMPORTS + shape.parameters * shape.own_bytes
    return processes * (IMPORTS + shape.parameters * _weight_width(shape, training, card)[0])


def of_generation(shape: Shape, card: Card, *, sequences: int, length: int) -> Need:
    """What it takes to answer `sequences` at once, each of `length` tokens with its prompt, in the stored dtype."""
    width = shape.own_bytes
    seen = min(length, shape.window) if shape.window else length
    parts = {
        "runtime": CUDA_CONTEXT if card.is_gpu else IMPORTS,
        "weights": float(shape.parameters * width),
        "kv cache": float(sequences * seen * shape.kv_numbers * width),
        "activations": sequences * length * _forward_numbers(shape) * width,
        "logits": 2.0 * 4 * sequences * shape.vocabulary,
    }
    return Need(parts, sum(parts.values()), "longest prompts", 0, {4: "fp32", 2: "bf16"}.get(width, "fp64"))


def of_observation(shape: Shape, card: Card, *, length: int, backwards: bool) -> Need:
    """What it takes to see what matters in a model, on rows of `length` tokens one after the other, without training;
    `backwards`: by the slope of the loss, with all logits in 32 bits, their probabilities and their gradients. It is
    counted as a training is, and was not measured."""
    width = shape.own_bytes
    row = Training(batch_size=1, max_length=length, trained="head")
    forward = float(length * _forward_numbers(shape) * width)
    parts = {
        "runtime": CUDA_CONTEXT if card.is_gpu else IMPORTS,
        "weights": float(shape.parameters * width),
        "activations": activations(shape, row, card, width)[1] if backwards else forward,
        "logits": 3.0 * 4 * length * shape.vocabulary if backwards else 0.0,
    }
    return Need({name: value for name, value in parts.items() if value}, sum(parts.values()), "a row", 0, "")


def flops(
    shape: Shape, training: Training, tokens: float, *, epochs: float = 1.0, length: float | None = None
) -> float:
    """Operations of training `epochs` times on `tokens`, in rows of `length`: 6 for each number and token, 4 where the
    base is frozen and only passes gradients on, 2 more where activations are computed again or a reference reads
    along; where it has read them before, 2 once."""
    trained = trained_numbers(shape, training)
    active = shape.active - (shape.embedded if training.scores else 0)
    each = (4.0 if training.adapter else 6.0) * active + (6.0 * trained if training.adapter else 0)
    seen = (length or training.max_length) / 2  # a token sees half of the row on average
    attention = 4.0 * shape.layers * shape.heads * shape.head_size * seen  # of a forward pass
    read = 2.0 * active + attention
    again = training.checkpointing + (training.reference == "beside")
    before = training.reference == "before"
    return tokens * (epochs * (each + 3 * attention + again * read) + before * read)


def rules(shape: Shape, training: Training | None = None) -> dict[str, float]:
    """The practitioner's short rules, in bytes: the weights and a fifth more for inference, 16 bytes a parameter for
    AdamW in mixed precision (1910.02054, section 3.1), without activations."""
    found = {"inference: bytes x parameters x 1.2": shape.own_bytes * shape.parameters * 1.2}
    if training is not None:
        trained = trained_numbers(shape, training)
        frozen = (shape.parameters * shape.own_bytes) if training.adapter else 0
        found["AdamW: 16 bytes a trained parameter"] = 16.0 * trained + frozen
    return found
