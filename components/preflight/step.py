"""Preflight: everything from outside enters here, is checked in seconds, and is fingerprinted.

The steps after this one see artifacts alone, so that what they can reuse follows from content, and a mistake in
the recipe, a missing file, an unusable base model or an unreachable registry ends the run before any time is spent
on training.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact
from bloomery.components.core.artifact import Writes
from bloomery.components.core.config import digest, parameters
from bloomery.components.core.data import render
from bloomery.components.core.data.chats import Turn, as_text, identity, without_system
from bloomery.components.core.data.tables import SourceConfig, list_files, read_source
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import BloomeryError, DataError, ModelError, ServiceError
from bloomery.components.core.modelling import checkpoints, inspection, proof, templates
from bloomery.components.core.records import Chat, Indexed, Prompt, Source, content_id
from bloomery.components.core.registry import registry
from bloomery.components.core.scoring import lm_eval_tasks
from bloomery.components.core.scoring.tasks import (
    TRAINING_SPLITS,
    Perturbation,
    SplitConfig,
    TaskConfig,
    Tasks,
    answered,
    ask,
    is_evaluation,
)
from bloomery.components.core.scoring.verify import (
    REFUSAL_REFERENCES,
    extract,
    extract_reference,
    normalise,
    pattern_problem,
    verify,
)
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.preflight.perturb import perturb

logger = logging.getLogger(__name__)

NUM_PROVEN = 200
"""Chats on which preflight proves which tokens are trained; fine-tuning proves them all."""


@declare(reuse=False)
def run(
    config: PreflightConfig,
    *,
    sources: Annotated[Path, Writes("source/1")],
    tasks: Annotated[Path, Writes("tasks/1")],
    seeds: Annotated[Path, Writes("chat/2")],
    known: Annotated[Path, Writes("index/1")],
    encoder: Annotated[Path, Writes("encoder/1")],
    base_model: Annotated[Path, Writes("model/1")],
    start: Annotated[Path, Writes("model/1")],
    champion: Annotated[Path, Writes("model/1")],
    champion_version: Annotated[Path, Writes("registry/1")],
) -> dict[str, float]:
    """Check what the recipe names and write it as artifacts.

    Writes:  sources (the files to read, with digests), tasks (every question of every task, with the verifiers'
             databases), seeds (their training questions with the answers, as chats: domain, safety, then general),
             known (the index of documents that an earlier run kept; empty if there is none), encoder
             (dedup's; empty if there is none), base_model, start (the checkpoint that training starts from), champion
             (the registered champion's; empty if there is none) and champion_version.
    Returns: preflight/files, preflight/bytes, preflight/prompts, preflight/seeds, preflight/lost_<task> (rows that
             ask nothing, each counted once), preflight/base_model_bytes.
    Raises:  DataError for missing files and unusable rows, ModelError for a base model without safetensors, chat
             template or EOS, ConfigError for a registry that could not take the models of `models_uri`, ServiceError
             for a hub, store or registry that does not answer; one error lists every problem found.
    """
    problems: list[BloomeryError] = []
    facts: dict[str, float] = {}
    for part in (
        lambda: facts.update(_list_sources(config, sources)),
        lambda: facts.update(_render_tasks(config, tasks, seeds)),
        lambda: _take_index(config.known_index, known),
        lambda: _take_encoder(config, encoder),
        lambda: facts.update(_take_base_model(config, base_model, tasks)),
        lambda: registry.check_store(config.models_uri),
        lambda: _take_champion(config, base_model, start, champion, champion_version),
    ):
        try:
            part()
        except BloomeryError as error:
            problems.append(error)
    if problems:
        raise type(problems[0])("\n".join(str(problem) for problem in problems))
    return facts


def _list_sources(config: PreflightConfig, target: Path) -> dict[str, float]:
    rows = []
    for source in (*config.sources, *config.chat_sources):
        files = list_files(source.path)
        if isinstance(source, SourceConfig):
            _check_text(source, files)
        for uri in files:
            size, sha256 = _fingerprint(uri)
            rows.append({"uri": uri, "name": source.name, "bytes": size, "sha256": sha256})
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


def _render_tasks(config: PreflightConfig, target: Path, seeds: Path) -> dict[str, float]:
    rows: list[dict[str, Any]] = []
    dropped: Counter[str] = Counter()
    lost: dict[str, float] = {}
    seen: set[tuple[str, str, str]] = set()
    stored: dict[str, Any] = {}
    target.mkdir(parents=True, exist_ok=True)
    for name, task in config.tasks.items():
        attached = _attach(name, task, target / "files")
        stored[name] = parameters(attached)
        problems: dict[tuple[str, int], str] = {}  # of a row that several splits read, once
        for split in task.splits:
            for row in _ask(name, task, split, problems):
                key = (name, task.counted_to(split), row["id"])
                if key in seen:
                    dropped["repeated"] += 1
                    continue
                seen.add(key)
                rows.append(row)
        dropped += _tell_lost(name, problems)
        lost[f"preflight/lost_{name}"] = float(len(problems))
        _self_check(name, attached, [row for row in rows if row["task"] == name], target / "files")
    # A training row that asks what an evaluation set asks would make that set measure memory.
    asked = {_asked(row) for row in rows if is_evaluation(row["split"])} - {""}
    kept = []
    for row in rows:
        if not is_evaluation(row["split"]) and _asked(row) in asked:
            dropped["in_evaluation_set"] += 1
        else:
            kept.append(row)
    derived = [
        {**row, "split": f"{row['split']}+{kind}", "messages": messages}
        for row in kept
        if is_evaluation(row["split"])
        for kind in config.tasks[row["task"]].perturbations
        if (messages := _perturbed(row, kind)) != row["messages"]
    ]
    num_seeds = _write_seeds(config, kept, seeds)
    artifact.write_atomically(target / "tasks.json", json.dumps(stored, ensure_ascii=False, indent=1, sort_keys=True))
    if config.lm_eval_tasks:
        lm_eval_tasks.take(config.lm_eval_tasks, target)
    # tasks/1 holds prompt/2 rows beside its other files, so it is sealed over the prompts' manifest.
    prompts = artifact.write_rows(
        target,
        "prompt/2",
        Prompt.table(kept + derived),
        rows_in=len(rows) + dropped.total() - dropped["in_evaluation_set"],
        rows_made=len(derived),
        dropped=dropped,
    )
    artifact.seal(
        target,
        "tasks/1",
        rows=prompts.rows,
        rows_in=prompts.rows_in,
        rows_made=len(derived),
        dropped=prompts.dropped,
    )
    if dropped:
        logger.info("rows of tasks left out: %s", dict(dropped))
    return {"preflight/prompts": float(prompts.rows), "preflight/seeds": float(num_seeds), **lost}


def _write_seeds(config: PreflightConfig, rows: list[dict[str, Any]], target: Path) -> int:
    """The training questions that have an answer as chats; returns their number."""
    chats = [
        {
            "id": row["id"],
            "messages": answered(row),
            "tools": row["tools"],
            "task": row["task"],
            "origin": "replay" if role == "general" else "seed",
            "parent": row["id"],
        }
        for role in ("domain", "safety", "general")
        for row in rows
        if row["split"] == "train" and row["messages"] and config.tasks[row["task"]].role == role
    ]
    artifact.write_rows(target, "chat/2", Chat.table(chats), rows_in=0, rows_made=len(chats))
    return len(chats)


def _tell_lost(name: str, problems: dict[tuple[str, int], str]) -> Counter[str]:
    """How many rows of a task ask nothing, by reason; with a warning that names the first."""
    if problems:
        logger.warning("tasks.%s: %d rows are lost: %s", name, len(problems), _told(problems))
    return Counter(problems.values())


def _told(problems: dict[tuple[str, int], str]) -> str:
    """How many rows ask nothing, by reason, and the first of them."""
    (uri, line), reason = next(iter(problems.items()))
    counts = ", ".join(f"{count} {reason}" for reason, count in Counter(problems.values()).most_common())
    return f"{counts}; the first is {uri}{f' row {line}' if line else ''}, {reason}"


def _ask(name: str, task: TaskConfig, split: str, problems: dict[tuple[str, int], str]) -> list[dict[str, Any]]:
    """The prompt/2 rows of a split, every row in every phrasing; adds to `problems` why a (file, line) asks nothing.

    Raises: DataError if the split is empty, or a template names a field that the rows lack.
    """
    source = task.splits[split]
    whole = task.counted_to(split)
    group = task.group if source.group is None else source.group
    where = f"tasks.{name}.splits.{split}"
    found: list[dict[str, Any]] = []
    here: dict[tuple[str, int], str] = {}
    phrasings = source.templates or task.templates
    texts = [text for phrasing in phrasings for text in (phrasing.system, phrasing.prompt, phrasing.answer)]
    # Results are told by group; rows to learn from, such as served questions, need none.
    group = group if is_evaluation(whole) else ""
    for raw in read_source(source, list_files(source.path), where, [*texts, group]):
        if raw.value is None:
            here[raw.uri, raw.line] = raw.problem
            continue
        for template in phrasings:
            question, told = ask(template, raw.value), render.template(group).fill(raw.value)
            if problem := question.problem or told.problem:
                here[raw.uri, raw.line] = problem
                continue
            found.append(
                {
                    "id": content_id(name, identity(question.messages, question.tools), question.reference),
                    "task": name,
                    "split": whole,
                    "messages": question.messages,
                    "tools": question.tools,
                    "reference": question.reference,
                    "group": told.text,
                }
            )
    if not found:
        told = _told(here) if here else "no row is meant"
        raise DataError(f"{where}: no usable row in {source.path}: {told}; check `where`, `share` and the file")
    problems |= here
    return found


def _asked(row: dict[str, Any]) -> str:
    """What a row asks, for comparison: its turns but the system's."""
    return normalise(as_text(without_system(row["messages"])), ignore_case=True)


def _perturbed(row: dict[str, Any], kind: Perturbation) -> list[Turn]:
    """The messages of a row, the last user turn harder to read."""
    at = max(index for index, turn in enumerate(row["messages"]) if turn["role"] == "user")
    turn = row["messages"][at]
    harder = {**turn, "content": perturb(turn["content"], kind, row["id"])}
    return [*row["messages"][:at], harder, *row["messages"][at + 1 :]]


def _take_index(source: str, target: Path) -> None:
    if source:
        artifact.read_manifest(Path(source), "index/1")
        artifact.link_tree(Path(source), target)
    else:
        artifact.write_rows(target, "index/1", Indexed.table([]))


def _attach(name: str, task: TaskConfig, folder: Path) -> TaskConfig:
    """`task` as later steps read it: its verifier's databases copied into `folder` and named by their file there, its
    splits without the place of their rows, so that the same rows elsewhere are the same task."""
    names = []
    for path in task.verifier.databases:
        for uri in list_files(path):
            folder.mkdir(parents=True, exist_ok=True)
            names.append(f"{name}-{len(names)}{Path(uri).suffix}")
            shutil.copyfile(uri, folder / names[-1])
    verifier = task.verifier.model_copy(update={"databases": names})
    splits = {
        split: SplitConfig(path="", templates=source.templates, joins=source.joins)
        for split, source in task.splits.items()
    }
    return task.model_copy(update={"verifier": verifier, "splits": splits})


def _self_check(name: str, task: TaskConfig, rows: list[dict[str, Any]], folder: Path) -> None:
    """A reference that its own verifier refuses would be counted as a wrong answer of every model."""
    if task.verifier.kind == "perplexity":
        return
    if task.verifier.kind == "regex":
        for row in rows:
            if problem := pattern_problem(row["reference"]):
                raise DataError(
                    f"tasks.{name}.splits.{row['split']}: the reference {row['reference'][:120]!r} is no regular "
                    f"expression ({problem}); the verifier `regex` takes references as patterns"
                )
        return
    if task.verifier.kind == "refusal":
        for row in rows:
            found, is_asked = row["reference"].strip(), is_evaluation(row["split"])
            if is_asked != (found in REFUSAL_REFERENCES):
                expected = "`refuse` or `answer`" if is_asked else "what the model is to say"
                raise DataError(
                    f"tasks.{name}.splits.{row['split']}: found the reference {found[:120]!r}, expected {expected}; "
                    "check its templates"
                )
        return
    for row in [row for row in rows if row["split"] == "train"][:50]:
        if extract(task.verifier, row["reference"]) is None:
            raise DataError(
                f"tasks.{name}.splits.train: verifier.extract finds no answer in what the model is to learn to say, so "
                f"it would be scored wrong: {row['reference'][-120:]!r}; check templates and {task.verifier.extract!r}"
            )
    databases = [folder / database for database in task.verifier.databases]
    plain = task.verifier.model_copy(update={"extract": ""})
    sample = [row for row in rows if row["split"] not in TRAINING_SPLITS][:50] or rows[:50]
    for row in sample:
        wanted = extract_reference(task.verifier, row["reference"])
        score, reason = verify(plain, wanted, wanted, databases)
        if score < 1.0:
            raise DataError(
                f"tasks.{name}: the verifier refuses a reference answer ({reason}): {row['reference'][:120]!r}; "
                f"check tasks.{name}.verifier against tasks.{name}.templates"
            )


def _take_base_model(config: PreflightConfig, target: Path, tasks: Path) -> dict[str, float]:
    source = checkpoints.named("base_model", config.base_model, config.revision)
    checkpoints.check(source, to_train=True, has_chats=not config.chat_template)
    size = checkpoints.num_bytes(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    wanted = config.min_free_bytes + 10 * size
    if free < wanted:
        raise ServiceError(
            f"{target.parent}: {free:,} bytes free on the disk, {wanted:,} are wanted (preflight.min_free_bytes "
            f"and ten times the "
            "base model); free some space or choose another --workdir"
        )
    artifact.link_tree(source, target)
    (target / artifact.MANIFEST).unlink(missing_ok=True)
    facts = _looked_at(target, artifact.seal(target, "model/1").digest, source, config.chat_template, tasks)
    for what in facts["supplied"]:
        logger.info("base_model: supplied is %s", what)
    inspection.supply(target, config.chat_template, facts["end_ids"])
    (target / artifact.MANIFEST).unlink()
    artifact.seal(target, "model/1")
    return {"preflight/base_model_bytes": float(size)}


def _looked_at(model: Path, model_digest: str, source: Path, chat_template: str, tasks: Path) -> dict[str, Any]:
    """The facts of `inspection.look`, remembered beside the finished results: loading a tokenizer takes long.

    Raises: ModelError with every reason to refuse the model.
    """
    store = os.environ.get("BLOOMERY_STORE")
    given = Path(chat_template).read_text(encoding="utf-8") if Path(chat_template).is_file() else chat_template
    code = [artifact.file_digest(Path(module.__file__)) for module in (checkpoints, inspection, proof, templates)]
    asked = artifact.read_manifest(tasks, "tasks/1").digest if (tasks / artifact.MANIFEST).is_file() else ""
    key = digest([model_digest, given, asked, *code])
    passed = Path(store) / "preflight" / f"{key[:24]}.json" if store else None
    if passed is not None and passed.is_file():
        return json.loads(passed.read_text(encoding="utf-8"))
    facts = inspection.look(model, chats=_training_chats(tasks), chat_template=chat_template)
    if facts["refused"]:
        raise ModelError("\n".join(f"{source}: {reason.removeprefix(f'{model}: ')}" for reason in facts["refused"]))
    if passed is not None:
        passed.parent.mkdir(parents=True, exist_ok=True)
        artifact.write_atomically(passed, json.dumps(facts, ensure_ascii=False))
    return facts


def _training_chats(tasks: Path) -> list[tuple[list[dict[str, Any]], str]]:
    """The first chats of the `train` splits, on which the template is proven before anything is trained."""
    if not (tasks / artifact.MANIFEST).is_file():  # one of the problems that are told
        return []
    known = Tasks(tasks)
    rows = [row for row in known.prompts("train") if not known.is_scored_by_likelihood(row.task)]
    return [(answered(vars(row)), row.tools) for row in rows[:NUM_PROVEN]]


def _take_encoder(config: PreflightConfig, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if config.encoder:
        source = checkpoints.named("dedup.semantic.encoder", config.encoder, config.encoder_revision)
        artifact.link_tree(source, target)
        (target / artifact.MANIFEST).unlink(missing_ok=True)
    artifact.seal(target, "encoder/1")


def _take_champion(
    config: PreflightConfig, base_model: Path, start: Path, champion: Path, champion_version: Path
) -> None:
    """The champion's checkpoint, or an empty artifact; its version, against which a promotion is later compared; and
    what training starts from: the champion's parent, or the base model."""
    name = config.registered_model
    version = registry.alias(name, registry.CHAMPION) if registry.available() else None
    champion.mkdir(parents=True, exist_ok=True)
    if version is not None:
        _fetch(version.source, champion)
    artifact.seal(champion, "model/1")
    started_from = ""
    if config.start_from == "champion" and version is not None:
        parent = version.tags.get(registry.PARENT)
        if parent is None:
            raise ModelError(
                f"start_from: version {version.version} of {name}, the champion, was registered without its parent "
                "before quantisation; train from the base model once (`--set start_from=base`)"
            )
        _fetch(parent, start)
        started_from = str(version.version)
    elif base_model.is_dir():  # else it is one of the problems that are told
        artifact.link_tree(base_model, start)
    facts = {
        "registered_model": name,
        "champion_version": str(version.version) if version else None,
        "started_from": started_from,
    }
    champion_version.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(champion_version / "champion.json", json.dumps(facts))
    artifact.seal(champion_version, "registry/1")


def _fetch(uri: str, target: Path) -> None:
    """The registered checkpoint at `uri`, without the model card and MLflow's files beside the weights, which are not
    of the checkpoint, whose digest has to stay."""
    checkpoints.fetch(uri, target)
    listed = {*artifact.read_manifest(target, "model/1").files, artifact.MANIFEST}
    for file in target.iterdir():
        if file.is_file() and file.name not in listed:
            file.unlink()
