"""What `bloomery advise` asks, what it may measure, and what follows from both, as functions of nothing else.

A number from which something changes has its source beside it; where none gives one it is a reading aid: a place to
begin from, to be moved by what a run measures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import Field

from bloomery.components.core.config import Config
from bloomery.components.core.modelling import fixes
from bloomery.components.core.modelling.adapters import AdapterConfig
from bloomery.components.core.modelling.cards import Card
from bloomery.components.core.modelling.plan import Training
from bloomery.components.core.modelling.shapes import Shape

FEW = 50
"""Examples below which a prompt is tried first: OpenAI's guide to supervised fine-tuning sees improvements from 50 to
100 examples and advises to begin with 50."""
MANY = 100_000
"""Examples from which all weights are trained, where they fit. An adapter falls behind once the data hold more than it
can ('LoRA Without Regret', Thinking Machines 2025; arXiv 2405.09673); the number is a reading aid."""
CPT_TOKENS = 10_000_000
"""Tokens of documents from which continued pre-training is worth its while. A reading aid: read as they were, 1.3 M
tokens made a model of 8 B answer worse, and written anew, into 455 M, much better (arXiv 2409.07431, section 4.2)."""
MIN_PAIRS = 500
"""Preference pairs from which DPO is worth it. A reading aid: a tenth is held out, and 50 tell 70 % from a half."""
MIN_SAMPLED = 200
"""Examples from which some are set apart to be answered again and again. A reading aid."""
TEST_ROWS, MOST_TESTED = 200, 0.3
"""Questions that the evaluation set should have, and the largest share of the examples that it takes. A reading aid: of
200 questions a share has a standard error of 3.5 points at most."""
SMALL = 1e9
"""Parameters below which learning rates are 2.5 times those of 7 B; 5e-4 of LoRA is what the recipe smollm2 takes."""
MANY_TOKENS_A_WORD = 4.0
"""Tokens a Korean word (what stands between spaces) from which a tokenizer does not know the language. A reading aid:
of 3,000 Korean descriptions of commands (tldr-pages) the tokenizers of gpt-oss, DeepSeek-V3 and Qwen3 make 2.2 to 2.6 a
word, that of SmolLM2, which was made for English, 7.7."""
RATES = {"sft": 2e-5, "cpt": 2e-5, "dpo": 5e-7, "grpo": 1e-6}
"""Learning rates at 7 B, by step: of fine-tuning and DPO Zephyr's (arXiv 2310.16944, section 4), of reinforcement
DeepSeekMath's (2402.03300, section 4.2); that of continued pre-training is a reading aid. An adapter's is ten times as
much ('LoRA Without Regret'), as QLoRA's 2e-4 is (2305.14314, table 9)."""
SCHEMES = {
    "cpu": {8: "gguf_q8_0", 4: "gguf_q4_k_m"},
    "gpu": {8: "int8_weight_only", 4: "int4_weight_only"},
}
"""Schemes by what answers and by bits."""
IN_GGUF = ("llama", "qwen2", "qwen3")
"""Architectures, by model_type, that are exported as GGUF."""
OVERHEAD = 1.2
"""Memory of a model that answers, as a multiple of its weights: the practitioner's rule, which `bloomery plan` prints
beside its own numbers."""


class Answers(Config):
    """The questions of the field and what was answered. What has no default is asked."""

    model: str
    """Which model is adapted: its folder, or its name on the Hugging Face hub?"""
    goal: Literal["facts", "behaviour", "form"]
    """What does it lack: facts to know, a behaviour (a task that it does badly), or a form (a tone, a format)?"""
    fresh: Literal["weekly", "yearly", "stable"]
    """How often does what it has to know change: weekly or more often, about yearly, or is it stable?"""
    examples: int = Field(ge=0)
    """How many examples are there, questions with good answers?"""
    document_tokens: int = Field(ge=0)
    """How many tokens of documents of the domain are there? Four characters of English are about one."""
    pairs: int = Field(ge=0)
    """How many preference pairs are there, of a better and a worse answer to one question?"""
    verifier: Literal["none", "exact", "numeric", "label", "sql_execution"]
    """How can a program tell a right answer: by equal text, an equal number, one of a set of labels, equal rows of SQL,
    or not at all?"""
    serve_on: str
    """What answers in the end: cpu, or a card such as L4 or H100?"""
    serve_memory: float = Field(ge=0)
    """How many GB of memory may it take there? 0: what there is."""
    latency: float = Field(ge=0)
    """How many milliseconds may a token take? 0: no limit."""
    privacy: Literal["open", "inside", "personal"]
    """May the data be shown to others (open), must they stay inside, or do they hold personal data, too (personal)?"""
    languages: str = Field(pattern=r"^[a-z]{2,3}(,[a-z]{2,3})*$")
    """Which languages, as ISO codes with commas, such as en,ko?"""
    name: str = "advised"
    """Name of the recipe."""
    chats: str = "chats.jsonl"
    """File of the examples."""
    documents: str = "documents.jsonl"
    """File of the documents."""
    preferences: str = "preferences.jsonl"
    """File of the preference pairs."""
    general: str = ""
    """File of general text, of which nothing is to be forgotten; empty: none."""


class Measured(NamedTuple):
    """What is known of the model, the machine and the files; nothing where it was not measured."""

    shape: Shape | None = None
    """Of the model."""
    card: Card | None = None
    """What is trained on."""
    serving: Card | None = None
    """What answers, where it is a card."""
    chats: int = 0
    """Rows of the file of examples that are chats."""
    not_chats: int = 0
    """Its other rows."""
    longest: int = 0
    """Tokens that 99 of 100 chats do not exceed, by the model's tokenizer and template."""
    over_context: float = 0.0
    """Share of the chats that are longer than the model's context."""
    lacks_template: bool = False
    """Whether the model has no chat template of its own."""
    tokens_a_word: dict[str, float] = {}  # noqa: RUF012
    """Tokens between spaces that the model's tokenizer makes of each language's texts."""
    document: str = "{text}"
    """Template of a document, by the fields of the first row."""
    general: str = "{text}"
    """Template of a general text."""
    chat: dict[str, str] = {"messages": "messages"}  # noqa: RUF012
    """Template of an example, by the form of the first row."""
    pair: dict[str, str] = {"prompt": "{prompt}", "answer": "{chosen}"}  # noqa: RUF012
    """Template of the question of a pair and its better answer."""


@dataclass(frozen=True)
class Trained:
    """How one stage is trained."""

    settings: dict[str, Any]
    """As a recipe has them."""
    training: Training
    fits: bool | None
    """None: it is not known what it needs, or what there is."""


@dataclass(frozen=True)
class Decided:
    """What follows from the answers."""

    retrieval: bool
    """What is asked for is looked up, and stands in the prompt."""
    prompting: bool
    """A prompt with examples in it is what training has to beat."""
    cpt: bool
    sft: bool
    sampling: Literal["", "rejection_sampling", "grpo"]
    """How the model learns from its own answers."""
    dpo: bool
    bits: int | None
    """Of a weight when it answers: 16, 8 or 4; 0: four are too many; None: not known."""
    schemes: list[str]
    trained: dict[str, Trained] = field(default_factory=dict)
    """By step."""


def decide(answers: Answers, measured: Measured) -> Decided:
    """Which methods, in which form."""
    is_knowledge = answers.goal == "facts"
    cpt = is_knowledge and answers.fresh != "weekly" and answers.document_tokens >= CPT_TOKENS
    dpo = answers.pairs >= MIN_PAIRS
    sft = answers.examples >= FEW or not (cpt or dpo)
    on_gpu = bool(measured.card and measured.card.is_gpu)
    sampling: Literal["", "rejection_sampling", "grpo"] = ""
    if sft and answers.verifier != "none" and answers.examples >= MIN_SAMPLED:
        # Sampling writes pairs of its own, which would stand in the place of the user's.
        sampling = "grpo" if on_gpu or dpo else "rejection_sampling"
    used = [step for step, is_used in (("cpt", cpt), ("sft", sft), ("dpo", dpo)) if is_used]
    steps = [*used, *(["grpo"] if sampling == "grpo" else [])]
    bits = bits_to_serve(answers, measured)
    return Decided(
        retrieval=is_knowledge and not cpt,
        prompting=answers.examples < FEW,
        cpt=cpt,
        sft=sft,
        sampling=sampling,
        dpo=dpo,
        bits=bits,
        schemes=_schemes(answers, measured, bits),
        trained={step: _trained(step, answers, measured) for step in steps},
    )


def memory_to_serve(answers: Answers, measured: Measured) -> float:
    """Bytes that a model may take where it answers; infinite where nothing limits them."""
    limits = [answers.serve_memory * 1e9] if answers.serve_memory else []
    return min([*limits, *([measured.serving.memory_bytes] if measured.serving else [])], default=math.inf)


def bits_to_serve(answers: Answers, measured: Measured) -> int | None:
    """The most bits of a weight, of 16, 8 and 4, at which the model fits and reads its weights in time (a token reads
    each once: the bandwidth bounds it); 0 if even 4 are too many; None where its size is not known."""
    if measured.shape is None:
        return None
    memory, card = memory_to_serve(answers, measured), measured.serving
    for bits in (16, 8, 4):
        num_bytes = measured.shape.parameters * bits / 8
        too_slow = answers.latency and card and card.bandwidth and num_bytes / card.bandwidth * 1e3 > answers.latency
        if num_bytes * OVERHEAD <= memory and not too_slow:
            return bits
    return 0


def _schemes(answers: Answers, measured: Measured, bits: int | None) -> list[str]:
    is_gguf = answers.serve_on == "cpu" and (measured.shape is None or measured.shape.kind in IN_GGUF)
    known = SCHEMES["cpu" if is_gguf else "gpu"]
    if bits is None:
        return list(known.values())
    return [known[8]] if bits >= 8 else [known[4]]


def _trained(step: str, answers: Answers, measured: Measured) -> Trained:
    """How `step` is trained: as the plan finds it to fit with the least change, where model and machine are known."""
    context = (measured.shape.context if measured.shape else 0) or 1_024
    longest = math.ceil(measured.longest / 64) * 64 if measured.longest and step != "cpt" else 1_024
    wants_all = step == "cpt" or (step == "sft" and answers.examples >= MANY)
    training = Training(
        batch_size=16,
        max_length=min(max(64, longest), context),
        adapter=None if wants_all else AdapterConfig(),
        pairs=step == "dpo",
        reference="before" if step == "dpo" else None,
        best=step == "sft",
    )
    fits = None
    if measured.shape and measured.card:
        found = fixes.cheapest(measured.shape, training, measured.card)
        fits = found is not None
        training = found[1] if found else _smallest(training, measured.card)
    return Trained(_settings(step, answers, measured, training), training, fits)


def _smallest(training: Training, card: Card) -> Training:
    """What takes least, where nothing fits."""
    adapter = AdapterConfig(kind="qlora") if card.is_gpu else AdapterConfig()
    return training.model_copy(update={"batch_size": 1, "accumulation": 16, "checkpointing": True, "adapter": adapter})


def _settings(step: str, answers: Answers, measured: Measured, training: Training) -> dict[str, Any]:
    """The settings of a stage, without those that are the defaults anyway."""
    found: dict[str, Any] = {}
    if training.adapter:
        scale = {"rank": training.adapter.rank, "alpha": training.adapter.alpha}
        found["adapter"] = {"kind": training.adapter.kind, **scale}
    is_small = measured.shape is not None and measured.shape.parameters < SMALL
    found["learning_rate"] = float(f"{RATES[step] * (10 if training.adapter else 1) * (2.5 if is_small else 1):.2g}")
    found["epochs"] = _epochs(step, answers)
    found["batch_size"] = training.batch_size
    if training.accumulation > 1:
        found["gradient_accumulation_steps"] = training.accumulation
    found["max_length"] = training.max_length
    if training.checkpointing:
        found["gradient_checkpointing"] = True
    return found


def _epochs(step: str, answers: Answers) -> int:
    """Reading aids, within what `literature.MOST_EPOCHS` supports: little data is read more than once."""
    if step == "sft":
        return 3 if answers.examples < 10_000 else 1
    return 2 if step == "cpt" and answers.document_tokens < 10 * CPT_TOKENS else 1
