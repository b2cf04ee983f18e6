"""What is recommended to whoever answers the questions of `advise_decisions`, why, by which source, and the recipe that
it means."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

from bloomery.pipelines import advise_recipe
from bloomery.pipelines.advise_decisions import (
    CPT_TOKENS,
    FEW,
    MANY_TOKENS_A_WORD,
    MIN_PAIRS,
    MIN_SAMPLED,
    OVERHEAD,
    Answers,
    Decided,
    Measured,
    Trained,
    decide,
    memory_to_serve,
)

AID = "a reading aid of ours"


class Recommendation(NamedTuple):
    """One piece of advice."""

    subject: str
    """What it is about, in a word."""
    advice: str
    reason: str
    source: str


class Advice(NamedTuple):
    """All of it."""

    recommendations: list[Recommendation]
    recipe: dict[str, Any]
    """As `recipe.parse_recipe` takes it."""
    decided: Decided


def advise(answers: Answers, measured: Measured = Measured()) -> Advice:  # noqa: B008
    """What follows from the answers and from what was measured beside them; nothing else is looked at."""
    decided = decide(answers, measured)
    parts = (_retrieval, _prompting, _documents, _examples, _answers_of_its_own, _preferences, _memory, _serving)
    parts += (_privacy, _languages, _forgetting)
    told = [one for part in parts for one in part(answers, measured, decided)]
    return Advice(told, advise_recipe.of(answers, measured, decided), decided)


def _retrieval(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if answers.goal != "facts":
        return
    if not decided.retrieval:
        yield Recommendation(
            "retrieval",
            "Add a search over the documents where an answer must be exact or name where it comes from.",
            "A trained model knows a domain, and says what it does not know in the same voice.",
            "what training brings and retrieval brings add up: arXiv 2409.07431, abstract",
        )
        return
    why = "What changes is put into an index today" if answers.fresh == "weekly" else "Training would read too little"
    yield Recommendation(
        "retrieval",
        "Look the facts up when a question is asked and put what is found into the prompt (RAG). Bloomery serves no "
        "search: put one before `bloomery serve`. It can train the model to answer from passages: examples whose "
        "question holds what your search finds, useless passages among it (RAFT).",
        f"{why}; looked up, facts were answered better than trained in, new and old ones. Examples that state new "
        "facts are learnt late, and teach to make things up.",
        "arXiv 2312.05934 (abstract); 2405.05904 (abstract); RAFT 2403.10131",
    )


def _prompting(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if not decided.prompting or answers.goal == "facts":
        return
    rest = "in the recipe every model, the base model too, is asked with some, so training has to beat that"
    yield Recommendation(
        "prompting",
        f"Write a prompt with your best examples in it first"
        f"{f'; {rest}' if decided.sft else ', and see what is still lacking'}.",
        f"{answers.examples:,} examples are few: below {FEW} training seldom shows more than a prompt does.",
        "OpenAI, guide to supervised fine-tuning: improvements from 50 to 100 examples, begin with 50",
    )


def _documents(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    tokens = answers.document_tokens
    if decided.cpt:
        how = _method(decided.trained["cpt"])
        after = ", then fine-tune on the examples" if decided.sft else ""
        yield Recommendation(
            "documents",
            f"Train on the documents ({how}){after}: they are {tokens / 1e6:,.0f} M tokens, and stay as they are.",
            "Knowledge of a domain comes from reading it; fine-tuning then teaches to use it.",
            f"arXiv 2004.10964, section 3; from {CPT_TOKENS / 1e6:,.0f} M tokens: {AID}",
        )
        if how != "all weights":
            yield Recommendation(
                "documents",
                f"Take a larger card for `cpt` if you can get one: here it has to be {how}.",
                "In continued pre-training an adapter learns less than all weights do (and forgets less).",
                "arXiv 2405.09673, section 4",
            )
    elif tokens and answers.goal == "facts" and answers.fresh != "weekly":
        yield Recommendation(
            "documents",
            f"Do not train on the documents as they are: {tokens:,} tokens are few. Have questions and answers written "
            "from them, or rewrite them in many wordings, and read these.",
            "A fact is learnt when it is read in hundreds of wordings: as they were, 1.3 M tokens made answers worse, "
            "rewritten into 455 M much better.",
            f"arXiv 2409.07431, section 4.2; below {CPT_TOKENS / 1e6:,.0f} M tokens: {AID}",
        )
    elif tokens and answers.goal != "facts":
        yield Recommendation(
            "documents",
            "Leave the documents out of training to begin with.",
            f"They bring knowledge, and a {answers.goal} is learnt from examples of it.",
            "arXiv 2305.11206 (LIMA), section 2",
        )


def _examples(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if measured.not_chats:
        total = measured.chats + measured.not_chats
        yield Recommendation(
            "examples",
            f"Look at the {measured.not_chats:,} of {total:,} rows of {answers.chats} that are no chats.",
            "They are left out, and counted with a reason.",
            "measured",
        )
    if measured.over_context:
        yield Recommendation(
            "examples",
            f"Shorten the {measured.over_context:.0%} of the chats that are longer than the model's context of "
            f"{measured.shape.context if measured.shape else 0:,} tokens, or take a model with a longer one.",
            "They are left out of training, and cannot be asked.",
            "measured with the model's tokenizer and template",
        )
    if not decided.sft or decided.prompting:
        return
    trained = decided.trained["sft"]
    how, size = _method(trained), f"{answers.examples:,} examples"
    why = {
        "all weights": "They may hold more than an adapter can.",
        "LoRA": "That many an adapter holds as well as all weights do, in less memory, and it forgets less.",
    }.get(how, "The weights stand in memory in four bits while an adapter is trained in 16.")
    yield Recommendation(
        "examples",
        f"Fine-tune on the {size} with {how}.",
        why,
        "'LoRA Without Regret', Thinking Machines 2025; arXiv 2405.09673; QLoRA 2305.14314",
    )


def _answers_of_its_own(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if decided.sampling == "rejection_sampling":
        yield Recommendation(
            "own answers",
            "Let the model answer questions it was not trained on, and train it again on its right answers.",
            "A program tells which are right, so more examples cost nothing but time.",
            "rejection sampling fine-tuning, arXiv 2308.01825",
        )
    elif decided.sampling == "grpo":
        yield Recommendation(
            "own answers",
            "Go on with reinforcement on the model's own answers, by `grpo` after fine-tuning.",
            "A program tells which are right, and such training forgets less than fine-tuning. It learns from what "
            "is answered rightly now and then.",
            "DeepSeekMath, arXiv 2402.03300; RL's Razor, 2509.04259",
        )
    elif answers.verifier != "none" and answers.examples < MIN_SAMPLED:
        yield Recommendation(
            "own answers",
            f"Collect questions: with {MIN_SAMPLED} or more, known answers are enough to learn from the model's own.",
            f"{answers.examples:,} are needed for training and for the evaluation.",
            AID,
        )


def _preferences(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if decided.dpo:
        yield Recommendation(
            "preferences",
            f"Learn from the {answers.pairs:,} pairs by DPO, last.",
            "Which of two answers is better says what examples cannot: what to leave.",
            f"arXiv 2305.18290; after fine-tuning: Zephyr, 2310.16944; from {MIN_PAIRS} pairs: {AID}",
        )
    elif answers.pairs:
        yield Recommendation(
            "preferences",
            f"Keep the {answers.pairs:,} pairs for judging by eye, and collect {MIN_PAIRS} before learning from them.",
            "A tenth of them is held out to see whether anything was learnt, and that many show nothing.",
            AID,
        )


def _memory(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if not (measured.shape and measured.card):
        yield Recommendation(
            "memory",
            "Run `bloomery plan` on the recipe before anything else.",
            "The model was given by its name, so nothing of it was read.",
            "give --model its folder, and memory decides between LoRA, QLoRA and all weights",
        )
        return
    if math.isinf(measured.card.memory_bytes):
        return
    for step, trained in decided.trained.items():
        at_once = f"{trained.training.batch_size} x {trained.training.max_length} tokens at once"
        if trained.fits:
            extra = ", activations computed again" if trained.training.checkpointing else ""
            advice = f"`{step}`: {_method(trained)}, {at_once}{extra}."
        else:
            advice = f"`{step}` does not fit whatever is changed: take a smaller model or a card with more memory."
        yield Recommendation(
            "memory",
            advice,
            f"{measured.shape.parameters:,} parameters on {measured.card.name} "
            f"({measured.card.memory_bytes / 1e9:,.0f} GB): the first that fits of what costs more and more.",
            "`bloomery plan`, whose formulas name theirs",
        )


def _serving(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    limit = memory_to_serve(answers, measured)
    room = "" if math.isinf(limit) else f" in {limit / 1e9:,.3g} GB"
    pace = f", {answers.latency:g} ms a token" if answers.latency else ""
    schemes = ", ".join(decided.schemes)
    if decided.bits == 0:
        yield Recommendation(
            "serving",
            "Take a smaller model, or distil this one into a smaller one of its family; four bits are too many.",
            f"Four bits a weight, and a fifth more, do not fit{room}{pace}: memory has to hold the weights, and each "
            "token reads them once.",
            "distillation: arXiv 1503.02531, on its own answers 2306.13649; the fifth is the practitioner's rule",
        )
        return
    if decided.bits is None:
        advice = f"Measure {schemes}: the gate refuses what is too large or too slow."
        reason = "How large the model is was not read."
    elif decided.bits == 16:
        advice = f"16 bits fit; {schemes} is measured beside it and served if it is shown to be as good."
        reason = "Half the bytes are half the time of a token where the bandwidth of memory bounds it."
    else:
        advice = f"Serve it in {decided.bits} bits: {schemes}."
        reason = f"With {2 * OVERHEAD:g} bytes a parameter in 16 bits it is too large{room}{pace}."
    yield Recommendation(
        "serving",
        advice,
        reason,
        "arXiv 2411.02355, abstract: 8 bits lose little to nothing, 4 of the weights rival them; the run measures it",
    )
    if answers.latency and measured.serving is None:
        yield Recommendation(
            "serving",
            f"The gate refuses a model that takes more than {answers.latency:g} ms a token on the machine of the run.",
            "The bandwidth of what answers is not known, so it cannot be foretold.",
            "measured by ptq, at batch 1",
        )


def _privacy(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if answers.privacy == "open":
        return
    yield Recommendation(
        "privacy",
        "Keep everything on your own machines: no hosted model as judge or teacher, tracking and store inside. The "
        "recipe needs no service but the hub that a model's name is looked up in.",
        "A model that is asked elsewhere is shown the data.",
        "a matter of where data go, not of a measurement",
    )
    if answers.privacy == "personal":
        yield Recommendation(
            "privacy",
            "Leave `mask` and `dedup` as they are: personal data become placeholders in documents, in chats and in the "
            "log of what is asked. Look at a sample of what is kept; names are not masked.",
            "Models give back texts that they were trained on, those most that stood there more than once.",
            "arXiv 2012.07805; 2202.06539 (repeated texts)",
        )


def _languages(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if "ko" not in answers.languages.split(","):
        return
    made = measured.tokens_a_word.get("ko")
    source = f"fertility: arXiv 2012.15613; from {MANY_TOKENS_A_WORD:g}: {AID}, of four tokenizers"
    if made is None:
        yield Recommendation(
            "Korean",
            "Measure the tokenizer on your own Korean: give --model a folder, and --chats or --documents a file.",
            "What is cut into bytes costs three times the tokens in memory, time and context.",
            source,
        )
    elif made >= MANY_TOKENS_A_WORD:
        yield Recommendation(
            "Korean",
            f"Take a model whose tokenizer knows Korean: this one makes {made:.1f} tokens of a word of your data.",
            "Tokenizers that know it make 2.2 to 2.6; the rest is paid in memory, time, context and quality.",
            source,
        )
    else:
        yield Recommendation(
            "Korean",
            f"The tokenizer is fit for Korean: {made:.1f} tokens a word of your data.",
            "Tokenizers that know it make 2.2 to 2.6.",
            source,
        )


def _forgetting(answers: Answers, measured: Measured, decided: Decided) -> Iterator[Recommendation]:
    if answers.general:
        return
    yield Recommendation(
        "forgetting",
        "Give general text with --general FILE, and add a task of role `general` for what the model must not lose.",
        "Nothing in the recipe shows what is forgotten, and nothing is replayed against it.",
        "replay: arXiv 2403.08763, section 6.1",
    )


def _method(trained: Trained) -> str:
    adapter = trained.training.adapter
    return {"lora": "LoRA", "qlora": "QLoRA"}[adapter.kind] if adapter else "all weights"


def written(answers: Answers, advice: Advice) -> str:
    """The recipe as YAML, with a comment for each stage."""
    return advise_recipe.written(answers, advice.decided, advice.recipe)


def described(advice: Advice) -> str:
    """The recommendations in words, for a terminal."""
    lines = []
    for one in advice.recommendations:
        lines += _wrapped(f"{one.subject}: {one.advice}", "")
        lines += _wrapped(f"Why: {one.reason}", "  ")
        lines += _wrapped(f"Source: {one.source}", "  ")
        lines.append("")
    return "\n".join(lines[:-1])


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent="  ", break_on_hyphens=False)
