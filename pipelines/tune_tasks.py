"""The kfp components of a search on a cluster: what a trial tries, what it measured, and all trials together."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Metrics, Output

from bloomery.infra.images import CPU_IMAGE


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def opened(search: dict) -> list:
    """The numbers of the trials to run, once the study of a search is there."""
    from bloomery.components.core.step import ending
    from bloomery.pipelines.tune_trials import open_study

    with ending("opened"):
        return open_study(search)


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def asked(search: dict, place: int) -> list:
    """One trial, as the study chooses it by what others have told so far."""
    from bloomery.components.core.step import ending
    from bloomery.pipelines.tune_trials import ask

    with ending("asked"):
        return ask(search)


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def told(search: dict, trial: dict, metrics: Input[Metrics]) -> dict:
    """The row of a trial: its number, its settings and what the measured stage told, or why it failed; the study is
    told it too."""
    from bloomery.components.core.step import ending
    from bloomery.pipelines.tune_trials import tell

    with ending("told"):
        return tell(search, trial, metrics.path)


@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def collected(search: dict, rows: list, best: Output[Artifact], page: Output[HTML]):
    """The best trial, as JSON, and the page about the search."""
    from bloomery.components.core.step import ending
    from bloomery.pipelines.tune_trials import write_best

    with ending("collected"):
        write_best(search, rows, best.path, page.path)
