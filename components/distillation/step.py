"""Distillation: a model learns what a larger one thinks of every token of the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact, tracking
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import batches, checkpoints, context, costs, named_models, templates, training
from bloomery.components.core.modelling.fine_tuning import fine_tune, labelled_rows
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.core.scoring.validation import scorer
from bloomery.components.distillation.config import DistillationConfig
from bloomery.components.distillation.teaching import PROJECTIONS, Lessons, measured, taught_by

NUM_PROBES = 200
"""Validation chats by which student and teacher are compared before and after."""


@declare(accelerator=True)
def run(
    config: DistillationConfig,
    *,
    chats: Annotated[Path, Reads("chat/2")],
    tasks: Annotated[Path, Reads("tasks/1")],
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
    outside: Annotated[Path | None, Reads("models/1", optional=True)] = None,
    teacher: Annotated[Path | None, Reads("model/1", optional=True, named=True)] = None,
) -> dict[str, float]:
    """Train `base_model`, the student, on `chats` by what the teacher says of their answers or of its own.

    Reads:   chats, tasks (validation chats, and texts that are read whole, as sft does), base_model; the teacher by its
             name in `config`: teacher (a stage's model) or outside (models/1)
    Writes:  model (as base_model, with other weights)
    Returns: distillation/loss and validation_loss (per token, as `config` weighs them), chats, texts, trained_tokens,
             too_long, too_long_fraction, without_loss, best_step as of sft; and of the answers of validation chats
             distillation/kl_before and kl_after (nats a token, of the teacher from the student), agreement_before and
             agreement_after (share of tokens that both find likeliest); of teacher and student what costs.py measures,
             the teacher's as distillation/parent_….
    Raises:  ModelError if teacher and student have not the same tokens, or one of them is not made as it has to be;
             ConfigError if rows may be longer than the positions that the teacher knows; DataError as sft;
             DivergedError before a non-finite step is taken.
    """
    from transformers import GenerationConfig

    (folder,) = named_models.located(config, (teacher,), outside).values()
    network, tokenizer = training.load(config, base_model)
    checkpoints.check_template(tokenizer, base_model)
    large, theirs = checkpoints.load(folder, on=checkpoints.device())
    named = config.teacher.stage or config.teacher.model
    checkpoints.check_same_tokens("distillation", tokenizer, theirs, named)
    if _have_same_weights(base_model, folder):
        raise ModelError(
            f"distillation.teacher: {named} has the weights of the student, which learns nothing from itself; name a "
            "larger or a better model"
        )
    if config.max_length > (known := context.positions(large.config)):  # the student's are held against the rows
        raise ConfigError(
            f"distillation: max_length is {config.max_length} and the teacher {named} knows {known} positions "
            f"(max_position_embeddings); set distillation.max_length to at most {known}"
        )
    if config.packing:
        batches.check_packs(large)
    known = Tasks(tasks)
    watched, pad = known.validation_chats(config.tasks), templates.pad_token(tokenizer)
    probes = labelled_rows(config, tokenizer, watched[:NUM_PROBES], "distillation")
    if network.device != large.device:  # the trainer would move it there
        network.to(large.device)
    before = measured(network, large, probes, pad) if probes else {}
    published = network.generation_config
    # What the student answers itself is its own: no penalty and no nucleus of the published settings comes between.
    ends = templates.end_tokens(tokenizer, published)
    network.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=pad, suppress_tokens=published.suppress_tokens
    )
    lessons = Lessons(config, large)
    network, metrics = fine_tune(
        config,
        network,
        tokenizer,
        chats=chats,
        texts=known.texts_to_read(config.tasks, is_general=False),
        replayed=known.texts_to_read(config.tasks, is_general=True),
        watched=watched,
        where="distillation",
        beside=model,
        score=scorer(known, tokenizer, config.tasks, config.best_questions, "distillation"),
        taught=taught_by(lessons),
        keepers=[lessons],
    )
    if hasattr(network, PROJECTIONS):
        delattr(network, PROJECTIONS)
    network.generation_config = published
    after = measured(network, large, probes, pad) if probes else {}
    checkpoints.save(model, network, tokenizer, like=base_model)
    tracking.show("parent", config.teacher.stage)
    return {
        **{f"distillation/{name}": value for name, value in metrics.items()},
        **costs.compared("distillation", folder, model, Generator(large, theirs)),
        **{f"distillation/{name}_before": value for name, value in before.items()},
        **{f"distillation/{name}_after": value for name, value in after.items()},
    }


def _have_same_weights(one: Path, other: Path) -> bool:
    """Whether the files of weights hold the same bytes."""
    ours, theirs = (checkpoints.weight_files(folder) for folder in (one, other))
    if sorted(file.stat().st_size for file in ours) != sorted(file.stat().st_size for file in theirs):
        return False
    return sorted(map(artifact.file_digest, ours)) == sorted(map(artifact.file_digest, theirs))
