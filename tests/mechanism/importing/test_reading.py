"""YAML and JSON as they are read: with lines, and without losing a key in silence."""

from __future__ import annotations

import pytest

from sidecar.mechanism.importing.reading import MOST_BYTES, InputError, read


def test_values_are_plain_and_their_lines_are_known() -> None:
    tree = read("c.yaml", b"a:\n  b: [1, x]\nc: 2024-05-01\n")
    assert tree.value == {"a": {"b": [1, "x"]}, "c": "2024-05-01"}
    assert tree.lines["a", "b", 1] == 2
    assert tree.lines["c",] == 3


def test_on_and_yes_are_text_for_programs_that_read_yaml_1_2() -> None:
    assert read("c.yaml", b"a: on\nb: true\n", core=True).value == {"a": "on", "b": True}
    assert read("c.yaml", b"a: on\n").value == {"a": True}


def test_merges_are_filled_in_and_what_stands_beside_them_wins() -> None:
    tree = read("c.yaml", b"base: &b {x: 1, y: 2}\nm:\n  <<: *b\n  y: 3\n")
    assert tree.value["m"] == {"x": 1, "y": 3}


def test_json_may_have_comments_but_not_in_texts() -> None:
    assert read("c.json", b'{"a": "http://x#y", // one\n "b": 2 # two\n}').value == {"a": "http://x#y", "b": 2}


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("c.yaml", b"a: 1\na: 2\n", 'c.yaml:2: the key "a" stands twice'),
        ("c.yaml", b"m:\n  a: 1\n  b: 1\n  a: 2\n", 'c.yaml:4: the key "a" stands twice'),
        ("c.json", b'{"a": 1, "a": 2}', 'c.json: the key "a" stands twice'),
        ("c.yaml", b"a: [1\n", "c.yaml:2: is not YAML"),
        ("c.yaml", b"a: !!python/object:os.system x\n", "c.yaml:1: "),
        ("c.yaml", b"a: !!binary aGk=\n", "c.yaml:1: is of a kind that no setting has (binary)"),
        ("c.yaml", b"a: .inf\n", "c.yaml:1: expected a finite number"),
        ("c.yaml", b"a: 1\n\xff\n", "c.yaml:2: is not UTF-8 text"),
        ("c.yaml", b"", "c.yaml: expected a table of settings (`key: value`), found nothing"),
        ("c.yaml", b"- 1\n", "c.yaml: expected a table"),
        ("c.yaml", b"a: 1\n---\nb: 2\n", "c.yaml:2: is not YAML: but found another document"),
        ("c.yaml", b"? [a]\n: 1\n", "c.yaml:1: expected text for a key"),
        ("c.json", b'{"a":\n oops}', "c.json:2: is not JSON"),
        ("c.json", b'{"a": NaN}', "c.json: NaN is no number"),
        ("c.json", b"[1]", "c.json: expected a table"),
        ("c.yaml", b"x" * (MOST_BYTES + 1), "c.yaml: is larger than 2 MiB"),
        ("c.yaml", b"a: " + b"[" * 700, "c.yaml"),
        ("c.json", b'{"a": ' + b"[" * 100_000, "c.json: is nested too deep"),
        ("c.yaml", b"a: &a [*a]\n", "too much, or nested too deep"),
        ("c.yaml", b"a: *gone\n", "c.yaml:1: is not YAML"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(file: str, content: bytes, told: str) -> None:
    with pytest.raises(InputError) as error:
        read(file, content)
    assert told in str(error.value)


def test_a_small_file_that_unfolds_into_a_huge_one_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 7)]
    with pytest.raises(InputError, match="too much"):
        read("c.yaml", "\n".join(lines).encode())


def test_a_secret_is_in_no_error() -> None:
    for content in (b"key: sk-secret: x\n", b"key: 'sk-secret\n", b"sk: {a: sk-secret, a: 1}\n"):
        with pytest.raises(InputError) as error:
            read("c.yaml", content)
        assert "sk-secret" not in str(error.value)
