"""What a run shows while it goes on."""

import json
import sys

import pytest

from bloomery.components.core.errors import DataError
from bloomery.pipelines.progress import Journal, Lines, Live


def test_the_live_table_follows_the_journal_and_leaves_stdout_alone(capfd):
    stdout = sys.stdout
    live = Live(("preflight", "sft"))
    assert sys.stdout is stdout  # what steps print must go where the launcher sends it
    live({"event": "started", "stage": "preflight", "time": 1.0})
    done = {"event": "finished", "stage": "preflight", "time": 2.0, "cached": False, "seconds": 1.0}
    lost = "tasks.t: 2 rows [of 9] are lost"
    live({"event": "warned", "stage": "preflight", "time": 1.5, "message": lost})
    live({**done, "metrics": {"preflight/files": 2.0}, "warnings": [lost]})
    live({"event": "started", "stage": "sft", "time": 2.0})
    metrics = {"loss": 0.5, "tokens_per_second": 900.0, "num_steps": 40.0}
    live({"event": "progress", "stage": "sft", "time": 12.0, "step": 10, "metrics": metrics})
    live.close()
    screen = capfd.readouterr().err
    assert screen.count(f"preflight warns: {lost}") == 1
    table = screen.split("stage")[-1]
    assert "done" in table and "files 2" in table
    assert "loss 0.500, 900 tokens/s, 10/40, 30 s left" in table


def test_what_a_step_warns_of_is_told_at_once_and_of_a_reused_one_under_its_line(capfd):
    lines = Lines()
    lines({"event": "warned", "stage": "dpo", "time": 1.0, "message": "the loss rises"})
    done = {"event": "finished", "stage": "sft", "cached": True, "seconds": 1.0, "metrics": {"sft/loss": 0.5}}
    lines({**done, "warnings": ["9 of 10 chats are too long"]})
    lines.close()
    first, _, last, _ = capfd.readouterr().err.split("\n")
    assert first == f"{'dpo':<20} warns: the loss rises"
    assert last == f"{'sft':<20} warns: 9 of 10 chats are too long"


def test_a_log_has_a_line_a_minute_of_a_training_that_goes_on(capfd):
    lines = Lines()
    lines({"event": "started", "stage": "sft", "time": 100.0})
    for seconds in (30, 59, 61, 90, 122):
        metrics = {"loss": 1 / seconds, "num_steps": 244.0}
        lines({"event": "progress", "stage": "sft", "time": 100.0 + seconds, "step": seconds, "metrics": metrics})
    lines.close()
    told = capfd.readouterr().err.splitlines()
    assert told == [
        f"{'sft':<20} running   61.0 s  loss 0.016, 61/244, 183 s left",
        f"{'sft':<20} running  122.0 s  loss 0.008, 122/244, 122 s left",
    ]


@pytest.mark.parametrize(
    ("last", "kind", "told"),
    [
        ({"event": "finished"}, None, ""),
        ({"event": "failed", "error": "DataError", "message": "no rows"}, DataError, "sft: no rows"),
        ({"event": "started"}, None, "sft: the process ended without a word"),
        ({"event": "progress"}, None, "sft: its task ended without a result"),
    ],
)
def test_a_run_that_was_said_to_have_succeeded_is_held_against_its_stages(last, kind, told, tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", print)
    events = [{"stage": "cpt", "event": "finished"}, {"stage": "sft", **last}]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    error = journal.lacking(["cpt", "sft"])
    assert str(error or "").startswith(told) and bool(error) == bool(told)
    assert kind is None or type(error) is kind
