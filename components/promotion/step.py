"""Promotion: the gate compares the candidate with the champion, and the registry moves only if every leg passes."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

from bloomery.components.core import artifact, provenance, s3
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.config import digest
from bloomery.components.core.declare import declare
from bloomery.components.core.errors import GateError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.registry import mlmodel, registry
from bloomery.components.core.scoring.statistics import too_few
from bloomery.components.core.scoring.tasks import Tasks
from bloomery.components.promotion import card
from bloomery.components.promotion.config import PromotionConfig
from bloomery.components.promotion.gate import data_legs, judge, limit_legs

logger = logging.getLogger(__name__)


@declare(reuse=False)
def run(
    config: PromotionConfig,
    *,
    model: Annotated[Path, Reads("model/1")],
    tasks: Annotated[Path, Reads("tasks/1")],
    candidate_results: Annotated[Path, Reads("eval_result/2")],
    base_results: Annotated[Path, Reads("eval_result/2")],
    champion_results: Annotated[Path, Reads("eval_result/2")],
    champion: Annotated[Path, Reads("model/1")],
    champion_version: Annotated[Path, Reads("registry/1")],
    parent: Annotated[Path | None, Reads("model/1", optional=True)] = None,
    variants: Annotated[Path | None, Reads("variants/1", optional=True)] = None,
    curated: Annotated[Path | None, Reads("document/2", optional=True)] = None,
    unique: Annotated[Path | None, Reads("document/2", optional=True)] = None,
    duplicates: Annotated[Path | None, Reads("reject/1", optional=True)] = None,
    chats: Annotated[Path | None, Reads("chat/2", optional=True)] = None,
    preferences: Annotated[Path | None, Reads("preference/3", optional=True)] = None,
    verdict: Annotated[Path, Writes("verdict/1")],
) -> dict[str, float]:
    """Judge `model` by its evaluation against that of the champion and of the base; register and promote it if it
    passes.

    A candidate whose content is that of the champion is the champion: nothing is judged, and nothing registered twice.
    One that another promotion overtook since the champion was read stays registered without alias, and is rejected.
    `parent`, the candidate before quantisation, is published beside it: a later training can start from it. Without
    quantisation there is none, nor `variants`, and the candidate is its own parent; `curated`, `unique` and
    `duplicates` are there where documents were curated and deduplicated, `chats` and `preferences` where chat_curation
    read some.
    Writes:  verdict (verdict.json: status, reason, model name, version and aliases, digest of the judgement, every leg
             as in `gate`, and the version that training went on from, or "").
    Returns: promotion/promoted (1 or 0), promotion/legs, promotion/legs_passed.
    Raises:  ServiceError if the registry or the store does not answer, ConfigError if they cannot be used together.
    """
    known = Tasks(tasks)
    results = {
        "candidate": artifact.read_table(candidate_results, "eval_result/2").to_pylist(),
        "base": artifact.read_table(base_results, "eval_result/2").to_pylist(),
        "champion": artifact.read_table(champion_results, "eval_result/2").to_pylist(),
    }
    found = {"curated": curated, "unique": unique}
    manifests = {name: artifact.read_manifest(path) if path else None for name, path in found.items()}
    named = json.loads((champion_version / "champion.json").read_text())
    name, current = named["registered_model"], named["champion_version"]
    candidate = artifact.read_manifest(model).digest
    variant, num_bytes = _chosen(variants), checkpoints.num_bytes(model)
    is_champion = current is not None and artifact.read_manifest(champion).digest == candidate
    legs = []
    if not is_champion:  # against itself a model has no leg to stand on
        legs = [
            *judge(config.gate, known, results["candidate"], results["base"], results["champion"]),
            *limit_legs(config.gate, num_bytes, variant),
            *data_legs(
                config.gate,
                manifests["curated"],
                manifests["unique"],
                artifact.read_manifest(tasks),
                chats=_curated_chats(chats, preferences) if chats and preferences else None,
                copies=_by_source(unique, duplicates) if unique and duplicates else None,
            ),
        ]
    failed = [leg for leg in legs if not leg["passed"]]
    judgement = {"model": name, "candidate_digest": candidate, "champion_version": current, "legs": legs}
    judgement["digest"] = digest(judgement)

    status, version, aliases = "promoted", None, [registry.CANDIDATE, registry.CHAMPION]
    if is_champion:
        version, reason = current, f"the candidate is the champion, version {current}: nothing to do"
    elif failed:
        status, reason = "rejected", "; ".join(leg["reason"] for leg in failed)
    else:
        reason = f"all {len(legs)} legs passed"
        if registry.available():
            lineage = _lineage(model, manifests, base_results, tasks) | {"verdict_digest": judgement["digest"]}
            lineage[registry.PARENT] = checkpoints.publish(parent or model, config.models_uri)
            if named["started_from"]:
                lineage["started_from"] = f"version {named['started_from']}"
            text = card.write(
                config.model_card,
                card.Facts(name, lineage, known, results, legs, **manifests, variant=variant, num_bytes=num_bytes),
            )
            version = _register(name, model, config.models_uri, text, results["candidate"], lineage)
            try:
                registry.promote(name, version, expected_champion=current, why=reason, verdict=judgement["digest"])
            except GateError as overtaken:
                status, reason, aliases = "rejected", str(overtaken), []
    for leg in legs:
        is_of_answers = leg["kind"] == "task" and leg["n"] and " perplexity against " not in leg["name"]
        if is_of_answers and (told := too_few(leg["n"])):
            logger.warning("%s: judged by %s", leg["name"], told)
    logger.info("%s: %s", status, reason)
    registered = {"name": name, "version": version, "aliases": aliases} if version else None
    told = {"status": status, "reason": reason, **judgement, "model": registered, "started_from": named["started_from"]}
    verdict.mkdir(parents=True, exist_ok=True)
    artifact.write_atomically(verdict / "verdict.json", json.dumps(told, indent=1, ensure_ascii=False))
    artifact.seal(verdict, "verdict/1")
    return {
        "promotion/promoted": float(status == "promoted"),
        "promotion/legs": float(len(legs)),
        "promotion/legs_passed": float(len(legs) - len(failed)),
    }


def _curated_chats(chats: Path, preferences: Path) -> Counter[str]:
    """The rows that chat_curation read, by why they were dropped ("": kept); seeds, which it passes on, are none."""
    origins = artifact.Shards(chats, "chat/2").column("origin").to_pylist()
    pairs = artifact.read_manifest(preferences, "preference/3")
    dropped = Counter(artifact.read_manifest(chats).dropped) + Counter(pairs.dropped)
    return dropped + Counter({"": origins.count("given") + pairs.rows})


def _by_source(unique: Path, duplicates: Path) -> dict[str, Counter[str]]:
    """The documents that dedup read, by source and by why they were dropped ("": kept)."""
    kept, removed = artifact.Shards(unique, "document/2"), artifact.Shards(duplicates, "reject/1")
    rows = Counter((place.partition(":")[0], "") for place in kept.column("source").to_pylist())
    reasons = removed.column("reason").to_pylist()
    places = removed.column("source").to_pylist()
    rows.update((place.partition(":")[0], reason) for place, reason in zip(places, reasons, strict=True))
    found: dict[str, Counter[str]] = {}
    for (source, reason), count in rows.items():
        found.setdefault(source, Counter())[reason] = count
    return found


def _chosen(variants: Path | None) -> dict[str, Any]:
    """The row of the variant that was chosen; an empty one if none says so."""
    if variants is None:
        return {}
    rows = json.loads((variants / "variants.json").read_text(encoding="utf-8"))
    return next((row for row in rows if row["chosen"]), {})


def _register(
    name: str, model: Path, models_uri: str, text: str, results: list[dict[str, Any]], lineage: dict[str, str]
) -> str:
    """Publish the checkpoint with its card and MLflow's description beside it; the version it is registered as."""
    source = checkpoints.publish(model, models_uri)
    question = next((row["prompt"] for row in results if row["prompt"]), "")
    weights = checkpoints.weight_files(model)[0].suffix.removeprefix(".")
    _put_beside(source, {"README.md": text, **mlmodel.files(question, weights, lineage)})
    return registry.register(name, source, lineage, text)


def _lineage(
    model: Path, manifests: dict[str, artifact.Manifest | None], base_results: Path, tasks: Path
) -> dict[str, str]:
    """What the candidate was made from and by, as tags of the registered version; what is not known is left out."""
    asked = artifact.read_manifest(tasks)  # written by preflight, whose config names the base model
    base = str(asked.config.get("base_model", ""))
    curated, unique = manifests["curated"], manifests["unique"]
    found = {
        "digest": artifact.read_manifest(model).digest,
        "base_model": Path(base).name if base.startswith("/") else base,
        "base_model_revision": "" if base.startswith("/") else str(asked.config.get("revision", "")),
        "base_model_digest": artifact.read_manifest(base_results).inputs.get("model", ""),
        "sources_digest": curated.inputs.get("sources", "") if curated else "",
        "curated_digest": curated.digest if curated else "",
        "unique_digest": unique.digest if unique else "",
        "tasks_digest": asked.digest,
        "recipe_digest": registry.recipe_digest(),
        "bloomery": artifact.version(),
        "commit": provenance.commit(),
        "image": provenance.image(),
    }
    return {key: value for key, value in found.items() if value}


def _put_beside(uri: str, files: dict[str, str]) -> None:
    """Write `files`, text by name, into the published checkpoint at `uri`.

    Its manifest does not list them, so that the checkpoint keeps the digest of the candidate.
    """
    if "://" not in uri:
        for name, text in files.items():
            artifact.write_atomically(Path(uri) / name, text)
        return
    if uri.startswith(s3.SCHEME):
        for name, text in files.items():
            s3.put_text(f"{uri}/{name}", text)
        return
    import fsspec

    for name, text in files.items():
        with fsspec.open(f"{uri}/{name}", "w", encoding="utf-8") as stream:
            stream.write(text)
