"""Which files a step's result depends on: its folder, and the modules of ours that it imports, and those that these do.

Read from the source, so that imports inside functions count too, and nothing has to be run.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from importlib.machinery import PathFinder
from itertools import accumulate
from pathlib import Path

PACKAGE = "bloomery"


def files_of(module: str) -> list[Path]:
    """The source files that a run of `module`, the `step.py` of a step, can reach, sorted.

    All of the step's folder is among them, for a step may start one of its files as a program; its kfp wrapper is not.
    """
    folder = Path(_file(module) or "").parent
    package = module.rpartition(".")[0]
    found = {f"{package}.{file.stem}": file for file in folder.glob("*.py") if file.name != "component.py"}
    waiting = list(found)
    while waiting:
        for name in _imports(found[waiting.pop()]):
            file = None if name in found else _file(name)
            if file is not None:
                found[name] = file
                waiting.append(name)
    return sorted(found.values())


@functools.cache
def _imports(file: Path) -> set[str]:
    """Dotted names that a file imports from this package, at its top or inside functions; not all are modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] == PACKAGE:
                # Importing a module runs the packages that it stands in.
                found.update(accumulate(name.split("."), "{}.{}".format))
    return found


@functools.cache
def _file(name: str) -> Path | None:
    """The source file of a module of this package, or None if `name` is none; nothing but its root is imported."""
    parts = name.split(".")
    spec = importlib.util.find_spec(".".join(parts[:2]))
    for end in range(3, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:  # a module, of which this is a name
            return None
        spec = PathFinder.find_spec(".".join(parts[:end]), spec.submodule_search_locations)
    return Path(spec.origin) if spec is not None and spec.origin else None
