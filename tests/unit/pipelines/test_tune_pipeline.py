"""A search that is compiled for a cluster."""

import hashlib
import json
import math

import pytest
import yaml
from kubeflow_api import KubeflowAPI
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, DataError, ServiceError
from bloomery.pipelines import tune_pipeline, tune_trials
from bloomery.pipelines.cli import app
from bloomery.pipelines.tune import Search

TRAINING = {"epochs": 1, "max_length": 64}
RECIPE = {
    "name": "mine",
    "registered_model": "m",
    "base_model": "org/model",
    "tasks": {
        "t": {
            "role": "domain",
            "templates": [{"prompt": "{q}", "answer": "{a}"}],
            "verifier": {"kind": "exact"},
            "splits": {"train": {"path": "q.jsonl"}, "test": {"path": "q.jsonl"}},
        }
    },
    "stages": [
        {"data_curation": {"sources": [{"name": "d", "path": "docs"}]}},
        {"cpt": {"learning_rate": 1e-3, **TRAINING}},
        {"sft": {"learning_rate": 1e-4, **TRAINING}},
        "rejection_sampling",
        {"sft": {"as": "sft_2", "learning_rate": 1e-4, **TRAINING}},
        {"dpo": {"learning_rate": 1e-6, **TRAINING}},
    ],
    "promotion": {"gate": {"decontaminated": False}},
}


@pytest.fixture
def compiled(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def go(*arguments):
        command = ["tune", str(tmp_path / "recipe.yaml"), "--compile", str(tmp_path / "search.yaml"), *arguments]
        result = CliRunner().invoke(app, command)
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return next(yaml.safe_load_all((tmp_path / "search.yaml").read_text()))

    return go


def test_what_trials_share_runs_once_and_the_rest_side_by_side(compiled):
    """Trials differ from sft on; cpt before it is theirs together, and dpo behind the measured stage does not run."""
    over = ("--over", "sft.learning_rate=1e-5,1e-4,1e-3", "--over", "sft_2.epochs=1,2", "--sampler", "grid")
    found = compiled(*over, "--parallel", "3")
    from google.protobuf.json_format import ParseDict
    from kfp.pipeline_spec import pipeline_spec_pb2

    ParseDict(found, pipeline_spec_pb2.PipelineSpec())
    tasks = found["root"]["dag"]["tasks"]
    (loop,) = (name for name in tasks if name.startswith("for-loop"))
    assert set(tasks) == {"preflight", "data-curation", "cpt", loop, "collected"}
    assert tasks[loop]["iteratorPolicy"] == {"parallelismLimit": 3}
    inside = found["components"][tasks[loop]["componentRef"]["name"]]["dag"]
    assert set(inside["tasks"]) == {"sft", "rejection-sampling", "sft-2", "told"}
    # Its model and metrics are those of its own trial, and what they begin with is the one of cpt.
    assert inside["tasks"]["sft-2"]["inputs"]["artifacts"]["base_model"]["taskOutputArtifact"]["producerTask"] == "sft"
    assert inside["tasks"]["told"]["inputs"]["artifacts"]["metrics"]["taskOutputArtifact"]["producerTask"] == "sft-2"
    assert "cpt" in inside["tasks"]["sft"]["inputs"]["artifacts"]["base_model"]["componentInputArtifact"]
    trials = found["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    assert [trial["_number"] for trial in trials] == [0, 1, 2, 3, 4, 5]
    rates = [(trial["_settings"]["sft.learning_rate"], trial["_settings"]["sft_2.epochs"]) for trial in trials]
    assert rates == [(rate, epochs) for rate in (1e-5, 1e-4, 1e-3) for epochs in (1, 2)]
    assert [(one["sft"]["learning_rate"], one["sft_2"]["epochs"]) for one in trials] == rates
    names = {"NAME_sft", "NAME_rejection_sampling", "NAME_sft_2"}
    assert set(trials[0]) == {"_number", "_settings", "sft", "rejection_sampling", "sft_2"} | names
    assert trials[4]["NAME_sft_2"] == "sft_2_of_trial_4"
    given = found["root"]["inputDefinitions"]["parameters"]
    assert given.keys() == {"preflight", "data_curation", "cpt", "search", "trials"}
    assert given["search"]["defaultValue"]["trials"] == 6


def test_a_random_search_draws_as_many_trials_as_are_asked_for(compiled):
    pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")
    over = ("--over", "sft.learning_rate=1e-5..1e-3", "--sampler", "random", "--trials", "5")
    first = compiled(*over)["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    rates = [trial["sft"]["learning_rate"] for trial in first]
    assert len(set(rates)) == 5 and all(1e-5 <= rate <= 1e-3 for rate in rates)
    again = compiled(*over)["root"]["inputDefinitions"]["parameters"]["trials"]["defaultValue"]
    assert again == first


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--over", "sft.epochs=1..3", "--sampler", "grid"), "sft.epochs is a range; a grid needs lists"),
        (("--over", "seed=1,2", "--measure", "sft/loss", "--sampler", "grid"), "--over seed: trials of a pipeline"),
        (("--over", "sft_2.from=cpt,sft", "--sampler", "grid"), "changes what the stage sft_2 reads or writes"),
    ],
)
def test_a_search_that_cannot_be_compiled_is_refused(arguments, told, compiled):
    with pytest.raises(ConfigError, match=told):
        compiled(*arguments)


def test_where_trials_choose_by_earlier_results_each_asks_when_its_turn_comes(compiled, tmp_path):
    found = compiled("--over", "sft.learning_rate=1e-5..1e-3", "--trials", "6", "--parallel", "2")
    tasks = found["root"]["dag"]["tasks"]
    (loop,) = (name for name in tasks if name.startswith("for-loop"))
    assert set(tasks) == {"preflight", "data-curation", "cpt", "opened", loop, "collected"}
    assert tasks[loop]["iteratorPolicy"] == {"parallelismLimit": 2}
    outer = found["components"][tasks[loop]["componentRef"]["name"]]["dag"]["tasks"]
    (inner,) = (name for name in outer if name.startswith("for-loop"))
    assert set(outer) == {"asked", inner}
    assert set(found["components"][outer[inner]["componentRef"]["name"]]["dag"]["tasks"]) == {"sft", "told"}
    text = (tmp_path / "search.yaml").read_text()
    assert "BLOOMERY_STUDIES" in text and "postgresql" not in text  # the password stands in the Secret alone


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_trials_that_are_too_large_for_an_argument_are_refused(compiled, tmp_path, sampler):
    """Each stage alone would fit: the task that tells of a trial gets the settings of all of them, and the recipe."""
    words = [hashlib.sha256(f"{n}".encode()).hexdigest() for n in range(1000)]
    made = {"entities": {"word": dict.fromkeys(words, ["a"])}}
    stages = [{"synthetic_data": made}, {"synthetic_data": {"as": "more", **made}}]
    large = {**RECIPE, "stages": [RECIPE["stages"][0], *stages, RECIPE["stages"][2]]}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(large))
    with pytest.raises(ConfigError, match="in a trial: its settings take .* bytes .* or search on this machine"):
        compiled("--over", "synthetic_data.seed=1,2", "--measure", "sft/loss", "--sampler", sampler)


def test_a_compiled_search_is_submitted_and_its_files_are_put_where_pods_read_them(
    compiled, tmp_path, object_store, capsys
):
    for name in ("q.jsonl", "docs/a.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"q": "a", "a": "b"}')
    over = ("--over", "sft.learning_rate=1e-5,1e-4", "--sampler", "grid")
    found = compiled(*over, "--upload", object_store.uri)
    assert str(tmp_path) not in json.dumps(found)
    assert len(object_store.objects()) == 3  # the questions once, and the folder with its listing
    with KubeflowAPI() as api:
        command = ["submit", str(tmp_path / "search.yaml"), "--key", "rates", "--endpoint", api.url]
        first, second = (CliRunner().invoke(app, command).stdout for _ in range(2))
        (run,) = api.kept["runs"]
        assert first == second == f"{run['run_id']}\n" and run["display_name"] == "rates"
        assert [one["display_name"] for one in api.kept["experiments"]] == ["mine-search"]
        refused = CliRunner().invoke(app, [*command, "--set", "seed=3"])
        assert "is compiled: --set, --upload and --in-image belong to the command" in str(refused.exception)


def test_tasks_of_a_search_know_their_run_and_only_who_asks_has_the_database(compiled, tmp_path):
    found = compiled("--over", "sft.learning_rate=1e-5..1e-3", "--trials", "2")
    executors = found["deploymentSpec"]["executors"]
    variables = {
        name.removeprefix("exec-"): {pair["name"]: pair["value"] for pair in executor["container"].get("env", ())}
        for name, executor in executors.items()
    }
    assert {name for name, given in variables.items() if "BLOOMERY_TRIAL" in given} == {"sft"}
    assert {name for name, given in variables.items() if "BLOOMERY_LAST_TASK" in given} == {"collected"}
    assert all(given["BLOOMERY_RECIPE"] == "mine" for given in variables.values())
    _, platform = yaml.safe_load_all((tmp_path / "search.yaml").read_text())
    secrets = {
        name.removeprefix("exec-"): {pair["envVar"] for one in pod.get("secretAsEnv", ()) for pair in one["keyToEnv"]}
        for name, pod in platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"].items()
    }
    assert {name for name, keys in secrets.items() if keys == {"BLOOMERY_STUDIES"}} == {"opened", "asked", "told"}
    assert secrets["collected"] == {"MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"}
    assert not any("BLOOMERY_STUDIES" in secrets[name] for name in ("preflight", "cpt", "sft"))


def test_pods_share_a_study(compiled, tmp_path, monkeypatch):
    """Two ask before either tells; the next one knows what they came to."""
    optuna = pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")
    found = compiled("--over", "sft.learning_rate=1e-5..1e-3", "--over", "sft.batch_size=8,16", "--trials", "3")
    search = found["root"]["inputDefinitions"]["parameters"]["search"]["defaultValue"]
    with pytest.raises(ConfigError, match="BLOOMERY_STUDIES: not set; expected the URL of a database"):
        tune_trials.ask(search)
    monkeypatch.setenv("BLOOMERY_STUDIES", f"sqlite:///{tmp_path}/studies.db")
    assert tune_trials.open_study(search) == [0, 1, 2]
    (first,), (second,) = tune_trials.ask(search), tune_trials.ask(search)
    assert (first["_number"], second["_number"]) == (0, 1)
    assert first["_settings"]["sft.learning_rate"] != second["_settings"]["sft.learning_rate"]
    for trial in (first, second):
        chosen = {key.partition(".")[2]: value for key, value in trial["_settings"].items()}
        assert set(trial) == {"_number", "_settings", "sft", "NAME_sft"} and chosen.items() <= trial["sft"].items()
    (tmp_path / "m.json").write_text('{"sft/validation_loss": 0.5}')
    for _ in range(2):  # a task that is started again tells it again
        row = tune_trials.tell(search, second, str(tmp_path / "m.json"))
    assert row == {"number": 1, "settings": second["_settings"], "value": 0.5}
    study = optuna.load_study(study_name=search["name"], storage=f"sqlite:///{tmp_path}/studies.db")
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE"] and study.best_value == 0.5
    # One that failed is known as failed, and the next is chosen all the same.
    (tmp_path / "m.json").write_text('{"failed": "out of memory"}')
    row = tune_trials.tell(search, first, str(tmp_path / "m.json"))
    assert row == {"number": 0, "settings": first["_settings"], "error": "out of memory"}
    assert [trial.state.name for trial in study.get_trials()] == ["FAIL", "COMPLETE"]
    assert tune_trials.ask(search)[0]["_number"] == 2
    monkeypatch.setenv("BLOOMERY_STUDIES", "postgresql://studies:secret@127.0.0.1:9/studies")
    with pytest.raises(ServiceError, match="BLOOMERY_STUDIES: the database of the study did not .*refused"):
        tune_trials.ask(search)


def test_the_best_of_all_trials_is_told_with_a_page(tmp_path):
    """As the last two tasks have them: kfp makes every number a float, and a list of what a loop in a loop gives."""
    search = {"name": "mine", "measure": "sft/validation_loss", "maximise": False, "sampler": "grid"}
    rows = []
    for number, (rate, loss) in enumerate(((1e-3, 0.4), (1e-4, 0.2), (1e-5, 0.9))):
        (tmp_path / "metrics.json").write_text(json.dumps({"sft/validation_loss": loss, "sft/chats": 3.0}))
        trial = {"_number": float(number), "_settings": {"sft.learning_rate": rate, "sft.adapter.rank": 8.0}}
        row = tune_trials.tell(search, trial, str(tmp_path / "metrics.json"))
        assert row == {"number": number, "settings": {"sft.learning_rate": rate, "sft.adapter.rank": 8}, "value": loss}
        rows.insert(0, row)
    best, page = tmp_path / "out" / "best", tmp_path / "out" / "page.html"
    for given in (rows, [[row] for row in rows]):
        tune_trials.write_best(search, given, str(best), str(page))
        told = json.loads(best.read_text())
        assert told["best"]["number"] == 1 and [row["number"] for row in told["trials"]] == [0, 1, 2]
    assert "Trial 1 is the best of 3" in page.read_text() and "<svg" in page.read_text()
    tune_trials.write_best({**search, "maximise": True}, rows, str(best), str(page))
    assert json.loads(best.read_text())["best"]["number"] == 2
    # A trial without a number has failed, and says why; where all have, there is no best.
    endings = (({"failed": "no chat survives"}, "no chat survives"), ({"sft/validation_loss": math.nan}, "is nan"))
    for told, why in endings:
        (tmp_path / "metrics.json").write_text(json.dumps(told))
        failed = tune_trials.tell(search, {**trial, "_number": 3.0}, str(tmp_path / "metrics.json"))
        assert failed.keys() == {"number", "settings", "error"} and failed["error"].endswith(why)
    tune_trials.write_best(search, [*rows, failed], str(best), str(page))
    told = json.loads(best.read_text())
    assert told["best"]["number"] == 1 and [row["state"] for row in told["trials"]] == ["complete"] * 3 + ["fail"]
    assert "validation_loss is nan" in page.read_text()
    with pytest.raises(DataError, match="all 2 trials have failed; the first: sft/validation_loss is nan"):
        tune_trials.write_best(search, [failed, failed], str(best), str(page))
    (tmp_path / "metrics.json").write_text(json.dumps({"sft/validation_loss": 0.4, "sft/chats": 3.0}))
    with pytest.raises(DataError, match="--measure sft/accuracy: sft has chats, validation_loss"):
        tune_trials.tell({**search, "measure": "sft/accuracy"}, trial, str(tmp_path / "metrics.json"))


def test_a_grid_is_no_longer_than_it_is_asked_for():
    over = [Search("sft.epochs", (1, 2)), Search("sft.seed", (3, 4))]
    assert tune_pipeline.settings_of(over, "grid", 3, 0) == [
        {"sft.epochs": 1, "sft.seed": 3},
        {"sft.epochs": 1, "sft.seed": 4},
        {"sft.epochs": 2, "sft.seed": 3},
    ]
