"""The DAG, from raw text to a promoted model, in the order in which it happens.

kfp reads the annotations of the pipeline function, so this module must not postpone them.
"""

from typing import Any

from kfp import dsl

from bloomery.components.core.config import parameters
from bloomery.components.cpt.component import cpt as cpt_step
from bloomery.components.data_curation.component import data_curation as data_curation_step
from bloomery.components.dedup.component import dedup as dedup_step
from bloomery.components.dpo.component import dpo as dpo_step
from bloomery.components.evaluation.component import evaluation as evaluation_step
from bloomery.components.preflight.component import preflight as preflight_step
from bloomery.components.promotion.component import promotion as promotion_step
from bloomery.components.ptq.component import ptq as ptq_step
from bloomery.components.quantisation.component import quantisation as quantisation_step
from bloomery.components.rejection_sampling.component import rejection_sampling as rejection_sampling_step
from bloomery.components.sft.component import sft as sft_step
from bloomery.components.synthetic_data.component import synthetic_data as synthetic_data_step
from bloomery.infra.resources import place
from bloomery.pipelines.recipe import Recipe

STAGES = (
    "preflight",
    "data_curation",
    "dedup",
    "synthetic_data",
    "evaluation_base",
    "cpt",
    "evaluation_cpt",
    "sft",
    "evaluation_sft",
    "rejection_sampling",
    "sft_2",
    "evaluation_sft_2",
    "dpo",
    "evaluation_dpo",
    "ptq",
    "evaluation_ptq",
    "evaluation_champion",
    "promotion",
)
"""Every task of the DAG by the name that it is reported under, but those of the quantised variants."""


def stages(recipe: Recipe) -> tuple[str, ...]:
    """Every task of the recipe's DAG, with two for each variant before ptq, which chooses among them."""
    told = [stage for variant in variants(recipe) for stage in (variant["stage"], variant["evaluation"])]
    at = STAGES.index("ptq")
    return (*STAGES[:at], *told, *STAGES[at:])


def variants(recipe: Recipe) -> list[dict[str, Any]]:
    """What the loop over the variants goes through: the names of both stages, and the config."""
    return [
        {
            "stage": f"ptq_{config.name}",
            "evaluation": f"evaluation_ptq_{config.name}",
            "config": parameters(config),
        }
        for config in recipe.variants()
    ]


def build(recipe: Recipe) -> Any:
    """The pipeline of `recipe`: structure and resources are fixed, numbers are one struct parameter a step."""

    @dsl.pipeline(name=recipe.name, description=f"From raw text to a promoted {recipe.registered_model}")
    def post_training(
        preflight: dict = parameters(recipe.preflight()),
        data_curation: dict = parameters(recipe.data_curation),
        dedup: dict = parameters(recipe.dedup),
        synthetic_data: dict = parameters(recipe.synthetic_data),
        cpt: dict = parameters(recipe.cpt),
        sft: dict = parameters(recipe.sft),
        rejection_sampling: dict = parameters(recipe.rejection_sampling),
        sft_2: dict = parameters(recipe.sft_2),
        dpo: dict = parameters(recipe.dpo),
        quantisation: list = variants(recipe),
        ptq: dict = parameters(recipe.ptq),
        evaluation: dict = parameters(recipe.evaluation),
        evaluation_of_rivals: dict = parameters(recipe.evaluation_of_rivals()),
        promotion: dict = parameters(recipe.promotion),
    ) -> None:
        def task(step: Any, stage: Any, config: Any, **inputs: Any) -> dict[str, Any]:
            created = step(stage=stage, config=config, **inputs)
            if isinstance(stage, str):  # in a loop the name is known when it runs
                created.set_display_name(stage)
            return place(created, step.name.replace("-", "_"), recipe.resources).outputs

        def evaluate(stage: str, model: Any, config: Any = evaluation) -> Any:
            return task(evaluation_step, f"evaluation_{stage}", config, model=model, tasks=tasks)["results"]

        checked = task(preflight_step, "preflight", preflight)
        tasks, base = checked["tasks"], checked["base_model"]

        curated = task(data_curation_step, "data_curation", data_curation, sources=checked["sources"])
        known, encoder = checked["known"], checked["encoder"]
        unique = task(
            dedup_step, "dedup", dedup, documents=curated["documents"], tasks=tasks, known=known, encoder=encoder
        )
        made = task(
            synthetic_data_step,
            "synthetic_data",
            synthetic_data,
            documents=unique["kept"],
            tasks=tasks,
            seeds=checked["seeds"],
        )

        base_results = evaluate("base", base, evaluation_of_rivals)
        read = task(cpt_step, "cpt", cpt, documents=unique["kept"], base_model=checked["start"])["model"]
        evaluate("cpt", read)
        tuned = task(sft_step, "sft", sft, chats=made["chats"], tasks=tasks, base_model=read)["model"]
        evaluate("sft", tuned)
        sampled = task(
            rejection_sampling_step,
            "rejection_sampling",
            rejection_sampling,
            base_model=tuned,
            chats=made["chats"],
            prompts=made["prompts"],
            tasks=tasks,
        )
        retuned = task(sft_step, "sft_2", sft_2, chats=sampled["sampled_chats"], tasks=tasks, base_model=tuned)["model"]
        evaluate("sft_2", retuned)
        preferring = task(dpo_step, "dpo", dpo, preferences=sampled["preferences"], base_model=retuned)["model"]
        evaluate("dpo", preferring)

        with dsl.ParallelFor(quantisation, parallelism=recipe.resources.parallel_variants or None) as variant:
            made_variant = task(
                quantisation_step,
                variant.stage,
                variant.config,
                base_model=preferring,
                tasks=tasks,
                chats=made["chats"],
            )
            task(evaluation_step, variant.evaluation, evaluation, model=made_variant["model"], tasks=tasks)
        quantised = task(
            ptq_step,
            "ptq",
            ptq,
            models=dsl.Collected(made_variant["model"]),
            measurements=dsl.Collected(made_variant["measurement"]),
        )

        task(
            promotion_step,
            "promotion",
            promotion,
            model=quantised["model"],
            parent=preferring,
            tasks=tasks,
            curated=curated["documents"],
            unique=unique["kept"],
            variants=quantised["variants"],
            candidate_results=evaluate("ptq", quantised["model"], evaluation_of_rivals),
            base_results=base_results,
            champion_results=evaluate("champion", checked["champion"], evaluation_of_rivals),
            champion=checked["champion"],
            champion_version=checked["champion_version"],
        )

    return post_training
