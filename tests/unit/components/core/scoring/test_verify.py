import pytest

from bloomery.components.core.scoring.verify import VerifierConfig, run_sql, verify


def score(kind, response, reference, **settings):
    return verify(VerifierConfig(kind=kind, **settings), response, reference)[0]


@pytest.mark.parametrize(
    ("response", "reference", "wanted"),
    [("a  b\n", "a b", 1), ("Ａ", "A", 1), ("한국", "한국", 1), ("A", "a", 0), ("", "a", 0)],
)
def test_exact_compares_what_a_reader_sees(response, reference, wanted):
    assert score("exact", response, reference) == wanted


def test_case_is_folded_on_demand():
    assert score("exact", "A", "a", ignore_case=True) == 1


@pytest.mark.parametrize(
    ("response", "reference", "wanted"),
    [("so it is 1,234.", "1234", 1), ("3 or 4", "4", 1), ("1e3", "1000", 1), ("none", "4", 0), ("4.1", "4", 0)],
)
def test_numeric_takes_the_last_number(response, reference, wanted):
    assert score("numeric", response, reference) == wanted


def test_the_answer_is_extracted_from_the_last_match():
    assert score("exact", "#### 3\nno: #### 4", "4", extract=r"#### (\S+)") == 1
    assert verify(VerifierConfig(kind="exact", extract="####(.*)"), "4", "4") == (0.0, "no answer found")


def test_regex_reference_must_match_the_whole_answer():
    assert score("regex", "C2001", r"C\d{4}") == 1
    assert score("regex", "C2001!", r"C\d{4}") == 0
    assert verify(VerifierConfig(kind="regex"), "a", "a(")[1].startswith("the reference is no regular expression")


def sql(database, query, reference, timeout_seconds=2.0):
    config = VerifierConfig(kind="sql_execution", databases=["x"], timeout_seconds=timeout_seconds)
    return verify(config, query, reference, [database])


def test_sql_is_right_if_the_rows_are(database):
    assert sql(database, "SELECT name FROM t WHERE id < 2", "SELECT name FROM t WHERE id = 1") == (1.0, "equal rows")
    assert sql(database, "SELECT name FROM t", "SELECT name FROM t WHERE id = 1") == (0.0, "wrong rows")
    assert sql(database, "SELECT nme FROM t", "SELECT name FROM t") == (0.0, "does not run")


def test_order_counts_only_where_the_reference_orders(database):
    assert sql(database, "SELECT id FROM t ORDER BY id DESC", "SELECT id FROM t")[0] == 1
    assert sql(database, "SELECT id FROM t ORDER BY id DESC", "SELECT id FROM t ORDER BY id")[0] == 0


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM t",
        "DROP TABLE t",
        "PRAGMA journal_mode = DELETE",
        "ATTACH '/tmp/other.db' AS o",
        "CREATE TABLE x (a)",
        "SELECT 1; DELETE FROM t",
    ],
)
def test_a_query_can_only_read(database, query):
    before = database.read_bytes()
    rows, reason = run_sql(database, query, 2.0)
    assert rows is None and reason
    assert database.read_bytes() == before


def test_an_endless_query_is_ended_at_its_time_box(database):
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    assert run_sql(database, endless, 0.2) == (None, "slower than 0.2 s")


def test_a_flood_of_rows_is_refused(database):
    flood = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 20000) SELECT i FROM n"
    assert run_sql(database, flood, 5.0)[1] == "more than 10000 rows"


SOLUTION = "Together that is 36+1000=$<<36+1000=1036>>1,036.\n#### 1,036"


@pytest.mark.parametrize("kind", ["exact", "label", "numeric", "rouge_1"])
def test_a_reference_is_taken_apart_as_a_response_is(kind):
    assert score(kind, "I think\n#### 1,036", SOLUTION, extract=r"#### (\S+)") == 1
    assert score(kind, "I think\n#### 1,035", SOLUTION, extract=r"#### (\S+)") < 1
    # A reference that is the answer alone is taken whole; a response without the pattern is still wrong.
    assert score(kind, "I think\n#### 1,036", "1,036", extract=r"#### (\S+)") == 1
    assert score(kind, "1,036", "1,036", extract=r"#### (\S+)") == 0


def test_numbers_are_read_alike_on_both_sides():
    assert score("numeric", "1036", "$1,036") == 1 and score("numeric", "−4", "-4") == 1
    assert verify(VerifierConfig(kind="numeric"), "4", "four") == (0.0, "the reference is no number")


def test_sql_in_a_fence_is_the_same_reference(database):
    config = VerifierConfig(kind="sql_execution", databases=["x"], extract=r"```sql\n(.*?)```")
    fenced = "Take all:\n```sql\nSELECT name FROM t\n```"
    assert verify(config, fenced, fenced, [database]) == (1.0, "equal rows")


def test_of_several_groups_the_one_that_took_part_is_the_answer():
    pattern = r"#### (\S+)|answer is (\S+)"
    assert score("exact", "the answer is 4", "4", extract=pattern) == 1
    assert score("exact", "#### 4", "the answer is 4", extract=pattern) == 1


def test_an_extract_that_is_no_pattern_is_refused_where_it_is_written():
    with pytest.raises(ValueError, match="is no regular expression: missing"):
        VerifierConfig(kind="exact", extract="(")
