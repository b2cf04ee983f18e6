"""Copies and leaked questions go, everything else stays."""

from __future__ import annotations

import json
import lzma
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chats import prompt_row

from bloomery.components.core.artifact import lineage, read_manifest, read_table, seal, write_rows
from bloomery.components.core.data import near
from bloomery.components.core.data.shingles import (
    comparable,
    fold,
    is_dense,
    letters_and_digits,
    ngram_hashes,
    ngram_lengths,
)
from bloomery.components.core.errors import DataError
from bloomery.components.core.records import Document, Indexed, Prompt, content_id
from bloomery.components.core.scoring.contamination import Detector, evaluation_items
from bloomery.components.core.scoring.tasks import TaskConfig, Tasks
from bloomery.components.dedup import semantic, step, verification
from bloomery.components.dedup.config import DedupConfig
from bloomery.components.dedup.step import run
from bloomery.components.promotion.config import GateConfig

QUESTION = "Which customers in Busan joined before August?"
KOREAN_QUESTION = "부산에서 8월 전에 가입한 고객은 누구인가요?"
HELD_OUT = "The warehouse counts lamps on Monday, shoes on Tuesday and never counts the teapots in the cellar."


def write_tasks(path: Path) -> Path:
    template = "Answer with one SQL query.\nQuestion: {question}\nSQL:"
    tasks = {
        "sql": {
            "role": "domain",
            "templates": [{"prompt": template, "answer": "{sql}"}],
            "verifier": {"kind": "exact"},
            "splits": {"train": {"path": "x"}, "validation": {"path": "x"}, "test": {"path": "x"}},
        },
        "text": {
            "role": "domain",
            "templates": [{"answer": "{text}"}],
            "verifier": {"kind": "perplexity"},
            "splits": {"test": {"path": "x"}},
        },
    }
    configs = {name: TaskConfig.model_validate(task).model_dump(mode="json") for name, task in tasks.items()}

    def prompt(task, split, question, reference):
        asked = template.replace("{question}", question) if question else ""
        return prompt_row(task, split, asked, reference)

    rows = [
        prompt("sql", "train", "How many parcels came back in June, and why?", "SELECT 1"),
        prompt("sql", "validation", KOREAN_QUESTION, "SELECT 2"),
        prompt("sql", "test", QUESTION, "SELECT 3"),
        prompt("sql", "test", "2 + 2?", "SELECT 4"),
        prompt("text", "test", "", HELD_OUT),
    ]
    path.mkdir()
    pq.write_table(Prompt.table(rows), path / "part-00000.parquet")
    (path / "tasks.json").write_text(json.dumps(configs))
    seal(path, "tasks/1")
    return path


def deduplicate(tmp_path, texts, general=(), times=(), qualities=(), sources=(), known=None, encoder=None, **settings):
    if known is None:
        known = tmp_path / "known"
        write_rows(known, "index/1", Indexed.table([]))
    if encoder is None:
        encoder = tmp_path / "encoder"
        encoder.mkdir()
        seal(encoder, "encoder/1")
    rows = [
        {
            "id": content_id(text),
            "text": text,
            "source": f"{sources[number] if sources else 's'}:f#{number}",
            "language": "en",
            "general": number in general,
            "time": times[number] if times else "",
            "quality": qualities[number] if qualities else None,
        }
        for number, text in enumerate(texts)
    ]
    write_rows(tmp_path / "documents", "document/2", Document.table(rows))
    metrics = run(
        DedupConfig(**settings),
        documents=tmp_path / "documents",
        tasks=write_tasks(tmp_path / "tasks"),
        known=known,
        encoder=encoder,
        kept=tmp_path / "kept",
        duplicates=tmp_path / "duplicates",
        index=tmp_path / "index",
    )
    kept = read_table(tmp_path / "kept", "document/2")["text"].to_pylist()
    return kept, read_table(tmp_path / "duplicates", "reject/1").to_pylist(), metrics


def words(count, seed):
    """A document of made-up words that has nothing in common with another seed's."""
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(3, 9))) for _ in range(count))


def test_exact_copies_go_whatever_their_case_and_spacing(tmp_path):
    first, other = words(30, 1), words(30, 2)
    kept, dropped, metrics = deduplicate(tmp_path, [first, other, first.upper(), f"{first}\n", first])
    assert kept == [other, f"{first}\n"]  # the longest stays
    assert {(row["source"], row["reason"]) for row in dropped} == {
        ("s:f#0", "exact_duplicate"),
        ("s:f#2", "exact_duplicate"),
        ("s:f#4", "exact_duplicate"),
    }
    assert {row["detail"] for row in dropped} == {f"of {content_id(first + chr(10))}, Jaccard 1.00"}
    assert metrics["dedup/exact_duplicates"] == 3
    assert read_manifest(tmp_path / "kept").dropped == {"exact_duplicate": 3}


def test_a_near_copy_goes_and_its_detail_is_the_true_jaccard(tmp_path):
    text = words(40, 3)
    copy = text[:-12] + "qq"
    kept, dropped, _ = deduplicate(tmp_path, [copy, words(40, 4), text])
    assert kept == [words(40, 4), text]
    left, right = (set(zip(*(comparable(t)[i:] for i in range(5)), strict=False)) for t in (text, copy))
    jaccard = len(left & right) / len(left | right)
    assert dropped[0]["detail"] == f"of {content_id(text)}, Jaccard {jaccard:.2f}"


def test_a_chain_of_versions_loses_only_copies_of_what_stays(tmp_path):
    parts = [words(6, seed) for seed in range(10, 60)]
    versions = [" ".join(parts[start : start + 30]) for start in range(0, 20, 2)]
    kept, dropped, _ = deduplicate(tmp_path, versions)
    assert 1 < len(kept) < len(versions)
    stays = {content_id(text) for text in kept}
    for row in dropped:
        survivor, jaccard = row["detail"].removeprefix("of ").split(", Jaccard ")
        assert survivor in stays and float(jaccard) >= 0.7


def test_general_text_gives_way_to_the_domain(tmp_path):
    text = words(40, 5)
    kept, _, _ = deduplicate(tmp_path, [f"{text} and more words", text], general={0})
    assert kept == [text]


@pytest.mark.parametrize(
    "settings, survivor",
    [
        ({}, 2),  # the longest of the domain
        ({"survivor": ["longest"]}, 3),
        ({"survivor": ["newest"]}, 1),
        ({"survivor": ["quality"]}, 0),
        ({"survivor": ["source", "newest"], "source_priority": ["wiki", "web"]}, 2),
    ],
)
def test_the_survivor_follows_the_rules(tmp_path, settings, survivor):
    text = words(40, 5)
    texts = [text, f"{text} a", f"{text} abc", f"{text} more"]
    kept, dropped, _ = deduplicate(
        tmp_path,
        texts,
        general={3},
        times=["2021", "2024-02", "2023", "2023-11"],
        qualities=[0.9, 0.5, None, 0.7],
        sources=["web", "other", "wiki", "web"],
        **settings,
    )
    assert kept == [texts[survivor]]
    assert len(dropped) == 3


@pytest.mark.parametrize(
    "text",
    [
        f"Notes.\n\n{QUESTION}\n\n```sql\nSELECT 3\n```",
        f"{words(300, 6)} {QUESTION.upper().replace(' ', '   ')} {words(300, 7)}",
        "which-customers in (Busan) joined, before august",
        KOREAN_QUESTION.replace(" ", ""),
        f"{KOREAN_QUESTION[:-1]} {words(20, 8)}",
        HELD_OUT.replace("Monday", "Sunday"),
    ],
)
def test_a_document_with_an_evaluation_question_goes(tmp_path, text):
    kept, dropped, metrics = deduplicate(tmp_path, [text, words(30, 9)])
    assert kept == [words(30, 9)]
    assert dropped[0]["reason"] == "contaminated" and "overlap" in dropped[0]["detail"]
    assert metrics["dedup/evaluation_items"] == 3
    assert metrics["dedup/evaluation_items_found"] == 1
    assert metrics["dedup/evaluation_items_too_short"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "How many parcels came back in June, and why?",  # a training question may stand in a document
        "Which customers in Seoul ordered twice?",
        "Answer with one SQL query.\nQuestion: what is a parcel?\nSQL:",  # the template is not the question
        "2 + 2? Nobody knows.",
        f"Which customers {words(60, 1)} in Busan {words(60, 2)} joined before {words(60, 3)} August?",
    ],
)
def test_a_document_without_one_stays(tmp_path, text):
    kept, _, _ = deduplicate(tmp_path, [text])
    assert kept == [text]


def test_nothing_left_is_told(tmp_path):
    with pytest.raises(DataError, match="all 1 documents were dropped.*contaminated"):
        deduplicate(tmp_path, [QUESTION])


def test_the_same_input_gives_the_same_bytes(tmp_path):
    digests = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        deduplicate(tmp_path / name, [words(30, seed % 20) for seed in range(40)])
        digests.append(read_manifest(tmp_path / name / "kept").digest)
    assert digests[0] == digests[1]


def test_copies_of_documents_of_an_earlier_run_go_and_the_index_grows(tmp_path):
    first, second, third = (words(40, seed) for seed in (1, 2, 3))
    for name in "abc":
        (tmp_path / name).mkdir()
    with lineage("dedup", DedupConfig(write_index=True).model_dump(), {}):
        deduplicate(tmp_path / "a", [first, second], write_index=True)
        kept, dropped, metrics = deduplicate(
            tmp_path / "b",
            [third, f"{first} and more of it", second.upper()],
            known=tmp_path / "a" / "index",
            write_index=True,
        )
    assert kept == [third]
    assert metrics["dedup/known_documents"] == 2
    assert {(row["reason"], row["detail"][:19]) for row in dropped} == {
        ("near_duplicate", f"of {content_id(first)}"),
        ("exact_duplicate", f"of {content_id(second)}"),
    }
    index = read_table(tmp_path / "b" / "index", "index/1")
    assert index["text"].to_pylist() == [first, second, third]
    with pytest.raises(DataError, match="known_index was made with jaccard_threshold 0.7 .now 0.8."):
        deduplicate(tmp_path / "c", [third], known=tmp_path / "b" / "index", jaccard_threshold=0.8)


def test_paraphrases_go_where_an_encoder_says_so(tmp_path, tiny_model):
    text = "The parcels of March came back because the lamps were broken"
    other = words(11, 4)
    respelt = " ".join(sorted(text.split(), key=str.lower))  # close for an encoder that knows bytes alone
    settings = {"semantic": {"encoder": str(tiny_model), "min_similarity": 0.9}, "jaccard_threshold": 0.9}
    kept, dropped, metrics = deduplicate(tmp_path, [text, other, respelt], encoder=tiny_model, **settings)
    embeddings = semantic.embed([pa.array([text, other, respelt])], tiny_model, 512)
    cosines = embeddings @ embeddings.T
    assert cosines[0, 2] > 0.9 > max(cosines[0, 1], cosines[1, 2])
    assert kept == [respelt, other] or kept == [text, other]
    assert dropped[0]["reason"] == "semantic_duplicate" and f"cosine {cosines[0, 2]:.2f}" in dropped[0]["detail"]
    assert metrics["dedup/semantic_duplicates"] == 1


def test_close_embeddings_are_found_within_clusters(monkeypatch):
    rng = np.random.default_rng(3)
    centres = np.eye(8, dtype=np.float32)[rng.integers(0, 8, 400)]
    points = centres + rng.normal(0, 0.02, centres.shape).astype(np.float32)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    monkeypatch.setattr(semantic, "DOCUMENTS_PER_CLUSTER", 100)
    pairs, similarities = semantic.similar_pairs(points, 0.99, seed=1)
    truth = {tuple(pair) for pair in np.argwhere(np.triu(points @ points.T >= 0.99, k=1)).tolist()}
    assert {tuple(pair) for pair in pairs.tolist()} == truth
    assert similarities.min() >= 0.99


def many_documents():
    rng = random.Random(5)
    texts = [words(rng.randrange(20, 60), seed) for seed in range(600)]
    return texts + [text[: rng.randrange(60, len(text))] for text in texts[::3]] + texts[::7]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores cannot be taken away on this system")
def test_any_number_of_workers_and_any_batch_gives_the_same_bytes(tmp_path, monkeypatch):
    cores = os.sched_getaffinity(0)
    digests = set()
    try:
        for number, batch in enumerate((5_000, 70)):
            os.sched_setaffinity(0, cores if number else {min(cores)})
            monkeypatch.setattr(step, "ROWS_PER_BATCH", batch)
            monkeypatch.setattr(verification, "PAIRS_PER_BATCH", batch // 10)
            (tmp_path / str(number)).mkdir()
            _, dropped, metrics = deduplicate(tmp_path / str(number), many_documents())
            digests.add(read_manifest(tmp_path / str(number) / "kept").digest)
            assert metrics["dedup/near_duplicates"] > 20 and dropped
    finally:
        os.sched_setaffinity(0, cores)
    assert len(digests) == 1


def test_ray_gives_the_same_bytes(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    (tmp_path / "here").mkdir()
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(step, "ROWS_PER_BATCH", 100)
    deduplicate(tmp_path / "here", many_documents())
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    try:
        deduplicate(tmp_path / "ray", many_documents())
    finally:
        ray.shutdown()
    for name in ("kept", "duplicates"):
        assert read_manifest(tmp_path / "ray" / name).digest == read_manifest(tmp_path / "here" / name).digest


def test_bands_are_as_long_as_a_pair_at_the_threshold_allows():
    # b bands of r rows meet with probability 1 - (1 - s^r)^b: .8 and 18 of 7: .986, 16 of 8: .947
    assert near.band_rows(0.8, 128) == 7
    # .7: 25 of 5: .990, 21 of 6: .928
    assert near.band_rows(0.7, 128) == 5


def test_every_pair_that_shares_a_band_is_proposed_once():
    keys = np.array([[12, 34], [12, 99], [77, 34], [55, 55]], dtype=np.uint64)
    assert near.candidate_pairs(keys).tolist() == [[0, 1], [0, 2]]
    alike = np.zeros((40, 2), dtype=np.uint64)
    assert len(near.candidate_pairs(alike)) == 32 * 40 - 32 * 33 // 2


def folded(*texts):
    return fold(pa.array(texts, pa.large_string()))


def as_text(codes):
    return "".join(map(chr, codes.tolist()))


def test_jaccard_by_hand():
    # Shingles of five: abcde bcdef and bcdef cdefg; of three: 가나다 나다라 and 나다라.
    texts = folded("abcdef", "bcdefg", "ab cd ef", "가나다라", "나다라", "aaaaaaaaa", "")
    pairs = np.array([[0, 1], [0, 2], [0, 3], [3, 4], [0, 5], [5, 5], [6, 0], [6, 6]])
    lengths = ngram_lengths(texts, 5, 3)
    assert near.jaccard_similarities(texts, lengths, pairs) == pytest.approx([1 / 3, 1, 0, 1 / 2, 0, 1, 0, 1])


def test_signatures_estimate_the_jaccard_similarity():
    left, right = words(200, 1), words(200, 1) + words(60, 2)
    texts = folded(left, right)
    permutations = near.Permutations.draw(0.8, 4096, 3)._replace(rows=1)
    lengths = ngram_lengths(texts, 5, 3)
    keys = near.band_keys(texts, lengths, permutations)
    truth = near.jaccard_similarities(texts, lengths, np.array([[0, 1]]))[0]
    # The standard error of 4,000 rows at .77 is .0066.
    assert (keys[0] == keys[1]).mean() == pytest.approx(truth, abs=0.03)


def test_ngrams():
    def hashes(text, n):
        return ngram_hashes(folded(text).text(0), n)

    assert len(hashes("abcdef", 5)) == 2
    assert len(hashes("ab", 5)) == 1 and len(hashes("", 5)) == 1
    assert hashes("xabcde", 5)[1] == hashes("abcde", 5)[0]
    assert len(set(hashes("가나다라마바사아자차", 3).tolist())) == 8
    assert comparable("Ｆｕｌｌ　Width\n") == "fullwidth"
    assert as_text(letters_and_digits(folded("A-1, 나_다!")).text(0)) == "a1나다"
    assert is_dense(folded("customers 표의 열을 읽는다", "the 표 of customers and orders", "1 + 2")).tolist() == [
        True,
        False,
        False,
    ]


def test_folding_is_what_python_says_of_every_character_alone_and_among_others():
    rng = random.Random(4)
    characters = [chr(code) for code in range(0x32000) if not 0xD800 <= code < 0xE000]
    mixed = ["".join(rng.choices(characters[:0x3000], k=8)) for _ in range(20_000)]
    mixed += ["ê\u0323\u0302", "가\u11a8", "e\u0301", "ﬃ½…", "\u1100\u1161", "Σας ΣΑΣ", ""]
    texts = [*characters, *mixed]
    result = fold(pa.array(texts, pa.large_string()).slice(1))
    for index, text in enumerate(texts[1:]):
        assert as_text(result.text(index)) == comparable(text), ascii(text)


def test_edited_versions_of_real_pages_are_found_as_often_as_the_formula_says():
    data = os.environ.get("BLOOMERY_DATA")
    pairs = Path(data or "", "neardup_doc_versions/pairs.jsonl.xz")
    if not data or not pairs.is_file():
        pytest.skip("BLOOMERY_DATA does not hold the page versions")
    with lzma.open(pairs, "rt", encoding="utf-8", newline="\n") as stream:
        rows = [json.loads(line) for line in stream]
    texts = folded(*(row[side] for row in rows for side in ("old", "new")))
    lengths = ngram_lengths(texts, 5, 3)
    candidates = near.candidate_pairs(near.band_keys(texts, lengths, near.Permutations.draw(0.7, 128, 0)))
    versions = np.arange(len(texts.starts)).reshape(-1, 2)
    alike = versions[near.jaccard_similarities(texts, lengths, versions) >= 0.7]
    found = set(map(tuple, candidates.tolist()))
    assert sum(pair in found for pair in map(tuple, alike.tolist())) >= 0.98 * len(alike) > 0


SHEET = (
    "# {0} {1}\n\nThe {0} is a desk lamp for the office and the home. It has a light of {2} lumens and uses {3} watts. "
    "The arm can be turned by {4} degrees. It costs {5} euros. To change the lamp, switch it off, let it cool down for "
    "five minutes and turn the cover to the left. Keep the lamp away from water, and call our service if it flickers."
)


def sheets(count):
    rng = random.Random(2)
    names = [words(1, seed).title() for seed in range(count)]
    return [SHEET.format(name, *(rng.randrange(100, 999) for _ in range(5))) for name in names]


def test_records_of_one_template_stay_and_copies_of_one_record_go(tmp_path):
    texts = sheets(30)
    copy = texts[3].replace("let it cool down for five minutes", "wait until it is cold again")
    kept, dropped, metrics = deduplicate(tmp_path, [*texts, copy])
    assert len(kept) == 30 and [row["reason"] for row in dropped] == ["near_duplicate"]
    assert metrics["dedup/template_pairs"] > 300


def test_records_that_are_little_more_alike_than_copies_have_to_be_stay(tmp_path):
    things = "노트북 모니터 키보드 마우스 스피커 헤드폰 프린터 스캐너 태블릿 카메라 냉장고 세탁기 청소기 에어컨".split()
    things.append("선풍기")
    texts = [
        f"제품명: {thing} {i}호\n\n저희 매장에서 판매하는 {thing} {i}호의 무게는 {i * 37 % 90 + 10}그램이며 색상은 "
        f"{('빨강', '파랑', '초록', '검정')[i % 4]}입니다. 보증 기간은 {i % 5 + 1}년이고 "
        f"가격은 {i * 1300 + 15000}원입니다. "
        "교환과 환불은 구입 후 십사 일 안에 영수증을 가지고 매장에 오시면 됩니다. 배송은 보통 이틀에서 사흘이 걸리며 "
        "제주와 섬 지역은 하루가 더 걸립니다."
        for i, thing in enumerate(things * 2)
    ]
    copy = texts[3].replace("됩니다", "된답니다")
    kept, dropped, _ = deduplicate(tmp_path, [*texts, copy])
    assert len(kept) == 30 and [row["reason"] for row in dropped] == ["near_duplicate"]


def test_independent_edits_of_one_text_are_copies(tmp_path):
    text = words(80, 1).split()
    copies = []
    for seed in range(8):
        rng = random.Random(seed)
        copies.append(" ".join("edited" + words(1, seed) if rng.random() < 0.02 else word for word in text))
    kept, _, metrics = deduplicate(tmp_path, copies)
    assert len(kept) == 1, metrics["dedup/template_pairs"]


def test_a_source_that_loses_much_is_told(tmp_path, caplog):
    first, second = words(40, 1), words(40, 2)
    texts = [first, f"{first} more", f"{first} much more", second]
    _, _, metrics = deduplicate(tmp_path, texts, sources=["a", "a", "a", "b"])
    assert metrics["dedup/lost_fraction_a"] == pytest.approx(2 / 3) and metrics["dedup/lost_fraction_b"] == 0
    assert "the source a loses 67 % of its 3 documents: near_duplicate 2" in caplog.text
    assert f"67 % are copies: {near.TOLD}" in caplog.text
    assert f"promotion.gate.max_duplicate_share ({GateConfig().max_duplicate_share} by default)" in near.TOLD
    assert "source b" not in caplog.text


def test_a_page_that_mentions_a_name_stays_and_one_that_answers_the_question_goes(tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    template = {"prompt": "What is the price of the {product}?", "answer": "{price}"}
    config = json.loads((tasks / "tasks.json").read_text())["sql"] | {"templates": [template]}
    (tasks / "tasks.json").write_text(json.dumps({"sql": config}))
    asked, price = "What is the price of the Zephyr Bolt 9000?", "210 euros"
    pq.write_table(Prompt.table([prompt_row("sql", "test", asked, price)]), tasks / "part-00000.parquet")
    items, num_short = evaluation_items(Tasks(tasks))
    pages = [
        f"The Zephyr Bolt 9000 costs {price} and comes with a cable.",
        "What is the price of the Aria Lamp 332? 184 euros",
        f"{words(40, 1)} {asked.upper()} {price}. {words(40, 2)}",
    ]
    assert (len(items), num_short) == (1, 0)
    assert list(Detector(items, 0.8).find(folded(*pages))) == [2]


def test_an_instruction_that_stands_in_every_question_makes_no_other_text_one_of_them(tmp_path):
    tasks = write_tasks(tmp_path / "tasks")
    lead = f"You are given a sentence. {words(60, 1)} Say which city it names, and nothing else. "
    places = ["He left for Busan on a wet Monday", "The ferry to Jeju was late again", "Nobody in Daegu wears a hat"]
    rows = [prompt_row("sql", "test", f"{lead}{place}.", "a city") for place in places]
    pq.write_table(Prompt.table(rows), tasks / "part-00000.parquet")
    detector = Detector(evaluation_items(Tasks(tasks))[0], 0.8)
    others = ("She sells pears in Seoul at noon.", "Who has been to Ulsan and back?")
    trained = [f"{lead}{text} Seoul" for text in others]
    assert detector.find(folded(*trained)) == {}
    assert list(detector.find(folded(*trained, f"{lead}{places[1].upper()}! Jeju"))) == [2]
