"""What infra/README.md says to type does what it says, as far as that shows without a cluster."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from bloomery.infra import images
from bloomery.pipelines import launch
from bloomery.pipelines.cli import app

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "infra" / "README.md"
OVERLAYS = ROOT / "infra" / "k8s" / "overlays"


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_an_overlay_of_ones_own_is_copied_as_the_guide_says_and_renders(tmp_path):
    (command,) = re.findall(r"`(cp -r infra/k8s/overlays/\S+ \S+)`", GUIDE.read_text(encoding="utf-8"))
    shutil.copytree(ROOT / "infra" / "k8s", tmp_path / "infra" / "k8s")
    subprocess.run(command.split(), cwd=tmp_path, check=True)
    command = ["kubectl", "kustomize", "infra/k8s/overlays/mine"]
    rendered = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert {"Deployment", "StatefulSet", "CronJob"} <= {one["kind"] for one in yaml.safe_load_all(rendered)}


def test_the_guide_names_what_the_overlays_have_in_the_place_of_ones_own():
    files = [*OVERLAYS.rglob("*.yaml"), *(ROOT / "infra" / "k8s" / "samples").glob("*.yaml")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    written = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    found = set(re.findall(r"your-[a-z]+|\d{12}|[\w.]+\.example\.com|replace-me|\b[a-z]+-[a-z]+-?\d\b", written))
    assert {"your-bucket", "your-vault", "111122223333", "s3.example.com", "replace-me", "eu-central-1"} <= found
    guide = GUIDE.read_text(encoding="utf-8")
    assert [name for name in sorted(found) if name not in guide] == []


def test_the_traffic_of_the_demo_is_named_without_its_digest(tmp_path, monkeypatch):
    """Of two versions in the cache the one that this code makes."""
    (given,) = re.findall(r"--traffic '(\S+)'", GUIDE.read_text(encoding="utf-8"))
    monkeypatch.setenv("BLOOMERY_CACHE", str(tmp_path))
    (tmp_path / "quickstart-000000000000").mkdir()
    file = launch.placed(given)
    base = launch.load("quickstart", prepare=False).base_model
    assert file.name == "traffic.jsonl" and Path(base).is_relative_to(file.parent) and file.parent.parent == tmp_path


def test_the_shell_of_the_guide_compiles_with_the_images_and_the_pull_secret_of_the_cluster():
    """The commands of step 5, with a `kubectl` that answers from the settings of a private registry."""
    guide = GUIDE.read_text(encoding="utf-8")
    step = guide.split("**5. A run.**")[1].split("**6. A server**")[0]
    commands = [line.strip() for line in step.splitlines() if line.startswith(("    export ", "    setting()"))]
    told = {images.CPU: "r.example.com/cpu@sha256:1", images.GPU: "r.example.com/gpu@sha256:2", images.PULL_SECRET: "s"}
    answers = "".join(f"*.data.{name}*) printf %s {value};; " for name, value in told.items())
    shell = f"kubectl() {{ case \"$*\" in {answers} esac; }}; key() {{ :; }}\n" + "\n".join(commands)
    code = "import json; from bloomery.infra import images; print(json.dumps(images.passed_on()))"
    bare = {name: value for name, value in os.environ.items() if name not in told}
    found = subprocess.run(
        ["bash", "-c", f"{shell}\n{sys.executable} -c '{code}'"], capture_output=True, text=True, check=True, env=bare
    )
    assert json.loads(found.stdout) == told


PROGRAMS = ("kubectl", "docker", "make", "bloomery", "curl", "pip")


def test_the_commands_of_the_guide_run_in_one_shell_in_their_order_and_bloomery_knows_each(tmp_path):
    """Programs are stubs: a variable that no earlier step has set ends the shell, and what is unknown the reading."""
    walk = GUIDE.read_text(encoding="utf-8").split("## On a cluster, step by step")[1].split("\n## ")[0]
    commands = re.sub(r"\n    ", "\n", "\n".join(re.findall(r"(?:^    .*\n)+", walk, re.MULTILINE)))
    for program in PROGRAMS:
        note = f"IFS=$'\\t'; echo \"$*\" >> {tmp_path}/calls" if program == "bloomery" else "echo eA=="
        (tmp_path / program).write_text(f"#!/bin/bash\n{note}\n")
        (tmp_path / program).chmod(0o755)
    bare = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    shell = ["bash", "-euo", "pipefail", "-c", commands.lstrip()]
    found = subprocess.run(shell, capture_output=True, text=True, env=bare)
    assert found.returncode == 0, found.stderr
    calls = [line.split("\t") for line in (tmp_path / "calls").read_text().splitlines()]
    assert [name for name, *_ in calls] == ["doctor", "submit", "monitor", "schedule", "monitor", "tune", "submit"]
    for call in calls:
        parsed(typer.main.get_command(app), call)


def parsed(command: Any, arguments: list[str]) -> None:
    """Read arguments as the command does, without running it. Raises: UsageError for what it does not know."""
    context = command.make_context("bloomery", list(arguments))
    if isinstance(command, typer.core.TyperGroup):
        _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        parsed(inner, rest)
