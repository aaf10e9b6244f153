"""YAML text to plain data with places."""

import pytest

from dinoctl.spec.errors import Problem, SpecError
from dinoctl.spec.yamldoc import read_yaml, show


def data(text: str) -> object:
    (doc,) = read_yaml(text, "f")
    return doc.data


def told(text: str) -> list[str]:
    with pytest.raises(SpecError) as error:
        read_yaml(text, "f")
    return str(error.value).splitlines()


def test_every_value_has_the_place_of_its_key_or_item() -> None:
    (doc,) = read_yaml("a: 1\nb:\n  c: [x, y]\n  d:\n  - e: 2\n", "f")
    assert doc.data == {"a": 1, "b": {"c": ["x", "y"], "d": [{"e": 2}]}}
    assert doc.place(("a",)) == (1, 1)
    assert doc.place(("b", "c")) == (3, 3)
    assert doc.place(("b", "c", 1)) == (3, 10)
    assert doc.place(("b", "d", 0, "e")) == (5, 5)


def test_a_path_that_does_not_stand_there_has_the_place_of_its_nearest_parent() -> None:
    (doc,) = read_yaml("a:\n  b: {c: 1}\n", "f")
    assert doc.place(("a", "b", "missing", "deeper")) == (2, 3)
    assert doc.problem(("a", "b", "missing"), "text") == Problem("f", 2, 3, "a.b.missing", "text")


def test_places_go_on_over_documents() -> None:
    first, second = read_yaml("a: 1\n---\na: 2\n", "f")
    assert (first.place(("a",)), second.place(("a",))) == ((1, 1), (3, 1))


@pytest.mark.parametrize("text", ["", " \n", "# only a comment\n", "---\n---\n", "---\n...\n", "~\n"])
def test_empty_documents_are_left_out(text: str) -> None:
    assert read_yaml(text, "f") == []


def test_empty_documents_between_others_are_left_out() -> None:
    assert [doc.data for doc in read_yaml("---\n---\na: 1\n---\n# nothing\n---\nb: 2\n", "f")] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("2.0e-4", 0.0002),
        ("0x1F", 31),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("2012-01-01", "2012-01-01"),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("12:30:00", "12:30:00"),
        ("!!str 5", "5"),
        ("'5'", "5"),
        ("010", 10),
    ],
)
def test_scalars_are_those_of_yaml_1_2_and_dates_are_text(text: str, value: object) -> None:
    found = data(f"a: {text}")
    assert found == {"a": value}
    assert isinstance(found, dict)
    assert type(found["a"]) is type(value)


def test_windows_line_ends_and_a_byte_order_mark_change_nothing() -> None:
    (doc,) = read_yaml("\ufeffa: 1\r\nb:\r\n  c: 2\r\n", "f")
    assert doc.data == {"a": 1, "b": {"c": 2}}
    assert doc.place(("b", "c")) == (3, 3)


def test_duplicate_keys_are_refused_with_both_lines() -> None:
    assert told("a: 1\nb: {c: 1,\n    c: 2}\na: 3\n") == [
        "f:3:5: b.c: given twice, first in line 2; leave one out",
        "f:4:1: a: given twice, first in line 1; leave one out",
    ]


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("!foo 1", "!foo"),
        ("!foo {b: 1}", "!foo"),
        ("!foo [1]", "!foo"),
        ("!!binary aGk=", "!!binary"),
        ("!!set {b}", "!!set"),
        ("!!python/object:os.system x", "!!python/object:os.system"),
        ("!!python/object/apply:os.system [x]", "!!python/object/apply:os.system"),
        ("!<tag:x> 1", "tag:x"),
    ],
)
def test_tags_are_refused(text: str, tag: str) -> None:
    assert told(f"a: {text}") == [f"f:1:4: a: the tag {tag} is not allowed; leave it out"]


@pytest.mark.parametrize("text", ["!!int abc", "!!float x", "!!bool x"])
def test_a_tag_that_does_not_fit_its_value_is_refused(text: str) -> None:
    (line,) = told(f"a: {text}")
    assert "cannot be read as" in line


def test_merge_keys_are_refused() -> None:
    (line,) = told("base: &b {x: 1}\na:\n  <<: *b\n")
    assert line == "f:3:3: a: merge keys (<<) are not part of YAML 1.2; repeat the fields"


def test_aliases_are_values() -> None:
    assert data("a: &x {b: [1]}\nc: *x\n") == {"a": {"b": [1]}, "c": {"b": [1]}}


def test_an_alias_bomb_is_refused_in_little_time() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (line,) = told("\n".join(lines))
    assert "aliases expand too far" in line


@pytest.mark.parametrize("text", ["[" * 900, "a: &a [*a]", "a: &a {b: *a}", "a: " + "{b: " * 70 + "1" + "}" * 70])
def test_deep_nesting_is_refused(text: str) -> None:
    assert told(text) == ["f:1:1: nested too deeply; 60 levels are allowed"]


@pytest.mark.parametrize("number", ["9" * 30, "-" + "9" * 30, "9" * 5000, "0x" + "f" * 40])
def test_numbers_beyond_64_bits_are_refused(number: str) -> None:
    assert len(told(f"a: {number}")) == 1


def test_a_key_must_be_text() -> None:
    assert told("? [a]\n: 1\n") == ["f:1:3: a key must be plain text"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: [1, 2", "f:1:9: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        (
            "a: 1\n\tb: 2\n",
            "f:2:1: not valid YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        ("a: *b", "f:1:4: not valid YAML: found undefined alias 'b'"),
        ("a: 1\nb: x\x07\n", "f:2:5: not valid YAML: the character '\\x07' is not allowed"),
        ("%YAML 1.1\n---\na: 1\n", "f:1:1: not valid YAML; leave out directives (lines that start with %)"),
        ("a: b: c", "f:1:5: not valid YAML: mapping values are not allowed here"),
    ],
)
def test_text_that_is_not_yaml_is_one_line_with_its_place(text: str, line: str) -> None:
    assert told(text) == [line]


def test_everything_that_is_refused_is_told_at_once_and_the_rest_is_returned() -> None:
    problems: list[Problem] = []
    docs = read_yaml("a: !x 1\na: 2\nb: 3\n---\nc: 4\n---\nd: [\n", "f", problems)
    assert [problem.line for problem in problems] == [1, 2, 8]
    assert [doc.data for doc in docs] == [{"a": "1", "b": 3}, {"c": 4}]


def test_an_anchor_used_again_is_legal_and_silent(recwarn: pytest.WarningsRecorder) -> None:
    assert data("a: &x 1\nb: &x 2\nc: *x\n") == {"a": 1, "b": 2, "c": 2}
    assert not recwarn.list


def test_a_shown_path_is_one_line_whatever_the_keys() -> None:
    assert show(("spec", "mixture", 0, "weight")) == "spec.mixture[0].weight"
    assert show(("a\nb", "")) == "'a\\nb'.''"
