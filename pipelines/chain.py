"""The stages of a recipe: how they are written, and which artifact each of them reads.

A stage reads the newest artifact of each schema that its step reads, and what it writes takes that place. Before the
first stage stand what preflight made of the recipe's data and model. A stage goes on from another model than the newest
by `from`, and reads further ones where its config names their stages.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from keyword import iskeyword
from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, model_serializer

from bloomery.components.core.config import Config, parse
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.modelling import named_models
from bloomery.components.core.modelling.adapters import LOW_RANK
from bloomery.components.core.modelling.named_models import START
from bloomery.components.core.modelling.reshaping import Reshaping
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.pipelines import steps

NAMED = re.compile(r"[a-z][a-z0-9_]{0,59}")
"""What names a stage, and so a folder, a parameter of the pipeline, and a task of which Kubeflow Pipelines keeps 128
letters."""
OWN_KEYS = ("as", "from")
"""Keys of an entry of `stages` that are no settings of its step."""
MODEL = "model/1"
GIVEN_BY = {
    "source/1": "a stage with `sources`, such as data_curation",
    "document/2": "a stage data_curation before it",
    "chat/2": "files of `chats`, or a `train` split of a task",
    "preference/3": "files of `preferences`, or a stage rejection_sampling before it",
    "prompt/2": "an `unlabelled` or `train` split of a task",
}
"""What brings data of a schema into a chain, for messages."""


class Stage(Config):
    """One entry of the recipe's `stages`: a step, its settings, and the name of its own that it has if it is used
    twice."""

    step: str
    """Name of the step."""
    name: str
    """Name of the stage: that of the step, or what `as` says."""
    goes_on_from: str = ""
    """The stage whose model it reads as its own, which `from` says, or `start`; empty: the newest."""
    config: SerializeAsAny[Config]
    """Settings of the step."""

    @property
    def declared(self) -> steps.Step:
        """What the step says of itself."""
        return steps.find(self.step)

    @property
    def writes(self) -> dict[str, str]:
        """Schema by output port, without the outputs that these settings leave empty."""
        idle = getattr(self.config, "idle_outputs", set())
        return {port: schema for port, schema in self.declared.writes.items() if port not in idle}

    @property
    def needs(self) -> set[str]:
        """The optional input ports that these settings cannot do without."""
        return getattr(self.config, "needed_inputs", set())

    @property
    def idle(self) -> set[str]:
        """The optional input ports that these settings do not read."""
        return getattr(self.config, "idle_inputs", set())

    @property
    def reshaping(self) -> Reshaping | None:
        """What it does to the shape of the model that it writes; None: it writes none."""
        writes_model = MODEL in self.writes.values()
        return Reshaping.of(self.name, self.goes_on_from, self.config) if writes_model else None

    def inputs(self, newest: Mapping[str, Any], models: Mapping[str, Any]) -> dict[str, Any]:
        """What each of its ports reads, of the `newest` artifact by schema and the `models` by stage."""
        step = self.declared
        known = {**newest, MODEL: models[self.goes_on_from]} if self.goes_on_from else newest
        unread = set() if any(one.model for one in named_models.within(self.config)) else {named_models.OUTSIDE}
        own = {port: schema for port, schema in step.reads.items() if port not in step.named and schema not in unread}
        own = {port: schema for port, schema in own.items() if port not in self.idle}
        found = {port: known[schema] for port, schema in own.items() if schema in known}
        named = zip(step.named, named_models.stages(self.config), strict=False)
        return found | {port: models[stage] for port, stage in named}

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        named = {"as": self.name} if self.name != self.step else {}
        named |= {"from": self.goes_on_from} if self.goes_on_from else {}
        return {self.step: {**named, **self.config.model_dump(mode="json", exclude_none=True)}}


def written(entries: Any) -> tuple[list[tuple[str, str, dict[str, Any]]], list[str]]:
    """(step, name, settings) of each raw entry, `step` or `step: {as: name, setting: …}`, and what is wrong with those
    that have another form. The settings are those of the entry itself where it has any, so that they can be set."""
    if not isinstance(entries, list):
        return [], [f"stages: found {type(entries).__name__}, expected a list of steps such as [sft, dpo]"]
    found, problems = [], []
    for index, entry in enumerate(entries):
        if isinstance(entry, str):
            entry = entries[index] = {entry: {}}
        if not isinstance(entry, dict) or len(entry) != 1:
            told = ", ".join(map(str, entry)) or "nothing" if isinstance(entry, dict) else repr(entry)
            problems.append(
                f"stages.{index}: found {told}; expected a step, or one step with its settings, in braces or on lines "
                "that are indented deeper"
            )
            continue
        ((step, settings),) = entry.items()
        if settings is None:
            settings = entry[step] = {}
        if ":" in str(step):
            problems.append(
                f"stages.{index}: found the text {step!r}; expected a step, then a colon, a space and its settings, "
                "without quotes: sft: {epochs: 1}"
            )
        elif not isinstance(settings, dict):
            problems.append(f"stages.{index}.{step}: found {settings!r}; expected settings such as {{epochs: 1}}")
        else:
            found.append((str(step), str(settings.get("as", step)), settings))
    return found, problems


def read(
    entries: Any, *, seed: int, folder: Path | None = None, absent: dict[str, str] | None = None
) -> list[Stage]:
    """The stages that raw `entries` stand for; `seed` is that of stages which set none, `folder` and `absent` are those
    of `parse`.

    Raises: ConfigError with every problem, each named by its stage.
    """
    stages: list[Stage] = []
    found, problems = written(entries)
    for step, name, settings in found:
        try:
            if step in steps.FRAME:
                raise ConfigError(f"{step}: is no stage: it has a key of its own, at the top of the recipe")
            config = steps.find(step).config
            values = {key: value for key, value in settings.items() if key not in OWN_KEYS}
            if "seed" in config.model_fields:
                values.setdefault("seed", seed)
            own = {"step": step, "name": name, "goes_on_from": str(settings.get("from", ""))}
            stages.append(Stage(**own, config=parse(config, values, where=name, folder=folder, absent=absent)))
        except ConfigError as error:
            problems.append(str(error))
    names = [stage.name for stage in stages]
    unfit = [name for name in names if not NAMED.fullmatch(name)]
    problems += [f"stages: {name} is no name: up to 60 small letters, digits and _ make one" for name in unfit]
    problems += [f"stages: {name} is a word of Python; call the stage otherwise" for name in names if iskeyword(name)]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(
            f"stages: {names.count(name)} stages are named {name}; give each a name of its own, such as "
            f"{{{next(stage.step for stage in stages if stage.name == name)}: {{as: {name}_2}}}}"
        )
    taken = sorted({name for name in names if name in (*steps.FRAME, "base", "champion", START)} | {
        name for name in names if name.startswith(("evaluation_", "ptq_"))
    })
    problems += [f"stages: {name} names something else in every run; call the stage otherwise" for name in taken]
    problems += [
        f"stages: {stage.name} is the name of a step; call the stage {stage.step} otherwise"
        for stage in stages
        if stage.name != stage.step and stage.name in set(steps.names()) - set(steps.FRAME)
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    return stages


def problems(stages: Sequence[Stage], given: Collection[str]) -> Iterator[str]:
    """What is wrong with the order of `stages`, where `given` are the schemas that stand before the first."""
    known = set(given)
    unread: dict[str, str] = {}
    models = [START]
    before: dict[str, Stage] = {}
    for stage in stages:
        step = stage.declared
        yield from _unknown_models(stage, models)
        yield from _lacking_adapters(stage, before)
        before[stage.name] = stage
        models += [stage.name] if MODEL in stage.writes.values() else []
        for port, schema in step.reads.items():
            if port in stage.idle:
                continue
            unread.pop(schema, None)
            if schema not in known and (port not in step.optional or port in stage.needs):
                brings = GIVEN_BY.get(schema) or " or ".join(_writers(schema))
                add = f"add {brings}" if brings else "no step and no key gives it"
                yield f"stages.{stage.name}: reads {port} ({schema}), which nothing before it writes; {add}"
        for schema in unread.keys() & set(stage.writes.values()):
            yield f"{unread.pop(schema)}: stages.{stage.name} writes {schema} anew before a stage has read them"
        known |= set(stage.writes.values())
        if stage.step == "chat_curation":
            unread |= {schema: port for port, schema in stage.writes.items() if schema in ("chat/2", "preference/3")}
    for schema, key in unread.items():
        yield f"{key}: no stage reads them; add one that reads {schema}, or leave the key out"
    if not any(MODEL in stage.writes.values() for stage in stages):
        yield "stages: no stage writes a model, so the gate has nothing to judge; add a stage that trains, such as sft"


def _unknown_models(stage: Stage, models: Sequence[str]) -> Iterator[str]:
    """What is wrong with the stages that `stage` names, where `models` are those before it that write a model."""
    step, named = stage.declared, named_models.stages(stage.config)
    where = f"stages.{stage.name}"
    for name in dict.fromkeys([*([stage.goes_on_from] if stage.goes_on_from else []), *named]):
        if name not in models:
            near = difflib.get_close_matches(name, models, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join(models)}"
            yield f"{where}: no stage {name} before it writes a model; {hint}"
    if stage.goes_on_from and not any(schema == MODEL for port, schema in step.reads.items() if port not in step.named):
        yield f"{where}.from: {stage.step} reads no model that it could go on from; leave the key out"
    own = stage.goes_on_from or models[-1]
    if own in getattr(stage.config, "apart", ()):
        yield f"{where}: names {own}, whose model is the very one that it trains; expected an earlier one, or another"
    if len(named) > len(step.named):
        yield f"{where}: names {len(named)} stages, and {stage.step} reads the models of at most {len(step.named)}"


def _lacking_adapters(stage: Stage, before: Mapping[str, Stage]) -> Iterator[str]:
    """Which of the stages `before` it train no LoRA adapter, of those whose adapter `stage` takes."""
    for name in getattr(stage.config, "needed_adapters", ()):
        if name not in before:  # which `_unknown_models` tells, or the start
            continue
        config = before[name].config
        adapter = config.adapter if isinstance(config, TrainingConfig) else None
        if adapter is None or adapter.kind not in LOW_RANK:
            found = f"an adapter of kind {adapter.kind}" if adapter else "none"
            add = "add `adapter: {}` to it" if isinstance(config, TrainingConfig) else "name one that trains"
            yield f"stages.{stage.name}: takes the LoRA adapter of stage {name}, which trains {found}; {add}"


def _writers(schema: str) -> list[str]:
    return [f"a stage {name}" for name in steps.names() if schema in steps.find(name).writes.values()]
