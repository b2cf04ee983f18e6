"""The locked versions are those that the ranges allow, for every machine."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bloomery.infra import bill
from bloomery.infra.image.lock import LEFT_OUT, lines
from bloomery.infra.image.trim import trim

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "infra" / "image"
HASHED = re.compile(r"([a-z0-9-]+)(===?)([^ ]+) --hash=sha256:[0-9a-f]{64}")


def locked() -> dict[str, str]:
    """Version by name of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(one.name): next(iter(one.specifier)).version for one in pinned}


def hashed(image: str) -> dict[str, str]:
    """Version by name of what an image holds."""
    found = {}
    for line in (IMAGE / f"{image}.txt").read_text(encoding="utf-8").splitlines()[1:]:
        name, operator, version = HASHED.fullmatch(line).groups()
        assert (operator == "===") == (line.startswith("torch=") and "+" not in version)
        found[name] = version
    return found


@pytest.mark.parametrize("image", ["cpu", "gpu"])
def test_an_image_holds_the_locked_versions_by_hash_and_names_no_index(image: str) -> None:
    versions, found = locked(), hashed(image)
    assert "://" not in (IMAGE / f"{image}.txt").read_text(encoding="utf-8")
    assert found["torch"] == {"cpu": f"{versions['torch']}+cpu", "gpu": versions["torch"]}[image]
    others = {name: version for name, version in found.items() if name in versions and name != "torch"}
    assert others == {name: versions[name] for name in others} and len(others) > 150
    # What is in no constraint comes with torch's CUDA build alone.
    beyond = set(found) - set(versions)
    assert not beyond if image == "cpu" else "nvidia-nccl-cu13" in beyond
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = {canonicalize_name(Requirement(line).name) for line in project["dependencies"]}
    assert wanted | {"psycopg2-binary", "optuna", "cmaes", "bitsandbytes"} <= set(found)


def test_what_an_image_leaves_out_is_needed_by_nothing_else_in_it() -> None:
    kept = hashed("cpu")
    needing = set()
    for name in kept:
        for line in requires(name) or []:
            one = Requirement(line)
            if (one.marker is None or one.marker.evaluate({"extra": ""})) and canonicalize_name(one.name) in LEFT_OUT:
                needing.add((name, canonicalize_name(one.name)))
    assert needing == {("mlflow", "matplotlib"), ("evidently", "statsmodels")}


def test_a_report_becomes_lines_and_one_without_a_hash_is_refused() -> None:
    def entry(name: str, version: str, **info: object) -> dict:
        return {"metadata": {"name": name, "version": version}, "download_info": info}

    digest = {"archive_info": {"hashes": {"sha256": "ab"}}}
    told = lines({"install": [entry("torch", "2+cpu", **digest), entry("A_b", "1", **digest), entry("pillow", "9")]})
    assert told == ["a-b==1 --hash=sha256:ab", "torch==2+cpu --hash=sha256:ab"]
    with pytest.raises(ValueError, match="no hash"):
        lines({"install": [entry("numpy", "2", archive_info={})]})


def test_what_developers_use_and_nobody_loads_goes_and_what_users_import_stays(tmp_path: Path) -> None:
    gone = ("torch/test/a", "torch/include/b.h", "torch/bin/test_i", "torch/bin/protoc")
    gone += ("scipy/stats/tests/c.py", "pandas/tests/d.py", "pyarrow/libarrow_flight.so.25", "zstandard/_cffi.cp.so")
    gone += ("botocore/data/ec2/2016-11-15/service-2.json.gz", "jupyterlab_plotly/h.js")
    gone += ("bitsandbytes/libbitsandbytes_cuda128.so", "bitsandbytes/libbitsandbytes_rocm64.so")
    stays = ("torch/bin/torch_shm_manager", "torch/testing/e.py", "evidently/tests/f.py", "scipy/stats/g.py")
    stays += ("botocore/data/s3/2006-03-01/service-2.json.gz", "botocore/data/endpoints.json")
    stays += ("pyarrow/libarrow.so.25", "zstandard/backend_c.cp.so", "bitsandbytes/libbitsandbytes_cuda130.so")
    stays += ("evidently/nbextension/static/index.js",)  # a page of drift holds it, no notebook
    for name in (*gone, *stays):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    assert trim(tmp_path) == 60
    assert {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()} == set(stays)


def test_a_bill_names_every_package_with_its_licence() -> None:
    parts = {part["name"]: part for part in bill.bill()["components"]}
    assert parts["bloomery"]["licenses"] == [{"license": {"name": "Apache-2.0"}}]
    assert parts["torch"]["purl"].startswith("pkg:pypi/torch@2.") and parts["numpy"]["version"] == locked()["numpy"]
    unknown = [name for name, part in parts.items() if part["licenses"][0]["license"]["name"] == bill.UNKNOWN]
    assert len(unknown) < len(parts) / 20, unknown


def test_every_requirement_is_locked_inside_its_range() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [
        *project["project"]["dependencies"],
        *project["project"]["optional-dependencies"]["test"],
        *project["build-system"]["requires"],
        "pip",
        "psycopg2-binary",  # the image's
    ]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    locked = {}
    for requirement in (Requirement(line) for line in lines if not line.startswith("#")):
        (pin,) = requirement.specifier
        assert pin.operator == "==" and "+" not in pin.version, f"{requirement}: one version, of any build"
        assert requirement.url is None and requirement.marker is None
        locked[canonicalize_name(requirement.name)] = pin.version
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name))
        assert version and requirement.specifier.contains(version), f"{requirement}, locked is {version}: `make lock`"
    assert "bloomery" not in locked
