"""Continued pre-training: the base model reads the domain, with a share of general text so that it forgets little."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import DataError
from bloomery.components.core.modelling import checkpoints, training
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.cpt.config import CptConfig


@declare(accelerator=True)
def run(
    config: CptConfig,
    *,
    documents: Annotated[Path, Reads("document/2")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
) -> dict[str, float]:
    """Train `base_model` on `documents` packed into blocks of `max_length` tokens, and write a checkpoint to `model`.

    Returns: cpt/loss (nats per token at the end), cpt/trained_tokens, cpt/replay_fraction, and for held-out documents
             cpt/domain_perplexity_before and _after, cpt/general_perplexity_before and _after.
    Raises:  DataError if no domain document is left to train on; DivergedError before a non-finite step is taken.
    """
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    rows = artifact.read_table(documents, "document/2").to_pylist()
    held_out = {row["id"] for row in rows if int(row["id"][:8], 16) < config.validation_share * 2**32}
    domain = [row["text"] for row in rows if not row["general"] and row["id"] not in held_out]
    general = [row["text"] for row in rows if row["general"] and row["id"] not in held_out]
    if not domain:
        raise DataError(f"cpt: none of the {len(rows)} documents is domain text; check data_curation.sources")
    texts = domain + _replay(domain, general, config.replay_share)

    set_seed(config.seed)
    network, tokenizer = checkpoints.load(base_model)
    probes = {
        name: [row["text"] for row in rows if row["id"] in held_out and row["general"] == (name == "general")][:200]
        for name in ("domain", "general")
    }
    before = _perplexities(Generator(network, tokenizer), probes, config.max_length)
    num_tokens = sum(len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    trainer = SFTTrainer(
        model=network,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"text": texts}),
        peft_config=training.peft_config(config),
        callbacks=training.callbacks(),
        args=SFTConfig(
            packing=True,
            packing_strategy="wrapped",
            **training.arguments(config, num_rows=math.ceil(num_tokens / config.max_length), evaluations=0),
        ),
    )
    trainer.optimizer = training.optimizer(config, trainer.model)
    trainer.train()
    network = training.merged(trainer.model)
    after = _perplexities(Generator(network.eval(), tokenizer), probes, config.max_length)
    checkpoints.save(model, network, tokenizer)
    return {
        "cpt/loss": training.final_loss(trainer.state.log_history),
        "cpt/trained_tokens": float(trainer.state.log_history[-2].get("num_tokens", num_tokens * config.epochs)),
        "cpt/replay_fraction": 1 - sum(map(len, domain)) / sum(map(len, texts)),
        **{f"cpt/{name}_perplexity_before": value for name, value in before.items()},
        **{f"cpt/{name}_perplexity_after": value for name, value in after.items()},
    }


def _replay(domain: list[str], general: list[str], share: float) -> list[str]:
    """General texts, in stored order, until they make up `share` of all characters."""
    wanted = share / (1 - share) * sum(map(len, domain))
    taken: list[str] = []
    for text in general:
        if wanted <= 0:
            break
        taken.append(text)
        wanted -= len(text)
    return taken


def _perplexities(generator: Generator, probes: dict[str, list[str]], max_length: int) -> dict[str, float]:
    """Perplexity per token of each named set of texts that is not empty."""
    found: dict[str, Any] = {}
    for name, texts in probes.items():
        scores = generator.log_likelihood(texts, max_length=max_length)
        tokens = sum(count for _, count in scores)
        if tokens:
            found[name] = math.exp(-sum(nats for nats, _ in scores) / tokens)
    return found
