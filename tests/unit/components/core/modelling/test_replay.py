"""How much is replayed, of texts and of exercises, beside what is to be learnt."""

import logging

import pytest

from bloomery.components.core.data.chats import chat, message
from bloomery.components.core.modelling import replay
from bloomery.components.core.modelling.fine_tuning import FineTuningConfig

TRAINING = {"learning_rate": 1e-3, "epochs": 1, "max_length": 64}


def taken(allowance, *sizes):
    return [allowance.takes(size) for size in sizes]


def test_rows_are_taken_until_they_reach_their_part_of_all_characters():
    # A fifth of all beside 400 characters are 100, a quarter of them exercises.
    config = FineTuningConfig(**TRAINING, replay_share=0.2, replay_exercises=0.25)
    texts, exercises = replay.allowances(config, 400)
    assert taken(texts, 40, 34, 1, 1) == [True, True, True, False] and texts.is_used_up and texts.left_out == 1
    assert taken(exercises, 24, 9, 9) == [True, True, False] and exercises.left_out == 1


def test_without_a_part_both_kinds_are_taken_as_they_are_there():
    config = FineTuningConfig(**TRAINING, replay_share=0.5)
    texts, exercises = replay.allowances(config, 100, texts=300, exercises=100)
    assert taken(texts, 74, 1, 1) == [True, True, False] and taken(exercises, 24, 1, 1) == [True, True, False]
    alone, none = replay.allowances(config, 100, texts=300)
    assert taken(alone, 99, 1, 1) == [True, True, False] and none.is_used_up


def test_without_a_share_all_there_is_is_replayed():
    texts, exercises = replay.allowances(FineTuningConfig(**TRAINING), 0)
    assert all(taken(texts, *[10**9] * 9)) and all(taken(exercises, 10**9)) and not texts.left_out
    nothing, _ = replay.allowances(FineTuningConfig(**TRAINING, replay_share=0.0), 100)
    assert taken(nothing, 1) == [False]


def test_a_chat_counts_by_what_is_said_and_thought_in_it():
    assert replay.characters({"messages": chat("say ab", "ab")}) == 8
    thought = message("assistant", "4", reasoning="2+2", tool_calls='[{"id": ""}]')
    assert replay.characters({"messages": [*chat("add"), thought]}) == 3 + 1 + 3 + 12


@pytest.mark.parametrize(("share", "replayed", "is_told"), [(0.2, 18, False), (0.2, 10, True), (None, 0, False)])
def test_less_than_the_share_is_told(share, replayed, is_told, caplog):
    config = FineTuningConfig(**TRAINING, replay_share=share)
    with caplog.at_level(logging.WARNING):
        assert replay.fraction(config, replayed, 80, "sft") == pytest.approx(replayed / (80 + replayed))
    assert ("sft: 0.11 of what is read is replayed, where replay_share is 0.2" in caplog.text) == is_told
