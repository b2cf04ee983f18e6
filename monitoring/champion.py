"""The served champion: loaded from the registry, and followed when its alias moves."""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path
from typing import Any

from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import BloomeryError, ConfigError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.registry import registry
from bloomery.monitoring.engine import Row, Served, decode
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.monitoring.vllm_engine import VllmModel

logger = logging.getLogger(__name__)


class Champion:
    """The champion of a registered model; `served` is replaced as a whole, so whoever took it can finish with it."""

    def __init__(self, name: str, config: ServingConfig) -> None:
        """Load the champion of `name`.

        Raises: ConfigError if there is none, ModelError if it does not load, ServiceError if the registry is away;
        MissingExtraError if vLLM is asked for and not installed.
        """
        found = registry.alias(name, registry.CHAMPION)
        if found is None:
            raise ConfigError(
                f"{name}: no champion to serve; run the recipe first, promote a version with `bloomery models "
                "promote`, or give the --workdir of its runs"
            )
        self.served = load(name, found, config)
        self.problem = ""
        """Why the champion of the registry is not the one served, or where its aliases and its record differ, or ''."""
        self._name = name
        self._config = config
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="champion", daemon=True)
        self._thread.start()

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
            served = load(self._name, found, self._config)
            logger.info("%s: version %s follows version %s", self._name, served.version, self.served.version)
            self.served = served


def load(name: str, found: Any, config: ServingConfig) -> Served:
    """The registry's version `found`, loaded and proven by a first token.

    Raises: ModelError if it does not load; MissingExtraError if vLLM is asked for and not installed.
    """
    folder = Path(found.source.removeprefix("file://"))
    with tempfile.TemporaryDirectory(prefix="bloomery-champion-") as copy:
        if not folder.is_dir():
            folder = Path(copy) / "model"
            checkpoints.fetch(found.source, folder)
        if config.engine == "vllm":
            checkpoints.check(folder)
            tokenizer = checkpoints.load_tokenizer(folder)
            model: Any = VllmModel(folder, tokenizer, config.vllm_arguments)
        else:
            model, tokenizer = checkpoints.load(folder, on=checkpoints.device())
        served = Served(model, tokenizer, name, str(found.version))
        first = Row(served, served.prompt_tokens(chat("?")), max_new_tokens=1)
        if config.engine == "vllm":
            model.answer(first)
        else:
            decode([first])
    return served
