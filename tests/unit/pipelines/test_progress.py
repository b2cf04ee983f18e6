"""What a run shows while it goes on."""

import sys

from bloomery.pipelines.progress import Lines, Live


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
