"""YAML 1.2 to plain data that remembers where every value stands.

A document becomes a dict of plain values plus ``places``: path -> (line, column) of the key (or list item), so that
errors found later, by pydantic or by the resolver, still name the line. Duplicate keys, unknown tags and alias bombs
are refused here.
"""

import datetime
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from dinoctl.spec.errors import Problem, SpecError

Path = tuple[str | int, ...]
_MAX_NODES = 100_000  # nested aliases can blow a small file up; no honest document comes near


@dataclass
class YamlDoc:
    """One document: ``data`` and the place of every value in ``file``."""

    file: str
    data: Any
    places: dict[Path, tuple[int, int]] = field(default_factory=dict)

    def place(self, path: Path) -> tuple[int, int]:
        """Line and column of ``path``, or of its nearest parent that stands in the file."""
        while path not in self.places and path:
            path = path[:-1]
        return self.places.get(path, (0, 0))

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at ``path``."""
        line, column = self.place(path)
        return Problem(self.file, line, column, show(path), message)


def show(path: Path) -> str:
    """``spec.data.mixture[0].weight``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(text: str, file: str) -> list[YamlDoc]:
    """All documents of ``text``; empty ones are left out.

    Raises:
        SpecError: on YAML that can't be read, with its line.

    """
    try:
        yaml = YAML(typ="safe", pure=True)
        docs = [_Reader(yaml, file).read(node) for node in _compose(yaml, text)]
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise SpecError(
            [Problem(file, line, column, "", f"not valid YAML: {error.problem or error.context}")]
        ) from None
    except RecursionError:
        raise SpecError([Problem(file, 1, 1, "", "nested too deeply")]) from None
    return [doc for doc in docs if doc.data is not None]


def _compose(yaml: YAML, text: str) -> Iterator[Node]:
    constructor, parser = yaml.get_constructor_parser(io.StringIO(text))
    try:
        while constructor.composer.check_node():
            yield constructor.composer.get_node()
    finally:
        parser.dispose()


class _Reader:
    def __init__(self, yaml: YAML, file: str) -> None:
        self.yaml, self.doc, self.nodes = yaml, YamlDoc(file, None), 0

    def read(self, node: Node) -> YamlDoc:
        self.doc.data = self._value(node, ())
        self._mark((), node)
        return self.doc

    def _mark(self, path: Path, node: Node) -> None:
        self.doc.places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def _fail(self, node: Node, message: str) -> SpecError:
        mark = node.start_mark
        return SpecError([Problem(self.doc.file, mark.line + 1, mark.column + 1, "", message)])

    def _value(self, node: Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            raise self._fail(node, f"more than {_MAX_NODES} values; aliases expand too far")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._item(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)  # noqa: S101 - the composer knows these three
        return self._scalar(node)

    def _item(self, node: Node, path: Path) -> Any:
        self._mark(path, node)
        return self._value(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                raise self._fail(key_node, "a key must be plain text")
            key = str(key_node.value)
            if key == "<<":
                raise self._fail(key_node, "merge keys (<<) are not part of YAML 1.2; repeat the fields")
            if key in result:
                raise self._fail(key_node, f"{show((*path, key))} is given twice")
            self._mark((*path, key), key_node)
            result[key] = self._value(value_node, (*path, key))
        return result

    def _scalar(self, node: ScalarNode) -> Any:
        kind = str(node.tag)
        if not kind.startswith("tag:yaml.org,2002:") or kind.endswith((":python", ":binary")):
            raise self._fail(node, f"unknown tag {kind}")
        value = self.yaml.constructor.construct_object(node, deep=True)
        return node.value if isinstance(value, (datetime.date, bytes)) else value
