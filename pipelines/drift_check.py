"""The scheduled DAG: window, drift, decision, trigger.

One task, because the four parts take seconds and hand each other a few numbers, while a task on a cluster
costs twenty seconds of its own. Schedule it without catch-up and one at a time: a missed check is made up for
by the next.
"""

from collections.abc import Sequence
from typing import Any

from kfp import dsl, kubernetes

from bloomery.components.core.config import packed, parameters
from bloomery.infra import images
from bloomery.infra import settings as pod_settings
from bloomery.infra.resources import place
from bloomery.infra.short_stacks import short_stacks
from bloomery.monitoring.component import drift_check as drift_check_step
from bloomery.pipelines.recipe import Recipe

TOKEN_LABEL = "bloomery-access-ml-pipeline"
"""Label of a pod that gets a token for the API in a Kubeflow profile; see infra/k8s/components/profile."""


@short_stacks()
def build(recipe: Recipe, source: str, log: str, workdir: str, settings: Sequence[str] = ()) -> Any:
    """The pipeline that watches `log` and retrains by `source`, the name of a recipe in the image or the text of one,
    with the `--set` values `settings`; decisions and records last in `workdir`, the URI of a store.

    Retraining is submitted where `recipe.monitoring.runner` is `cluster`; `local` would end with the pod.
    """
    webhook = recipe.monitoring.alerts.webhook
    secret = (webhook,) if webhook else ()
    watched, handed_on = packed(parameters(recipe.monitoring)), list(settings)

    @dsl.pipeline(
        name=f"{recipe.name}-drift-check", description=f"Drift of the traffic of {recipe.registered_model}"
    )
    def drift_check(monitoring: dict = watched, inherited: list = handed_on) -> None:  # noqa: B006, B008
        task = drift_check_step(recipe=source, workdir=workdir, log=log, config=monitoring, settings=inherited)
        place(task, "drift_check", recipe.resources, accelerated=False, cached=False, credentials=secret)
        for variable, value in images.passed_on().items():
            task.set_env_variable(variable, value)
        pod_settings.mount(task, pod_settings.API)
        kubernetes.use_field_path_as_env(task, "KFP_NAMESPACE", "metadata.namespace")
        kubernetes.add_pod_label(task, TOKEN_LABEL, "true")

    return drift_check
