"""The repository's own promises: who may import whom, what a step looks like, that every setting is documented."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from bloomery.components.core import artifact
from bloomery.components.core.config import Config, parameters
from bloomery.components.core.errors import BloomeryError
from bloomery.components.core.records import ROWS
from bloomery.components.core.step import config_class
from bloomery.pipelines import recipe, recipe_files, steps
from bloomery.pipelines.recipe import Recipe

ROOT = Path(__file__).parents[2]
STEPS = steps.names()
FOLDERS = ("components", "pipelines", "monitoring", "infra")
SOURCES = sorted(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.py"))
HEAVY = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "datasets",
    "ray",
    "mlflow",
    "evidently",
    "kfp",
    "torchao",
    "pandas",
    "sklearn",
)


@functools.cache
def imports(file: Path, *, top_level_only: bool = False) -> set[str]:
    """Dotted names that a file imports; with `top_level_only` those run when it is imported."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = list(tree.body) if top_level_only else list(ast.walk(tree))
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def touches(names: set[str], package: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for name in names)


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[-2] in STEPS and f.name != "component.py"], ids=str)
def test_a_step_knows_neither_kfp_nor_its_surroundings_nor_another_step(file: Path) -> None:
    own = file.parent.name
    found = imports(file)
    for forbidden in ("kfp", "bloomery.infra", "bloomery.pipelines", "bloomery.monitoring", "mlflow"):
        assert not touches(found, forbidden), f"{file.name} imports {forbidden}"
    for other in set(STEPS) - {own}:
        assert not touches(found, f"bloomery.components.{other}"), f"{own} imports the step {other}"


@pytest.mark.parametrize("file", [f for f in SOURCES if "core" in f.parts[-3:]], ids=str)
def test_core_knows_no_step_and_imports_nothing_heavy(file: Path) -> None:
    found = imports(file)
    for forbidden in ("kfp", "bloomery.pipelines", "bloomery.infra", "bloomery.monitoring"):
        assert not touches(found, forbidden)
    assert not any(touches(found, f"bloomery.components.{step}") for step in STEPS)
    if file.name != "muon.py":  # it is a torch optimiser, and imported when one is made
        assert not any(touches(imports(file, top_level_only=True), heavy) for heavy in HEAVY)


ROOMS = ("data", "modelling", "scoring", "registry")
"""The rooms of core; each may use those before it."""


@pytest.mark.parametrize("file", [f for f in SOURCES if f.parts[-2] == "core" or f.parts[-3] == "core"], ids=str)
def test_a_room_of_core_uses_only_the_rooms_before_it(file: Path) -> None:
    own = ROOMS.index(file.parts[-2]) if file.parts[-2] in ROOMS else -1
    for later in ROOMS[own + 1 :]:
        assert not touches(imports(file), f"bloomery.components.core.{later}"), f"{file} imports the room {later}"


@pytest.mark.parametrize("folder", sorted({file.parent for file in SOURCES}), ids=lambda f: str(f.relative_to(ROOT)))
def test_the_files_of_a_folder_import_each_other_in_no_circle(folder: Path) -> None:
    package = ".".join(("bloomery", *folder.relative_to(ROOT).parts))
    files = {file.stem: file for file in folder.glob("*.py") if file.stem != "__init__"}
    used = {
        name: {other for other in files if touches(imports(file), f"{package}.{other}")} for name, file in files.items()
    }
    # What uses nothing that is left is taken away until nothing is left: in a circle everything uses something.
    while free := [name for name, others in used.items() if not others & set(used)]:
        used = {name: others for name, others in used.items() if name not in free}
    assert not used, f"files that import each other, or wait for such ones: {used}"


def test_only_component_files_and_pipelines_import_kfp() -> None:
    allowed = {"component.py"}
    offenders = [
        file
        for file in SOURCES
        if touches(imports(file), "kfp") and file.name not in allowed and not {"pipelines", "infra"} & set(file.parts)
    ]
    assert not offenders


def test_pipelines_never_import_a_step_py_at_the_top() -> None:
    for file in SOURCES:
        if "pipelines" in file.parts:
            assert not any(name.endswith(".step") and name != "bloomery.components.core.step" for name in imports(file))


TRUST = "trust_remote_code"
"""What transformers' loaders are told by."""
OTHERS = ("llm_compressor.py", "prepare.py")
"""What loads models that have no code of their own: after a check of them, and of a package of ours."""


def test_code_of_a_model_is_run_where_repository_code_says_so_alone() -> None:
    told, silent = set(), []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Dict):
                told |= {file.name for key in node.keys if isinstance(key, ast.Constant) and key.value == TRUST}
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            told |= {file.name for one in node.keywords if one.arg == TRUST and called != "PreflightConfig"}
            given = [ast.unparse(one.value) for one in node.keywords if one.arg is None]
            is_loader = re.fullmatch(r"Auto\w+\.from_(pretrained|config)", called)
            if is_loader and not any(one == "trust" or one.startswith("repository_code.allowed(") for one in given):
                silent += [file.name] * (file.name not in OTHERS)
    assert told == {"repository_code.py"} and not silent


def test_only_drift_py_imports_evidently() -> None:
    assert [file.name for file in SOURCES if touches(imports(file), "evidently")] == ["drift.py"]


@pytest.mark.parametrize("name", STEPS)
def test_a_component_passes_on_exactly_what_run_declares(name: str) -> None:
    run = importlib.import_module(f"bloomery.components.{name}.step").run
    component = getattr(importlib.import_module(f"bloomery.components.{name}.component"), name)
    reads, writes = artifact.ports(run, artifact.Reads), artifact.ports(run, artifact.Writes)
    spec = component.component_spec
    assert set(spec.inputs) == {"stage", "config", *reads}
    assert set(spec.outputs) == {"metrics", *writes}
    parameters = inspect.signature(run).parameters
    assert next(iter(parameters)) == "config"
    assert set(parameters) - {"config"} == set(reads) | set(writes)
    assert all(p.kind is p.KEYWORD_ONLY for key, p in parameters.items() if key != "config")
    assert issubclass(config_class(run), Config)
    docstring = run.__doc__ or ""
    assert "Returns:" in docstring, f"{name}.run does not say which metrics it returns"
    body = inspect.getsource(component.python_func)
    assert all(f'"{port}": {port}' in body for port in (*reads, *writes))


def models_of(model: type[BaseModel], seen: set[type[BaseModel]]) -> set[type[BaseModel]]:
    if model in seen:
        return seen
    seen.add(model)
    for field in model.model_fields.values():
        stack = [field.annotation]
        while stack:
            item = stack.pop()
            stack += list(getattr(item, "__args__", ()))
            if isinstance(item, type) and issubclass(item, BaseModel):
                models_of(item, seen)
    return seen


@pytest.mark.parametrize("model", sorted(models_of(Recipe, set()), key=lambda m: m.__name__), ids=lambda m: m.__name__)
def test_every_setting_is_documented_closed_and_frozen(model: type[BaseModel]) -> None:
    assert model.model_config["extra"] == "forbid" and model.model_config["frozen"]
    for name, field in model.model_fields.items():
        assert field.description, f"{model.__name__}.{name} has no documentation"
        accepts_none = type(None) in getattr(field.annotation, "__args__", ())
        assert not accepts_none or field.is_required() or field.default is None, (
            f"{model.__name__}.{name}: kfp drops None from a struct, so None must be the default where it is allowed"
        )


def test_every_schema_is_named_and_versioned() -> None:
    for name, record in ROWS.items():
        assert name == record.SCHEMA and name.split("/")[1].isdigit()
        assert record.arrow().names == list(record.model_fields)


def test_exit_codes_are_those_of_the_documentation() -> None:
    found = {kind.__name__: kind.exit_code for kind in BloomeryError.__subclasses__()}
    documented = {
        "ConfigError": 2,
        "DataError": 3,
        "ModelError": 4,
        "GateError": 5,
        "MissingExtraError": 6,
        "ServiceError": 7,
    }
    assert found == documented
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, code in documented.items():
        assert f"| {code} | `{name}`" in readme, f"README's table of exit codes lacks {name}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from bloomery.pipelines.cli import app; from typer.testing import CliRunner; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_building_the_pipeline_needs_no_torch() -> None:
    code = "import sys, bloomery.pipelines.post_training; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


@pytest.mark.parametrize("file", sorted(recipe_files.RECIPES.glob("*.yaml")), ids=lambda f: f.stem)
def test_every_shipped_recipe_validates_and_compiles(file: Path, tmp_path: Path) -> None:
    from google.protobuf.json_format import ParseDict
    from kfp import compiler
    from kfp.pipeline_spec import pipeline_spec_pb2

    from bloomery.pipelines.post_training import build

    variables = dict.fromkeys(("quickstart", "smollm2", "BLOOMERY_DATA"), str(tmp_path))
    loaded = recipe.load(str(file), variables=variables)
    compiler.Compiler().compile(build(loaded), str(tmp_path / "pipeline.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
    ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    # A task is told every field of its config, and reads the same config from that.
    for config in (loaded.preflight(), *(stage.config for stage in loaded.stages)):
        assert type(config).model_validate(parameters(config)) == config


def test_every_package_folder_is_listed_for_installation() -> None:
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"bloomery." + ".".join(f.parent.relative_to(ROOT).parts) for f in SOURCES if f.name == "__init__.py"}
    assert found == set(listed)


def test_a_bare_import_of_a_root_folder_is_refused() -> None:
    for folder in FOLDERS:
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {folder}"
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert result.returncode and f"import bloomery.{folder}" in result.stderr
