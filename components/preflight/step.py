"""Preflight: everything from outside enters here, is checked in seconds, and is fingerprinted.

The steps after this one see artifacts alone, so that what they can reuse follows from content, and a mistake in
the recipe, a missing file, an unusable base model or an unreachable registry ends the run before any time is spent
on training.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

from bloomery.components.core import artifact, errors, uploads
from bloomery.components.core.artifact import Writes
from bloomery.components.core.data import chat_forms, render
from bloomery.components.core.data.files import list_files
from bloomery.components.core.data.tables import SourceConfig, read_source
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import BloomeryError, DataError
from bloomery.components.core.extras import need_bitsandbytes
from bloomery.components.core.modelling import optimisers
from bloomery.components.core.records import Indexed, Source, content_id
from bloomery.components.core.registry import registry
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.preflight.memory import warn_of_memory
from bloomery.components.preflight.models import (
    follow_shapes,
    take_base_model,
    take_champion,
    take_encoder,
    take_outside,
)
from bloomery.components.preflight.questions import render_tasks

logger = logging.getLogger(__name__)


@declare(reuse=False, secrets=("HF_TOKEN",))
def run(
    config: PreflightConfig,
    *,
    sources: Annotated[Path, Writes("source/1")],
    tasks: Annotated[Path, Writes("tasks/1")],
    seeds: Annotated[Path, Writes("chat/2")],
    known: Annotated[Path, Writes("index/1")],
    encoder: Annotated[Path, Writes("encoder/1")],
    outside: Annotated[Path, Writes("models/1")],
    base_model: Annotated[Path, Writes("model/1")],
    start: Annotated[Path, Writes("model/1")],
    champion: Annotated[Path, Writes("model/1")],
    champion_version: Annotated[Path, Writes("registry/1")],
) -> dict[str, float]:
    """Check what the recipe names and write it as artifacts.

    Writes:  sources (the files to read, with digests), tasks (every question of every task, with the verifiers'
             databases), seeds (their training questions with the answers, as chats: domain, safety, then general),
             known (the index of documents that an earlier run kept; empty if there is none), encoder
             (dedup's; empty if there is none), outside (the models and adapters that stages name, each in a folder of
             its own), base_model, start (the checkpoint that training starts from), champion (the registered
             champion's; empty if there is none) and champion_version.
    Returns: preflight/files, preflight/bytes, preflight/prompts, preflight/seeds, preflight/lost_<task> (rows that
             ask nothing, each counted once), preflight/base_model_bytes, preflight/too_long_fraction,
             preflight/too_long_pair_fraction, preflight/too_long_fraction_<task>.<set> (see `take_base_model`).
    Raises:  DataError for missing files, unusable rows, and a source without a chat or of which every chat is too long;
             ModelError for a base model without safetensors, chat template or EOS; ConfigError for a registry that
             could not take the models of `models_uri`; MissingExtraError for a package that a training would lack;
             ServiceError for a hub, store or registry that does not answer; one error lists every problem found.
    """
    if "://" in config.chat_template:
        config = config.model_copy(update={"chat_template": str(uploads.fetched(config.chat_template))})
    problems: list[BloomeryError] = []
    facts: dict[str, float] = {}
    for part in (
        lambda: facts.update(_list_sources(config, sources)),
        lambda: facts.update(render_tasks(config, tasks, seeds)),
        lambda: _take_index(config.known_index, known),
        lambda: take_encoder(config, encoder),
        lambda: take_outside(config, outside),
        lambda: facts.update(take_base_model(config, base_model, tasks)),
        lambda: warn_of_memory(config, base_model),
        lambda: _check_extras(config),
        lambda: registry.check_store(config.models_uri),
        lambda: take_champion(config, base_model, start, champion, champion_version),
        lambda: follow_shapes(config, start, outside),
    ):
        try:
            part()
        except BloomeryError as error:
            problems.append(error)
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in errors.FULL:
                break  # each part that writes would tell the same
    if problems:
        raise type(problems[0])("\n".join(str(problem) for problem in problems))
    return facts


def _check_extras(config: PreflightConfig) -> None:
    """What a training would lack is told here, and not when all before it is done. What is for an accelerator may
    run in another image."""
    for name, training in config.trainings.items() if not config.on_accelerator else ():
        if training.optimizer in optimisers.OF_BITSANDBYTES:
            need_bitsandbytes(f"{name}.optimizer: {training.optimizer}")
        if training.adapter and training.adapter.kind == "qlora":
            need_bitsandbytes(f"{name}.adapter.kind: qlora")


def _list_sources(config: PreflightConfig, target: Path) -> dict[str, float]:
    rows, problems = [], []
    for source in config.inputs:
        try:
            files = list_files(source.path)
            if isinstance(source, SourceConfig):
                _check_text(source, files)
            else:
                is_pairs = source in config.preference_sources
                read_pair = chat_forms.pair_reader(config.pair_kinds)
                chat_forms.check_source(source, read_pair if is_pairs else chat_forms.read_chat)
        except DataError as error:
            problems.append(str(error))
            continue
        for uri in files:
            size, sha256 = _fingerprint(uri)
            rows.append({"uri": uri, "name": source.name, "bytes": size, "sha256": sha256})
    if problems:
        raise DataError("\n".join(problems))
    artifact.write_rows(target, "source/1", Source.table(rows))
    return {"preflight/files": float(len(rows)), "preflight/bytes": float(sum(row["bytes"] for row in rows))}


def _check_text(source: SourceConfig, files: list[str]) -> None:
    """A template that fits no row of local files is told here: as a rule their first row is all that is read."""
    template, where = render.template(source.text), f"data_curation: the source {source.name}"
    for row in read_source(source.model_copy(update={"limit": None}), files, where, [source.text]):
        if "://" in row.uri or (row.value is not None and not template.fill(row.value).problem):
            return


def _fingerprint(uri: str) -> tuple[int, str]:
    """(bytes, sha256) of a local file; for a store, its size and the digest of what the store says identifies the
    content."""
    if "://" not in uri:
        path = Path(uri)
        return path.stat().st_size, artifact.file_digest(path)
    import fsspec

    system, path = fsspec.core.url_to_fs(uri)
    entry = system.info(path)
    identity = {
        key: str(entry.get(key)) for key in ("ETag", "etag", "size", "LastModified", "version_id") if entry.get(key)
    }
    return int(entry.get("size") or 0), content_id(uri, json.dumps(identity, sort_keys=True))


def _take_index(source: str, target: Path) -> None:
    if source:
        folder = uploads.fetched(source)
        artifact.read_manifest(folder, "index/1")
        artifact.link_tree(folder, target)
    else:
        artifact.write_rows(target, "index/1", Indexed.table([]))
