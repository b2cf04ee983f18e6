"""Questions made harder to read, in both languages."""

import unicodedata

import pytest

from bloomery.components.preflight.perturb import perturb

KOREAN, ENGLISH = "서울에 사는 골드 고객은 몇 명이야?", "How many gold customers live in Seoul?"
SEEDS = [str(seed) for seed in range(50)]


@pytest.mark.parametrize("kind", ["typos", "spacing"])
@pytest.mark.parametrize("text", [KOREAN, ENGLISH])
def test_a_perturbed_text_differs_and_is_repeatable(kind, text):
    changed = [perturb(text, kind, seed) for seed in SEEDS]
    assert changed == [perturb(text, kind, seed) for seed in SEEDS]
    assert text not in changed and len(set(changed)) > 5


def test_a_typo_of_hangul_is_one_jamo():
    for seed in SEEDS:
        found = perturb(KOREAN, "typos", seed)
        assert len(found) == len(KOREAN)
        ((old, new),) = [(a, b) for a, b in zip(KOREAN, found, strict=True) if a != b]
        before, after = (unicodedata.normalize("NFD", letter) for letter in (old, new))
        assert "가" <= new <= "힣" and abs(len(before) - len(after)) <= 1
        assert sum(a != b for a, b in zip(before, after, strict=False)) <= 1


def test_wrong_spaces_change_nothing_else():
    for text in (KOREAN, ENGLISH):
        assert all(perturb(text, "spacing", seed).replace(" ", "") == text.replace(" ", "") for seed in SEEDS)


@pytest.mark.parametrize("text", ["C2001 SQL 12", "", "3 + 4 ="])
def test_codes_and_numbers_stay(text):
    assert all(perturb(text, kind, seed) == text for kind in ("typos", "spacing") for seed in SEEDS)
