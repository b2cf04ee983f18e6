"""The code of a model's own repository (`*.py`, named by `auto_map` in its config.json), and whether it may be run.

transformers runs such code where it is told `trust_remote_code`: here, where a recipe consents to it by the model's
name and revision. Preflight, where models enter, holds the code against the recipe and seals into the model's artifact
what was consented to; a step believes what its inputs have sealed, if their code is still the same. What a process may
run it knows by the digest of the code and not by the folder, so that a folder that brings a seal of its own is trusted
no more than another.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import field_validator

from bloomery.components.core import artifact
from bloomery.components.core.config import Config, ModelName, digest
from bloomery.components.core.errors import ModelError

CONSENT = "code_consent.json"
"""The file of a model's artifact that says which consent its code has."""
CHAMPION = "champion"
"""The name of the registered model's champion among the models that a recipe consents to the code of."""
COMMIT = r"[0-9a-f]{40}"
DIGEST = r"[0-9a-f]{64}"

_allowed: set[str] = set()
"""Digests of the code that this process may run."""


class Consent(Config):
    """Code of a model's repository that may be run."""

    model: ModelName
    """A model from outside as the recipe names it elsewhere: `base_model`, an encoder, a model of a stage; or
    `champion`, the registered one, where its code is that of none of these."""
    revision: str
    """Of a hub's model: the commit (40 hex digits), which is also the `revision` that the recipe takes it at. Of a
    folder and the champion: the sha256 over the code (64 hex digits), which `bloomery check` and preflight tell where
    they refuse it."""

    @field_validator("revision")
    @classmethod
    def _stands_for_one_code(cls, revision: str) -> str:
        if not re.fullmatch(f"{COMMIT}|{DIGEST}", revision):
            raise ValueError(
                "expected the commit of a hub's model (40 hex digits), or of a folder the sha256 over its code (64): "
                "what a branch or a tag names may change after it was read"
            )
        return revision


class Sealed(Consent):
    """What stands in CONSENT."""

    code: str
    """Digest of the code that lies beside it."""


def digest_of(folder: Path) -> str:
    """Hex sha256 over names and bytes of all `*.py` in a model's folder; '' where there are none."""
    files = {file.relative_to(folder).as_posix(): artifact.file_digest(file) for file in sorted(folder.rglob("*.py"))}
    return digest(files) if files else ""


def is_allowed(folder: Path) -> bool:
    """Whether this process may run the code in `folder`."""
    return bool(_allowed) and digest_of(folder) in _allowed and not _elsewhere(folder)


def allowed(folder: Path) -> dict[str, bool]:
    """What transformers' loaders are told about the code in `folder`: without it they would ask on a terminal."""
    if is_own := is_allowed(folder):
        _modules()
    return {"trust_remote_code": is_own}


@functools.cache
def _modules() -> tempfile.TemporaryDirectory[str]:
    """The folder of this process out of which transformers imports code: its own lies in HF_HOME, which may be
    read-only (`--runner docker`) and which others may write to."""
    from transformers import dynamic_module_utils

    folder = tempfile.TemporaryDirectory(prefix="bloomery-")
    dynamic_module_utils.HF_MODULES_CACHE = folder.name
    return folder


def is_asked(error: Exception) -> bool:
    """Whether transformers refused because it was not told to run code."""
    return "trust_remote_code" in str(error)


def refusal(folder: Path, what: str) -> str:
    """Why `what` of the model in `folder` is not to be had without its code, and what to do about it."""
    return (
        f"{what} is code in the model's repository (auto_map), and trust_remote_code is off: such code is run only "
        f"where a recipe consents to it by name and revision; read it, and {_advice(folder)}; or take a model whose "
        "architecture is part of transformers, or a conversion of this one"
    )


def _advice(folder: Path) -> str:
    if name := _on_hub(folder):
        return (
            f"write `trust_remote_code: [{{model: {name}, revision: {folder.name}}}]` into the recipe, and "
            f"`revision: {folder.name}` beside where it names the model"
        )
    if code := digest_of(folder):
        return f"write `trust_remote_code: [{{model: {folder}, revision: {code}}}]` into the recipe"
    return f"lay it (*.py) into {folder}, where there is none"


def causal_class(folder: Path, config: Any) -> Any:
    """The class of the causal language model in `folder`, whose transformers' config is `config`."""
    from transformers import AutoModelForCausalLM
    from transformers.dynamic_module_utils import get_class_from_dynamic_module
    from transformers.models.auto.auto_factory import _get_model_class

    own = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    if own and allowed(folder)["trust_remote_code"]:
        return get_class_from_dynamic_module(own, folder)
    return _get_model_class(config, AutoModelForCausalLM._model_mapping)


def admit(key: str, name: str, folder: Path, consents: Sequence[Consent]) -> None:
    """Let this process run the code in `folder`, of the model that `key` of the recipe names `name`, if the recipe has
    a consent to it.

    Raises: ModelError if its consent is to other code, or the code is not all there.
    """
    wanted = [one.revision for one in consents if one.model == name]
    if not wanted:
        return
    code = digest_of(folder)
    if not code:
        raise ModelError(f"{key}: {name} has no code (*.py); take it out of trust_remote_code")
    if (found := _revision(name, folder)) not in wanted:
        raise ModelError(
            f"{key}: trust_remote_code consents to the code of {name} at {' and '.join(wanted)}, and found is "
            f"{found}: it is other code; read it, and write `revision: {found}` there, or take the model that was read"
        )
    if elsewhere := _elsewhere(folder):
        raise ModelError(
            f"{key}: auto_map of {name} names code of another repository, {elsewhere[0]}, whose revision nothing holds "
            f"fast; lay that code into a folder with the model, and leave `{elsewhere[0].partition('--')[0]}--` out"
        )
    _allowed.add(code)


def _revision(name: str, folder: Path) -> str:
    """Of a hub's model the commit, by which its cache calls the folder; else the digest of its code."""
    return folder.name if _on_hub(folder) == name else digest_of(folder)


def _on_hub(folder: Path) -> str:
    """The hub's model whose folder in the hub's cache this is (`models--org--name/snapshots/COMMIT`), or ''."""
    repository = folder.parent.parent.name
    is_cached = repository.startswith("models--") and re.fullmatch(COMMIT, folder.name)
    return repository.removeprefix("models--").replace("--", "/", 1) if is_cached else ""


def _elsewhere(folder: Path) -> list[str]:
    """Classes, as `org/name--file.Class`, that a model takes from another repository."""
    found: list[str] = []
    for file in (folder / "config.json", folder / "tokenizer_config.json"):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # what is wrong with it is told elsewhere
            for given in json.loads(file.read_text(encoding="utf-8")).get("auto_map", {}).values():
                found += [one for one in (given if isinstance(given, list) else [given]) if "--" in (one or "")]
    return found


def seal(name: str, source: Path, target: Path, consents: Sequence[Consent]) -> None:
    """Write into `target`, the model `name` out of `source`, which consent its code has, in the place of what it says
    itself. What `admit` refuses comes not so far."""
    (target / CONSENT).unlink(missing_ok=True)
    found = next((one for one in consents if (one.model, one.revision) == (name, _revision(name, source))), None)
    if found:
        sealed = Sealed(model=name, revision=found.revision, code=digest_of(target))
        artifact.write_atomically(target / CONSENT, sealed.model_dump_json(indent=1))
        _allowed.add(sealed.code)


def carry(source: Path, target: Path) -> None:
    """Give the checkpoint `target`, made of that in `source`, the same code and consent; transformers writes of the
    code what it has imported."""
    if not (source / CONSENT).is_file():
        return
    for file in target.rglob("*.py"):
        file.unlink()
    for file in (*source.rglob("*.py"), source / CONSENT):
        copy = target / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


@contextlib.contextmanager
def believing(artifacts: Iterable[Path]) -> Iterator[None]:
    """Run inside what the `artifacts`, which preflight or a step has written, say that was consented to.

    Raises: ModelError if the code in one is no longer the same.
    """
    before = set(_allowed)
    try:
        for folder in artifacts:
            _allowed.update(sealed.code for sealed in _sealed(folder))
        yield
    finally:
        _allowed.clear()
        _allowed.update(before)


def allow_read(folder: Path, consents: Sequence[Consent]) -> None:
    """Let this process run the code in `folder`, wherever it comes from, if there is a consent to its digest."""
    _allowed.update({digest_of(folder)} & {one.revision for one in consents})


def allow_registered(where: str, folder: Path, consents: Sequence[Consent]) -> None:
    """Let this process run the code of the registered model in `folder`, which `where` names, if it has any and the
    recipe consents to it: to its digest, or to the name and revision that were sealed when it came in.

    Raises: ModelError if the recipe does not, or the code is no longer that which was sealed.
    """
    allow_read(folder, consents)
    for sealed in _sealed(folder):
        is_named = any((one.model, one.revision) == (sealed.model, sealed.revision) for one in consents)
        if not is_named and sealed.code not in _allowed:
            raise ModelError(
                f"{where}: the model runs code of its own, that of {sealed.model} at {sealed.revision}, and the recipe "
                f"does not consent to it; read it, and add {{model: {CHAMPION}, revision: {sealed.code}}} to "
                "trust_remote_code"
            )
        _allowed.add(sealed.code)


def _sealed(folder: Path) -> Iterator[Sealed]:
    """The consents in an artifact. Raises: ModelError if one is not as it was sealed, or the code is other code."""
    for name, entry in artifact.read_manifest(folder).files.items():
        file = folder / name
        if file.name != CONSENT:
            continue
        try:
            sealed = Sealed.model_validate_json(file.read_bytes())
        except ValueError:
            raise ModelError(f"{file}: not a consent as preflight writes it; run preflight again") from None
        if artifact.file_digest(file) != entry.sha256 or digest_of(file.parent) != sealed.code:
            raise ModelError(
                f"{file.parent}: its code (*.py) is not that which the recipe consented to: found "
                f"{digest_of(file.parent) or 'none'}, expected {sealed.code}; run preflight again"
            )
        yield sealed
