"""`bloomery tune` through the command line on a tiny real model."""

import json
import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import colours
import pytest
import yaml
from mlflow import MlflowClient

from bloomery.components.core.config import packed, parameters
from bloomery.pipelines import recipe, tune_trials
from bloomery.pipelines import tune as search

pytest.importorskip("optuna", reason="pip install 'bloomery[tune]'")


@pytest.fixture
def project(tmp_path, tiny_model):
    return colours.write_recipe(tmp_path, tiny_model)


def shorten(project, *kept: str) -> None:
    """Leave of the chain the stages with these names."""
    raw = yaml.safe_load((project / "recipe.yaml").read_text())
    written = [stage if isinstance(stage, dict) else {stage: {}} for stage in raw["stages"]]
    raw["stages"] = [stage for stage in written for name, own in stage.items() if own.get("as", name) in kept]
    (project / "recipe.yaml").write_text(yaml.safe_dump(raw))


def tune(project, *arguments):
    result = colours.bloomery(project, "tune", "recipe.yaml", "--workdir", "w", "--json", *arguments)
    assert "Traceback" not in result.stderr, result.stderr
    return result, json.loads(result.stdout.splitlines()[-1]) if result.stdout else None


def test_a_grid_of_learning_rates(project):
    shorten(project, "data_curation", "dedup", "sft", "sft_2")
    over = ("--over", "sft.learning_rate=1e-6,1e-2", "--sampler", "grid", "--set", "sft.num_validations=2")
    result, told = tune(project, *over)
    assert result.returncode == 0, result.stderr
    lines = [line.split()[:3] for line in result.stderr.splitlines()]
    for begins, ends in ([["trial", str(number), state] for state in ("running", "complete")] for number in (0, 1)):
        assert ["sft", "done"] in [line[:2] for line in lines[lines.index(begins) : lines.index(ends)]]
    by_rate = {trial["settings"]["sft.learning_rate"]: trial for trial in told["trials"]}
    assert {trial["state"] for trial in by_rate.values()} == {"complete"}
    assert by_rate[1e-2]["value"] < by_rate[1e-6]["value"] and told["best"] == by_rate[1e-2]
    page = (project / told["page"]).read_text()
    assert "sft/validation_loss" in page and "<svg" in page
    # What both have in common ran once, nothing was evaluated, and nothing promoted.
    runs = [json.loads(line) for file in project.glob("w/runs/*/journal.jsonl") for line in file.open()]
    finished = [(event["stage"], event["cached"]) for event in runs if event["event"] == "finished"]
    assert sorted(cached for stage, cached in finished if stage == "data_curation") == [False, True]
    assert not any(stage.startswith(("evaluation", "promotion", "sft_2")) for stage, _ in finished)
    # In MLflow each trial is a run of the study's, its steps are runs of its own.
    client = MlflowClient(f"sqlite:///{project / 'w' / 'mlflow.db'}")
    every = client.search_runs([one.experiment_id for one in client.search_experiments()])
    children: dict[str, list[Any]] = {}
    for one in every:
        children.setdefault(one.data.tags.get("mlflow.parentRunId", ""), []).append(one)
    (study,) = children[""]
    trials = children[study.info.run_id]
    assert sorted(one.data.params["sft.learning_rate"] for one in trials) == ["0.01", "1e-06"]
    assert all("sft.sft/validation_loss" in one.data.metrics for one in trials)
    assert all("sft.sft/validation_loss" in one.data.metrics for one in trials)
    assert all("sft" in {step.data.tags["mlflow.runName"] for step in children[one.info.run_id]} for one in trials)
    assert {one.info.status for one in every} == {"FINISHED"}
    # The same command has nothing left to do.
    again, same = tune(project, *over)
    assert again.returncode == 0 and same["trials"] == told["trials"]
    assert len(list(project.glob("w/runs/*"))) == 2


def test_a_trial_that_falls_behind_is_ended_and_the_study_has_its_best(project):
    """Of a study whose earlier trials were all at a loss of 0.1 from their first validation on, one that learns nothing
    is ended there: of 400 steps it has made few more than the 20 before it."""
    import optuna

    shorten(project, "sft")
    settings, over = ["sft.epochs=200", "sft.num_validations=20"], "sft.learning_rate=1e-9,1e-8"
    base = recipe.load(str(project / "recipe.yaml"), settings)
    name = search.study_name(base, settings, [search.parse_over(over)], "sft/validation_loss")
    (project / "w" / "tune").mkdir(parents=True)
    study = optuna.create_study(study_name=name, storage=f"sqlite:///{project / 'w' / 'tune' / 'studies.db'}")
    choices = optuna.distributions.CategoricalDistribution((1e-9, 1e-8))
    good = optuna.trial.create_trial(
        params={"sft.learning_rate": 1e-8},
        distributions={"sft.learning_rate": choices},
        value=0.1,
        intermediate_values=dict.fromkeys(range(20, 401, 20), 0.1),
    )
    study.add_trials([good] * search.FIRST_TRIALS)
    sets = (word for setting in settings for word in ("--set", setting))
    result, told = tune(project, "--over", over, "--sampler", "random", "--trials", str(search.FIRST_TRIALS + 1), *sets)
    assert result.returncode == 0, result.stderr
    assert [trial["state"] for trial in told["trials"]] == ["complete"] * search.FIRST_TRIALS + ["pruned"]
    assert told["trials"][-1]["value"] is None and told["best"]["value"] == 0.1
    (journal,) = project.glob("w/runs/*/journal.jsonl")
    events = [event for event in map(json.loads, journal.open()) if event["stage"] == "sft"]
    assert not any(event["event"] == "finished" for event in events)
    steps = [event["step"] for event in events if event["event"] == "progress"]
    assert 20 <= max(steps) < 300


def test_trials_that_the_recipe_refuses_fail_and_a_search_that_goes_on_draws_none_again(project):
    """Each value goes with the recipe, and no pair of them does: every trial ends before it begins a run."""
    over = [search.parse_over(text) for text in ("dpo.loss=ipo,orpo", "dpo.gamma=0.1..0.9")]

    def found(folder, trials):
        told = []
        study = search.search(
            str(project / "recipe.yaml"),
            ["dpo.loss=simpo"],
            over,
            project / folder,
            trials=trials,
            sampler="random",
            measure="dpo/accuracy_after",
            told=told.append,
        )
        return study.trials, told

    first, _ = found("w", 2)
    trials, told = found("w", 4)
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3] and trials[:2] == first and trials[2:] == told
    assert {trial["state"] for trial in trials} == {"fail"}
    assert all("has no margin" in trial["error"] for trial in trials)
    chosen = [trial["settings"] for trial in trials]
    assert len({settings["dpo.gamma"] for settings in chosen}) == 4
    assert [trial["settings"] for trial in found("whole", 4)[0]] == chosen
    assert not (project / "w" / "runs").exists()


def test_pods_share_a_study_on_postgresql(project, postgres_server, monkeypatch, tmp_path):
    """Twelve trials by four at a time, as tasks of a search ask and tell them; every fourth fails, and one pod dies."""
    import optuna

    postgres_server.psql("CREATE ROLE studies LOGIN PASSWORD 'p'; CREATE DATABASE studies OWNER studies;")
    url = postgres_server.get_uri(database="studies").replace("postgres:@", "studies:p@")
    monkeypatch.setenv("BLOOMERY_STUDIES", url)
    base = recipe.load(str(project / "recipe.yaml"))
    over = ["sft.learning_rate=1e-5..1e-1", "sft.batch_size=4,8"]
    facts = {"name": "shared", "measure": "sft/validation_loss", "maximise": False, "sampler": "tpe", "trials": 12}
    facts |= {"over": over, "stages": ["sft"], "recipe": packed(parameters(base))}
    assert tune_trials.open_study(facts) == list(range(12))
    tune_trials.ask(facts)  # its pod dies before it tells

    def go(place):
        (trial,) = tune_trials.ask(facts)
        rate = trial["_settings"]["sft.learning_rate"]
        assert trial["sft"]["learning_rate"] == rate and trial["sft"]["batch_size"] in (4, 8)
        file = tmp_path / f"metrics-{place}.json"
        told = {"failed": "out of memory"} if place % 4 == 0 else {"sft/validation_loss": abs(math.log10(rate) + 3)}
        file.write_text(json.dumps(told))
        return tune_trials.tell(facts, trial, str(file))

    with ThreadPoolExecutor(4) as pool:
        rows = list(pool.map(go, range(12)))
    assert sorted(row["number"] for row in rows) == list(range(1, 13))
    assert [row.get("error") for row in rows[::4]] == ["out of memory"] * 3
    study = optuna.load_study(study_name="shared", storage=search.with_driver(url))
    states = [trial.state.name for trial in study.trials]
    assert Counter(states) == {"RUNNING": 1, "COMPLETE": 9, "FAIL": 3} and states[0] == "RUNNING"
    tune_trials.write_best(facts, rows, str(tmp_path / "best.json"), str(tmp_path / "page.html"))
    best = json.loads((tmp_path / "best.json").read_text())["best"]
    assert best["value"] == min(row["value"] for row in rows if "value" in row)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--over", "sft.learning_rat=1e-6,1e-2"), "did you mean 'learning_rate'"),
        (("--over", "sft.learning_rate=-1..1e-2"), "greater than 0"),
        (("--over", "seed=1,2"), "so --measure has to: stage/metric"),
        (("--over", "sft.epochs=1,2", "--measure", "sftt/loss"), "expected stage/metric, the stage one of data"),
        (("--over", "sft.epochs=1..2", "--sampler", "grid"), "sft.epochs is a range; a grid needs lists"),
        (("--over", "sft.epochs=1,2", "--over", "sft.epochs=3..4"), "--over: sft.epochs is given twice"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_first_trial(arguments, told, project):
    result, _ = tune(project, *arguments)
    assert result.returncode == 2 and told in result.stderr
    assert not (project / "w" / "runs").exists()
