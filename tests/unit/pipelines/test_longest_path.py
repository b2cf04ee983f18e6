"""How long the compiled quickstart is: the tasks that have to follow each other, whatever runs beside them."""

import functools

from bloomery.pipelines import launch, post_training


def longest_path(spec):
    """The tasks of the longest path through a compiled pipeline; a loop is as long as one of its items."""

    def of(dag):
        @functools.cache
        def to(name):
            task = dag.tasks[name]
            inner = spec.components[task.component_ref.name]
            own = of(inner.dag) if inner.HasField("dag") else (task.task_info.name,)
            before = max((to(other) for other in task.dependent_tasks), key=len, default=())
            return (*before, *own)

        return max(map(to, dag.tasks), key=len)

    return of(spec.root.dag)


def test_no_evaluation_of_a_stage_stands_between_stages():
    recipe = launch.load("quickstart", prepare=False, reads_data=False)
    stages = [stage.name for stage in recipe.stages if stage.name != "synthetic_data"]  # made beside cpt
    last = ("quantisation_of_variant", "evaluation_of_variant", "ptq", "evaluation_ptq", "promotion")
    assert longest_path(launch.built(recipe).pipeline_spec) == ("preflight", *stages, *last)
    assert (len(stages), len(post_training.stages(recipe))) == (8, 23)
