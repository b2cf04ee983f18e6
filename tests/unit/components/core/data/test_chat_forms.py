"""Each form of a conversation is read whole, and what does not fit is refused with its reason."""

from __future__ import annotations

import json
from collections import Counter

import outside
import pytest

from bloomery.components.core.data.chat_forms import read_chat, read_pair, read_question
from bloomery.components.core.data.chat_turns import Unfit, check
from bloomery.components.core.data.chats import as_text, chat, for_template, identity, message
from bloomery.components.core.data.tables import read_rows

USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": '{"zone": "KST"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": '{"time": 7}'}
NO, NO_ANSWER = {"role": "assistant", "content": "no"}, [message("assistant", "no")]
READ_CALL = '[{"id": "c1", "name": "now", "arguments": {"zone": "KST"}}]'
HI = chat("hi", "hello")


def said_by(who, text):
    return {"from": who, "value": text}
DEEP = '{"a": ' + "[" * 200 + "]" * 200 + "}"


@pytest.mark.parametrize(
    ("row", "form", "messages"),
    [
        ({"messages": [USER, ANSWER]}, "messages", HI),
        ({"messages": json.dumps([USER, ANSWER])}, "messages", HI),
        ({"messages": [{"role": "developer", "content": "be brief"}, USER, ANSWER]}, "messages",
         [message("system", "be brief"), *HI]),
        ({"system": "be brief", "messages": [USER, ANSWER]}, "messages", [message("system", "be brief"), *HI]),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": part} for part in "hi"]}, ANSWER]},
         "messages", HI),
        ({"messages": [USER, {**ANSWER, "refusal": None, "tool_calls": None, "weight": 1}]}, "messages", HI),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "who?"}]}, "messages",
         [HI[0], message("assistant", "hello", reasoning="who?")]),
        ({"messages": [USER, {**ANSWER, "content": "<think>who?</think>hello"}]}, "messages",
         chat("hi", "<think>who?</think>hello")),
        ({"messages": [USER, ANSWER, USER, ANSWER]}, "messages", HI + HI),
        ({"messages": [USER, CALLING, RESULT, ANSWER]}, "messages",
         [HI[0], message("assistant", "", tool_calls=READ_CALL),
          message("tool", '{"time": 7}', tool_call_id="c1"), HI[1]]),
        ({"messages": [USER, CALLING]}, "messages", [HI[0], message("assistant", "", tool_calls=READ_CALL)]),
        ({"messages": [USER, {"role": "assistant", "function_call": {"name": "now", "arguments": "{}"}},
                       {"role": "function", "name": "now", "content": ""}, ANSWER]}, "messages",
         [HI[0], message("assistant", "", tool_calls='[{"id": "", "name": "now", "arguments": {}}]'),
          message("tool", "", name="now"), HI[1]]),
        ({"conversations": [said_by("human", "hi"), said_by("gpt", "hello")]}, "sharegpt", HI),
        ({"conversations": [USER, ANSWER], "messages": None}, "messages", HI),
        ({"conversations": [said_by("system", "s"), said_by("human", "hi"),
                            said_by("function_call", '{"name": "now", "arguments": {"zone": "KST"}}'),
                            said_by("observation", "7"), said_by("gpt", "hello")]}, "sharegpt",
         [message("system", "s"), HI[0], message("assistant", "", tool_calls=READ_CALL.replace("c1", "")),
          message("tool", "7"), HI[1]]),
        ({"instruction": "hi", "input": "", "output": "hello"}, "alpaca", HI),
        ({"instruction": "hi", "input": None, "output": "hello"}, "alpaca", HI),
        ({"instruction": "hi", "input": float("nan"), "output": "hello"}, "alpaca", HI),
        ({"instruction": "hi", "input": "you", "output": "hello"}, "alpaca", chat("hi\nyou", "hello")),
        ({"instruction": "hi", "output": "hello", "system": "s", "history": [["a", "b"]]}, "alpaca",
         [message("system", "s"), *chat("a", "b"), *HI]),
        ({"instruction": "hi", "context": "you", "output": "hello"}, "alpaca", chat("hi\nyou", "hello")),
        ({"system_prompt": "s", "conversations": [said_by("human", "hi"), said_by("gpt", "hello")]}, "sharegpt",
         [message("system", "s"), *HI]),
        ({"prompt": "hi", "completion": "hello"}, "prompt_completion", HI),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt_completion", HI),
        ({"messages": [], "instruction": "hi", "output": "hello"}, "alpaca", HI),
        ({"instruction": "hi", "output": "hello", "label": "true"}, "alpaca", HI),
        ({"messages": [USER, {**ANSWER, "reasoning_content": "", "reasoning": "who?"}]}, "messages",
         [*HI[:1], message("assistant", "hello", reasoning="who?")]),
        ({"conversations": [{**said_by("human", "hi"), "role": None, "content": None},
                            {**said_by("gpt", "hello"), "role": None, "content": None}]}, "sharegpt", HI),
        ({"prompt": [USER, ANSWER, USER], "completion": "hello"}, "prompt_completion", HI + HI),
    ],
)  # fmt: skip
def test_every_form_is_read(row, form, messages):
    found = read_chat(row)
    assert (found.form, found.messages, found.tools) == (form, messages, "")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "hi"}, "unknown_form"),
        ({"question": "hi", "answer": "hello"}, "unknown_form"),
        ({"messages": []}, "no_turns"),
        ({"messages": None}, "no_turns"),
        ({"messages": "hi"}, "no_turns"),
        ({"messages": ["hi", "hello"]}, "no_turns"),
        ({"messages": [USER, said_by("gpt", "hello")]}, "mixed_turns"),
        ({"messages": [USER, {"content": "hello"}]}, "mixed_turns"),
        ({"messages": [USER, {"role": "robot", "content": "hello"}]}, "unknown_role"),
        ({"messages": [USER, {"role": None, "content": "hello"}]}, "unknown_role"),
        ({"conversations": [said_by("human", "hi"), said_by("narrator", "hello")]}, "unknown_role"),
        ({"messages": [USER]}, "no_assistant_turn"),
        ({"messages": [USER, {**ANSWER, "loss": False}]}, "untrained_turn"),
        ({"messages": [USER, USER, ANSWER]}, "roles_out_of_order"),
        ({"messages": [USER, ANSWER, ANSWER]}, "roles_out_of_order"),
        ({"messages": [ANSWER, USER, ANSWER]}, "roles_out_of_order"),
        ({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, "roles_out_of_order"),
        ({"system": "s", "messages": [{"role": "system", "content": "t"}, USER, ANSWER]}, "roles_out_of_order"),
        ({"messages": [USER, ANSWER, USER]}, "no_answer_at_end"),
        ({"messages": [USER, CALLING, RESULT]}, "no_answer_at_end"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "empty_turn"),
        ({"messages": [USER, {"role": "assistant"}]}, "empty_turn"),
        ({"messages": [{"role": "user", "content": " \n"}, ANSWER]}, "empty_turn"),
        ({"messages": [USER, {"role": "assistant", "content": "", "reasoning_content": "who?"}]}, "empty_turn"),
        ({"messages": [{"role": "user", "content": {"text": "hi"}}, ANSWER]}, "not_text"),
        ({"messages": [{"role": "user", "content": 7}, ANSWER]}, "not_text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, ANSWER]}, "not_text"),
        ({"messages": [USER, ANSWER], "images": ["a.png"]}, "not_text"),
        ({"messages": [USER, {**CALLING, "tool_calls": [{"id": "c1"}]}]}, "broken_tool_call"),
        ({"messages": [USER, {**CALLING, "tool_calls": "{now"}]}, "broken_tool_call"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "now", "arguments": "{'zone': 'KST'}"}]}]},
         "broken_tool_call"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "now", "arguments": "[1]"}]}]}, "broken_tool_call"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "now", "arguments": '{"a": NaN}'}]}]},
         "broken_tool_call"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "now", "arguments": '{"a": "\\ud83d"}'}]}]},
         "broken_tool_call"),
        ({"conversations": [said_by("human", "hi"), said_by("function_call", "now()")]}, "broken_tool_call"),
        ({"messages": [USER, CALLING, ANSWER]}, "tool_call_without_result"),
        ({"messages": [USER, CALLING, USER, ANSWER]}, "tool_call_without_result"),
        ({"messages": [USER, RESULT, ANSWER]}, "tool_result_without_call"),
        ({"messages": [USER, CALLING, {**RESULT, "tool_call_id": "c2"}, ANSWER]}, "tool_result_without_call"),
        ({"messages": [USER, CALLING, RESULT, RESULT, ANSWER]}, "tool_result_without_call"),
        ({"messages": [USER, ANSWER], "tools": "now()"}, "broken_tools"),
        ({"messages": [USER, ANSWER], "tools": [{"description": "the time"}]}, "broken_tools"),
        ({"messages": [USER, {**ANSWER, "weight": 0}]}, "untrained_turn"),
        ({"messages": [USER, {**ANSWER, "train": False}]}, "untrained_turn"),
        ({"instruction": " ", "input": None, "output": "hello"}, "empty_turn"),
        ({"instruction": "hi", "input": "", "output": None}, "empty_turn"),
        ({"instruction": "6 times 7?", "input": "", "output": 42}, "not_text"),
        ({"instruction": "wet?", "input": "", "output": True}, "not_text"),
        ({"instruction": "hi", "output": "hello", "history": "before"}, "broken_history"),
        ({"prompt": "hi", "chosen": "hello", "rejected": "no"}, "preference"),
        ({"prompt": "hi", "completion": "hello", "label": True}, "preference"),
        ({"prompt": "hi", "completion": "hello", "label": "false"}, "preference"),
        ({"messages": '[{"role": "user", "content": "\\ud83d"}]'}, "no_turns"),
        ({"messages": [USER, {**ANSWER, "tool_calls": [{"name": "now", "arguments": DEEP}]}]}, "broken_tool_call"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(row, reason):
    with pytest.raises(Unfit) as refused:
        read_chat(row)
    assert refused.value.reason == reason


def test_tools_are_read_in_each_form():
    flat = {"name": "now", "parameters": {}}
    whole = {"type": "function", "function": flat}
    for row in ({"tools": [whole]}, {"tools": json.dumps([flat])}, {"functions": [flat]}):
        found = read_chat({"messages": [USER, ANSWER], **row})
        assert json.loads(found.tools) == [whole]
    for nothing in ("[]", "null", "", None):
        assert read_chat({"messages": [USER, ANSWER], "tools": nothing}).tools == ""


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "hi", "chosen": "hello", "rejected": "no"}, ("pair_text", HI[:1], HI[1:], NO_ANSWER)),
        ({"instruction": "hi", "input": "", "chosen": "hello", "rejected": "no"},
         ("pair_text", HI[:1], HI[1:], NO_ANSWER)),
        ({"prompt": [USER], "chosen": [ANSWER], "rejected": [NO]},
         ("pair_messages", HI[:1], HI[1:], NO_ANSWER)),
        ({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, ANSWER, USER, NO]},
         ("pair_messages", HI + HI[:1], HI[1:], NO_ANSWER)),
        ({"prompt": "hi", "chosen": [USER, ANSWER], "rejected": [USER, NO]},
         ("pair_messages", HI[:1], HI[1:], NO_ANSWER)),
        ({"conversations": [said_by("human", "hi")], "chosen": said_by("gpt", "hello"),
          "rejected": said_by("gpt", "no")},
         ("pair_messages", HI[:1], HI[1:], NO_ANSWER)),
        ({"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no\n\nreally"},
         ("pair_text", HI[:1], HI[1:], [message("assistant", "no\n\nreally")])),
        ({"prompt": "hi", "completion": "hello", "label": True}, ("labelled_prompt_completion", HI[:1], HI[1:], [])),
        ({"messages": [USER, ANSWER], "label": False}, ("labelled_messages", HI[:1], [], HI[1:])),
        *[({"prompt": "hi", "completion": "hello", "label": bad}, ("labelled_prompt_completion", HI[:1], [], HI[1:]))
          for bad in (0, 0.0, "0", "false", "False")],
        *[({"prompt": "hi", "completion": "hello", "label": good}, ("labelled_prompt_completion", HI[:1], HI[1:], []))
          for good in (1, 1.0, "1", "true", "TRUE")],
        ({"prompt": "hi", "chosen": None, "rejected": None, "completion": "hello", "label": True},
         ("labelled_prompt_completion", HI[:1], HI[1:], [])),
        ({"prompt": "hi", "chosen": "hello", "rejected": "no", "completion": None, "label": None},
         ("pair_text", HI[:1], HI[1:], NO_ANSWER)),
    ],
)  # fmt: skip
def test_pairs_are_read_in_each_form(row, expected):
    found = read_pair(row)
    assert (found.form, found.messages, found.chosen, found.rejected) == expected and found.score is None


@pytest.mark.parametrize(
    ("score", "expected"), [(3.5, 3.5), (0, 0), (-1, -1), ("4", 4), (True, None), ("good", None), (float("inf"), None)]
)
def test_an_answer_with_a_number_is_a_scored_one(score, expected):
    row = {"prompt": "hi", "completion": "hello", "label": None, "score": score}
    if expected is None:
        with pytest.raises(Unfit, match="expected a number") as refused:
            read_pair(row)
        assert refused.value.reason == "wrong_score"
    else:
        assert read_pair(row) == ("scored_prompt_completion", HI[:1], "", HI[1:], [], expected)
        assert read_pair({"messages": [USER, ANSWER], "score": score}).form == "scored_messages"
        assert read_pair({**row, "label": True}).form == "labelled_prompt_completion"
        assert read_chat(row).messages == HI  # among chats it says nothing


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "hi", "completion": "hello"}, "no_pair"),
        ({"prompt": "hi", "completion": "hello", "label": "good"}, "wrong_label"),
        ({"chosen": "hello", "rejected": "no"}, "no_question"),
        ({"prompt": "hi", "chosen": "hello", "rejected": "hello "}, "identical"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, ANSWER]}, "identical"),
        ({"prompt": "hi", "chosen": "hello", "rejected": ""}, "empty_turn"),
        ({"prompt": "hi", "chosen": None, "rejected": "no"}, "empty_turn"),
        ({"prompt": " ", "chosen": "hello", "rejected": "no"}, "empty_turn"),
        ({"prompt": "hi", "chosen": 7, "rejected": "no"}, "not_text"),
        ({"chosen": [USER, ANSWER], "rejected": [{**USER, "content": "you"}, ANSWER]}, "prompts_differ"),
        ({"prompt": "you", "chosen": [USER, ANSWER], "rejected": [USER, NO]}, "prompts_differ"),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "no_answer_at_end"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(row, reason):
    with pytest.raises(Unfit) as refused:
        read_pair(row)
    assert refused.value.reason == reason


def test_two_answers_that_differ_in_their_thoughts_alone_are_a_pair():
    one, other = ({**ANSWER, "reasoning": thought} for thought in ("a", "b"))
    assert read_pair({"prompt": [USER], "chosen": [one], "rejected": [other]}).chosen[0]["reasoning"] == "a"


def test_a_question_ends_where_the_assistant_is_to_speak():
    assert read_question([USER], None, is_answered=False).messages == chat("hi")
    assert read_question([USER, ANSWER], None, is_answered=True).messages == HI
    for turns, is_answered, reason in (
        ([USER, ANSWER], False, "no_question_at_end"),
        ([USER, CALLING], True, "empty_answer"),
        ([USER, {**CALLING, "tool_calls": [CALL, {**CALL, "id": "c2"}]}, RESULT], False, "tool_call_without_result"),
    ):
        with pytest.raises(Unfit) as refused:
            read_question(turns, None, is_answered=is_answered)
        assert refused.value.reason == reason


def test_a_template_is_given_tools_and_thoughts_and_no_empty_field():
    turns = read_chat({"messages": [USER, {**CALLING, "reasoning": "when?"}, RESULT, ANSWER]}).messages
    call = {"id": "c1", "type": "function", "function": {"name": "now", "arguments": {"zone": "KST"}}}
    assert for_template(turns) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "reasoning_content": "when?", "tool_calls": [call]},
        {"role": "tool", "content": '{"time": 7}', "tool_call_id": "c1"},
        {"role": "assistant", "content": "hello"},
    ]
    check(turns)
    assert as_text(turns) == f'user: hi\nassistant: {READ_CALL}\ntool: {{"time": 7}}\nassistant: hello'


def test_the_identity_of_a_lone_user_turn_is_its_text_and_of_others_none_that_a_user_could_write():
    assert identity(chat("hi")) == "hi" and identity([]) == ""
    others = [chat("hi"), HI, [message("system", "s"), *chat("hi")], [{**chat("hi")[0], "name": "kim"}]]
    assert len({identity(turns) for turns in others} | {identity(chat("hi"), "[]")}) == 5


def test_the_files_of_the_field():
    cases = outside.folder("BLOOMERY_CASES")

    def read(name):
        told = Counter()
        for row in read_rows(str(cases / name)):
            try:
                told[read_chat(row.value).form] += 1
            except Unfit as error:
                told[error.reason] += 1
        return dict(told)

    assert read("messages.jsonl") == read("tools.jsonl") == {"messages": 12}
    assert read("sharegpt.jsonl") == {"sharegpt": 12}
    assert read("alpaca_nulls.json") == {"alpaca": 12, "empty_turn": 5, "not_text": 5}
