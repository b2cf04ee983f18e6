"""Runs on a cluster, through kfp's own client, over HTTP, to a server that answers as the API does."""

import base64
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from kubeflow_api import WORKFLOW, KubeflowAPI
from trainer_api import JOBS, NAMESPACE, TrainerAPI
from typer.testing import CliRunner

from bloomery.components.core import step, train_job
from bloomery.components.core.errors import BloomeryError, ConfigError, DataError, GateError, ServiceError
from bloomery.components.promotion import step as promotion
from bloomery.pipelines import kubeflow, recipe, submission
from bloomery.pipelines.cli import app
from bloomery.pipelines.kubeflow import Access

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}
PODS = {
    "preflight": ("Succeeded", ""),
    "preflight.executor(0)": ("Succeeded", ""),
    "evaluation-base": ("Running", ""),
    "evaluation-base.executor(0)": ("Pending", "Unschedulable: 0/1 nodes are available: 1 Insufficient cpu."),
    "sft": ("Failed", ""),
    "sft.executor(0)": ("Failed", "Error (exit code 1)"),
    "sft.executor(1)": ("Failed", "main: Error (exit code 1): DataError: no chat survives max_length = 64"),
}
SAID = "no chat survives max_length = 64"
TOLD = f"DataError: {SAID}"
JUDGED = {"promotion": ("Succeeded", ""), "promotion.executor(0)": ("Succeeded", "")}


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(kubeflow, "WAITS", (0.01, 0.01))
    for name in ("KFP_ENDPOINT", "KF_PIPELINES_ENDPOINT", "KFP_TOKEN", "KFP_NAMESPACE", "BLOOMERY_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    with KubeflowAPI() as server:
        yield server


@pytest.fixture
def file(tmp_path):
    """A recipe that names nothing of this machine."""
    questions = {"role": "domain", "templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
    splits = {"train": {"path": "s3://d/q.jsonl"}, "test": {"path": "s3://d/t.jsonl"}}
    values = {"name": "shop", "registered_model": "m", "base_model": "org/model", "stages": [{"sft": TRAINING}]}
    values |= {"tasks": {"t": {**questions, "splits": splits}}, "promotion": {"models_uri": "s3://d/models"}}
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(values))
    return str(path)


@pytest.fixture
def submit(api, file):
    return lambda key=None: submission.submit(recipe.load(file), Access(api.url), key)


def names(api):
    return [run["display_name"] for run in api.kept.get("runs", [])]


def test_a_key_names_one_submitted_run(api, submit):
    first = submit("shop-3-w0004")
    assert submit("shop-3-w0004") == first
    assert submit("shop-3-w0005") != first
    assert names(api) == ["shop-3-w0004", "shop-3-w0005"]
    access = Access(api.url)
    api.kept["runs"][0]["state"] = "RUNNING"
    assert submission.is_unfinished(access, "shop-3-w0004")
    api.kept["runs"][0]["state"] = "FAILED"
    assert not submission.is_unfinished(access, "shop-3-w0004")
    assert not submission.is_unfinished(access, "never")


def test_a_task_may_ask_as_well(api, submit):
    """Within one, kfp has left its client out of itself."""
    submit("shop-1")
    api.kept["runs"][0]["state"] = "RUNNING"
    asking = f"submission.is_unfinished(Access({api.url!r}), 'shop-1')"
    imports = "import kfp.dsl.executor_main; from bloomery.pipelines.submission import Access; "
    code = f"{imports}from bloomery.pipelines import submission; print({asking})"
    environment = {**os.environ, kubeflow.RUNTIME: "true"}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert told.stdout == "True\n", told.stderr


def test_an_answer_that_was_lost_makes_no_second_run(api, submit):
    api.faults = [("POST runs", 500, {"message": "Failed to store run"}, True)]
    assert submit() == api.kept["runs"][0]["run_id"]
    assert len(names(api)) == 1
    # One that was refused while the store was away is asked for again.
    api.faults = [("POST runs", 503, {"message": "upstream connect error"}, False)]
    submit("again")
    assert names(api)[1:] == ["again"]


def test_a_service_that_stays_away_is_told_with_the_name_to_ask_for(api, submit):
    api.faults = [("POST runs", 500, {"message": "database is down"}, False)] * 3
    with pytest.raises(ServiceError, match="did not take the run shop-1: database is down.* --key shop-1") as told:
        submit("shop-1")
    assert told.value.exit_code == 7 and not names(api)


def test_what_the_api_refuses_is_told_in_its_words_and_asked_once(api, submit):
    reason = "Failed to create a run: the pipeline root is not valid"
    api.faults = [("POST runs", 400, {"error": reason, "code": 3, "message": reason}, False)]
    with pytest.raises(ConfigError, match=r"refuses \(400\): Failed to create a run: the pipeline root"):
        submit("shop-1")
    assert api.asked.count("POST runs") == 1


def test_a_key_is_one_and_of_one_pipeline(api, submit, file, tmp_path):
    run = submit("nightly")
    other = tmp_path / "other.yaml"
    other.write_text(Path(file).read_text().replace("name: shop", "name: other"))
    with pytest.raises(ConfigError, match=f"--key nightly: .*{run}, is one of shop, and this is other"):
        submission.submit(recipe.load(str(other)), Access(api.url), "nightly")
    with pytest.raises(ConfigError, match="--key '': expected up to 200 letters"):  # of a variable that is not set
        submit("")
    assert names(api) == ["nightly"]


@pytest.mark.parametrize("call", ["healthz", "runs"])
def test_the_page_of_a_login_is_no_answer(api, submit, call):
    """The client took it for a list without runs, submitted to nobody, and the command ended with 0."""
    submit("shop-1")
    api.faults = [(f"GET {call}", 200, "<html>Sign in</html>", False)]
    with pytest.raises(ConfigError, match=r"answers what Kubeflow Pipelines does not: <html>Sign in.*KFP_TOKEN"):
        submit("shop-1")
    api.faults = [(f"GET {call}", 302, "Found", False)]
    with pytest.raises(ConfigError, match=r"refuses \(302\): Found; it asks for a login elsewhere"):
        submit("shop-1")
    assert names(api) == ["shop-1"]


@pytest.mark.parametrize("address", ["http://", "http://[::1", "ftp://host", "http://host:99999", "the host"])
def test_what_is_no_address_is_not_waited_for(address):
    with pytest.raises(ConfigError, match="no address of Kubeflow Pipelines; expected such as http://host:8888"):
        submission.seen("shop-1", Access(address))


def test_a_token_is_one_line_and_never_shown(file, tmp_path, monkeypatch):
    with KubeflowAPI(token="right") as api:
        loaded, empty = recipe.load(file), tmp_path / "token"
        submission.submit(loaded, Access(f" {api.url}\n", token="right\n"), "shop-1")
        with pytest.raises(ConfigError, match="expected a token, which is one line") as told:
            submission.submit(loaded, Access(api.url, token="right\nwrong"), "shop-1")
        assert "right" not in str(told.value)
        empty.write_text("\n")
        monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(empty))
        with pytest.raises(ConfigError, match="token: empty; expected the token of this pod"):
            submission.submit(loaded, Access(api.url), "shop-1")


def test_nobody_there(file, api):
    with pytest.raises(ServiceError, match="127.0.0.1:9 did not answer"):
        submission.seen("shop-1", Access("http://127.0.0.1:9"))


@pytest.fixture
def shared(api):
    """An API of several users that knows one profile and one token."""
    with KubeflowAPI(namespace="team-a", token="s3same") as server:
        yield server


def test_an_api_of_several_users_is_asked_with_profile_and_token(shared, file, monkeypatch, tmp_path):
    def submit(*access):
        return submission.submit(recipe.load(file), Access(shared.url, *access), "shop-1")

    with pytest.raises(ConfigError, match="several users; name your profile by --namespace"):
        submit()
    with pytest.raises(ConfigError, match=r"refuses \(401\): Request header error.*KFP_TOKEN"):
        submit("team-a")
    with pytest.raises(ConfigError, match=r"refuses \(403\): User is not authorized in team-b"):
        submit("team-b", "s3same")
    made = submit("team-a", "s3same")
    assert [item["namespace"] for item in shared.kept["experiments"]] == ["team-a"]
    monkeypatch.setenv("KFP_TOKEN", "s3same")
    monkeypatch.setenv("KFP_NAMESPACE", "team-a")
    assert submit() == made
    # In a pod the token of its service account lies in a file, which the kubelet renews.
    monkeypatch.delenv("KFP_TOKEN")
    file_of_token = tmp_path / "token"
    file_of_token.write_text("s3same\n")
    monkeypatch.setenv("KF_PIPELINES_SA_TOKEN_PATH", str(file_of_token))
    assert submit() == made


def test_a_failed_task_is_told_with_what_it_said(api, submit):
    run = submit("shop-1")
    api.play(api.kept["runs"][0], "FAILED", PODS)
    now = submission.seen("shop-1", Access(api.url))
    tasks = {task.stage: task for task in now.tasks}
    assert [task.stage for task in now.tasks][0] == "preflight"
    assert list(tasks)[-1] == "promotion" and tasks["promotion"].state == "·"
    assert tasks["preflight"].state == "done" and tasks["preflight"].seconds == 30
    assert tasks["evaluation_base"].state == "running"
    assert tasks["evaluation_base"].message.startswith("Unschedulable: 0/1 nodes")
    assert now.failure == f"sft: {TOLD}" and now.run_id == run
    assert tasks["sft"].pods == (
        f"{WORKFLOW}-retry-system-container-impl-1005",
        f"{WORKFLOW}-retry-system-container-impl-1006",
    )


def test_a_run_whose_pipeline_the_api_does_not_tell(api, submit):
    submit("shop-1")
    api.play(api.kept["runs"][0], "RUNNING", PODS)
    del api.kept["runs"][0]["pipeline_spec"]
    now = submission.seen("shop-1", Access(api.url))
    assert [(task.stage, task.state) for task in now.tasks] == [
        ("preflight", "done"),
        ("evaluation_base", "running"),
        ("sft", "failed"),
    ]


def test_an_exit_code_alone_is_explained_by_the_log(api, submit):
    submit("shop-1")
    api.play(api.kept["runs"][0], "FAILED", {"sft": ("Failed", ""), "sft.executor": ("Failed", "Error (exit code 1)")})
    pod = f"{WORKFLOW}-system-container-impl-1001"
    lines = [{"level": "INFO", "message": "chats 12"}, {"level": "ERROR", "message": f"sft: {SAID}"}]
    api.logs[pod] = "\n".join([*map(json.dumps, lines), "F1128 launcher: exit status 3"])
    assert submission.seen("shop-1", Access(api.url)).failure == f"sft: sft: {SAID}"


def test_the_log_of_a_pod_that_is_gone(api, submit):
    run = submit("shop-1")
    api.play(api.kept["runs"][0], "RUNNING", PODS)
    with pytest.raises(ServiceError, match=r"sft: no log of its pod .* can be had \(pods .* not found\)"):
        submission.logs(run, None, Access(api.url))


def test_a_workflow_that_argo_has_packed_is_read_and_one_without_nodes_tells_nothing(api, submit):
    run = submit("shop-1")
    api.play(api.kept["runs"][0], "RUNNING", PODS)
    (workflow,) = api.workflows.values()
    packed = gzip.compress(json.dumps(workflow["status"].pop("nodes")).encode())
    workflow["status"]["compressedNodes"] = base64.b64encode(packed).decode()
    found = {task.stage: task for task in submission.seen(run, Access(api.url)).tasks}
    assert found["sft"].message == TOLD
    workflow["status"] = {"offloadNodeStatusVersion": "fnv:1"}  # in Argo's own database
    found = {task.stage: task for task in submission.seen(run, Access(api.url)).tasks}
    assert (found["preflight"].word, found["sft"].word) == ("done", "failed")


def test_a_driver_that_fails_is_its_stage(api, submit):
    submit("shop-1")
    api.play(api.kept["runs"][0], "FAILED", {"sft-driver": ("Failed", "main: Error (exit code 1): no such bucket")})
    assert submission.seen("shop-1", Access(api.url)).failure == "sft: no such bucket"


ITEM = "for-loop-1.iteration-iterations({0}:{0}).iteration-item.{1}"
"""Where Argo has a task of a loop, in the words of Kubeflow Pipelines' compiler."""


@pytest.fixture
def quantised(api, file):
    """A run with a loop over two variants."""
    values = yaml.safe_load(Path(file).read_text())
    values["quantisation"] = [{"scheme": "int8_weight_only"}]  # and `none`, always
    Path(file).write_text(yaml.safe_dump(values))
    submission.submit(recipe.load(file), Access(api.url), "shop-1")
    return api.kept["runs"][0]


def test_a_variant_is_told_by_its_name(api, quantised):
    whole = ITEM.format(0, "quantisation-of-variant"), ITEM.format(0, "evaluation-of-variant")
    failed = ITEM.format(1, "quantisation-of-variant")
    nodes = {"for-loop-1": ("Failed", ""), "for-loop-1.iteration-driver": ("Succeeded", "")}
    for task in whole:
        nodes |= {
            f"{task}-driver": ("Succeeded", ""),
            task: ("Succeeded", ""),
            f"{task}.executor(0)": ("Succeeded", ""),
        }
    nodes |= {f"{failed}-driver": ("Succeeded", ""), failed: ("Failed", "")}
    nodes[f"{failed}.executor(0)"] = "Failed", "main: Error (exit code 1): ConfigError: int8_weight_only: no layer fits"
    api.play(quantised, "FAILED", nodes)
    now = submission.seen("shop-1", Access(api.url))
    assert now.failure == "ptq_int8_weight_only: ConfigError: int8_weight_only: no layer fits"
    states = {task.stage: task.state for task in now.tasks if "ptq_" in task.stage}
    assert states == {
        "ptq_none": "done",
        "evaluation_ptq_none": "done",
        "ptq_int8_weight_only": "failed",
        "evaluation_ptq_int8_weight_only": "·",
    }
    assert list(states) == [task.stage for task in now.tasks if "ptq_" in task.stage]
    assert "variants" not in {task.stage for task in now.tasks}
    with pytest.raises(ConfigError, match="^ptq_int8_weight_only: int8_weight_only: no layer fits$"):
        submission.raise_for(now)
    ((pod,),) = [task.pods for task in now.tasks if task.stage == "ptq_int8_weight_only"]
    api.logs = {pod: "its log\n"}
    assert run_cli(api, "logs", "shop-1").stdout == run_cli(api, "logs", "shop-1", "ptq_int8_weight_only").stdout
    # One that was killed says nothing, and one whose driver fails has not begun.
    nodes[f"{failed}.executor(0)"] = "Failed", "OOMKilled (exit code 137)"
    api.play(quantised, "FAILED", nodes)
    assert submission.seen("shop-1", Access(api.url)).failure == "ptq_int8_weight_only: OOMKilled (exit code 137)"
    nodes[f"{failed}-driver"] = "Failed", "main: Error (exit code 1): no such bucket"
    api.play(quantised, "FAILED", nodes)
    assert submission.seen("shop-1", Access(api.url)).failure == "ptq_int8_weight_only: no such bucket"


def test_a_loop_whose_own_driver_fails_is_told(api, quantised):
    driver = {"for-loop-1": ("Failed", ""), "for-loop-1.iteration-driver": ("Failed", "Error (exit code 1): no item")}
    api.play(quantised, "FAILED", driver)
    assert submission.seen("shop-1", Access(api.url)).failure == "variants: no item"


def test_what_tasks_cost_beyond_their_work(api, quantised):
    """Times as of a small cluster: a driver takes 10 s, and a pod is there after 10 s more; one was preempted, one
    comes from the cache, and one is at work."""
    variant = ITEM.format(0, "quantisation-of-variant")
    times = {
        "preflight-driver": (0, 10),
        "preflight": (10, 40),
        "preflight.executor(0)": (10, 40),
        "evaluation-base-driver": (40, 52),
        "evaluation-base": (52, 52),
        "sft-driver": (40, 50),
        "sft": (50, 300),
        "sft.executor(0)": (50, 100),
        "sft.executor(1)": (160, 300),
        "for-loop-1.iteration-driver": (300, 309),
        "for-loop-1.iteration-iterations(0:0).iteration-item-driver": (310, 320),
        f"{variant}-driver": (320, 330),
        f"{variant}.executor(0)": (330, 400),
        "promotion-driver": (400, 410),
        "promotion.executor(0)": (410, 0),
    }
    nodes = {name: ("Succeeded", "") for name in times}
    nodes |= {"sft.executor(0)": ("Error", "pod deleted"), "promotion.executor(0)": ("Running", "")}
    api.play(quantised, "RUNNING", nodes, times)
    assert submission.seen("shop-1", Access(api.url)).overhead is None
    took = {"preflight.executor(0)": 12, "sft.executor(1)": 90.4, f"{variant}.executor(0)": 40}
    places = list(times)
    for name, seconds in took.items():
        line = {"level": "INFO", "logger": step.__name__, "message": f"a_stage: done; {seconds:.2f} s"}
        api.logs[f"{WORKFLOW}-retry-system-container-impl-{1000 + places.index(name)}"] = json.dumps(line)
    # Of preflight 28 s, of sft with both attempts 169.6, of the variant 40; the drivers of the cached evaluation, the
    # loop and its item 12, 9 and 10; promotion has not ended.
    told = submission.seen("shop-1", Access(api.url)).overhead
    assert (told.tasks, round(told.work, 1), round(told.beyond, 1)) == (3, 142.4, 268.6)
    line = "3 tasks: 142 s of work, and 269 s beyond it (drivers, pods, images, Python), 90 s a task"
    assert line in run_cli(api, "status", "shop-1").stderr
    assert json.loads(run_cli(api, "status", "shop-1", "--json").stdout)["overhead"]["tasks"] == 3
    api.play(quantised, "FAILED", {**nodes, "promotion.executor(0)": ("Failed", "")}, times)
    assert line in run_cli(api, "status", "shop-1", "--watch").stderr


def run_cli(api, *arguments):
    return CliRunner().invoke(app, [*arguments, "--endpoint", api.url])


def test_the_commands(api, submit, monkeypatch):
    monkeypatch.setattr(submission, "POLL_SECONDS", 0.01)
    run = submit("shop-1")
    assert "no stage has begun" in str(run_cli(api, "logs", "shop-1").exception)
    api.play(api.kept["runs"][0], "FAILED", PODS)
    shown = run_cli(api, "status", "shop-1")
    assert type(shown.exception) is DataError and str(shown.exception) == f"sft: {SAID}"
    (line,) = [line for line in shown.stdout.splitlines() if line.startswith("sft ")]
    assert line.split() == ["sft", "failed", "30", "s", *TOLD.split()]
    assert str(run_cli(api, "status", run, "--watch").exception) == f"sft: {SAID}"
    assert json.loads(run_cli(api, "status", run, "--json").stdout)["state"] == "FAILED"
    api.logs = {f"{WORKFLOW}-retry-system-container-impl-1006": "one\ntwo\n"}
    assert run_cli(api, "logs", "shop-1").stdout == "one\ntwo\n"
    assert "no stage dpo; known: preflight" in str(run_cli(api, "logs", "shop-1", "dpo").exception)
    assert "the API names no pod" in str(run_cli(api, "logs", "shop-1", "promotion").exception)
    assert run_cli(api, "cancel", "shop-1").stdout.startswith("shop-1 has ended before: failed")
    assert "no run of this name" in str(run_cli(api, "cancel", "never").exception)
    api.kept["runs"][0]["state"] = "RUNNING"
    assert "is being ended" in run_cli(api, "cancel", run).stdout
    assert api.kept["runs"][0]["state"] == "CANCELING"


def test_a_run_that_is_cancelled_takes_its_nodes_along(file, tmp_path, monkeypatch):
    """Of a pipeline whose training several nodes share; jobs of other runs stay."""
    for name in ("KFP_ENDPOINT", "KFP_TOKEN", "KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    nodes = {"nodes": 2, "store": "s3://d/store"}
    values = yaml.safe_load(Path(file).read_text()) | {"resources": nodes}
    Path(file).write_text(yaml.safe_dump(values))
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(tmp_path / "none"))
    with KubeflowAPI(namespace=NAMESPACE) as api, TrainerAPI() as kubernetes:
        run = submission.submit(recipe.load(file), Access(api.url, NAMESPACE))
        manifest = {"spec": {"trainer": {"env": []}}}
        for name, of in (("ours", run), ("theirs", "another")):
            kubernetes.jobs[name] = train_job.completed(manifest, name, [], {"BLOOMERY_PIPELINE_RUN": of})
        command = f"kubectl -n {NAMESPACE} delete trainjobs -l pipeline/runid={run}"
        assert command in submission.cancel(run, Access(api.url, NAMESPACE))
        monkeypatch.setattr(place, str(kubernetes.kubeconfig(tmp_path / "kubeconfig")))
        kubernetes.faults = [(f"DELETE {JOBS}", 403, "forbidden")]
        told = submission.cancel(run, Access(api.url, NAMESPACE))
        assert command in told and "403" in told and set(kubernetes.jobs) == {"ours", "theirs"}
        assert submission.cancel(run, Access(api.url, NAMESPACE)).endswith("the TrainJobs of its nodes are deleted")
        assert set(kubernetes.jobs) == {"theirs"}


def test_waiting_shows_each_change_once_and_ends_with_the_run(api, submit):
    submit("shop-1")
    run = api.kept["runs"][0]
    api.play(run, "RUNNING", {name: PODS[name] for name in list(PODS)[:4]})
    told = []

    def show(event):
        told.append(event)
        if event["event"] == "warned":
            api.play(run, "FAILED", PODS)

    ended = submission.follow("shop-1", Access(api.url), show, poll=0.01)
    changes = [(event["stage"], event["event"]) for event in told if event["event"] != "progress"]
    assert changes == [
        ("preflight", "finished"),
        ("evaluation_base", "started"),
        ("evaluation_base", "warned"),
        ("sft", "failed"),
    ]
    with pytest.raises(DataError, match=f"sft: {SAID}"):
        submission.raise_for(ended)


def test_what_was_reused_is_told_of_the_store_and_of_the_cache(api, submit):
    """A task whose step took a finished result says so in its log; one that Kubeflow's cache kept has no pod."""
    submit("shop-1")
    nodes = {name: ("Succeeded", "") for name in ("preflight", "preflight.executor(0)", "evaluation-base")}
    nodes |= {"sft": ("Succeeded", ""), "sft.executor(0)": ("Error", "pod deleted")}
    nodes["sft.executor(1)"] = "Succeeded", ""
    api.play(api.kept["runs"][0], "SUCCEEDED", nodes)
    pods = {number: f"{WORKFLOW}-retry-system-container-impl-{number}" for number in (1001, 1004, 1005)}
    own = {"level": "INFO", "logger": step.__name__, "message": "preflight: all is well"}
    taken = {**own, "message": "sft: reused: the result is that of an earlier run"}
    api.logs = {pods[1001]: json.dumps(own), pods[1004]: "", pods[1005]: json.dumps(taken)}
    told = []
    ended = submission.follow("shop-1", Access(api.url), told.append, poll=0.01)
    cached = {event["stage"]: event["cached"] for event in told if event["event"] == "finished"}
    assert cached == {"preflight": False, "evaluation_base": True, "sft": True}
    words = {task.stage: task.word for task in ended.tasks}
    assert (words["preflight"], words["evaluation_base"], words["sft"]) == ("done", "reused", "reused")
    api.logs.clear()  # they are gone, which is told at once
    api.asked.clear()
    shown = run_cli(api, "status", "shop-1").stdout
    assert shown.split()[:2] == ["preflight", "done"] and api.asked.count("GET runs") <= 6


def test_a_run_that_has_ended_ends_the_command_as_run_would(api, submit, file):
    submit("shop-1")
    run = api.kept["runs"][0]

    def waited():
        return run_cli(api, "submit", file, "--key", "shop-1", "--wait")

    api.play(run, "SUCCEEDED", JUDGED)
    with pytest.raises(ServiceError, match="shop-1: succeeded, but the API does not show the log of its promotion"):
        raise waited().exception
    pod = f"{WORKFLOW}-retry-system-container-impl-1001"
    assert promotion.logger.name == submission.PROMOTION
    after = {"level": "INFO", "logger": "bloomery.components.core.store", "message": "done: that"}
    for told in ("rejected: t.test.accuracy 0.5 is not above 0.6", "promoted: all 7 legs passed"):
        line = {"level": "INFO", "logger": submission.PROMOTION, "message": told}
        api.logs[pod] = "\n".join(["I1128 launcher: starts", *map(json.dumps, (line, after)), "I1128 launcher: ends"])
        result = waited() if told.startswith("rejected") else run_cli(api, "status", "shop-1")
        assert told in result.stderr or f"shop-1: {told}" == str(result.exception)
        assert json.loads(run_cli(api, "status", "shop-1", "--json").stdout)["verdict"] == told
        assert isinstance(result.exception, GateError) == told.startswith("rejected")
    assert result.exit_code == 0
    # What is told of no kind that has an exit code ends with 1, as does a run that somebody has ended.
    for state, said in (("FAILED", "sft: RuntimeError: x"), ("CANCELED", "the run shop-1 ended canceled")):
        nodes = {"sft": ("Failed", ""), "sft.executor": ("Failed", f"Error (exit code 1): {said[5:]}")}
        api.play(run, state, nodes if state == "FAILED" else {})
        failed = run_cli(api, "status", "shop-1").exception
        assert type(failed) is BloomeryError and str(failed) == said
