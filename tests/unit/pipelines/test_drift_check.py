import json
from types import SimpleNamespace

import pytest
import yaml
from google.protobuf import json_format
from kfp import compiler, local
from kfp.pipeline_spec import pipeline_spec_pb2

from bloomery.infra import images
from bloomery.infra.resources import ResourcesConfig
from bloomery.monitoring.config import MonitoringConfig
from bloomery.pipelines import drift_check
from bloomery.pipelines.recipe import Recipe

RECIPE = Recipe.model_construct(
    name="shop",
    registered_model="shop",
    resources=ResourcesConfig(retries=0),
    monitoring=MonitoringConfig(reference_rows=60, window_rows=60, runner="cluster"),
)


def test_the_compiled_check_is_one_uncached_task_with_its_state(tmp_path):
    pipeline = drift_check.build(RECIPE, "shop.yaml", "s3://logs/shop/", "s3://logs/state", ["seed=3"])
    compiler.Compiler().compile(pipeline, str(tmp_path / "p.yaml"))
    spec, platform = yaml.safe_load_all((tmp_path / "p.yaml").read_text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    ((name, task),) = spec["root"]["dag"]["tasks"].items()
    assert name == "drift-check" and not task["cachingOptions"].get("enableCache")
    (pod,) = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].values()
    assert "pvcMount" not in pod
    given = spec["root"]["inputDefinitions"]["parameters"]
    assert given["monitoring"]["defaultValue"]["window_rows"] == 60 and given["inherited"]["defaultValue"] == ["seed=3"]
    ((executor),) = spec["deploymentSpec"]["executors"].values()
    told = {pair["name"]: pair["value"] for pair in executor["container"]["env"]}
    assert (told[images.CPU], told[images.GPU]) == (images.CPU_IMAGE, images.GPU_IMAGE)
    assert "KF_PIPELINES_ENDPOINT" in {pair["envVar"] for map_ in pod["configMapAsEnv"] for pair in map_["keyToEnv"]}
    assert pod["podMetadata"]["labels"] == {drift_check.TOKEN_LABEL: "true"}


def test_the_check_runs_under_kfp_local(tmp_path):
    rows = [
        {
            "id": str(index),
            "time": f"2025-01-06T09:{index // 60:02d}:{index % 60:02d}",
            "model_name": "shop",
            "model_version": "1",
            "prompt": ("orders in Seoul", "반품은 몇 건이야?", "customers of Busan")[index % 3],
            "response": "SELECT 1",
            "latency_seconds": 0.1,
            "prompt_tokens": 4,
            "response_tokens": 2,
            "feedback": None,
            "label": None,
        }
        for index in range(120)
    ]
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "root"))
    drift_check.build(RECIPE, "shop.yaml", str(log), workdir=f"file://{tmp_path}/work")()
    (decision,) = (tmp_path / "work" / "monitoring").glob("*/decision.json")
    assert json.loads(decision.read_text())["action"] == "wait"  # 60 rows, and the policy wants 200
    (page,) = (tmp_path / "root").rglob("decision")
    assert "only 60 rows to compare" in page.read_text()


def test_a_user_error_ends_the_task_without_a_traceback(tmp_path, capfd):
    from bloomery.monitoring.check import check_task

    (tmp_path / "log.jsonl").write_text("{}\n")
    with pytest.raises(SystemExit) as ended:
        check_task("shop.yaml", str(tmp_path), str(tmp_path / "log.jsonl"), {}, [], None, None, None)
    assert ended.value.code == 3
    assert "log.jsonl" in capfd.readouterr().err


def test_before_there_is_a_log_the_check_ends_well(tmp_path):
    from bloomery.monitoring.check import check_task

    outputs = [SimpleNamespace(path=str(tmp_path / name), metadata={}) for name in ("decision", "page", "metrics")]
    check_task("shop.yaml", f"file://{tmp_path}/w", f"file://{tmp_path}/none", {"runner": "cluster"}, [], *outputs)
    assert (tmp_path / "decision").read_text().startswith(f"nothing yet: no prediction at file://{tmp_path}/none;")
    assert json.loads((tmp_path / "metrics").read_text())["drift_check/started"] == 0
