"""A step is a folder: adding one touches no other file."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import colours
import pytest
import yaml

from bloomery.components.core import interpreter
from bloomery.pipelines import steps

CONFIG = '''
"""Settings of halving."""
from pydantic import Field
from bloomery.components.core.config import Config

class HalvingConfig(Config):
    """How much of the weights is kept."""

    factor: float = Field(default=0.5, gt=0)
    """What every weight is multiplied by."""
    seed: int = 0
    """Not used: it shows that the recipe's seed arrives."""
'''
STEP = '''
"""Weights become smaller."""
from __future__ import annotations
from pathlib import Path
from typing import Annotated
from bloomery.components.core.artifact import Reads, Writes
from bloomery.components.core.declare import declare
from bloomery.components.halving.config import HalvingConfig
from .parts.scaling import scaled

@declare(accelerator=True)
def run(
    config: HalvingConfig,
    *,
    base_model: Annotated[Path, Reads("model/1")],
    model: Annotated[Path, Writes("model/1")],
    preferences: Annotated[Path | None, Reads("preference/3", optional=True)] = None,
) -> dict[str, float]:
    """Multiply every weight of `base_model`, and write `model`.

    Returns: halving/factor, halving/seed.
    """
    from bloomery.components.core.modelling import checkpoints
    network, tokenizer = checkpoints.load(base_model)
    scaled(network, config.factor)
    checkpoints.save(model, network, tokenizer)
    assert preferences is None
    return {"halving/factor": config.factor, "halving/seed": float(config.seed)}
'''
PART = '''
"""Weights times a number."""
import torch

def scaled(network, factor):
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(factor)
'''
COMPONENT = '''
"""The kfp component of `halving`."""
from typing import Optional
from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output
from bloomery.infra.images import CPU_IMAGE

@dsl.component(base_image=CPU_IMAGE, install_kfp_package=False)
def halving(
    stage: str,
    config: dict,
    base_model: Input[Model],
    model: Output[Model],
    metrics: Output[Metrics],
    preferences: Optional[Input[Dataset]] = None,
):
    """Make the weights smaller."""
    from bloomery.components.core.step import run_step
    from bloomery.components.halving.step import run

    inputs = {"base_model": base_model, "preferences": preferences}
    outputs = {"model": model}
    run_step(run, stage, config, inputs, outputs, metrics)
'''


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a step of its own, and a recipe whose stages are that step twice."""
    folder = colours.write_recipe(tmp_path_factory.mktemp("project"), tiny_model)
    step = folder / "steps" / "halving"
    step.mkdir(parents=True)
    for name, text in (("__init__", ""), ("config", CONFIG), ("step", STEP), ("component", COMPONENT)):
        (step / f"{name}.py").write_text(text.lstrip("\n"))
    (step / "parts").mkdir()
    (step / "parts" / "scaling.py").write_text(PART.lstrip("\n"))
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["stages"] = ["halving", {"halving": {"as": "again", "factor": 0.1}}]
    recipe["quantisation"] = []
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def bloomery(project: Path, *arguments: str) -> subprocess.CompletedProcess:
    steps = str(project / "steps")  # which a server that tasks are forked from has to know when it starts
    return colours.bloomery(project, *arguments, BLOOMERY_STEPS=steps, **{interpreter.PYTHON: ""})


def test_it_is_run_evaluated_and_reported_as_a_stage(project):
    result = bloomery(project, "run", "recipe.yaml", "--workdir", "w", "--json", "--set", "again.factor=0.2")
    assert result.returncode == 5, result.stderr  # nothing was learnt, so the gate refuses it
    summary = json.loads(result.stdout)
    assert summary["stages"]["halving"] == {"halving/factor": 0.5, "halving/seed": 17}
    assert summary["stages"]["again"]["halving/factor"] == 0.2
    assert summary["chain"] == [
        *("preflight", "evaluation_base", "halving", "evaluation_halving", "again", "evaluation_again"),
        *("evaluation_champion", "promotion"),
    ]
    assert "halving" in Path(summary["report"]).read_text()
    again = json.loads(bloomery(project, "run", "recipe.yaml", "--workdir", "w", "--json").stdout)
    assert "halving" in again["cached_steps"] and "again" not in again["cached_steps"]


def test_it_is_compiled_onto_the_accelerator(project):
    pool = "resources={accelerator: nvidia.com/gpu}"
    assert bloomery(project, "compile", "recipe.yaml", "-o", "p.yaml", "--set", pool).returncode == 0
    spec = next(yaml.safe_load_all((project / "p.yaml").read_text()))
    container = spec["deploymentSpec"]["executors"]["exec-halving"]["container"]
    assert container["resources"]["accelerator"]["resourceType"] == "nvidia.com/gpu"


def test_it_is_a_command_and_its_settings_are_documented(project):
    told = bloomery(project, "step", "halving")
    assert told.returncode == 2 and "missing --base-model FOLDER (model/1)" in told.stderr
    assert "--preferences FOLDER (preference/3, optional)" in told.stderr
    assert "What every weight is multiplied by" in bloomery(project, "show", "recipe", "halving.factor").stdout


FAULTS = {
    # name of its folder, what is done to it, what is told
    "step.py": ("halving", lambda f: (f / "step.py").write_text("def run(("), "halving/step.py: SyntaxError"),
    "run": ("halving", lambda f: (f / "step.py").write_text("x = 1"), "has no attribute 'run'"),
    "config": ("halving", lambda f: (f / "config.py").unlink(), "No module named 'bloomery.components.halving.config'"),
    "component": ("halving", lambda f: (f / "component.py").unlink(), "halving/component.py: ModuleNotFoundError"),
    "ports": ("halving", lambda f: replaced(f, 'Annotated[Path, Reads("model/1")]', "Path"), "run takes base_model"),
    "schema": ("halving", lambda f: replaced(f, '"model/1")', '"no/9")'), "no step and no key gives it"),
    "taken": ("sft", lambda f: None, "sft has the name of"),
    "name": ("half-ing", lambda f: None, "half-ing names no step"),
}


def replaced(folder, old, new):
    text = (folder / "step.py").read_text()
    (folder / "step.py").write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_step_that_cannot_be_used_is_told_by_its_file(project, tmp_path, fault):
    name, spoil, told = FAULTS[fault]
    shutil.copytree(project / "steps" / "halving", tmp_path / name)
    spoil(tmp_path / name)
    given = ("compile", "recipe.yaml", "-o", str(tmp_path / "p.yaml"))
    result = colours.bloomery(project, *given, BLOOMERY_STEPS=str(tmp_path))
    assert result.returncode == 2 and told in result.stderr and "Traceback" not in result.stderr, result.stderr


def test_a_result_depends_on_the_code_that_a_step_can_reach_and_on_nothing_else():
    """The map of what each step imports, read from its source, against what Python loads when all of it is imported."""
    code = """
import importlib, json, sys
from pathlib import Path
from bloomery.components.core import sources
from bloomery.pipelines import steps
roots = [Path(root).parent for root in sys.modules["bloomery.components"].__path__]

def loaded(files):
    for key in [key for key in sys.modules if key.startswith("bloomery.")]:
        del sys.modules[key]
    for file in files:
        root = next(root for root in roots if file.is_relative_to(root))
        module = ".".join(("bloomery", *file.relative_to(root).with_suffix("").parts)).removesuffix(".__init__")
        importlib.import_module(module)
    ours = [module for key, module in sys.modules.items() if key.startswith("bloomery.") and module.__file__]
    return {Path(module.__file__) for module in ours}

told = {}
for name in steps.names():
    files = sources.files_of(f"bloomery.components.{name}.step")
    told[name] = [[*map(str, loaded(files) - set(files))], [file.name for file in files]]
print(json.dumps(told))
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    found = json.loads(told)
    assert set(found) == set(steps.names())
    assert not {step: missing for step, (missing, _) in found.items() if missing}, "the digest does not cover these"
    names = {step: set(names) for step, (_, names) in found.items()}
    assert "fine_tuning.py" in names["sft"] and "near.py" not in names["sft"] and "succession.py" not in names["sft"]
    assert "near.py" in names["dedup"] and "fine_tuning.py" not in names["dedup"]
    assert "succession.py" in names["promotion"] and "near.py" not in names["promotion"]
