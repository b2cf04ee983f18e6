"""The models that a run takes from outside: the base model, with what it lacks, those that stages name, the encoder of
dedup and the champion."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import operator
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code, store
from bloomery.components.core.config import digest
from bloomery.components.core.data import chat_forms
from bloomery.components.core.data.chats import ChatSource
from bloomery.components.core.data.raw_rows import RawRow
from bloomery.components.core.data.tables import rows_of
from bloomery.components.core.errors import BloomeryError, DataError, ModelError, ServiceError
from bloomery.components.core.modelling import (
    checkpoints,
    context,
    faults,
    inspection,
    preference_pairs,
    proof,
    rendering,
    reshaping,
    surgery,
    templates,
    wholeness,
)
from bloomery.components.core.modelling.inspection import EvaluationSet
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.registry import registry
from bloomery.components.core.repository_code import Consent
from bloomery.components.core.scoring.tasks import Tasks, answered
from bloomery.components.preflight.config import PreflightConfig

logger = logging.getLogger(__name__)

NUM_PROVEN = 200
"""Chats of the tasks, and of each source, on which preflight proves which tokens are trained and measures how long they
are, and pairs of each source that it measures; training looks at them all."""
MOST_READ = 20_000
"""Rows of each source that they are drawn from: files may be sorted, and all of a large one takes more than seconds."""
TOO_MANY = 0.05
"""Share of rows longer than what takes them above which they are warned of."""


def take_base_model(config: PreflightConfig, target: Path, tasks: Path) -> dict[str, float]:
    """Write the base model to `target`, with the chat template and the ends of turns that it lacks.

    Returns: preflight/base_model_bytes; and shares of the rows looked at, warned of above 5 %: where a stage is
             fine-tuned on chats, preflight/too_long_fraction, of rows with more than its `max_length` tokens; where one
             is trained on the recipe's pairs, preflight/too_long_pair_fraction, the same of them; and where there are
             any, preflight/too_long_fraction_<task>.<set>, of questions without room in the context for an answer.
    Raises:  ModelError with every reason to refuse the model, DataError if a set cannot be evaluated or every chat of a
             source is too long, ServiceError if the disk is too full for a run.
    """
    name, consents = config.base_model, config.trust_remote_code
    source = checkpoints.named("base_model", name, config.revision, consents)
    checkpoints.check(source, to_train=True, has_chats=not config.chat_template)
    size = checkpoints.num_bytes(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    wanted = config.min_free_bytes + 10 * size
    if free < wanted:
        raise ServiceError(
            f"{target.parent}: {free:,} bytes free on the disk, {wanted:,} are wanted ({config.min_free_bytes:,} and "
            "ten times the base model); free some space or choose another --workdir"
        )
    _link(name, source, target, consents)
    facts = _looked_at(config, target, artifact.seal(target, "model/1").digest, source, tasks)
    for what in facts["supplied"]:
        logger.info("base_model: supplied is %s", what)
    inspection.supply(target, config.chat_template, facts["end_ids"])
    (target / artifact.MANIFEST).unlink()
    artifact.seal(target, "model/1")
    return {"preflight/base_model_bytes": float(size), **_tell_lengths(config, facts)}


def _tell_lengths(config: PreflightConfig, facts: dict[str, Any]) -> dict[str, float]:
    """The shares of rows that are too long, each in a line. Raises: DataError if a set cannot be evaluated, or every
    chat of a source is too long."""
    if facts["unfit"]:
        raise DataError("\n".join(facts["unfit"]))
    told = {}
    if count := facts["lengths"]["end_inside"]:
        logger.warning("training leaves out %d chats, such as %s", count, facts["lengths"]["first_end_inside"])
    if config.max_length:
        told["preflight/too_long_fraction"] = _tell_longer(facts["lengths"], "chats")
    if config.pair_max_length and "pair_lengths" in facts:
        told["preflight/too_long_pair_fraction"] = _tell_longer(facts["pair_lengths"], "pairs")
    for found in facts["questions"]:
        if found["over"]:
            told[f"preflight/too_long_fraction_{found['set']}"] = found["over"]
            _tell(
                found["over"],
                f"{found['questions']} questions of {found['set']} looked at have more than the {found['room']} tokens "
                f"that the model's context leaves beside an answer: evaluation.too_long is {config.too_long}",
            )
    return told


def _tell_longer(found: dict[str, Any], rows: str) -> float:
    told = f"{rows} looked at are longer than max_length = {found['max_length']} tokens; the longest have"
    return _tell(found["over"], f"{found[rows]} {told} {found['longest']}")


def _tell(share: float, of_what: str) -> float:
    """Log a share, as a warning where it is large; returns it."""
    logger.log(logging.WARNING if share > TOO_MANY else logging.INFO, "%.1f %% of %s", 100 * share, of_what)
    return share


def _looked_at(config: PreflightConfig, model: Path, model_digest: str, source: Path, tasks: Path) -> dict[str, Any]:
    """The facts of `inspection.look`, remembered beside the finished results: loading a tokenizer takes long.

    Raises: ModelError with every reason to refuse the model.
    """
    named = Path(config.chat_template)
    given = named.read_text(encoding="utf-8") if named.is_file() else config.chat_template
    chats = [*_training_chats(tasks), *_some_of(chat_forms.chats_of, config.chat_sources)]
    pairs = [pair._asdict() for pair in _some_of(chat_forms.pairs_of, config.preference_sources)]
    limits: dict[str, Any] = {
        "max_length": config.max_length,
        "train_on": config.train_on,
        "train_reasoning": config.train_reasoning,
        "most_tokens": config.most_tokens,
        "pair_max_length": config.pair_max_length,
        "pair_kinds": config.pair_kinds,
        "too_long": config.too_long,
    }
    asked = [artifact.read_manifest(tasks).digest, config.limit] if (tasks / artifact.MANIFEST).is_file() else []
    passed = _name_of(model_digest, given, chats, pairs, asked, limits)
    known = store.remembered(passed)
    if known is not None:
        return json.loads(known)
    facts = inspection.look(
        model,
        chats=chats,
        pairs=pairs,
        evaluation_sets=_evaluation_sets(tasks, config.limit),
        files={f"chats: {one.name}: {one.path}": partial(_chats_of, one) for one in config.chat_sources},
        chat_template=config.chat_template,
        **limits,
    )
    if facts["refused"]:
        raise ModelError("\n".join(f"{source}: {reason.removeprefix(f'{model}: ')}" for reason in facts["refused"]))
    if not facts["unfit"]:
        store.remember(passed, json.dumps(facts, ensure_ascii=False))
    return facts


def _name_of(*given: Any) -> str:
    """The name under which the store remembers that what is `given` has passed a check of the code as it is."""
    modules = [checkpoints, context, faults, inspection, preference_pairs, proof, rendering, reshaping, surgery]
    modules += [templates, wholeness]
    code = [artifact.file_digest(Path(module.__file__)) for module in modules]
    return f"preflight/{digest([*given, *code])[:24]}.json"


@contextlib.contextmanager
def _once(*given: Any) -> Iterator[bool]:
    """Whether the check in the context has yet to be made; that it passed is remembered."""
    passed = _name_of(*given)
    is_new = store.remembered(passed) is None
    yield is_new
    if is_new:
        store.remember(passed, "{}")


def _training_chats(tasks: Path) -> list[tuple[list[dict[str, Any]], str]]:
    """Some chats of the `train` splits, on which the template is proven before anything is trained."""
    if not (tasks / artifact.MANIFEST).is_file():  # one of the problems that are told
        return []
    known = Tasks(tasks)
    rows = [row for row in known.prompts("train") if not known.is_scored_by_likelihood(row.task)]
    return [(answered(vars(row)), row.tools) for row in _some(rows)]


def _evaluation_sets(tasks: Path, limit: int | None) -> list[EvaluationSet]:
    """Every evaluation set with questions, of which evaluation asks the first `limit`."""
    if not (tasks / artifact.MANIFEST).is_file():
        return []
    known, found = Tasks(tasks), []
    for name, task in known.configs.items():
        if known.is_scored_by_likelihood(name):
            continue
        rows_of_set: dict[str, list[Any]] = {}
        for row in known.prompts(task=name):
            rows_of_set.setdefault(row.split, []).append(row)
        for split, rows in rows_of_set.items():
            tools = [row.tools for row in rows[:limit]]
            found.append(
                EvaluationSet(f"{name}.{split}", known.conversations(rows[:limit]), tools, task.max_new_tokens)
            )
    return found


def _some_of(read: Callable[[Iterable[RawRow]], Iterator[Any]], sources: Sequence[ChatSource]) -> list[Any]:
    """Some rows that `read` finds in each source, as far as its files can be read: what is wrong with them is told
    elsewhere."""
    found: list[Any] = []
    for source in sources:
        with contextlib.suppress(BloomeryError):
            found += _some(read(rows_of(source)))
    return found


def _some(rows: Iterable[Any]) -> list[Any]:
    """NUM_PROVEN of the first MOST_READ rows in their order, each as likely as another (Vitter 1985, algorithm R)."""
    chance, kept = random.Random(0), []
    for place, row in enumerate(itertools.islice(rows, MOST_READ)):
        if place < NUM_PROVEN:
            kept.append((place, row))
        elif (at := chance.randrange(place + 1)) < NUM_PROVEN:
            kept[at] = (place, row)
    return [row for _, row in sorted(kept, key=operator.itemgetter(0))]


def _chats_of(source: ChatSource) -> Iterator[tuple[list[dict[str, Any]], str]]:
    """The chats of a source, as far as its files can be read."""
    with contextlib.suppress(BloomeryError):
        yield from chat_forms.chats_of(rows_of(source))


def _link(name: str, source: Path, target: Path, consents: Sequence[Consent]) -> None:
    """Make `target` the model `name` in `source` as far as it is loaded, with the consent to its code, not sealed."""
    artifact.link_tree(source, target, ignore=faults.unread)
    (target / artifact.MANIFEST).unlink(missing_ok=True)
    repository_code.seal(name, source, target, consents)


def take_encoder(config: PreflightConfig, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    if config.encoder:
        name, consents = config.encoder, config.trust_remote_code
        source = checkpoints.named("dedup.semantic.encoder", name, config.encoder_revision, consents)
        _link(name, source, target, consents)
    artifact.seal(target, "encoder/1")


def take_outside(config: PreflightConfig, target: Path) -> None:
    """Write the models, or adapters in PEFT's form, that stages name, each under its `folder`."""
    target.mkdir(parents=True, exist_ok=True)
    for named in config.outside:
        source = checkpoints.named("stages", named.model, named.revision, config.trust_remote_code)
        if not (source / "adapter_config.json").is_file():
            checkpoints.check(source, to_train=True, has_chats=False)
        _link(named.model, source, target / named.folder, config.trust_remote_code)
    sealed = artifact.seal(target, "models/1")
    with _once("whole", sealed.digest) as is_new:
        for named in config.outside if is_new else ():
            if not (target / named.folder / "adapter_config.json").is_file():
                _named_rightly(named, target, wholeness.check)


def _named_rightly(named: NamedModel, outside: Path, check: Callable[[Path], None]) -> None:
    """Check a model from outside where it lies. Raises: ModelError that names it as the recipe does."""
    folder = outside / named.folder
    try:
        check(folder)
    except ModelError as error:
        raise ModelError(str(error).replace(str(folder), named.model)) from None


def follow_shapes(config: PreflightConfig, start: Path, outside: Path) -> None:
    """Raise what the stages would that make a model smaller, adopt one or learn from one, of all of them; from configs,
    tokenizers and the heads of weight files alone."""
    is_here = (start / "config.json").is_file() and (outside / artifact.MANIFEST).is_file()
    if not config.reshapings or not is_here:  # which is one of the problems that are told
        return

    asked = [one.model_dump(mode="json") for one in config.reshapings]
    digests = [artifact.read_manifest(folder).digest for folder in (start, outside)]
    with _once("shapes", asked, *digests) as is_new:
        if is_new and (problems := _unfit_shapes(config, start, outside)):
            raise type(problems[0])("\n".join(str(problem) for problem in problems))


def _unfit_shapes(config: PreflightConfig, start: Path, outside: Path) -> list[BloomeryError]:
    problems: list[BloomeryError] = []
    for one in config.reshapings:
        if one.adopted and one.adopted.model:
            try:
                _named_rightly(one.adopted, outside, _check_adopted)
            except ModelError as error:
                problems.append(ModelError(f"{one.stage}: {error}"))
    if problems:
        return problems
    return reshaping.followed(
        config.reshapings, reshaping.opened(start), lambda named: reshaping.opened(outside / named.folder)
    )[1]


def _check_adopted(folder: Path) -> None:
    checkpoints.check(folder, to_train=True)
    checkpoints.check_template(checkpoints.load_tokenizer(folder), folder)


def take_champion(
    config: PreflightConfig, base_model: Path, start: Path, champion: Path, champion_version: Path
) -> None:
    """The champion's checkpoint, or an empty artifact; its version, against which a promotion is later compared; and
    what training starts from: the champion's parent, or the base model."""
    name = config.registered_model
    version = registry.alias(name, registry.CHAMPION) if registry.available() else None
    champion.mkdir(parents=True, exist_ok=True)
    if version is not None:
        _fetch(version.source, champion, config)
    artifact.seal(champion, "model/1")
    started_from = ""
    if config.start_from == "champion" and version is not None:
        parent = version.tags.get(registry.PARENT)
        if parent is None:
            raise ModelError(
                f"start_from: version {version.version} of {name}, the champion, was registered without its parent "
                "before quantisation; train from the base model once (`--set start_from=base`)"
            )
        _fetch(parent, start, config)
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


def _fetch(uri: str, target: Path, config: PreflightConfig) -> None:
    """The registered checkpoint at `uri`, without the model card and MLflow's files beside the weights, which are not
    of the checkpoint, whose digest has to stay. Raises: ModelError if it has code that the recipe consents not to."""
    checkpoints.fetch(uri, target)
    listed = {*artifact.read_manifest(target, "model/1").files, artifact.MANIFEST}
    for file in target.iterdir():
        if file.is_file() and file.name not in listed:
            file.unlink()
    repository_code.allow_registered(f"{config.registered_model}, {uri}", target, config.trust_remote_code)
