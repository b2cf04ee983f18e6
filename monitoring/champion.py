"""The served champion: loaded from the registry, and followed when its alias moves; or a checkpoint, with adapters."""

from __future__ import annotations

import logging
import math
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bloomery.components.core import artifact, repository_code
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import BloomeryError, ConfigError, ModelError
from bloomery.components.core.modelling import adapter_folders, checkpoints
from bloomery.components.core.registry import registry
from bloomery.components.core.repository_code import Consent
from bloomery.monitoring.engine import Row, Served, decode
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.monitoring.vllm_engine import VllmModel

logger = logging.getLogger(__name__)


class Champion:
    """The champion of a registered model; `served` is replaced as a whole, so whoever took it can finish with it.

    An adapter belongs to the weights that it was trained on, so a champion that is served with adapters is not followed
    by another, and no more is a model that is served in its place.
    """

    def __init__(
        self,
        name: str,
        config: ServingConfig,
        adapters: Mapping[str, Path] | None = None,
        base: Path | None = None,
        consents: Sequence[Consent] = (),
    ) -> None:
        """Load the champion of `name`, or the checkpoint `base` in its place, with `adapters` by their names, and run
        code of the model's own repository that the recipe `consents` to.

        Raises: ConfigError if there is no champion, or an adapter has the model's name; ModelError if it does not load
        or an adapter does not fit; ServiceError if the registry is away; MissingExtraError if vLLM is asked for and not
        installed.
        """
        self.adapters: dict[str, Served] = {}
        """What answers with an adapter, by the adapter's name."""
        self.problem = ""
        """Why the champion of the registry is not the one served, or where its aliases and its record differ, or ''."""
        self._name = name
        self._config = config
        self._consents = consents
        self._stopping = threading.Event()
        if base is None:
            found = registry.alias(name, registry.CHAMPION)
            if found is None:
                raise ConfigError(
                    f"{name}: no champion to serve; run the recipe first, promote a version with `bloomery models "
                    "promote`, or give the --workdir of its runs"
                )
            self.served, *others = load(name, str(found.version), found.source, config, adapters, consents=consents)
        else:
            whose = {"consents": consents, "is_registered": False}
            self.served, *others = load(name, base.name, str(base), config, adapters, **whose)
        self.adapters = {served.name: served for served in others}
        if base is None:
            threading.Thread(target=self._follow, name="champion", daemon=True).start()

    def close(self) -> None:
        """Follow the alias no more."""
        self._stopping.set()

    def _follow(self) -> None:
        while not self._stopping.wait(self._config.poll_seconds):
            problem = ""
            try:
                self._look()
                problem = registry.differences(self._name)
            except BloomeryError as error:
                problem = str(error)
            except Exception as error:  # whatever keeps a new champion from loading, the old one goes on
                problem = f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"
            if problem and problem != self.problem:
                logger.error("version %s is still served: %s", self.served.version, problem)
            self.problem = problem

    def _look(self) -> None:
        found = registry.alias(self._name, registry.CHAMPION)
        if found is None:
            raise ConfigError(f"{self._name}: the registry names no champion any more")
        if str(found.version) != self.served.version:
            if self.adapters:
                raise ConfigError(
                    f"version {found.version} is champion, and {', '.join(self.adapters)} belong to the weights that "
                    "are served; start the server again, with adapters of that version"
                )
            (served,) = load(self._name, str(found.version), found.source, self._config, consents=self._consents)
            logger.info("%s: version %s follows version %s", self._name, served.version, self.served.version)
            self.served = served


def load(
    name: str,
    version: str,
    source: str,
    config: ServingConfig,
    adapters: Mapping[str, Path] | None = None,
    *,
    consents: Sequence[Consent] = (),
    is_registered: bool = True,
) -> list[Served]:
    """The checkpoint at `source` (a folder, or a store's URI), then what answers with each of `adapters` on it, loaded
    and proven by a first token each. Of one that is not registered what its seal says of a consent counts for nothing.

    Raises: ConfigError if an adapter has the model's name; ModelError if it does not load, has code that the recipe
    does not consent to, or an adapter does not fit or answers with what is no number; MissingExtraError if vLLM is
    asked for and not installed.
    """
    if taken := {name, f"{name}:{version}"} & set(adapters or {}):
        raise ConfigError(f"--adapter {min(taken)}: that is the name of the model itself; give the adapter another")
    given = [(f"--adapter {key}={path}", path) for key, path in (adapters or {}).items()]
    given = [(label, adapter_folders.found(label, path)) for label, path in given]
    names = adapter_folders.names(len(given))
    folder = Path(source.removeprefix("file://"))
    with tempfile.TemporaryDirectory(prefix="bloomery-champion-") as copy:
        if not folder.is_dir():
            folder = Path(copy) / "model"
            checkpoints.fetch(source, folder)
        is_sealed = (folder / artifact.MANIFEST).is_file()
        if is_sealed:
            _warn_of_other_bases(given, folder)
        if is_registered:
            repository_code.allow_registered(f"{name}, {source}", folder, consents)
        else:
            repository_code.allow_read(folder, consents)
        if config.engine == "vllm":
            if repository_code.is_allowed(folder):
                raise ModelError(
                    f"{name}, {source}: vLLM runs apart, where code of the model's own repository is not run; set "
                    "serving.engine: transformers"
                )
            checkpoints.check(folder)
            for label, path in given:
                adapter_folders.check_low_rank(label, path)
                if not is_sealed:
                    logger.warning("%s has no manifest that would tell whether %s was trained on it", folder, label)
            tokenizer = checkpoints.load_tokenizer(folder)
            placed = [(key, path.absolute()) for key, (_, path) in zip(names, given, strict=True)]
            model: Any = VllmModel(folder, tokenizer, config.vllm_arguments, placed)
        else:
            model, tokenizer = checkpoints.load(folder, on=checkpoints.device())
            if given:
                model = adapter_folders.attached(model, given, f"{name}:{version}")
            for key, (label, path) in zip(names, [] if is_sealed else given, strict=False):
                if path.name == adapter_folders.FOLDER and adapter_folders.is_on_other_weights(model, key, path.parent):
                    told = "%s was trained on other weights than those in %s: its answers are not those measured"
                    logger.warning(told, label, folder)
        served = [Served(model, tokenizer, name, version, "" if given else None)]
        served += [Served(model, tokenizer, key, version, own) for key, own in zip(adapters or {}, names, strict=True)]
        for one in served:
            first = Row(one, one.prompt_tokens(chat("?")), max_new_tokens=1)
            if config.engine == "vllm":
                model.answer(first)
            else:
                decode([first])
                if not all(map(math.isfinite, first.log_probabilities)):
                    raise ModelError(f"{one.name}, on {source}: some weights are no numbers, and so are its answers")
    return served


def _warn_of_other_bases(given: list[tuple[str, Path]], folder: Path) -> None:
    """Tell of adapters whose step, where it has a manifest, started from another model than the sealed one in
    `folder`."""
    own = artifact.read_manifest(folder).digest
    for label, path in given:
        trained_on = adapter_folders.base_of(path) or own
        if trained_on != own:
            logger.warning(
                "%s was trained on the model %s, and %s is served: its answers are not those that were measured",
                label,
                trained_on[:12],
                own[:12],
            )
