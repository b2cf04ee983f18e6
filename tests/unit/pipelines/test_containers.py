"""What a task's container sees of this machine, and what is told where there is no engine to start one."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import SimpleNamespace

import colours
import pytest

from bloomery.components.core.errors import ConfigError
from bloomery.infra import images
from bloomery.pipelines import containers, recipe


@pytest.fixture
def project(tmp_path: Path, tiny_model: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return colours.write_recipe(folder, tiny_model)


def test_where_nobody_listens_one_message_names_the_engine(project: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unheard:
        unheard.bind(str(tmp_path / "engine"))
        address = f"unix://{tmp_path / 'engine'}"
        result = colours.bloomery(project, "run", "recipe.yaml", "--runner", "docker", DOCKER_HOST=address)
    assert result.returncode == 7 and "Traceback" not in result.stderr, result.stderr
    (line,) = result.stderr.rstrip("\n").split("\n")
    assert line.startswith(f"error: no Docker engine answers at {address}: ") and "Connection refused" in line
    assert not (project / "bloomery-runs" / "runs").exists()  # nothing was begun


def test_what_a_container_writes_is_the_users_under_an_engine_of_their_own_too() -> None:
    def engine(*options: str) -> SimpleNamespace:  # as `docker info` tells of itself
        return SimpleNamespace(info=lambda: {"SecurityOptions": list(options) or None})

    assert containers._user(engine("name=seccomp,profile=default", "name=rootless")) == "0:0"
    for usual in (engine(), engine("name=seccomp,profile=default")):
        assert containers._user(usual) == f"{os.getuid()}:{os.getgid()}"


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "BLOOMERY_STORE"])
def test_a_service_that_containers_cannot_reach_is_refused(
    name: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "s3://bucket/prefix")
    with pytest.raises(ConfigError, match=f"{name} names a service.*--network host"):
        containers.check(recipe.load(str(project / "recipe.yaml")), "none")


def test_files_are_read_and_only_the_workdir_and_the_registry_are_written(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, hub = tmp_path / "cache", tmp_path / "hub"
    cache.mkdir()
    monkeypatch.setenv("BLOOMERY_CACHE", str(cache))
    monkeypatch.setenv("BLOOMERY_STORE", str(tmp_path / "workdir" / "store"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(hub))
    loaded = recipe.load(str(project / "recipe.yaml"), [f"promotion.models_uri={tmp_path / 'models'}"])
    read = {str(cache), *(str(project / name) for name in ("base", "docs", "general.jsonl", "q.jsonl"))}

    def seen(network: str) -> dict[str, bool]:
        found = containers.mounts(loaded, tmp_path / "workdir", network)
        assert all(mount["Source"] == mount["Target"] and mount["Type"] == "bind" for mount in found)
        return {mount["Source"]: mount["ReadOnly"] for mount in found}

    written = {str(tmp_path / name): False for name in ("workdir", "models")}
    assert seen("none") == {**dict.fromkeys(read, True), **written}
    assert (tmp_path / "models").is_dir()  # as whom runs it: the engine would make it as root
    # With a network a model of the hub is fetched, into the user's own cache; without one it is read there.
    assert seen("host") == {**dict.fromkeys(read, True), **written, str(hub): False}
    assert seen("none")[str(hub)]


def test_credentials_go_where_there_is_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"AWS_SECRET_ACCESS_KEY": "k", "HF_TOKEN": "t", "EDITOR": "e"}
    given |= {"BLOOMERY_STORE": "store", "MLFLOW_RUN_ID": "r", "OMP_NUM_THREADS": "3", "BLOOMERY_PYTHON": "/here"}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    alone, reaching = containers.environment("none"), containers.environment("host")
    assert not {"AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "EDITOR", "BLOOMERY_PYTHON"} & set(alone)
    assert alone["OMP_NUM_THREADS"] == "3"  # as processes have
    assert alone["BLOOMERY_STORE"] == str(tmp_path / "store") and alone["MLFLOW_RUN_ID"] == "r"
    assert reaching["AWS_SECRET_ACCESS_KEY"] == "k" and reaching["HF_TOKEN"] == "t"
    assert "EDITOR" not in reaching


def test_a_compiled_pipeline_tells_of_images_that_are_no_digests(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bloomery.pipelines import launch

    digest = f"registry.example.com/bloomery@sha256:{'a' * 64}"
    for image in (digest, "registry.example.com/bloomery:1"):
        monkeypatch.setattr(images, "CPU_IMAGE", image)
        caplog.clear()
        launch.compile_to(recipe.load(str(project / "recipe.yaml")), tmp_path / "p.yaml")
        assert f"image: {image}\n" in (tmp_path / "p.yaml").read_text()
        told = [record.getMessage() for record in caplog.records if "digest" in record.getMessage()]
        assert len(told) == (image != digest) and all(line.startswith(image) for line in told)
