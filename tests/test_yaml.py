"""YAML from anybody: plain values, or one error that names file and line."""

import pytest

from sj_ottt import InputError
from sj_ottt._yaml import load_yaml


def test_plain_values():
    assert load_yaml("a: [1, 2.5]\nb: {c: x, d: }\n", "x") == {
        "a": [1, 2.5],
        "b": {"c": "x", "d": None},
    }
    assert load_yaml("", "x") is None
    # A key may stand again in another mapping, and beside what it overrides.
    text = "a: &a {k: 1}\nb: &b {<<: *a, k: 2}\nc: {<<: *b, k: 3}"
    assert [part["k"] for part in load_yaml(text, "x").values()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nlr: 0.1\nlr: 0.5", "x, line 3: the key 'lr' is given twice"),
        ("a: {lr: 1,\n 'lr': 2}", "x, line 2: the key 'lr' is given twice"),
        ("a: 1\nb: [", "x, line 2: not valid YAML"),
        ('a: !!int ""', "x: not valid YAML"),
        ('? !!int ""\n: 3', "x: not valid YAML"),
        ('a: !!float "-"', "x: not valid YAML"),
        ('a: !!bool "x"', "x: not valid YAML"),
        ('a: !!timestamp "x"', "x: not valid YAML"),
        ("a: 2000-13-40", "x: not valid YAML"),
        (r'a: "\UFFFFFFFF"', "x: not valid YAML"),
        ("a: !!python/name:os.system", "x, line 1: not valid YAML"),
        ("a: \0", "x: not valid YAML"),
        ("? [1]\n: 2", "x, line 1: not valid YAML"),
        ("[" * 5000, "x: not valid YAML"),
    ],
)  # fmt: skip
def test_one_error_whatever_is_wrong(text, message):
    with pytest.raises(InputError) as error:
        load_yaml(text, "x")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
