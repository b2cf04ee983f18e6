"""The steps of the pipeline, one folder each, and what they share in `core`.

Folders that `BLOOMERY_STEPS` names, separated as in PATH, hold further steps: `<folder>/<name>/step.py` is
`bloomery.components.<name>.step`, and `<name>` can stand in the stages of a recipe.
"""

import os

if __name__ == "components":
    raise ImportError("import bloomery.components: the bare name 'components' is not ours to take")

__path__ += [folder for folder in os.environ.get("BLOOMERY_STEPS", "").split(os.pathsep) if folder]
