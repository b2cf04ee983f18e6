"""The scheduled DAG: window, drift, decision, trigger.

One task, because the four parts take seconds and hand each other a few numbers, while a task on a cluster
costs twenty seconds of its own. Schedule it without catch-up and one at a time: a missed check is made up for
by the next.
"""

from typing import Any

from kfp import dsl, kubernetes

from bloomery.components.core.config import parameters
from bloomery.infra.resources import place
from bloomery.monitoring.component import drift_check as drift_check_step
from bloomery.pipelines.recipe import Recipe

STATE_CLAIM = "bloomery-monitoring"
"""PersistentVolumeClaim that holds decisions and trigger records between checks; see infra/k8s."""
STATE_PATH = "/var/lib/bloomery"
RECIPES_MAP = "bloomery-recipes"
"""ConfigMap with recipe files, so that a check can submit one that is not in the image."""
RECIPES_PATH = "/etc/bloomery/recipes"


def build(recipe: Recipe, recipe_path: str, log: str, workdir: str = STATE_PATH) -> Any:
    """The pipeline that watches `log` and retrains by `recipe_path`, both as the task sees them.

    Retraining is submitted where `recipe.monitoring.runner` is `cluster`; `local` would end with the pod.
    """

    @dsl.pipeline(
        name=f"{recipe.name}-drift-check", description=f"Drift of the traffic of {recipe.registered_model}"
    )
    def drift_check(monitoring: dict = parameters(recipe.monitoring)) -> None:  # noqa: B008
        task = drift_check_step(recipe=recipe_path, workdir=workdir, log=log, config=monitoring)
        place(task, "drift_check", recipe.resources, accelerated=False, cached=False)
        kubernetes.mount_pvc(task, STATE_CLAIM, STATE_PATH)
        kubernetes.use_config_map_as_volume(task, RECIPES_MAP, RECIPES_PATH, optional=True)

    return drift_check
