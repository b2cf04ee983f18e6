"""What a recipe's stages need of its tasks: that those which they name are there, and rows of a split `validation`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bloomery.components.core.config import Config
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig
from bloomery.components.core.scoring.tasks import TaskConfig
from bloomery.components.quantisation.config import QuantisationConfig
from bloomery.pipelines.chain import Stage


def problems(
    tasks: Mapping[str, TaskConfig], stages: Sequence[Stage], quantisation: Sequence[QuantisationConfig]
) -> Iterator[str]:
    """A line for each need that `tasks` do not meet."""
    configs: dict[str, Config | None] = {f"stages.{stage.name}": stage.config for stage in stages}
    configs |= {f"quantisation.{variant.name}.qat": variant.qat for variant in quantisation}
    for where, config in configs.items():
        named = config.tasks if isinstance(config, FineTuningConfig) else []
        if unknown := [name for name in named if name not in tasks]:
            yield f"{where}.tasks: no task {', '.join(unknown)}; the tasks are {', '.join(tasks)}"
            continue
        needed = getattr(config, "needed_validation", "")
        read = {name: tasks[name] for name in named or tasks}
        if needed and not any(_validates(task, texts_too=needed == "rows") for task in read.values()):
            yield (
                f"{where}: needs {needed} of a split `validation`, and none of its tasks ({', '.join(read)}) has that "
                "split; add it, such as `validation: {path: …, share: [0.8, 0.9]}`"
            )


def _validates(task: TaskConfig, *, texts_too: bool) -> bool:
    """Whether a task has a split `validation`, with questions or, `texts_too`, with texts."""
    has_split = "validation" in map(task.counted_to, task.splits)
    return has_split and (texts_too or task.verifier.kind != "perplexity")
