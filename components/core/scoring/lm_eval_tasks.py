"""Tasks of the Language Model Evaluation Harness (Gao et al., EleutherAI), beside those of the recipe.

preflight loads each of them once, so that a wrong name, a missing file or an unreachable hub is told before anything
is trained, and leaves in `tasks/1` the user's task files (`lm_eval/<place in the list>/`) and what they are
(`lm_eval.json`), by which evaluations are reused or not. The evaluation loads them from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from bloomery.components.core.config import Config, absolute
from bloomery.components.core.errors import ConfigError, DataError, MissingExtraError, ServiceError

PREFIX = "lm_eval/"
"""Of the task of their eval_result/2 rows, which tells them from the tasks of the recipe."""
FILE = "lm_eval.json"


def _absolute_file(name: str, info: ValidationInfo) -> str:
    return absolute(name, info) if is_task_file(name) else name


class LmEvalConfig(Config):
    """Which tasks of lm-eval are run, and how."""

    tasks: list[Annotated[str, AfterValidator(_absolute_file)]] = Field(min_length=1)
    """Names that lm-eval knows (`kmmlu`, `arc_easy`: tasks, groups or tags, whose data come from the hub), or paths of
    task files in its YAML. A path ends in .yaml; its folder is copied into the run, so it holds the task and its data
    alone, and relative `data_files` are relative to it. Task files may name Python functions, which are run."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Solved examples before each question, but where a task says that it takes none; none: as each task says."""
    limit: int | None = Field(default=None, gt=0)
    """Evaluate at most this many documents of each task, the first; none: all."""
    add_bos_token: bool = True
    """Whether a text begins with what the tokenizer puts there, which is the BOS token where it has one: models that
    were trained with it fall towards chance without it, and the recipe's own perplexities are measured so. A chat
    template that writes BOS itself is not given a second one."""
    apply_chat_template: bool = False
    """Ask through the model's chat template, examples as turns. Published scores of base models are without."""


def harness_version() -> str:
    """Version of the installed lm-eval. Raises: MissingExtraError if there is none."""
    try:
        return version("lm-eval")
    except PackageNotFoundError:
        raise MissingExtraError(
            "evaluation.lm_eval is set, but lm-eval is not installed: pip install 'bloomery[lm-eval]'"
        ) from None


def take(names: list[str], target: Path) -> None:
    """Copy the task files among `names` under `target`, load every task, and write lm_eval.json there: the version of
    lm-eval, and of each task its version, the number of its documents and their digest.

    Raises: MissingExtraError without lm-eval, ConfigError for an unknown task, DataError for one that cannot be
            loaded or gives no score a document, ServiceError if the hub does not answer.
    """
    found: dict[str, Any] = {"lm_eval": harness_version(), "tasks": {}}
    for place, name in enumerate(names):
        if is_task_file(name):
            if not Path(name).is_file():
                raise DataError(f"evaluation.lm_eval.tasks: no file {name}")
            shutil.copytree(Path(name).parent, target / "lm_eval" / str(place))
    for name, task in load(names, target).items():
        if task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise DataError(
                f"evaluation.lm_eval.tasks: {name} measures a perplexity; name a task of the recipe with the verifier "
                "perplexity instead"
            )
        hashed, number = hashlib.sha256(), 0
        for document in task.eval_docs:
            hashed.update(as_json(document).encode())
            number += 1
        found["tasks"][name] = {"version": task.VERSION, "documents": number, "digest": hashed.hexdigest()}
    (target / FILE).write_text(json.dumps(found, indent=1, sort_keys=True), encoding="utf-8")


def load(names: list[str], folder: Path) -> dict[str, Any]:
    """lm-eval's Task of each of `names`, groups in their parts; task files are those that `take` copied to `folder`."""
    from lm_eval.tasks import TaskManager

    loaded: dict[str, Any] = {}
    known = None
    for place, name in enumerate(names):
        try:
            if is_task_file(name):
                file = (folder / "lm_eval" / str(place) / Path(name).name).absolute()
                with contextlib.chdir(file.parent):
                    loaded |= TaskManager(include_defaults=False).load([str(file)])["tasks"]
            else:
                known = known or TaskManager()
                loaded |= known.load([name])["tasks"]
        except KeyError as error:
            raise ConfigError(f"evaluation.lm_eval.tasks: {name}: {error.args[0]}; `lm-eval ls tasks`") from None
        except ConnectionError as error:
            raise ServiceError(f"evaluation.lm_eval.tasks: {name}: {error}") from None
        except (OSError, ValueError) as error:
            raise DataError(f"evaluation.lm_eval.tasks: {name} cannot be loaded: {str(error)[:300]}") from None
    return loaded


def as_json(document: Any) -> str:
    """A document of a task in one form, from which its id is made."""
    return json.dumps(document, ensure_ascii=False, sort_keys=True, default=str)


def is_task_file(name: str) -> bool:
    """True for the path of a task file, False for a name that lm-eval knows."""
    return name.endswith((".yaml", ".yml"))
