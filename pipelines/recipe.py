"""The recipe: one YAML file is one run."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, field_validator, model_validator

from bloomery.components.core.config import Config, parse
from bloomery.components.core.errors import ConfigError
from bloomery.components.core.scoring.lm_eval_tasks import PREFIX, is_task_file
from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.cpt.config import CptConfig
from bloomery.components.data_curation.config import DataCurationConfig
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dpo.config import DpoConfig
from bloomery.components.evaluation.config import EvaluationConfig
from bloomery.components.preflight.config import PreflightConfig, StartFrom
from bloomery.components.promotion.config import PromotionConfig
from bloomery.components.ptq.config import PtqConfig
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.components.rejection_sampling.config import RejectionSamplingConfig
from bloomery.components.sft.config import SftConfig
from bloomery.components.synthetic_data.config import SyntheticDataConfig
from bloomery.infra.resources import ResourcesConfig
from bloomery.monitoring.config import MonitoringConfig
from bloomery.monitoring.serving_config import ServingConfig

RECIPES = Path(__file__).parent / "recipes"


class Recipe(Config):
    """Everything that a run needs to be told. Sections are named after the steps that they configure."""

    name: str = Field(pattern=r"^[a-z][a-z0-9-]{0,60}[a-z0-9]$")
    """Name of the pipeline and of its MLflow experiment: lower-case letters, digits and dashes."""
    registered_model: str = Field(pattern=r"^[\w.-]+$")
    """Name in the model registry; the candidate has to beat the champion of this name."""
    base_model: str
    """Checkpoint folder (safetensors, chat template, EOS) or the name of a model on the Hugging Face hub."""
    revision: str = "main"
    """Revision of a hub model; a commit hash makes the run repeatable."""
    start_from: StartFrom = "base"
    """Where training starts: the base model, or the champion as it was before quantisation (the base model while there
    is no champion). The gate compares with the base model either way, so that what is forgotten in many retrainings is
    counted from the beginning."""
    seed: int = 17
    """Seed of every step that does not set its own."""
    tasks: dict[str, TaskConfig] = Field(min_length=1)
    """What the model is for, and what it must not forget."""
    data_curation: DataCurationConfig
    """Document sources and the rules they have to pass."""
    dedup: DedupConfig = DedupConfig()
    """Duplicates and decontamination."""
    synthetic_data: SyntheticDataConfig = SyntheticDataConfig()
    """Chats made from seeds and documents."""
    cpt: CptConfig
    """Continued pre-training."""
    sft: SftConfig
    """First fine-tuning, on seeds and synthetic chats."""
    rejection_sampling: RejectionSamplingConfig = RejectionSamplingConfig()
    """Sampling and verifying."""
    sft_2: SftConfig
    """Second fine-tuning, going on from the first, on its chats and the accepted samples."""
    dpo: DpoConfig
    """Preference optimisation."""
    quantisation: list[QuantisationConfig] = [
        QuantisationConfig(scheme="int8_weight_only"),
        QuantisationConfig(scheme="int4_weight_only"),
    ]
    """Variants that are exported and measured beside the model as it is."""
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
        """The variants of the model that are measured: as it is, and `quantisation`."""
        return [QuantisationConfig(scheme="none"), *self.quantisation]

    @model_validator(mode="after")
    def _floors_name_evaluation_sets(self) -> Recipe:
        sets = [f"{name}.{key}" for name, task in self.tasks.items() for key in task.evaluation_sets()]
        # What sets a task of lm-eval has, it says when it is loaded.
        own = {key for key in self.promotion.gate.min_score if not (self.evaluation.lm_eval and key.startswith(PREFIX))}
        unknown = sorted(own - set(sets))
        if unknown:
            raise ValueError(
                f"promotion.gate.min_score: no evaluation set {', '.join(unknown)}; the sets are {', '.join(sets)}"
            )
        return self

    def preflight(self) -> PreflightConfig:
        """What preflight checks: the top-level keys, and what data_curation and dedup read from outside."""
        semantic = self.dedup.semantic
        return PreflightConfig(
            base_model=self.base_model,
            revision=self.revision,
            tasks=self.tasks,
            sources=self.data_curation.inputs,
            known_index=self.dedup.known_index,
            encoder=semantic.encoder if semantic else "",
            encoder_revision=semantic.revision if semantic else "main",
            registered_model=self.registered_model,
            models_uri=self.promotion.models_uri,
            start_from=self.start_from,
            lm_eval_tasks=self.evaluation.lm_eval.tasks if self.evaluation.lm_eval else [],
        )

    def evaluation_of_rivals(self) -> EvaluationConfig:
        """How the gate's models are evaluated: base, champion, and the candidate, which may be the next champion and
        whose evaluation is then known."""
        return self.evaluation.model_copy(update={"repeats": self.promotion.gate.noise_repeats})


def find(recipe: str) -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Raises: ConfigError naming the recipes that there are.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or "/" in recipe:
        if path.is_file():
            return path
        raise ConfigError(f"{recipe}: no such recipe file")
    shipped = {file.stem: file for file in sorted(RECIPES.glob("*.yaml"))}
    if recipe in shipped:
        return shipped[recipe]
    near = difflib.get_close_matches(recipe, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else "give a path to a YAML file"
    raise ConfigError(f"{recipe}: no recipe of this name; known: {', '.join(shipped)}; {hint}")


def load(recipe: str, settings: Iterable[str] = (), variables: dict[str, str] | None = None) -> Recipe:
    """Read, complete and validate a recipe.

    `settings` are `step.key=value` with a YAML value, applied over the file. `${name}` stands for
    `variables[name]` or the environment variable. Relative paths are relative to the recipe's folder.
    Raises: ConfigError with every problem, one a line.
    """
    path = find(recipe)
    text = path.read_text(encoding="utf-8")
    known = {**os.environ, **(variables or {})}
    missing = sorted({name for name in _variables(text) if name not in known})
    if missing:
        raise ConfigError(
            "\n".join(f"{path}: ${{{name}}} is not set; export it as an environment variable" for name in missing)
        )
    try:
        values = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda match: known[match.group(1)], text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {str(error)[:300]}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: found {type(values).__name__}, expected a mapping of recipe keys")
    for setting in settings:
        apply_setting(values, setting)
    _spread_seed(values)
    return parse(Recipe, _absolute(values, path.parent.absolute()))


def uses(recipe: str, variable: str) -> bool:
    """True if the recipe's text contains `${variable}`."""
    return variable in _variables(find(recipe).read_text(encoding="utf-8"))


def _variables(text: str) -> set[str]:
    body = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    return set(re.findall(r"\$\{(\w+)\}", body))


def apply_setting(values: dict[str, Any], setting: str) -> None:
    """Put the YAML value of `a.b=value` into the nested `values`; ConfigError if it has another form."""
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {setting}: expected step.key=value, such as --set dpo.beta=0.2")
    *parents, last = key.split(".")
    place = values
    for parent in parents:
        place = place.setdefault(parent, {})
        if not isinstance(place, dict):
            raise ConfigError(f"--set {setting}: '{parent}' is no section")
    place[last] = yaml.safe_load(text)


def _spread_seed(values: dict[str, Any]) -> None:
    seed = values.get("seed", Recipe.model_fields["seed"].default)
    for name, field in Recipe.model_fields.items():
        fields = getattr(field.annotation, "model_fields", {})
        if "seed" in fields and isinstance(values.setdefault(name, {}), dict):
            values[name].setdefault("seed", seed)
    variants = values.get("quantisation")
    for variant in variants if isinstance(variants, list) else []:
        if isinstance(variant, dict) and isinstance(variant.get("qat"), dict):
            variant["qat"].setdefault("seed", seed)


def _absolute(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of a raw recipe absolute; URIs and hub names stay. Wrong types are left for validation to name."""

    def resolve(value: Any) -> Any:
        if not isinstance(value, str) or "://" in value or value.startswith(("/", "~")):
            return value
        return str((folder / value).resolve())

    def resolve_model(section: dict[str, Any], key: str) -> None:
        name = section.get(key)
        if isinstance(name, str) and (name.startswith(".") or (folder / name).is_dir()):
            section[key] = resolve(name)

    resolve_model(values, "base_model")
    curation = values.get("data_curation")
    if isinstance(curation, dict):
        learned = curation.get("learned_quality")
        examples = [learned.get("good"), learned.get("bad")] if isinstance(learned, dict) else []
        for source in (*(curation.get("sources") or []), *examples):
            if isinstance(source, dict) and "path" in source:
                source["path"] = resolve(source["path"])
    dedup = values.get("dedup")
    if isinstance(dedup, dict) and dedup.get("known_index"):
        dedup["known_index"] = resolve(dedup["known_index"])
    if isinstance(dedup, dict) and isinstance(dedup.get("semantic"), dict):
        resolve_model(dedup["semantic"], "encoder")
    for task in (values.get("tasks") or {}).values() if isinstance(values.get("tasks"), dict) else []:
        if not isinstance(task, dict):
            continue
        for split in (task.get("splits") or {}).values() if isinstance(task.get("splits"), dict) else []:
            if isinstance(split, dict) and "path" in split:
                split["path"] = resolve(split["path"])
        verifier = task.get("verifier")
        if isinstance(verifier, dict) and isinstance(verifier.get("databases"), list):
            verifier["databases"] = [resolve(item) for item in verifier["databases"]]
    evaluation = values.get("evaluation")
    harness = evaluation.get("lm_eval") if isinstance(evaluation, dict) else None
    if isinstance(harness, dict) and isinstance(harness.get("tasks"), list):
        harness["tasks"] = [
            resolve(name) if isinstance(name, str) and is_task_file(name) else name for name in harness["tasks"]
        ]
    return values
