"""The recipe: one YAML file is one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from bloomery.components.chat_curation.config import ChatCurationConfig
from bloomery.components.core.config import Config, ModelName, Seed, TemplateName, parse, passwords, too_large
from bloomery.components.core.data.chats import ChatSource
from bloomery.components.core.errors import ConfigError, DataError
from bloomery.components.core.modelling import named_models
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig
from bloomery.components.core.modelling.named_models import NamedModel
from bloomery.components.core.modelling.plan import Training
from bloomery.components.core.modelling.preference_rows import PreferenceConfig
from bloomery.components.core.modelling.reshaping import Reshaping
from bloomery.components.core.modelling.training import TrainingConfig
from bloomery.components.core.repository_code import Consent
from bloomery.components.core.scoring.lm_eval_tasks import PREFIX
from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.preflight.config import PreflightConfig, StartFrom
from bloomery.components.promotion.config import PromotionConfig
from bloomery.components.ptq.config import PtqConfig
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.infra.resources import ResourcesConfig
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.pipelines import chain, consents, recipe_files, steps, task_needs
from bloomery.pipelines.chain import Stage

LEARNT_AS = ("max_length", "train_on", "train_reasoning")
"""Settings of the first fine-tuning that preflight renders and measures chats by."""


class Recipe(Config):
    """Everything that a run needs to be told. Sections are named after the steps that they configure."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,60}[a-z0-9]$")
    """Name of the pipeline and of its MLflow experiment: lower-case letters, digits and dashes."""
    registered_model: str = Field(pattern=r"^\w[\w.-]{0,199}$")
    """Name in the model registry; the candidate has to beat the champion of this name."""
    base_model: ModelName
    """Checkpoint folder (safetensors, chat template, EOS), also on `s3://`, or the name of a model on the Hugging Face
    hub."""
    revision: str = "main"
    """Revision of a hub model; a commit hash makes the run repeatable."""
    trust_remote_code: list[Consent] = []
    """Models from outside whose own code (`*.py` in their repository, named by `auto_map`) may be run, each as
    `{model: NAME, revision: …}`: whoever writes it has read that code. None: no such code is run."""
    chat_template: TemplateName = ""
    """For a base model without a chat template: `chatml`, or the path of a Jinja template, which is written into every
    model of the run; empty: the model's own."""
    start_from: StartFrom = "base"
    """Where training starts: the base model, or the champion as it was before quantisation (the base model while there
    is no champion). The gate compares with the base model either way, so that what is forgotten in many retrainings is
    counted from the beginning."""
    seed: Seed = 17
    """Seed of every step that does not set its own."""
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    """What the model is for, and what it must not forget."""
    chats: list[ChatSource] = []
    """Files of conversations to learn from: OpenAI `messages`, ShareGPT, Alpaca, prompt and completion. A stage
    `chat_curation`, which stands first unless the list has one, masks personal data in them, and takes out copies and
    what holds a question of an evaluation set."""
    preferences: list[ChatSource] = []
    """Files of preference pairs (`chosen`, `rejected`, with or without `prompt`), or of answers with a `label` or a
    `score`, curated as `chats` are."""
    stages: list[Stage] = Field(min_length=1)
    """What is done, in this order: steps, each with its settings, such as `[sft: {epochs: 1, …}, dpo]`. A stage reads
    the newest artifact of each schema that its step reads. A step that is used twice gets a name of its own, by `as`;
    `from` names the stage whose model it goes on from in place of the newest, or `start`, what the first one starts
    from."""
    quantisation: list[QuantisationConfig] = []
    """Variants that are exported and measured beside the model as it is; none: it is the candidate as it is."""
    ptq: PtqConfig = PtqConfig()
    """Which variant goes on."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """How every model of the run is evaluated."""
    promotion: PromotionConfig = PromotionConfig()
    """The gate and the registry."""
    resources: ResourcesConfig = ResourcesConfig()
    """Where tasks run on a cluster; fixed at compile time and ignored on a laptop."""
    monitoring: MonitoringConfig = MonitoringConfig()
    """Windows, thresholds and policy of `bloomery monitor`."""
    serving: ServingConfig = ServingConfig()
    """How `bloomery serve` answers."""

    @field_validator("quantisation")
    @classmethod
    def _variants_differ(cls, variants: list[QuantisationConfig]) -> list[QuantisationConfig]:
        names = [variant.name for variant in variants]
        twice = sorted({name for name in names if names.count(name) > 1 or name == "none"})
        if twice:
            raise ValueError(f"{', '.join(twice)}: named twice; each is measured once, and none always")
        return variants

    def variants(self) -> list[QuantisationConfig]:
        """The variants of the model that are measured: as it is, and `quantisation`; none where there is nothing to
        choose."""
        return [QuantisationConfig(scheme="none"), *self.quantisation] if self.quantisation else []

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        problems = [*self._unknown_floors(), *self._unknown_steps(), *self._unfit_gate()]
        problems += [*task_needs.problems(self.tasks, self.stages, self.quantisation), *self._unshardable()]
        problems += [
            f"stages: {stage.name} is a key of the recipe, and --set could not tell the two apart; rename the stage"
            for stage in self.stages
            if stage.name in Recipe.model_fields
        ]
        problems += chain.problems(self.stages, self.start().values())
        problems = problems or [*self._too_large(), *self._unfit_code()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unknown_floors(self) -> Iterator[str]:
        sets = [f"{name}.{key}" for name, task in self.tasks.items() for key in task.evaluation_sets()]
        # What sets a task of lm-eval has, it says when it is loaded.
        own = {key for key in self.promotion.gate.min_score if not (self.evaluation.lm_eval and key.startswith(PREFIX))}
        if unknown := sorted(own - set(sets)):
            yield f"promotion.gate.min_score: no evaluation set {', '.join(unknown)}; the sets are {', '.join(sets)}"

    def _unknown_steps(self) -> Iterator[str]:
        known = steps.names()
        if unknown := sorted(set(self.resources.steps) - set(known)):
            yield f"resources.steps: unknown step {', '.join(unknown)}; known: {', '.join(known)}"
        for name, own in self.resources.steps.items():
            if own.accelerators and name in known and not steps.find(name).accelerator:
                yield f"resources.steps.{name}.accelerators: {name} runs on CPUs; remove the key"
            elif (own.accelerators or 0) > 1 and name in known and steps.find(name).accelerator != "all":
                yield f"resources.steps.{name}.accelerators: found {own.accelerators}; {name} uses one; set 1"
            if (own.nodes or 1) > 1 and name in known and steps.find(name).accelerator != "all":
                yield f"resources.steps.{name}.nodes: found {own.nodes}; {name} runs on one; remove the key"

    def _unshardable(self) -> Iterator[str]:
        for stage in self.stages:
            problem = stage.config.unshardable() if isinstance(stage.config, TrainingConfig) else ""
            if problem and self.shards(stage):
                yield f"stages.{stage.name}.{problem}, under resources.sharding: full"

    def shared_by(self, stage: Stage) -> int:
        """Accelerators that share the training of a stage, of all its nodes, at least 1."""
        accelerated = stage.declared.accelerator
        return max(1, self.resources.given(stage.step, accelerated)) * self.resources.spread(stage.step, accelerated)

    def shards(self, stage: Stage) -> int | None:
        """Accelerators that share out the weights of a stage that trains; None where each holds all of them."""
        is_sharded = self.resources.sharding == "full" and isinstance(stage.config, TrainingConfig)
        return self.shared_by(stage) if is_sharded and self.shared_by(stage) > 1 else None

    def _unfit_gate(self) -> Iterator[str]:
        if not any(task.role == "domain" and task.evaluation_sets() for task in self.tasks.values()):
            yield (
                "tasks: no task of role domain has an evaluation set, so nothing can show that the candidate is "
                "better; add a split whose name is none of train, unlabelled and validation"
            )
        names = [stage.step for stage in self.stages]
        if self.promotion.gate.decontaminated and "data_curation" in names and "dedup" not in names:
            yield (
                "promotion.gate.decontaminated: nothing takes the questions of the evaluation sets out of the "
                "documents; add a stage dedup after data_curation, or set it to false"
            )

    def _unfit_code(self) -> Iterator[str]:
        return consents.problems(self.preflight(), self.stages, self.quantisation, self.serving)

    def _too_large(self) -> Iterator[str]:
        variants = {f"quantisation.{variant.name}": variant for variant in self.variants()}
        for name, config in {**self.configs(), **variants, "monitoring": self.monitoring}.items():
            if told := too_large(config):
                yield f"{name}: {told}"

    def configs(self) -> dict[str, Config]:
        """The configs of tasks, each under the parameter of the pipeline that brings it: of a stage, its name."""
        return {
            "preflight": self.preflight(),
            **{stage.name: stage.config for stage in self.stages},
            "ptq": self.ptq,
            "evaluation": self.evaluation,
            "evaluation_of_rivals": self.evaluation_of_rivals(),
            "promotion": self.promotion,
        }

    def start(self) -> dict[str, str]:
        """What stands before the first stage: the schema of each output of preflight that a stage may read, by port."""
        return {
            "sources": "source/1",
            "tasks": "tasks/1",
            **({"seeds": "chat/2"} if self._has_seeds() else {}),
            "known": "index/1",
            "encoder": "encoder/1",
            "outside": "models/1",
            "start": "model/1",
        }

    def _has_seeds(self) -> bool:
        return any(
            task.counted_to(split) == "train" and task.verifier.kind != "perplexity"
            for task in self.tasks.values()
            for split in task.splits
        )

    def last_model(self) -> str:
        """The stage whose model is the candidate, or is quantised to it."""
        return [stage.name for stage in self.stages if "model/1" in stage.writes.values()][-1]

    def preflight(self) -> PreflightConfig:
        """What preflight checks: the top-level keys, and what data_curation and dedup read from outside."""
        configs = [stage.config for stage in self.stages]
        curations = [config for config in configs if isinstance(config, ChatCurationConfig)]
        dedup = next((config for config in configs if isinstance(config, DedupConfig)), DedupConfig())
        semantic = dedup.semantic
        learns = next((config for config in configs if isinstance(config, FineTuningConfig)), None)
        on_pairs = (stage.config for stage in self.stages if "preference/3" in stage.declared.reads.values())
        compares = next((config for config in on_pairs if isinstance(config, TrainingConfig)), None)
        named = [named for config in configs for named in named_models.within(config) if named.model]
        return PreflightConfig(
            base_model=self.base_model,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            chat_template=self.chat_template,
            tasks=self.tasks,
            sources=[source for one in configs if isinstance(one, DataCurationConfig) for source in one.inputs],
            chat_sources=[source for one in curations for source in one.chats],
            preference_sources=[source for one in curations for source in one.preferences],
            pair_kinds=self._pair_kinds(),
            **({name: getattr(learns, name) for name in LEARNT_AS} if learns else {}),
            most_tokens=self._most_tokens(),
            pair_max_length=compares.max_length if compares else 0,
            too_long=self.evaluation.too_long,
            limit=self.evaluation.limit,
            trainings={
                stage.name: Training.of(stage.config, self.shards(stage))
                for stage in self.stages
                # Where a step has memory of its own, this is not the machine that it runs on.
                if isinstance(stage.config, TrainingConfig)
                and (stage.step not in self.resources.steps or not self.resources.steps[stage.step].memory)
            },
            on_accelerator=self.resources.accelerator is not None,
            known_index=dedup.known_index,
            encoder=semantic.encoder if semantic else "",
            encoder_revision=semantic.revision if semantic else "main",
            reshapings=self.reshapings(),
            outside=list(
                {one.folder: NamedModel(model=one.model, revision=one.revision) for one in named}.values()
            ),
            registered_model=self.registered_model,
            models_uri=self.promotion.models_uri,
            start_from=self.start_from,
            lm_eval_tasks=self.evaluation.lm_eval.tasks if self.evaluation.lm_eval else [],
        )

    def reshapings(self) -> list[Reshaping]:
        """What the stages that write a model do to its shape, in their order; none where all leave it as it is."""
        told = [stage.reshaping for stage in self.stages if stage.reshaping]
        return [] if all(one.is_plain for one in told) else told

    def _pair_kinds(self) -> list[str]:
        """What the stages learn from that read `preferences`, and no pairs that another stage has made since."""
        found: set[str] = set()
        for stage in self.stages:
            if isinstance(stage.config, PreferenceConfig):
                found |= stage.config.takes
            elif "preference/3" in stage.writes.values() and not isinstance(stage.config, ChatCurationConfig):
                break
        return sorted(found)

    def _most_tokens(self) -> int:
        learns = [stage.config for stage in self.stages if isinstance(stage.config, FineTuningConfig)]
        if any(config.too_long == "truncate_left" for config in learns):
            return 0
        return max((config.max_length for config in learns), default=0)

    def evaluation_of_rivals(self) -> EvaluationConfig:
        """How the gate's models are evaluated: base, champion, and the candidate, which may be the next champion and
        whose evaluation is then known."""
        return self.evaluation.model_copy(update={"repeats": self.promotion.gate.noise_repeats})


def load(
    recipe: str,
    settings: Iterable[str] = (),
    variables: dict[str, str] | None = None,
    *,
    reads_data: bool = True,
    is_here: bool = False,
) -> Recipe:
    """Read, complete and validate a recipe.

    `settings` are `step.key=value` with a YAML value, applied over the file. `${name}` stands for
    `variables[name]` or the environment variable; for who reads no data, one that is not set stays as it stands there.
    Relative paths are relative to the recipe's folder. `is_here`: local files that it names have to be on this machine,
    but for those of `variables`, which may be made later.
    Raises: ConfigError with every problem, one a line, DataError where only files are not there.
    """
    values, folder = recipe_files.read(recipe, variables, reads_data=reads_data)
    for setting in settings:
        recipe_files.apply(values, setting, Recipe.model_fields)
    retraining = recipe_files.unshared(values)
    absent: dict[str, str] = {}
    try:
        recipe_of_run = parse_recipe(values, folder, absent)
    except ConfigError as error:
        told = [str(error), *(recipe_files.absent(retraining, absent, variables) if is_here else ())]
        raise ConfigError("\n".join(told)) from None
    if is_here and (told := recipe_files.absent(retraining, absent, variables)):
        raise DataError("\n".join(told))
    _check_retraining(retraining, recipe_of_run.monitoring.settings, folder)
    return recipe_of_run


def _check_retraining(values: dict[str, Any], settings: Sequence[str], folder: Path) -> None:
    """Raise ConfigError unless the raw recipe `values` is one with the `settings` of its retraining, too: better now
    than in the night in which traffic drifts."""
    problems = []
    for setting in settings:
        try:
            named = setting.replace("{drifted}", "drifted.jsonl").replace("{window}", "window.jsonl")
            recipe_files.apply(values, named, Recipe.model_fields)
        except ConfigError as error:
            problems.append(str(error))
    if settings and not problems:
        try:
            parse_recipe(values, folder)
        except ConfigError as error:
            problems = str(error).split("\n")
    if problems:
        raise ConfigError("\n".join(f"monitoring.settings: {problem}" for problem in problems))


def parse_recipe(values: dict[str, Any], folder: Path, absent: dict[str, str] | None = None) -> Recipe:
    """The recipe of raw `values`, whose relative paths are meant from `folder`; `absent` is that of `parse`.

    Raises: ConfigError with every problem, one a line.
    """
    seed = values.get("seed", Recipe.model_fields["seed"].default)
    variants = values.get("quantisation")
    for variant in variants if isinstance(variants, list) else []:
        if isinstance(variant, dict) and isinstance(variant.get("qat"), dict):
            variant["qat"].setdefault("seed", seed)
    problems = [*passwords(values)] + [
        f"{name}: a step is no key of its own: put it into the list `stages`, in its place: `- {name}: {{…}}`"
        for name in steps.names()
        if name in values and name not in Recipe.model_fields
    ]
    values = {key: value for key, value in values.items() if key in Recipe.model_fields or key not in steps.names()}
    try:
        stages = chain.read(_curated(values), seed=seed, folder=folder, absent=absent) if "stages" in values else None
    except ConfigError as error:
        problems += str(error).split("\n")
        # The rest is looked at all the same: every problem is told at once.
        stages = []
    try:
        whole = values if stages is None else {**values, "stages": stages}
        recipe = parse(Recipe, whole, folder=folder, absent=absent)
        if not problems:
            return recipe
    except ConfigError as error:
        told = [line for line in str(error).split("\n") if not (problems and line.startswith("stages: "))]
        # What is wrong with `chats` has been told by the stage that was given them, too.
        problems = [line for line in problems if line.removeprefix("chat_curation.") not in told] + told
    raise ConfigError("\n".join(problems))


def _curated(values: dict[str, Any]) -> Any:
    """The raw stages, with the files of `chats` and `preferences` given to the stage that curates them."""
    files = {key: values[key] for key in ("chats", "preferences") if values.get(key)}
    if not files or not isinstance(values["stages"], list):
        return values["stages"]
    found = [settings for step, _, settings in chain.written(values["stages"])[0] if step == "chat_curation"]
    if found:
        twice = [key for key in files if found[0].get(key) not in (None, [], files[key])]
        if twice:
            told = "given here and at the top of the recipe, which would replace these; give them in one place"
            raise ConfigError("\n".join(f"chat_curation.{key}: {told}" for key in twice))
        found[0].update(files)
        return values["stages"]
    return [{"chat_curation": files}, *values["stages"]]
