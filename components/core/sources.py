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

    All of the step's folder is among them, with the folders in it, for a step may start one of its files as a program
    or read a table that lies beside it; its kfp wrapper and what is written about it are not.
    """
    package, step = module.rpartition(".")[0], _file(module)
    if step is None:
        raise ModuleNotFoundError(f"no module {module}")
    own = _own(step.parent)
    found = {_module(package, part): file for part, file in own.items() if file.suffix == ".py"}
    waiting = list(found)
    while waiting:
        name = waiting.pop()
        for imported in _imports(name, found[name]):
            file = None if imported in found else _file(imported)
            if file is not None:
                found[imported] = file
                waiting.append(imported)
    return sorted({*own.values(), *found.values()})


def _own(folder: Path) -> dict[Path, Path]:
    """The files of a step's folder by their paths in it."""
    files = {file.relative_to(folder): file for file in folder.rglob("*") if file.is_file()}
    return {
        part: file
        for part, file in files.items()
        if part != Path("component.py")
        and part.suffix != ".md"
        and not any(name.startswith((".", "__pycache__")) for name in part.parts)
    }


def _module(package: str, part: Path) -> str:
    return ".".join((package, *part.with_suffix("").parts)).removesuffix(".__init__")


@functools.cache
def _imports(module: str, file: Path) -> set[str]:
    """Dotted names that the `file` of a module imports from this package, or from the module's own, at its top or
    inside functions; not all are modules."""
    found: set[str] = set()
    package = module.split(".")[: None if file.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            names = [".".join((*base, *filter(None, [node.module]), alias.name)) for alias in node.names]
        else:
            continue
        for name in names:
            if name.partition(".")[0] in (PACKAGE, package[0]):
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
