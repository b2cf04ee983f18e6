"""The run report over artifacts written as the steps write them."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from chats import write_chats

from bloomery.components.core import artifact
from bloomery.components.core.step import run_step
from bloomery.components.sft.step import run as sft
from bloomery.pipelines.report import write_report
from bloomery.pipelines.training_section import fit_sentence, guards_sentence

HOSTILE = "<script>alert('x')</script> & \"quoted\""


def _summary(status: str, **facts) -> dict:
    model = (
        {"name": "shop-assistant", "version": "4", "aliases": ["candidate", "champion"]}
        if status == "promoted"
        else None
    )
    recipe = {"name": "quickstart", "seed": 17, "sft": {"learning_rate": 0.002, "note": "한국어 " + HOSTILE}}
    return {
        "status": status,
        "model": model,
        "stages": {},
        "cached_steps": ["data_curation"],
        "seconds": 287.4,
        "recipe": recipe,
        "error": None,
        **facts,
    }


class _Page(HTMLParser):
    """What a browser would load or run, and whether tags are balanced."""

    VOID = {"meta", "br", "link", "img"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.outside = [], [], []
        self.feed(text)
        self.close()

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.outside += [value for name, value in attributes if name in ("src", "href", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _section(page: str, title: str) -> str:
    return page.split(f"<h2>{title}</h2>")[1].split("</section>")[0]


def _told(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture(scope="module")
def promoted(make_run, tmp_path_factory) -> str:
    made = make_run(tmp_path_factory.mktemp("run") / "20261121-030000-quickstart")
    made.whole("promoted")
    return write_report(made.folder, _summary("promoted")).read_text(encoding="utf-8")


def test_the_page_is_whole_small_and_needs_no_network(promoted):
    page = _Page(promoted)
    assert page.open == [] and page.outside == []
    assert "script" not in page.tags and "@import" not in promoted and "url(" not in promoted
    assert len(promoted.encode()) < 2_000_000


def test_data_is_escaped_wherever_it_appears(promoted):
    assert "<script" not in promoted
    assert promoted.count("&lt;script&gt;alert") >= 3  # a reason of a reject, an answer, the recipe


def test_the_head_says_what_came_out(promoted):
    head = _told(promoted.split("</header>")[0].split("<header>")[1])
    assert "✓ promoted" in head and "shop-assistant v4" in head and "all 2 legs passed" in head
    assert "4 min 47 s" in head and f"Bloomery {artifact.version()}" in head and "CPUs" in head
    assert "went on from version 3" in head


def test_scores_stand_in_the_order_of_training(promoted):
    part = _section(promoted, "Scores by stage")
    first = part.split("<tbody>")[1].split("</tbody>")[0]
    rows = [_told(row) for row in first.split("<tr")[2:]]
    assert [row.split()[1] for row in rows] == ["base", "cpt", "sft", "sft_2", "dpo", "ptq", "champion"]
    assert rows[0].endswith("– – – – – –") and rows[-1].endswith("– –")


@pytest.mark.parametrize(
    "told",
    [
        "meets",
        "int8_weight_only",
        "no_right_sample",
        "ko, domain",
        "needs a GPU",
        "Over-fitting after step 96",
    ],
)
def test_every_part_is_there(promoted, told):
    assert told in promoted


def test_a_rejected_run_names_the_leg(make_run, tmp_path):
    made = make_run(tmp_path / "run")
    made.whole("rejected")
    page = write_report(made.folder, _summary("rejected")).read_text(encoding="utf-8")
    assert "✗ rejected" in page and "skills.test against base misses -0.02" in page.split("</header>")[0]


def test_a_failed_run_is_reported_with_what_exists(make_run, tmp_path):
    made = make_run(tmp_path / "run")
    made.preflight()
    made.data()
    made.event(
        "failed", "cpt", error="DivergedError", message="the gradient is not finite at step 3", exit_code=4
    )
    with (made.folder / "journal.jsonl").open("a") as stream:
        stream.write('{"time": 1, "event": "star')
    page = write_report(made.folder, _summary("failed")).read_text(encoding="utf-8")
    assert "cpt: the gradient is not finite at step 3" in _told(page.split("</header>")[0])
    assert "no score to show" in _section(page, "Scores by stage")
    assert "ptq did not finish" in _section(page, "Quantised variants")
    assert "promotion did not finish" in _section(page, "The gate")
    assert "1,032" in _section(page, "Data")


def test_a_run_that_never_began_is_reported(tmp_path):
    page = write_report(
        tmp_path, _summary("failed", error="no such recipe", recipe={}, seconds=None)
    ).read_text(encoding="utf-8")
    assert "no such recipe" in page and page.count('class="missing"') == 8


def test_what_steps_warn_of_is_told_once(make_run, tmp_path, promoted):
    made = make_run(tmp_path / "run")
    made.finish("preflight", {}, warnings=["tasks.t: 2 rows <b>are lost"])
    page = write_report(made.folder, _summary("failed")).read_text(encoding="utf-8")
    assert _told(_section(page, "Warnings")) == "preflight : tasks.t: 2 rows &lt;b&gt;are lost"
    assert "<h2>Warnings</h2>" not in promoted


def test_perplexity_is_told_by_position(make_run, tmp_path):
    run = make_run(tmp_path / "by_position")
    parts = {"domain": [[0, 90.0, 5.0, 62], [32, 80.0, 4.0, 64]], "general": [[0, 7.0, 7.5, 31]]}
    shown = {"perplexity_by_position": parts}
    run.event("finished", "cpt", cached=False, metrics={}, history=[{"step": 1, "loss": 2.0}], warnings=[], seconds=1.0,
              peak_bytes=1, outputs={}, shown=shown)  # fmt: skip
    page = write_report(run.folder, _summary("failed")).read_text(encoding="utf-8")
    told = _section(page, "Loss by training step")
    assert "Perplexity by position, cpt" in told
    assert "before from 90 to 80; after from 5 to 4" in told and "general text" not in told  # of one part alone


def test_lost_artifacts_are_counted_and_not_read(make_run, tmp_path):
    made = make_run(tmp_path / "run")
    made.whole("promoted")
    for stage, name in (("evaluation_sft", "results"), ("ptq", "variants")):
        (made.path(stage, name) / artifact.MANIFEST).unlink()
    page = write_report(made.folder, _summary("promoted")).read_text(encoding="utf-8")
    assert "2 outputs are no longer on the disk" in page and "its output `variants` is gone" in page


def test_fit_sentence_reads_the_two_curves():
    train = [(1, 3.0), (9, 0.2)]
    assert fit_sentence(train, [(1, 2.0), (2, 1.0), (3, 1.1)]).startswith("Over-fitting after step 2")
    assert fit_sentence(train, [(1, 3.0), (2, 2.0), (3, 1.0)]).startswith("Under-fitting")
    assert "no sign" in fit_sentence(train, [(1, 3.0), (2, 1.001), (3, 1.0), (4, 1.001)])
    # The last third of six begins after the fourth: 1.05 to 1.01 is a fall of 4 %, 1.02 to 1.01 one of 1 %.
    falling = [(1, 3.0), (2, 2.0), (3, 1.5), (4, 1.05), (5, 1.02), (6, 1.01)]
    assert fit_sentence(train, falling).startswith("Under-fitting: validation loss was still falling, 1.05 to 1.01")
    assert "cannot be told" in fit_sentence(train, [])


def test_what_the_guards_found_is_told():
    metrics = {"trained_tokens": 1_200.0, "chats": 90.0, "texts": 10.0, "too_long": 3.0, "without_loss": 0.0}
    told = guards_sentence(metrics, {"packing": 2e-7, "merge": [3e-6, 1e-3]})
    assert told == (
        "1,200 tokens with a loss, 12 a row; left out: 3 too long; packed chats change each other's logits by 2e-07 of "
        "the largest; the merge changed the logits by 3e-06 of the largest (0.001 is rounding)"
    )
    assert guards_sentence({"loss": 0.1}, {}) == ""


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"learning_rate": 3e-2, "epochs": 60}, "Over-fitting after step "),
        ({"learning_rate": 1e-2, "epochs": 10, "schedule": "constant_with_cooldown"}, "Under-fitting: "),
    ],
)
def test_a_training_that_goes_on_too_long_or_too_short_is_named(
    settings, word, tiny_model, make_tasks, tmp_path, monkeypatch
):
    """Eight chats are learnt, and questions watched whose answers are nearly theirs."""
    monkeypatch.delenv("BLOOMERY_STORE", raising=False)
    monkeypatch.setenv("BLOOMERY_JOURNAL", str(tmp_path / "journal.jsonl"))
    artifact.seal(tiny_model, "model/1")
    pairs = [(f"say {word}", word) for word in ("ab", "cde", "fghi", "jk", "lm", "nopqr", "s", "tu")]
    rows = [{"task": "echo", "split": "validation", "prompt": ask, "reference": say[::-1] + "!"} for ask, say in pairs]
    tasks = make_tasks({"echo": {"role": "domain", "splits": {}, "verifier": {"kind": "exact"}}}, rows)
    inputs = {"chats": write_chats(tmp_path / "chats", pairs), "tasks": tasks, "base_model": tiny_model}
    config = {"batch_size": 8, "max_length": 64, "num_validations": 6, **settings}
    run_step(sft, "sft", config, inputs, {"model": tmp_path / "model"})
    assert word in _told(write_report(tmp_path, _summary("failed")).read_text(encoding="utf-8"))
