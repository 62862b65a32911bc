"""YAML from anybody: plain values, or one error."""

from typing import Any

import yaml

from sj_ottt.errors import InputError

__all__ = ["load_yaml"]

# What PyYAML raises of itself, and lets through from Python where a tag does not fit its value.
_WRONG = (
    yaml.YAMLError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class _GivenTwice(yaml.MarkedYAMLError):
    """A mapping has a key twice."""

    def __init__(self, key: yaml.ScalarNode) -> None:
        super().__init__(problem_mark=key.start_mark)
        self.what = f"the key {key.value[:40]!r} is given twice; leave one out"


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which PyYAML takes the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in keys:
                    raise _GivenTwice(key)
                keys.add((key.tag, key.value))
        return node


def load_yaml(text: str, name: str) -> Any:
    """Return the plain values that a text of YAML holds; None of an empty one.

    Args:
        text: The YAML.
        name: What messages call it.

    Raises:
        InputError: It is no YAML of plain values, or gives a key twice.
    """
    try:
        return yaml.load(text, _Loader)
    except _WRONG as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        wrong = "not valid YAML; write one `key: value` a line"
        what = error.what if isinstance(error, _GivenTwice) else wrong
        raise InputError(f"{name}{line}: {what}") from None
