"""The kfp component of `drift_check`."""

from kfp import dsl
from kfp.dsl import HTML, Markdown, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def drift_check(
    recipe: str,
    workdir: str,
    log: str,
    config: dict,
    settings: list,
    decision: Output[Markdown],
    drift: Output[HTML],
    metrics: Output[Metrics],
):
    """Judge the newest full window of the prediction log, and start a retraining once if the policy says
    so."""
    from bloomery.monitoring.check import check_task

    check_task(recipe, workdir, log, config, settings, decision, drift, metrics)
