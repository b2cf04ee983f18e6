"""What is wrong with a recipe's `trust_remote_code`, and with what it does to models that are code of their own
repository; nothing of that code is run to tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bloomery.components.core import repository_code
from bloomery.components.core.repository_code import CHAMPION
from bloomery.components.preflight.config import PreflightConfig
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.pipelines.chain import Stage


def problems(
    outside: PreflightConfig, stages: Sequence[Stage], variants: Sequence[QuantisationConfig], serving: ServingConfig
) -> Iterator[str]:
    """A line for each consent that fits no model which the recipe takes from `outside`, and for each of the others that
    a model with code cannot pass."""
    taken = [(outside.base_model, outside.revision), (outside.encoder, outside.encoder_revision)]
    taken += [(named.model, named.revision) for named in outside.outside]
    taken = [(name, revision) for name, revision in taken if name]
    for one in outside.trust_remote_code:
        if problem := _unfit(one.model, one.revision, taken):
            yield f"trust_remote_code: {one.model}: {problem}"
    adopted = [stage.reshaping.adopted.model for stage in stages if stage.reshaping and stage.reshaping.adopted]
    trained = {outside.base_model, *adopted} & {one.model for one in outside.trust_remote_code}
    if not trained:
        return
    yield from (f"quantisation: {told}" for variant in variants if (told := variant.takes_no_code))
    for stage in stages:
        if "reward_model/1" in stage.writes.values():
            yield f"stages.{stage.name}: a reward model of {min(trained)} is code of its own repository; leave it out"
    if serving.engine == "vllm":
        yield "serving.engine: vllm runs apart, where code of a model's repository is not run; set transformers"


def _unfit(model: str, revision: str, taken: Sequence[tuple[str, str]]) -> str:
    """Why a consent fits none of the models that are `taken`, by name and revision, or ''."""
    is_digest = len(revision) == 64
    if model == CHAMPION:
        return "" if is_digest else "give the sha256 over its code, which preflight tells"
    revisions = sorted({known for name, known in taken if name == model})
    if not revisions:
        names = ", ".join(dict.fromkeys(name for name, _ in taken))
        return f"no model that the recipe takes from outside; these are {names}, and {CHAMPION}, the registered one"
    if Path(model).is_dir():
        code = repository_code.digest_of(Path(model))
        if not code:
            return "the folder has no code (*.py); leave the entry out"
        told = f"found {revision}, and the code (*.py) in the folder is {code}; read it, and write `revision: {code}`"
        return "" if revision == code else told
    if "://" in model or model.startswith(("/", ".", "~")):
        return "" if is_digest else "give the sha256 over the code (*.py) in the folder, which preflight tells"
    if revision not in revisions:
        return (
            f"found {revision}, and the recipe takes it at {' and '.join(revisions)}; give the commit that was read "
            "(40 hex digits) here, and as the model's `revision`"
        )
    return ""
