"""Continued pre-training: the base model reads the domain, with a share of general text so that it forgets little."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Shards, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import adapters, checkpoints, token_shards, training
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.modelling.token_shards import Encoded
from bloomery.components.core.parallel import map_ordered
from bloomery.components.cpt import infilling
from bloomery.components.cpt.config import CptConfig
from bloomery.components.cpt.infilling import Marks, infilled

NUM_PROBES = 200
"""Held-out documents of each kind whose perplexity is measured."""
DOCUMENTS_AT_ONCE = 200
"""Documents in memory while they are read."""


@declare(accelerator="all")
def run(
    config: CptConfig,
    *,
    documents: Annotated[Path, Reads("document/2")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Train `base_model` on `documents` packed into blocks of `max_length` tokens, and write a checkpoint to `model`.

    The documents are tokenised once, to disk, and neither they nor their tokens stand in memory.
    Returns: cpt/loss (nats per token at the end), cpt/trained_tokens, cpt/replay_fraction, and for held-out documents
             cpt/domain_perplexity_before and _after, cpt/general_perplexity_before and _after.
    Raises:  DataError if no domain document is left to train on; DivergedError before a non-finite step is taken.
    """
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    shards = Shards(documents, "document/2")
    probes, domain_characters = _probes(shards, config.validation_share)
    if not domain_characters:
        raise DataError(f"cpt: none of the {shards.num_rows} documents is domain text; check data_curation.sources")
    set_seed(config.seed)
    network, tokenizer = training.load(config, base_model)
    before = _perplexities(Generator(network, tokenizer), probes, config.max_length)
    found = infilling.marks(tokenizer, network) if config.infilling_share else None
    parts = ["cpt", artifact.read_manifest(documents).digest, config.validation_share, config.replay_share]
    parts += [config.infilling_share, config.seed] if found else []
    encode = functools.partial(_encoded, shards, tokenizer, config, found, domain_characters)
    with token_shards.tokenised(tokenizer, parts, encode) as tokens:
        trainer = training.train(
            config,
            (SFTTrainer, SFTConfig),
            network,
            tokenizer,
            tokens.blocks(config.max_length),
            dataset_kwargs={"skip_prepare_dataset": True},
        )
    network = adapters.merged(trainer.model, model)
    after = _perplexities(Generator(network.eval(), tokenizer), probes, config.max_length)
    checkpoints.save(model, network, tokenizer, like=base_model)
    replayed = tokens.counts["general_characters"]
    return {
        "cpt/loss": training.final_loss(trainer.state.log_history),
        "cpt/trained_tokens": float(trainer.state.log_history[-2].get("num_tokens", tokens.num_tokens * config.epochs)),
        "cpt/replay_fraction": replayed / (replayed + tokens.counts["domain_characters"]),
        **{f"cpt/{name}_perplexity_before": value for name, value in before.items()},
        **{f"cpt/{name}_perplexity_after": value for name, value in after.items()},
    }


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
    shards: Shards, tokenizer: Any, config: CptConfig, found: Marks | None, domain_characters: int
) -> Iterator[Encoded]:
    """The tokens of all domain documents, then of general ones in stored order until they make up `replay_share` of all
    characters."""

    def training_texts(*, of_general: bool) -> Iterator[str]:
        wanted = config.replay_share / (1 - config.replay_share) * domain_characters if of_general else math.inf
        for text, general, held_out in _documents(shards, config.validation_share):
            if wanted <= 0:
                return
            if general == of_general and not held_out:
                wanted -= len(text)
                yield text

    kinds = {"domain_characters": False, "general_characters": True}
    batches = (
        (kind, batch)
        for kind, of_general in kinds.items()
        for batch in token_shards.in_batches(training_texts(of_general=of_general))
    )
    yield from map_ordered(functools.partial(_encode, tokenizer, config, found), batches)


def _encode(tokenizer: Any, config: CptConfig, found: Marks | None, batch: tuple[str, list[str]]) -> Encoded:
    kind, texts = batch
    rows = token_shards.whole_texts(tokenizer, texts)
    if found:
        rows = [infilled(ids, config.infilling_share, found, config.seed) for ids in rows]
    return token_shards.encoded([(ids, None) for ids in rows], {kind: sum(map(len, texts))})


def _perplexities(generator: Generator, probes: dict[str, list[str]], max_length: int) -> dict[str, float]:
    """Perplexity per token of each named set of texts that is not empty."""
    found: dict[str, Any] = {}
    for name, texts in probes.items():
        scores = generator.log_likelihood(texts, max_length=max_length)
        tokens = sum(count for _, count in scores)
        if tokens:
            found[name] = math.exp(-sum(nats for nats, _ in scores) / tokens)
    return found
