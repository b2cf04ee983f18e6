"""A model whose architecture is code in its own repository: what of it is run, and for whom."""

import hashlib
import json
import shutil
import sys

import hub
import own_code
import pytest
from chats import write_chats
from typer.testing import CliRunner

from bloomery.components.core import artifact, repository_code, step
from bloomery.components.core.data.chats import chat
from bloomery.components.core.errors import ConfigError, ModelError
from bloomery.components.core.modelling import checkpoints
from bloomery.components.core.modelling.generation import Generator
from bloomery.components.core.registry import registry
from bloomery.components.core.repository_code import CONSENT, Consent
from bloomery.components.evaluation.step import run as evaluation
from bloomery.components.merging.step import run as merging
from bloomery.components.preflight.step import run as preflight
from bloomery.components.quantisation.config import CannotRun, QuantisationConfig
from bloomery.components.quantisation.export import export
from bloomery.components.sft.step import run as sft
from bloomery.monitoring import champion
from bloomery.monitoring.serving_config import ServingConfig
from bloomery.pipelines.cli import app

PORTS = [*artifact.ports(preflight, artifact.Writes)]
SFT = {"learning_rate": 1e-3, "epochs": 1, "batch_size": 2, "max_length": 64, "num_validations": 0}


@pytest.fixture
def own(tmp_path, tiny_model):
    return own_code.write_model(tiny_model, tmp_path / "own")


@pytest.fixture(autouse=True)
def ran(tmp_path, monkeypatch):
    """Tells whether code of a model was run; what was imported for another test is imported again."""
    for name in [name for name in sys.modules if name.startswith("transformers_modules.")]:
        del sys.modules[name]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv(own_code.RAN, str(tmp_path / "ran"))
    with repository_code.believing([]):
        yield lambda: (tmp_path / "ran").is_file()


@pytest.fixture
def enter(tmp_path, own):
    """Take a model in by preflight, with these consents; the folders of what it wrote."""
    questions = tmp_path / "q.jsonl"
    questions.write_text("\n".join(json.dumps({"q": f"say {word}", "a": word}) for word in ("ab", "cd")))
    source = {"path": str(questions)}
    task = {"role": "domain", "templates": [{"prompt": "{q}", "answer": "{a}"}], "verifier": {"kind": "exact"}}
    task |= {"splits": {"train": source, "test": source}, "max_new_tokens": 4}

    def go(consents=(), name="in", **changes):
        config = {"base_model": str(own), "registered_model": "m", "tasks": {"echo": task}, **changes}
        out = {port: tmp_path / name / port for port in PORTS}
        step.execute(preflight, "preflight", {**config, "trust_remote_code": [*consents]}, {}, out)
        return out

    return go


def consent(folder):
    return {"model": str(folder), "revision": repository_code.digest_of(folder)}


def test_the_digest_is_over_names_and_bytes_of_all_code(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "sub" / "b.py").write_text("b")
    (tmp_path / "config.json").write_text("{}")
    a, b = (hashlib.sha256(text).hexdigest() for text in (b"a", b"b"))
    told = f'{{"a.py": "{a}", "sub/b.py": "{b}"}}'
    assert repository_code.digest_of(tmp_path) == hashlib.sha256(told.encode()).hexdigest()
    assert repository_code.digest_of(tmp_path / "sub") != repository_code.digest_of(tmp_path)
    (tmp_path / "empty").mkdir()
    assert repository_code.digest_of(tmp_path / "empty") == ""


def test_without_a_consent_none_is_run_and_the_message_says_what_to_write(enter, own, ran):
    with pytest.raises(ModelError, match="trust_remote_code is off") as caught:
        enter()
    wanted = consent(own)
    assert f"trust_remote_code: [{{model: {wanted['model']}, revision: {wanted['revision']}}}]" in str(caught.value)
    for load in (checkpoints.load, checkpoints.load_config):
        with pytest.raises(ModelError, match="trust_remote_code is off"):
            load(own)
    assert not ran()


def test_of_code_that_has_changed_since_it_was_read_none_is_run(enter, own, ran):
    read = consent(own)
    (own / "gain_own.py").write_text(own_code.CODE["gain_own.py"].replace("ones(1)", "ones(1) "))
    with pytest.raises(ModelError, match=f"found is {repository_code.digest_of(own)}: it is other code"):
        enter([read])
    assert not ran()


def test_a_seal_that_a_folder_brings_itself_counts_for_nothing(enter, own, ran, tmp_path):
    sealed = {**consent(own), "code": repository_code.digest_of(own)}
    (own / CONSENT).write_text(json.dumps(sealed))
    artifact.seal(own, "model/1")
    with pytest.raises(ModelError, match="trust_remote_code is off"):
        enter()
    for told in (lambda: checkpoints.load(own), lambda: champion.load("m", "1", str(own), ServingConfig())):
        with pytest.raises(ModelError):
            told()
    checked = CliRunner().invoke(app, ["check", str(own)])
    assert checked.exit_code == 4 and "trust_remote_code is off" in checked.output
    told = CliRunner().invoke(app, ["step", "adoption", f"--outside={tmp_path}", "--model=m", "--set", "model=m"])
    assert isinstance(told.exception, ConfigError) and "to which a recipe alone consents" in str(told.exception)
    assert not ran()


def test_code_of_another_repository_is_never_taken(enter, own, ran):
    config = json.loads((own / "config.json").read_text())
    elsewhere = {**own_code.AUTO_MAP, "AutoConfig": "org/code--configuration_own.OwnConfig"}
    (own / "config.json").write_text(json.dumps({**config, "auto_map": elsewhere}))
    with pytest.raises(ModelError, match="names code of another repository, org/code--configuration_own.OwnConfig"):
        enter([consent(own)])
    assert not ran()


def test_with_a_consent_it_is_trained_measured_and_served(enter, own, ran, tmp_path):
    entered = enter([consent(own)])
    assert json.loads((entered["start"] / CONSENT).read_text()) == {**consent(own), "code": consent(own)["revision"]}
    trained, results = tmp_path / "trained", tmp_path / "results"
    chats = write_chats(tmp_path / "c", [("say ab", "ab"), ("say cd", "cd")])
    inputs = {"chats": chats, "tasks": entered["tasks"], "base_model": entered["start"]}
    step.execute(sft, "sft", {**SFT, "adapter": {}}, inputs, {"model": trained})
    assert {file.name for file in trained.rglob("*.py")} == set(own_code.CODE)
    assert (trained / CONSENT).read_bytes() == (entered["start"] / CONSENT).read_bytes()
    told = step.execute(
        evaluation, "evaluation", {}, {"model": trained, "tasks": entered["tasks"]}, {"results": results}
    )
    assert told["metrics"]["evaluation/echo.test.n"] == 2
    # Outside of a step nothing is believed, but of a registered model what the recipe consents to.
    with pytest.raises(ModelError, match="trust_remote_code is off"):
        checkpoints.load(trained)
    with pytest.raises(ModelError, match="m, .*: the model runs code of its own.*add {model: champion, revision:"):
        champion.load("m", "1", str(trained), ServingConfig())
    with repository_code.believing([]):
        (served,) = champion.load("m", "1", str(trained), ServingConfig(), consents=[Consent(**consent(own))])
        assert type(served.model).__name__ == "OwnForCausalLM"
        (answer,) = Generator(served.model, served.tokenizer).generate([chat("say ab")], max_new_tokens=3)
    assert len(answer) == 1 and ran()


def test_what_is_made_of_it_keeps_its_code(enter, own, tmp_path):
    start = enter([consent(own)])["start"]
    merge = {"method": "linear", "models": [{"stage": "start", "weight": 1.0}, {"stage": "start", "weight": 1.0}]}
    step.execute(merging, "merging", merge, {"base_model": start, "first": start}, {"model": tmp_path / "merged"})
    for scheme in ("int8_weight_only", "int4_weight_only"):
        with repository_code.believing([start]):
            export(QuantisationConfig(scheme=scheme), start, None, tmp_path / scheme)
        artifact.seal(tmp_path / scheme, "model/1")
    for name in ("merged", "int8_weight_only", "int4_weight_only"):
        with repository_code.believing([tmp_path / name]):
            model, _ = checkpoints.load(tmp_path / name)
            assert type(model).__name__ == "OwnForCausalLM" and model.model.norm.gain.item() == 0.5
    with repository_code.believing([start]), pytest.raises(CannotRun, match="llama.cpp knows architectures by name"):
        export(QuantisationConfig(scheme="gguf_q8_0"), start, None, tmp_path / "gguf")


def test_a_layout_that_nobody_knows_is_told_by_preflight(enter, own):
    cut = {"stage": "pruning", "cut": {"intermediate_size": [32]}}
    with pytest.raises(ConfigError, match="pruning: the layout of own, which is code of its own repository, is not kn"):
        enter([consent(own)], reshapings=[cut])


def test_a_step_refuses_code_that_is_no_longer_what_was_sealed(enter, own, tmp_path):
    entered = enter([consent(own)])
    changed = shutil.copytree(entered["start"], tmp_path / "changed")
    code = changed / "modeling_own.py"
    code.write_text(code.read_text().replace("import", "import ", 1).replace("\n\n", "\n", 1))
    assert artifact.read_manifest(changed)
    inputs = {"model": changed, "tasks": entered["tasks"]}
    with pytest.raises(ModelError, match="is not that which the recipe consented to"):
        step.execute(evaluation, "evaluation", {}, inputs, {"results": tmp_path / "results"})


def test_a_champion_is_held_against_the_recipe_too(enter, own, tiny_model, tmp_path, monkeypatch, ran):
    entered = enter([consent(own)])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = registry.register("m", checkpoints.publish(entered["start"], str(tmp_path / "models")), {})
    registry.promote("m", version, expected_champion=None, why="a test")
    (tmp_path / "ran").unlink()
    champion_alone = [{"model": "champion", "revision": repository_code.digest_of(own)}]
    with pytest.raises(ModelError, match=r"add \{model: champion, revision: " + champion_alone[0]["revision"]):
        enter(base_model=str(tiny_model), name="second")
    assert not ran()
    out = enter(champion_alone, base_model=str(tiny_model), name="third")
    assert (out["champion"] / CONSENT).is_file() and not (out["base_model"] / CONSENT).exists()
    assert (enter([consent(own)], name="fourth")["champion"] / CONSENT).is_file()  # the same code as the base model's


def test_of_a_model_on_a_hub_the_commit_is_consented_to(own, tmp_path, monkeypatch, ran):
    consents = [Consent(model="org/model", revision=hub.COMMIT)]
    with hub.serving(own) as endpoint:
        hub.ask(monkeypatch, endpoint, tmp_path / "hub")
        folder = checkpoints.named("base_model", "org/model", hub.COMMIT)
        assert not [*folder.glob("*.py")]
        told = rf"trust_remote_code: \[{{model: org/model, revision: {hub.COMMIT}}}\].* and `revision: {hub.COMMIT}`"
        with pytest.raises(ModelError, match=told):
            checkpoints.check(folder)
        with pytest.raises(ModelError, match=f"found is {hub.COMMIT}: it is other code"):
            checkpoints.named("base_model", "org/model", "main", [Consent(model="org/model", revision="b" * 40)])
        assert not ran()
        folder = checkpoints.named("base_model", "org/model", hub.COMMIT, consents)
    assert checkpoints.load_config(folder).model_type == "own" and ran()
