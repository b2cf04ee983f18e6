"""The judge's arithmetic on verdicts made by hand, and its way through a real model and a real endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bloomery.components.core.errors import ConfigError, ServiceError
from bloomery.components.evaluation.judge import Judgement, Pair, judge, judge_named, tally

PAIRS = [Pair("2 + 2?", "4", "5"), Pair("수도는?", "부산", "서울"), Pair("name?", "x", "x")]


def test_a_win_counts_in_both_orders():
    found = tally([Judgement("1", "2"), Judgement("2", "1"), Judgement("tie", "tie"), Judgement("1", "1")])
    # a win, a loss, a tie, and a judge who took what stood first: a tie
    assert (found["win_rate"], found["n"]) == (0.5, 4)
    assert found["first_fraction"] == 4 / 6 and found["inconsistent_fraction"] == 0.25
    # scores 1, 0, ½, ½: squares ¼ + ¼ over 3, over 4
    assert found["stderr"] == pytest.approx((0.5 / 3 / 4) ** 0.5)


def test_half_a_win_and_a_verdict_that_cannot_be_read():
    found = tally([Judgement("1", "tie"), Judgement("", "2")])
    assert found["win_rate"] == 0.75 and found["unreadable_fraction"] == 0.25 and found["first_fraction"] == 0.5


def test_every_pair_is_asked_in_both_orders():
    questions = []

    def long_winded(prompts):
        questions.extend(prompts)
        return ["I said [[2]] but mean [[1]]" if "Answer 1:\n4" in text or "Answer 1:\n서울" in text else "[[2]]"
                for text in prompts]  # fmt: skip

    assert judge(long_winded, PAIRS) == [Judgement("1", "2"), Judgement("2", "1"), Judgement("tie", "tie")]
    assert len(questions) == 4


def test_a_real_model_judges(tiny_model):
    verdicts = judge(judge_named(str(tiny_model)), PAIRS)
    assert len(verdicts) == 3 and tally(verdicts)["n"] == 3


@pytest.fixture
def endpoint():
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if asked["model"] == "gone":
                self.send_error(404)
                return
            content = "[[1]]" if "Answer 1:\n4" in asked["messages"][0]["content"] else "[[2]]"
            answer = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_judges(endpoint):
    assert judge(judge_named(f"big@{endpoint}"), PAIRS[:1]) == [Judgement("1", "2")]
    with pytest.raises(ServiceError, match="gone answered 404"):
        judge(judge_named(f"gone@{endpoint}"), PAIRS[:1])
    with pytest.raises(ConfigError, match="neither a checkpoint folder"):
        judge_named("nothing")
