"""How the champion of a registered model changes: one change after the other, whoever asks, whatever dies.

MLflow's aliases are set, never compared and set: of two promotions at once both would succeed. So the truth is a line
of records, one for each change, and the aliases follow it. A record is a registered model without versions, named
`<model>.promotion-<number>`. Every database that MLflow runs on refuses a second registered model of one name, so of
all the changes that were decided on record n, exactly one becomes record n + 1; the others read again and find
another champion. Its tags hold the whole outcome (the champions in their order, the candidate) and who, when and why:
it is the lock, the log and the audit record in one write. A process or server that dies before the aliases are set
has made the change; readers here go by the record, and the next change sets the aliases right.
"""

from __future__ import annotations

import getpass
import itertools
import logging
import os
import socket
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bloomery.components.core import pipeline_run
from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.components.core.registry.mlflow_client import all_pages, connect, is_code, or_none, service

logger = logging.getLogger(__name__)

CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"
RECORD_OF = "bloomery.promotion_of"
"""Tag of a record: the registered model that it belongs to."""
MAX_CHAMPIONS = 500
"""Champions that a record remembers: so many rollbacks are possible, and the tag stays short."""


@dataclass(frozen=True)
class Standing:
    """What the newest record says of a registered model."""

    number: int
    """Of the newest record; 0: none yet."""
    champions: tuple[str, ...]
    """Versions that were champion, up to the present one; a rollback takes the last one off."""
    candidate: str | None
    told: str = ""
    """Who made this so, when and why."""

    @property
    def champion(self) -> str | None:
        """The version to serve."""
        return self.champions[-1] if self.champions else None

    @property
    def aliases(self) -> dict[str, str | None]:
        """The version that each alias has to point to."""
        previous = self.champions[-2] if len(self.champions) > 1 else None
        return {CHAMPION: self.champion, PREVIOUS: previous, CANDIDATE: self.candidate}


def change(
    name: str, decide: Callable[[Standing], Standing], kind: str, why: str, verdict: str = ""
) -> tuple[Standing, Standing]:
    """(standing before, after) the change that `decide` makes; decided again where another change came first."""
    client, token = connect(), uuid.uuid4().hex
    while True:
        model, before = read(client, name)
        after = decide(before)
        if after == before:
            settle(client, name)
            return before, after
        if model is None:
            raise ConfigError(f"{name}: no registered model of this name; see `bloomery models list`")
        facts = {
            RECORD_OF: name,
            "model_created": str(model.creation_timestamp),
            "token": token,
            "kind": kind,
            "from": before.champion or "",
            "to": after.champion or "",
            "champions": " ".join(after.champions),
            "candidate": after.candidate or "",
            "who": _who(),
            "why": why[:2000],
            "verdict": verdict,
            "run": os.environ.get(pipeline_run.PARENT, ""),
        }
        if not create(client, f"{name}.promotion-{before.number + 1:06d}", facts):
            continue
        try:
            with service():
                settle(client, name)
        except ServiceError as error:
            logger.warning("%s: changed, but its aliases will follow with the next change: %s", name, error)
        return before, after


def settle(client: Any, name: str) -> None:
    """Set the aliases as the newest record says.

    It reads again after it wrote, until both agree: a slow writer may have put an older champion back.
    """
    gone: set[str | None] = set()
    for attempt in itertools.count():
        model, standing = read(client, name)
        aliases = {key: str(version) for key, version in model.aliases.items()} if model else {}
        wrong = {
            key: version
            for key, version in standing.aliases.items()
            if version != aliases.get(key) and version not in gone
        }
        if not wrong:
            return
        for key, version in wrong.items():
            try:
                if version is None:
                    client.delete_registered_model_alias(name, key)
                else:
                    client.set_registered_model_alias(name, key, version)
            except Exception as error:
                if is_code(error, "RESOURCE_DOES_NOT_EXIST"):
                    gone.add(version)
                # MLflow looks for the alias and then inserts it: of two at once the second one fails.
                elif not is_code(error, "BAD_REQUEST") or attempt == 20:
                    raise


def differences(client: Any, name: str) -> str:
    """Where the aliases in MLflow do not say what the newest record does, '' where they do or there is no record.

    Somebody moved or deleted one by hand, or a promotion died before it had set them. A recorded version that was
    deleted took its aliases along, which is no difference.
    """
    model, standing = read(client, name)
    if model is None or not standing.told:
        return ""
    aliases = {key: str(version) for key, version in model.aliases.items()}

    def exists(version: str) -> bool:
        return or_none(lambda: client.get_model_version(name, version)) is not None

    wrong = [
        f"the alias {key} is {found or 'none'}, in the record it is {version or 'none'}"
        for key, version in standing.aliases.items()
        if (found := aliases.get(key)) != version and (found or (version and exists(version)))
    ]
    if not wrong:
        return ""
    return (
        f"{name}: {'; '.join(wrong)} ({standing.told}). The record holds: `bloomery models promote {name} "
        f"{standing.champion}` sets the aliases by it; to keep what was done by hand, promote that version"
    )


def read(client: Any, name: str) -> tuple[Any | None, Standing]:
    """(registered model or None, its standing): by the newest record, or where there is none by the aliases."""
    model = or_none(lambda: client.get_registered_model(name))
    newest = next(iter(records(client, name, limit=1)), None)
    number = number_of(newest) if newest else 0
    if model is None:
        return None, Standing(number, (), None)
    if newest is None or newest.tags["model_created"] != str(model.creation_timestamp):
        # Records of an older model of this name, which was deleted, say nothing of the versions of this one.
        line = tuple(str(model.aliases[key]) for key in (PREVIOUS, CHAMPION) if key in model.aliases)
        candidate = model.aliases.get(CANDIDATE)
        return model, Standing(number, line, str(candidate) if candidate else None)
    tags = newest.tags
    told = f"{tags['kind']} by {tags['who']}, {when(newest)}: {tags['why']}"
    return model, Standing(number, tuple(tags["champions"].split()), tags["candidate"] or None, told)


def records(client: Any, name: str, limit: int | None = None) -> list[Any]:
    """The records of a registered model, newest first."""
    query = {"filter_string": f"tags.`{RECORD_OF}` = '{name}'", "order_by": ["name DESC"]}
    if limit:
        return list(client.search_registered_models(**query, max_results=limit))
    return all_pages(client.search_registered_models, **query)


def number_of(record: Any) -> int:
    """Of a record: 1 is the first change."""
    return int(record.name.rsplit("-", 1)[1])


def when(record: Any) -> str:
    """When a record was made by the clock of MLflow; ISO 8601, UTC."""
    return datetime.fromtimestamp(record.creation_timestamp / 1000, UTC).isoformat(timespec="seconds")


def _who() -> str:
    """`user@host`; a pod's user may have no name."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def create(client: Any, name: str, tags: dict[str, str] | None = None) -> bool:
    """Create a registered model; False if there is one of this name that another caller made.

    A client that lost the answer asks again, so one that is there may be our own: its token tells.
    """
    try:
        client.create_registered_model(name, tags=tags)
        return True
    except Exception as error:
        if not is_code(error, "RESOURCE_ALREADY_EXISTS"):
            raise
    if tags is None:
        return False
    found = client.get_registered_model(name).tags
    if found.get(RECORD_OF) != tags[RECORD_OF]:
        raise ServiceError(f"{name}: a registered model of this name is no record of a promotion; rename or delete it")
    return found.get("token") == tags["token"]
