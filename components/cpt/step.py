"""Continued pre-training: the base model reads the domain, with a share of general text so that it forgets little."""

from __future__ import annotations

import functools
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact, tracking
from bloomery.components.core.artifact import Reads, Shards, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import (
    adapters,
    batches,
    checkpoints,
    replay,
    templates,
    token_shards,
    training,
)
from bloomery.components.core.modelling.context import check_embedded, check_positions, context_tokens
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.token_shards import Encoded
from bloomery.components.core.parallel import map_ordered
from bloomery.components.cpt import infilling, long_context
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.infilling import Marks, infilled

NUM_PROBES = 200
"""Held-out documents of each kind whose perplexity is measured."""
DOCUMENTS_AT_ONCE = 200
"""Documents in memory while they are read."""
ByPosition = dict[int, tuple[float, int]]
"""(sum of log-likelihoods in nats, number of tokens) under the position from which on they stand."""


@declare(accelerator="all")
def run(
    config: CptConfig,
    *,
    documents: Annotated[Path, Reads("document/2")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
    chats: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
) -> dict[str, float]:
    """Train `base_model` on `documents` packed into blocks of `max_length` tokens, and write a checkpoint to `model`.

    The documents are tokenised once, to disk, and neither they nor their tokens stand in memory. Of `chats` the
    exercises are read, where the settings replay some.
    Returns: cpt/loss (nats per token at the end), cpt/trained_tokens, cpt/replay_fraction (of the characters that are
             read), and for held-out documents cpt/domain_perplexity_before and _after, cpt/general_perplexity_before
             and _after, cpt/domain_perplexity_from_<position> (after, of the tokens that stand there and further, to
             twice the position); with `replay_exercises` cpt/exercises and cpt/too_long (of them, left out).
    Raises:  DataError if no domain document is left to train on; ConfigError if a block is longer than the positions
             that the model knows, or tokens for infilling would not be learnt; ModelError if its RoPE cannot be scaled
             as told; DivergedError before a non-finite step is taken.
    """
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    chats = chats if config.replay_exercises else None
    shards = Shards(documents, "document/2")
    probes, domain_characters = _probes(shards, config.validation_share)
    if not domain_characters:
        raise DataError(f"cpt: none of the {shards.num_rows} documents is domain text; check data_curation.sources")
    set_seed(config.seed)
    network, tokenizer, before = _loaded(config, base_model, probes, model.parent)
    found = infilling.marks(tokenizer, network, config) if config.infilling_share else None
    parts = ["cpt", artifact.read_manifest(documents).digest, config.validation_share, config.replay_share]
    if found:
        parts += [config.infilling_share, config.seed, artifact.file_digest(Path(infilling.__file__))]
    if chats:
        checkpoints.check_template(tokenizer, base_model)
        parts += [artifact.read_manifest(chats).digest, config.replay_exercises, config.max_length]
    encode = functools.partial(_encoded, shards, tokenizer, config, found, domain_characters, chats)
    with token_shards.tokenised(tokenizer, parts, encode) as tokens:
        check_embedded(network.config, tokenizer, tokens.highest, "cpt")
        trainer = training.train(
            config,
            (SFTTrainer, SFTConfig),
            network,
            tokenizer,
            tokens.blocks(config.max_length, whole=tokens.counts["exercise_rows"]),
            collator=batches.collator(templates.pad_token(tokenizer)) if chats else None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
    network = adapters.merged(trainer.model, model)
    after = _measured(Generator(network.eval(), tokenizer), probes, config.max_length)
    checkpoints.save(model, network, tokenizer, like=base_model)
    tracking.show("perplexity_by_position", _by_position(before, after))
    counts = tokens.counts
    replayed = counts["general_characters"] + counts["exercise_characters"]
    domain = after.get("domain", {})
    return {
        "cpt/loss": training.final_loss(trainer.state.log_history),
        "cpt/trained_tokens": float(trainer.state.log_history[-2].get("num_tokens", tokens.num_tokens * config.epochs)),
        "cpt/replay_fraction": replay.fraction(config, replayed, counts["domain_characters"], "cpt"),
        **{f"cpt/{name}_perplexity_before": _perplexity(found.values()) for name, found in before.items()},
        **{f"cpt/{name}_perplexity_after": _perplexity(found.values()) for name, found in after.items()},
        **{f"cpt/domain_perplexity_from_{begin}": _perplexity([found]) for begin, found in domain.items()},
        **({f"cpt/{name}": float(counts[name]) for name in ("exercises", "too_long")} if chats else {}),
    }


def _loaded(
    config: CptConfig, base_model: Path, probes: dict[str, list[str]], beside: Path
) -> tuple[Any, Any, dict[str, ByPosition]]:
    """(model, tokenizer) to be trained, its RoPE scaled where told, and what the model measures as it comes in."""
    scaling = config.rope_scaling
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside) as folder:
        source = long_context.scaled(base_model, scaling, Path(folder) / "scaled") if scaling else base_model
        check_positions(checkpoints.load_config(source), config.max_length, "cpt")
        network, tokenizer = training.load(config, base_model)
        before = _measured(Generator(network, tokenizer), probes, config.max_length)
        if scaling:
            del network
            network, tokenizer = training.load(config, source)
            long_context.check(network, scaling)
            tokenizer.model_max_length = max(tokenizer.model_max_length, context_tokens(network.config, tokenizer))
    return network, tokenizer, before


def _documents(shards: Shards, validation_share: float) -> Iterator[tuple[str, bool, bool]]:
    """(text, whether it is general, whether it is held out) of each document, in stored order."""
    for batch in shards.batches(DOCUMENTS_AT_ONCE, ["id", "text", "general"]):
        for row in batch.to_pylist():
            yield row["text"], row["general"], int(row["id"][:8], 16) < validation_share * 2**32


def _probes(shards: Shards, validation_share: float) -> tuple[dict[str, list[str]], int]:
    """The first held-out texts of each kind, and how many characters of domain text are left to train on."""
    probes: dict[str, list[str]] = {"domain": [], "general": []}
    characters = 0
    for text, general, held_out in _documents(shards, validation_share):
        kind = probes["general" if general else "domain"]
        if held_out and len(kind) < NUM_PROBES:
            kind.append(text)
        if not general and not held_out:
            characters += len(text)
    return probes, characters


def _encoded(
    shards: Shards, tokenizer: Any, config: CptConfig, found: Marks | None, domain_characters: int, chats: Path | None
) -> Iterator[Encoded]:
    """The tokens of all domain documents, then of general ones and of exercises, as many as are replayed."""
    of_texts, of_exercises = replay.allowances(config, domain_characters)

    def training_texts(*, of_general: bool) -> Iterator[str]:
        for text, general, held_out in _documents(shards, config.validation_share):
            if of_general and of_texts.is_used_up:
                return
            if general == of_general and not held_out and (not general or of_texts.takes(len(text))):
                yield text

    def exercises() -> Iterator[list[dict[str, Any]]]:
        for batch in Shards(chats, "chat/2").batches(DOCUMENTS_AT_ONCE) if chats else ():
            found = filter(replay.is_exercise, batch.to_pylist())
            yield [chat for chat in found if of_exercises.takes(replay.characters(chat))]
            if of_exercises.is_used_up:
                return

    kinds = {"domain_characters": False, "general_characters": True}
    texts = (
        (kind, batch)
        for kind, of_general in kinds.items()
        for batch in token_shards.in_batches(training_texts(of_general=of_general))
    )
    yield from map_ordered(functools.partial(_encode, tokenizer, config, found, chats is not None), texts)
    yield from map_ordered(functools.partial(_encode_exercises, tokenizer, config.max_length), exercises())


def _encode(
    tokenizer: Any, config: CptConfig, found: Marks | None, are_marked: bool, batch: tuple[str, list[str]]
) -> Encoded:
    """The tokens of some documents; `are_marked`: with a mask, as exercises stand beside them, which have one."""
    kind, texts = batch
    rows = token_shards.whole_texts(tokenizer, texts)
    if found:
        bos = tokenizer.bos_token_id
        rows = [infilled(ids, config.infilling_share, found, config.seed, bos) for ids in rows]
    marked = [(ids, [True] * len(ids) if are_marked else None) for ids in rows]
    return token_shards.encoded(marked, {kind: sum(map(len, texts))})


def _encode_exercises(tokenizer: Any, max_length: int, chats: list[dict[str, Any]]) -> Encoded:
    """The tokens of some exercises that fit into a block, as fine-tuning reads them: with a loss on their answers."""
    made = [(chat, templates.trained_rows(tokenizer, chat["messages"], chat["tools"])) for chat in chats]
    kept = [(chat, rows) for chat, rows in made if all(len(ids) <= max_length for ids, _ in rows)]
    rows = [row for _, own in kept for row in own]
    counts = {
        "exercises": len(kept),
        "exercise_rows": len(rows),
        "too_long": len(made) - len(kept),
        "exercise_characters": sum(replay.characters(chat) for chat, _ in kept),
    }
    return token_shards.encoded(rows, counts)


def _measured(generator: Generator, probes: dict[str, list[str]], max_length: int) -> dict[str, ByPosition]:
    """The log-likelihoods, by position, of each named set of texts that has a token to score."""
    found = {name: generator.log_likelihood_by_position(texts, max_length=max_length) for name, texts in probes.items()}
    return {name: parts for name, parts in found.items() if parts}


def _perplexity(parts: Iterable[tuple[float, int]]) -> float:
    """Perplexity per token of parts, each of a log-likelihood in nats and the tokens that it is the sum of."""
    nats, tokens = (sum(column) for column in zip(*parts, strict=True))
    return math.exp(-nats / tokens)


def _by_position(before: dict[str, ByPosition], after: dict[str, ByPosition]) -> dict[str, list[list[float]]]:
    """Of each kind of text, for each part of the positions: its beginning, the perplexities before and after, and the
    tokens that were measured."""
    return {
        name: [[begin, _perplexity([parts[begin]]), _perplexity([own]), own[1]] for begin, own in after[name].items()]
        for name, parts in before.items()
    }
