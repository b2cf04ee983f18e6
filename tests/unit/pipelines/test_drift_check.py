import json
from types import SimpleNamespace

import pytest
import yaml
from drifting_log import ROWS_PER_WEEK, write_log
from google.protobuf import json_format
from kfp import compiler, components, local
from kfp.pipeline_spec import pipeline_spec_pb2
from kubeflow_api import KubeflowAPI
from s3_server import BUCKET

from bloomery.infra import images
from bloomery.infra.resources import ResourcesConfig
from bloomery.monitoring.config import MonitoringConfig
from bloomery.pipelines import drift_check, launch
from bloomery.pipelines.kubeflow import Access
from bloomery.pipelines.recipe import Recipe
from bloomery.pipelines.schedule import schedule

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


PLACE = f"s3://{BUCKET}/shop"
"""What the checks of the test below share, as pods do."""
DIGEST = "registry.example.com/bloomery-cpu@sha256:" + "0" * 64


@pytest.fixture
def scheduled(object_store, tmp_path, monkeypatch):
    """A recurring check of a log on S3, as the API of a cluster has it, with what its pods know of their surroundings:
    (the API, what runs the check once as the cluster does)."""
    for name in ("KFP_ENDPOINT", "KFP_TOKEN", "KFP_NAMESPACE", "BLOOMERY_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    split = {name: {"path": f"{PLACE}/{name}.jsonl"} for name in ("train", "test")}
    question = {"templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
    learning = {"path": "{drifted}", "templates": [{"prompt": "{prompt}", "answer": "{label}"}]}
    values = {
        "name": "shop",
        "registered_model": "sql",
        "base_model": "org/model",
        "tasks": {"sql": {"role": "domain", **question, "splits": split}},
        "stages": [{"sft": {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}}],
        "promotion": {"models_uri": f"{PLACE}/models"},
        "monitoring": {
            "reference_rows": ROWS_PER_WEEK,
            "window_rows": ROWS_PER_WEEK,
            "policy": {"min_rows": 100, "consecutive_windows": 1},
            "runner": "cluster",
            "settings": ["sft.epochs=2", f"tasks.sql.splits.unlabelled={json.dumps(learning)}"],
        },
    }
    file = tmp_path / "shop.yaml"
    file.write_text(yaml.safe_dump(values))
    with KubeflowAPI() as api:
        monkeypatch.setattr(images, "CPU_IMAGE", DIGEST)
        recipe, access = launch.load(str(file), prepare=False), Access(api.url)
        log = f"{PLACE}/predictions"
        schedule(recipe, None, log, "0 * * * *", None, access, workdir=PLACE, settings=["seed=3"])
        file.unlink()  # no pod sees it
        monkeypatch.setenv("KF_PIPELINES_ENDPOINT", api.url)  # of the ConfigMap, beside those of the store
        (recurring,) = api.kept["recurringruns"]
        spec = recurring["pipeline_spec"]

        def run(pod):
            local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / pod), raise_on_error=True)
            components.load_component_from_text(yaml.safe_dump(spec.get("pipeline_spec", spec)))()
            (metrics,) = (tmp_path / pod).rglob("metrics")
            (page,) = (tmp_path / pod).rglob("decision")
            return json.loads(metrics.read_text()), page.read_text()

        yield api, run


def test_the_recurring_check_finds_drift_and_submits_one_retraining(scheduled, object_store, tmp_path):
    """On a cluster, as far as there is one: each check is a process that shares the object store and the API alone."""
    api, check = scheduled

    log = write_log(tmp_path / "log.jsonl", [0, 0.4])
    object_store.client.upload_file(str(log), BUCKET, "shop/predictions/log.jsonl")
    found, page = check("first")
    assert found["drift_check/started"] == 1 and found["drift_check/drifted_signals"] >= 4
    assert page.startswith("# Retrain: sql:3")
    (run,) = api.kept["runs"]
    retraining = run["pipeline_spec"].get("pipeline_spec", run["pipeline_spec"])
    executors = retraining["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {DIGEST}
    given = retraining["root"]["inputDefinitions"]["parameters"]
    told = json.dumps(given)
    kept = object_store.objects("shop/monitoring/")
    window = run["display_name"]
    rows = f"{window}/retraining.jsonl"
    assert f"{PLACE}/monitoring/{rows}" in told and len(kept[rows].splitlines()) >= 10
    assert given["sft"]["defaultValue"]["epochs"] == 2
    record = json.loads(kept[f"triggers/{window}.json"])
    assert (record["status"], record["attempts"]) == ("submitted", 1)
    assert "seed=3" in record["command"]
    found, page = check("second")
    assert found["drift_check/started"] == 0 and "was started before" in page
    assert [run["display_name"] for run in api.kept["runs"]] == [window]
