"""`bloomery advise` from flags, files and a terminal to the recipe that it writes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from bloomery.components.core.errors import ConfigError, DataError, ModelError
from bloomery.components.core.modelling import cards
from bloomery.pipelines import recipe
from bloomery.pipelines.advise_measured import Files, measure
from bloomery.pipelines.cli import app

FLAGS = {
    "--model": "org/model",
    "--goal": "behaviour",
    "--fresh": "stable",
    "--examples": "300",
    "--document-tokens": "0",
    "--pairs": "0",
    "--verifier": "none",
    "--serve-on": "cpu",
    "--serve-memory": "0",
    "--latency": "0",
    "--privacy": "open",
    "--languages": "en",
}
ENGLISH, KOREAN = "the weather in the city is good today", "오늘은 날씨가 매우 좋습니다"


def call(folder: Path, *more: str, without: tuple[str, ...] = (), **changes: str):
    """The result of the command with all flags but those `without`, which writes `folder`/out.yaml."""
    flags = {flag: value for flag, value in {**FLAGS, **changes}.items() if flag not in without}
    words = [word for pair in flags.items() for word in pair]
    return CliRunner().invoke(app, ["advise", *words, "-o", str(folder / "out.yaml"), *more])


def lines(file: Path, rows: list[dict]) -> str:
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(file)


def messages(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_flags_answer_and_a_file_that_is_there_is_left(tmp_path):
    result = call(tmp_path)
    assert result.exit_code == 0 and "examples: Fine-tune on the 300 examples with LoRA." in result.stdout
    loaded = recipe.load(str(tmp_path / "out.yaml"))
    assert loaded.name == "out" and [stage.name for stage in loaded.stages] == ["chat_curation", "sft"]
    before = (tmp_path / "out.yaml").read_bytes()
    error = call(tmp_path).exception
    assert isinstance(error, ConfigError) and "there is a file of that name" in str(error)
    assert (tmp_path / "out.yaml").read_bytes() == before


def test_a_place_that_cannot_be_written_is_told_first(tmp_path):
    (tmp_path / "file").write_text("no folder")
    error = call(tmp_path / "file").exception
    assert isinstance(error, ConfigError) and "out.yaml: cannot be written: " in str(error)


def test_json_is_the_last_line(tmp_path):
    told = json.loads(call(tmp_path, "--json").stdout.strip().splitlines()[-1])
    assert told["recipe"] == str(tmp_path / "out.yaml")
    assert set(told["recommendations"][0]) == {"subject", "advice", "reason", "source"}


def test_without_a_terminal_every_missing_answer_names_its_flag(tmp_path):
    error = call(tmp_path, without=("--goal", "--document-tokens", "--languages")).exception
    assert isinstance(error, ConfigError)
    told = str(error).split("\n")
    assert [line.partition(":")[0] for line in told] == ["--goal", "--document-tokens", "--languages"]
    assert "What does it lack" in told[0] and not (tmp_path / "out.yaml").exists()


@pytest.mark.parametrize(
    ("flag", "value", "told"),
    [
        ("--goal", "fact", "--goal: found \"fact\"; Input should be 'facts', 'behaviour' or 'form'"),
        ("--examples", "-1", '--examples: found "-1"; Input should be greater than or equal to 0'),
        ("--document-tokens", "many", '--document-tokens: found "many"; Input should be a valid integer'),
        ("--languages", "Korean", '--languages: found "Korean"'),
        ("--serve-on", "L44", "--serve-on L44: no such card; did you mean L4"),
        ("--gpu", "H10", "--gpu H10: no such card; did you mean H100?"),
        ("--chats", "nowhere.jsonl", "nowhere.jsonl: no file there"),
    ],
)
def test_a_wrong_value_is_one_message(tmp_path, flag, value, told):
    error = call(tmp_path, **{flag: value}).exception
    assert isinstance(error, ConfigError | DataError) and str(error).startswith(told)
    assert not (tmp_path / "out.yaml").exists()


def test_every_wrong_and_every_missing_value_is_told_at_once(tmp_path):
    """Of one command: a value that is none of its words, two that are no such numbers, two cards that there are not, a
    file that is not there, a recipe that is, and two flags that are missing."""
    (tmp_path / "out.yaml").write_text("mine")
    wrong = {"--goal": "fact", "--examples": "-1", "--latency": "fast", "--serve-on": "L44", "--gpu": "H10"}
    error = call(tmp_path, without=("--fresh", "--pairs"), **wrong, **{"--documents": "nowhere"}).exception
    assert isinstance(error, ConfigError)
    flags = ["--output", "--goal", "--examples", "--latency", "--gpu", "--serve-on", "nowhere", "--fresh", "--pairs"]
    assert [line.split()[0].rstrip(":") for line in str(error).split("\n")] == flags
    assert "did you mean 'facts'?" in str(error)


def test_a_model_and_files_are_measured(tiny_model, tmp_path):
    short = [messages("what is good", f"{ENGLISH} {number}") for number in range(3)]
    chats = lines(tmp_path / "chats.jsonl", [*short, messages("what", "a" * 300), {"text": "no chat"}])
    documents = lines(tmp_path / "documents.jsonl", [{"body": f"{KOREAN} {number}", "id": "x"} for number in range(4)])
    pairs = lines(tmp_path / "pairs.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "q"}])
    card = cards.Card("card", 16e9, 0, 0)
    measured, answers = measure(str(tiny_model), Files(chats, documents, pairs), card, None)
    # A token is a byte; three more mark the two turns and the end. A document has four words and a number.
    num_bytes = len(f"{KOREAN} 0".encode())
    assert answers["examples"] == 4 and measured.chats == 4 and measured.not_chats == 1
    assert answers["document_tokens"] == 4 * num_bytes and measured.document == "{body}"
    assert answers["pairs"] == 1 and measured.pair == {"prompt": "{prompt}", "answer": "{chosen}"}
    assert measured.longest == 3 + len(f"what is good{ENGLISH} 0") and measured.over_context == 1 / 4
    assert answers["languages"] == "ko,en" and measured.tokens_a_word["ko"] == num_bytes / 5
    assert measured.shape.context == 256 and not measured.lacks_template


def test_what_is_measured_is_not_asked_and_stands_in_the_recipe(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    lines(tmp_path / "alpaca.jsonl", [{"instruction": f"{KOREAN} {number}", "output": KOREAN} for number in range(60)])
    result = call(
        tmp_path / "recipes",
        "--chats",
        "alpaca.jsonl",
        without=("--examples", "--languages"),
        **{"--model": str(tiny_model), "--verifier": "exact", "--gpu": "H100"},
    )
    assert result.exit_code == 0, result.exception
    assert "Take a model whose tokenizer knows Korean" in result.stdout.replace("\n  ", " ")
    written = yaml.safe_load((tmp_path / "recipes" / "out.yaml").read_text(encoding="utf-8"))
    assert written["tasks"]["examples"]["templates"] == [{"prompt": "{instruction}", "answer": "{output}"}]
    assert written["tasks"]["examples"]["max_new_tokens"] == 256 // 4
    # 60 examples: 3 in 10 are asked at the end. Bytes of question and answer and three tokens, in 64s.
    assert written["chats"] == [{"name": "examples", "path": "../alpaca.jsonl", "share": [0.0, 0.65]}]
    num_tokens = len(f"{KOREAN} 10{KOREAN}".encode()) + 3
    assert written["stages"][0]["sft"]["max_length"] == -(-num_tokens // 64) * 64
    loaded = recipe.load(str(tmp_path / "recipes" / "out.yaml"))
    assert loaded.chats[0].path == str(tmp_path / "alpaca.jsonl") and loaded.base_model == str(tiny_model)


def test_a_folder_that_is_no_model_and_a_file_without_chats_are_refused(tiny_model, tmp_path):
    (tmp_path / "empty").mkdir()
    documents = lines(tmp_path / "documents.jsonl", [{"text": ENGLISH}])
    for changes, kind, told in (
        ({"--model": str(tmp_path / "empty")}, ModelError, "empty"),
        ({"--chats": documents}, DataError, "no row is a chat (unknown_form 1)"),
        ({"--preferences": documents}, DataError, "no row is a preference pair"),
        ({"--documents": lines(tmp_path / "numbers.jsonl", [{"n": 1}])}, DataError, "no row has a text"),
    ):
        error = call(tmp_path, **changes).exception
        assert isinstance(error, kind) and told in str(error)


def test_on_a_terminal_what_is_missing_is_asked_until_it_is_answered(tmp_path):
    command = [sys.executable, "-c", "from bloomery.pipelines.cli import main; main()", "advise"]
    flags = [word for pair in FLAGS.items() if pair[0] not in ("--goal", "--serve-on") for word in pair]
    ours, theirs = pty.openpty()
    os.write(ours, b"tone\nform\nabacus\nL4\n")
    output = tmp_path / "asked.yaml"
    command += [*flags, "-o", str(output)]
    done = subprocess.run(command, stdin=theirs, capture_output=True, text=True, timeout=120)
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "What does it lack" in done.stderr and "[facts, behaviour, form]" in done.stderr
    assert "Input should be 'facts', 'behaviour' or 'form'" in done.stderr
    assert "--serve-on abacus: no such card" in done.stderr
    assert recipe.load(str(output)).promotion.gate.max_bytes == int(cards.named("L4").memory_bytes / 1.2)
