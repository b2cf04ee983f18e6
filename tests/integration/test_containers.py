"""The whole chain with each task in a container of the image that `make image` makes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

import pytest
import yaml
from colours import bloomery, outputs, run
from s3_server import BUCKET
from service import BLOOMERY

from bloomery.components.core import provenance
from bloomery.infra import images

IN_CONTAINERS = ("--runner", "docker")


@pytest.fixture(scope="module", autouse=True)
def engine():
    """The engine, which has the image of this commit."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env()
    except DockerException as error:
        pytest.skip(f"no Docker engine answers: {error}")
    try:
        variables = client.images.get(images.CPU_IMAGE).attrs["Config"]["Env"]
    except ImageNotFound:
        pytest.skip(f"the engine has no image {images.CPU_IMAGE}; `make image` makes it")
    commit = provenance.commit()
    if not any(value.startswith(f"BLOOMERY_COMMIT={commit}") for value in variables):
        pytest.skip(f"{images.CPU_IMAGE} is of another commit than {commit}; `make image` renews it")
    return client


def digests(summary: dict) -> dict[str, str]:
    """By stage and output of a run."""
    return {f"{one.stage}.{one.name}": one.manifest.digest for one in outputs(summary).values()}


def test_containers_come_to_the_results_of_processes_and_share_their_store(project, first, engine):
    given = [project / name for name in ("recipe.yaml", "q.jsonl", "general.jsonl", "base/model.safetensors")]
    before = [file.read_bytes() for file in given]
    second = run(project, "c", *IN_CONTAINERS)
    assert second["status"] == "promoted" and not {"sft", "dpo", "promotion"} & set(second["cached_steps"])
    theirs, ours = digests(first), digests(second)
    timed = {name for name in ours if name.endswith((".measurement", ".variants", ".verdict"))}
    assert set(ours) == set(theirs)
    assert {name for name in ours if ours[name] != theirs[name]} <= timed
    assert all(file.stat().st_uid == os.getuid() for file in (project / "c").rglob("*"))
    assert [file.read_bytes() for file in given] == before
    third = run(project, "c")
    assert set(third["stages"]) - set(third["cached_steps"]) == {"preflight", "promotion"}


def test_with_the_network_of_the_host_they_reach_a_store(project, engine, object_store):
    recipe = yaml.safe_load((project / "recipe.yaml").read_text())
    recipe |= {"stages": [recipe["stages"][at] for at in (0, 1, 3)], "quantisation": []}  # to cpt
    (project / "short.yaml").write_text(yaml.safe_dump(recipe))
    store = {"BLOOMERY_STORE": f"s3://{BUCKET}/store"}
    told = bloomery(project, "run", "recipe.yaml", *IN_CONTAINERS, "--workdir", "h", **store)
    assert told.returncode == 2 and "give --network host" in told.stderr
    first = run(project, "h", *IN_CONTAINERS, "--network", "host", recipe="short.yaml", **store)
    assert not first["cached_steps"]
    assert object_store.client.list_objects_v2(Bucket=BUCKET, Prefix="store/")["KeyCount"]
    second = run(project, "other", recipe="short.yaml", **store)
    assert {"data_curation", "dedup", "cpt"} <= set(second["cached_steps"])


def test_an_image_that_is_not_there_is_told_before_anything_is_begun(project, engine):
    result = bloomery(
        project, "run", "recipe.yaml", *IN_CONTAINERS, "--workdir", "n", BLOOMERY_IMAGE_CPU="nobody/nothing:1"
    )
    assert result.returncode == 2 and "has no image nobody/nothing:1; `make image`" in result.stderr
    assert "Traceback" not in result.stderr and not (project / "n").exists()


def test_a_step_that_fails_in_a_container_is_told_as_elsewhere(project, engine):
    wrong = ("--set", "data_curation.min_words=1000")
    result = bloomery(project, "run", "recipe.yaml", *IN_CONTAINERS, "--workdir", "mistakes", *wrong)
    assert result.returncode == 3 and "too_short" in result.stderr and "Traceback" not in result.stderr


def test_no_container_outlives_its_run(project, engine, tmp_path):
    workdir = tmp_path / "w"
    command = [BLOOMERY, "run", "recipe.yaml", *IN_CONTAINERS, "--workdir", str(workdir)]

    def begun() -> subprocess.Popen:
        return subprocess.Popen(command, cwd=project, stderr=subprocess.DEVNULL)

    def running() -> set[str]:
        return {one.id for one in engine.containers.list(filters={"label": f"bloomery.workdir={workdir}"})}

    def wait_until(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    process = begun()
    wait_until(running)
    process.kill()  # nobody is left who could end what it started
    process.wait()
    left = running()
    assert left
    process = begun()
    wait_until(lambda: running() - left)
    assert not left & running()
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert not running()
