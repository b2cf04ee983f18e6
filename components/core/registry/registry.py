"""The model registry: the versions of a model, and which of them is champion.

Aliases: `candidate` is the newest version that was promoted, `champion` the one to serve, `previous` the champion
before it, to which a rollback returns. How one changes so that of many at once exactly one wins: `succession`.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from typing import Any

from bloomery.components.core import pipeline_run
from bloomery.components.core.errors import ConfigError, GateError, ModelError
from bloomery.components.core.registry import succession
from bloomery.components.core.registry.mlflow_client import all_pages, connect, or_none, service
from bloomery.components.core.registry.succession import Standing

CANDIDATE, CHAMPION, PREVIOUS = succession.CANDIDATE, succession.CHAMPION, succession.PREVIOUS
PARENT = "parent"
"""Tag of a version: URI of the checkpoint as it was before quantisation, which training can go on from."""
MAX_DESCRIPTION = 5000
"""Characters of a description that MLflow's database holds."""


def available() -> bool:
    """True if a tracking server or database is configured (`MLFLOW_TRACKING_URI`)."""
    return bool(os.environ.get("MLFLOW_TRACKING_URI"))


def check_store(models_uri: str) -> None:
    """Raise ConfigError if the registry is a server and `models_uri` a folder of this machine.

    MLflow's server takes a folder as a version's source only inside the artifacts of a run.
    """
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    is_folder = "://" not in models_uri or models_uri.startswith("file:")
    if server.startswith(("http://", "https://")) and is_folder:
        raise ConfigError(
            f"promotion.models_uri: the registry at {server} is a server and takes no folder of this machine "
            f"({models_uri}); give a store that both reach, such as s3://models"
        )


def alias(name: str, which: str) -> Any | None:
    """The model version that `which` points to, or None; ModelError if that version was deleted."""
    with service():
        client = connect()
        model, standing = succession.read(client, name)
        version = {**model.aliases, **standing.aliases}.get(which) if model else None
        if version is None:
            return None
        found = or_none(lambda: client.get_model_version(name, str(version)))
        if found is None:
            raise ModelError(
                f"{name}: {which} is version {version}, which was deleted from the registry; make another one the "
                f"champion: `bloomery models promote {name} VERSION`"
            )
        return found


def champion(name: str) -> str | None:
    """Number of the version that is champion, whether or not it still exists; None if there was none."""
    with service():
        return succession.read(connect(), name)[1].champion


def differences(name: str) -> str:
    """Where MLflow's aliases of `name` differ from its record, and what to do; '' where they do not."""
    with service():
        return succession.differences(connect(), name)


def versions(name: str | None = None) -> list[dict[str, Any]]:
    """Every version of one registered model or of all: name, version, aliases (of the record), source, tags, and
    `differs`, where MLflow's aliases of the model say something else; newest first."""
    with service():
        client = connect()
        found = []
        # Records have no versions, so they do not show.
        entries = all_pages(client.search_model_versions, filter_string=f"name = '{name}'" if name else None)
        for model_name in sorted({entry.name for entry in entries}):
            model, standing = succession.read(client, model_name)
            pointing = {**model.aliases, **standing.aliases} if model else {}
            differs = succession.differences(client, model_name)
            found += [
                {
                    "name": entry.name,
                    "version": str(entry.version),
                    "aliases": sorted(key for key, version in pointing.items() if str(version) == str(entry.version)),
                    "source": entry.source,
                    "tags": dict(entry.tags),
                    "differs": differs,
                }
                for entry in sorted(entries, key=lambda entry: -int(entry.version))
                if entry.name == model_name
            ]
        return found


def card(name: str, which: str) -> str:
    """The model card of a version, given by number or alias: the README.md beside its weights, or where that cannot
    be read its description, which holds the first 5,000 characters.

    Raises: ConfigError if there is no such version.
    """
    if which.isdigit():
        with service():
            entry = or_none(lambda: connect().get_model_version(name, which))
    else:
        entry = alias(name, which)
    if entry is None:
        raise ConfigError(f"{name}: no version {which}; see `bloomery models list {name}`")
    import fsspec

    try:
        with fsspec.open(f"{entry.source.rstrip('/')}/README.md", encoding="utf-8", mode="rt") as stream:
            return stream.read()
    except Exception:  # each store has errors of its own, for credentials and for what is not there
        return entry.description or f"{name} version {entry.version}: no model card was written for it"


def register(name: str, source: str, tags: dict[str, str], description: str = "") -> str:
    """The version of `name` for the checkpoint at the URI `source`, with `tags` and `description`.

    A version of this source that is there already, because an earlier attempt died after it, is taken and told anew.
    Raises: ConfigError if a remote registry is given a folder of this machine.
    """
    check_store(source)
    with service():
        client = connect()
        succession.create(client, name)
        told = description if len(description) <= MAX_DESCRIPTION else description[: MAX_DESCRIPTION - 1] + "…"
        same = [entry for entry in client.search_model_versions(f"name = '{name}'") if entry.source == source]
        if same:
            version = str(max(int(entry.version) for entry in same))
            client.update_model_version(name, version, told)
            for key, value in tags.items():
                client.set_model_version_tag(name, version, key, value)
            return version
        return str(_create_version(client, name, source, tags, told).version)


def recipe_digest() -> str:
    """Digest of the recipe that the pipeline run in MLflow was started with; '' outside of one."""
    run = os.environ.get(pipeline_run.PARENT)
    with service():
        return connect().get_run(run).data.tags.get("recipe_digest", "") if run else ""


def promote(
    name: str, version: str, *, expected_champion: str | None, why: str, kind: str = "promote", verdict: str = ""
) -> None:
    """Make `version` the champion, and the old champion `previous`.

    `kind` ("promote" by the gate, "manual" by a person), `why` and the digest of the `verdict` go into the record.
    Raises: GateError if the champion is no longer `expected_champion`, the version that the decision was taken
            against; it says who changed it, when and why.
    """

    def decide(now: Standing) -> Standing:
        if now.champion == version:  # an attempt that lost its answer is made again
            return replace(now, candidate=version)
        if now.champion != expected_champion:
            raise GateError(
                f"{name}: the champion is version {now.champion}, but this decision was taken against "
                f"{expected_champion}; another promotion came first ({now.told or 'no record of it'}): evaluate again"
            )
        return replace(now, champions=(*now.champions, version)[-succession.MAX_CHAMPIONS :], candidate=version)

    with service():
        succession.change(name, decide, kind, why, verdict)


def rollback(name: str, why: str = "rollback by hand") -> tuple[str, str]:
    """Return to the champion before the present one; (old champion, new champion).

    A second rollback goes one further back, never forward to what was rolled back from. Deleted versions are passed
    over. Raises: GateError if there is no earlier champion.
    """

    def is_gone(version: str) -> bool:
        return or_none(lambda: client.get_model_version(name, version)) is None

    def decide(now: Standing) -> Standing:
        line = now.champions[:-1]
        while line and is_gone(line[-1]):
            line = line[:-1]
        if not line:
            have = "no previous version" if now.champions else "no champion"
            raise GateError(f"{name}: {have}, so there is nothing to roll back to; see `bloomery models audit {name}`")
        return replace(now, champions=line)

    with service():
        client = connect()
        before, after = succession.change(name, decide, "rollback", why)
    return str(before.champion), str(after.champion)


def audit(name: str) -> list[dict[str, str]]:
    """Every change of champion, newest first: number, kind, from, to, who, when, why, verdict (digest), run."""
    with service():
        return [
            {
                "number": str(succession.number_of(record)),
                "when": succession.when(record),
                **{key: record.tags.get(key, "") for key in ("kind", "from", "to", "who", "why", "verdict", "run")},
            }
            for record in succession.records(connect(), name)
        ]


def _create_version(client: Any, name: str, source: str, tags: dict[str, str], description: str) -> Any:
    """A new version. MLflow numbers versions by trial and gives up after three; many at once need more."""
    for attempt in range(10):
        try:
            run = os.environ.get(pipeline_run.PARENT)
            return client.create_model_version(name, source, run_id=run, tags=tags, description=description)
        except Exception as error:
            if attempt == 9 or "Giving up after" not in str(error):
                raise
            time.sleep(random.uniform(0, 0.1 * 2 ** min(attempt, 4)))
    raise AssertionError("the loop returns or raises")
