"""YAML 1.2 to plain data that remembers where every value stands.

A document becomes a dict of plain values plus ``places``: path -> (line, column) of the key (or list item), so that
errors found later, by pydantic or by the resolver, still name the line. Duplicate keys, tags, merge keys and alias
bombs are refused here, and everything that is refused is told at once.
"""

import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from dinoctl.spec.errors import Problem, SpecError

Path = tuple[str | int, ...]
_MAX_NODES = 100_000  # nested aliases can blow a small file up; no honest document comes near
_MAX_DEPTH = 60
_MAX_NUMBER = 2**63
_CORE = "tag:yaml.org,2002:"
_SCALARS = tuple(_CORE + kind for kind in ("null", "bool", "int", "float", "str"))


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
    """``spec.data.mixture[0].weight``; a key that is not one plain word is quoted, so that it stays one line."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if re.fullmatch(r"[\w/-]+", part) else repr(part)
            text += f".{word}" if text else word
    return text


def read_yaml(text: str, file: str, problems: list[Problem] | None = None) -> list[YamlDoc]:
    """All documents of ``text``; empty ones are left out. What is wrong is appended to ``problems``; a document
    of which a part is refused is still returned, without that part, so that the rest of it can be judged too.

    Raises:
        SpecError: when something is wrong and no list is given for it.

    """
    found: list[Problem] = []
    docs: list[YamlDoc] = []
    try:
        yaml = YAML(typ="safe", pure=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an anchor that is used again is legal
            docs.extend(_Reader(yaml, file, found).read(node) for node in _compose(yaml, text))
    except RecursionError:
        found.append(Problem(file, 1, 1, "", f"nested too deeply; {_MAX_DEPTH} levels are allowed"))
    except (YAMLError, ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        found.append(_unreadable(error, text, file))
    if found and problems is None:
        raise SpecError(found)
    if problems is not None:
        problems.extend(found)
    return [doc for doc in docs if doc.data is not None]


def _unreadable(error: Exception, text: str, file: str) -> Problem:
    """Text that is not YAML. The parser answers some bad input (a stray %YAML) with plain Python errors."""
    if isinstance(error, ReaderError):
        before = text[: error.position]
        column = error.position - (before.rfind("\n") + 1) + 1
        message = f"not valid YAML: the character {text[error.position]!r} is not allowed"
        return Problem(file, before.count("\n") + 1, column, "", message)
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        reason = " ".join(str(error.problem or error.context).split())
        hint = "; indent with spaces" if "'\\t'" in reason else ""
        return Problem(file, line, column, "", f"not valid YAML: {reason}{hint}")
    return Problem(file, 1, 1, "", "not valid YAML; leave out directives (lines that start with %)")


def _compose(yaml: YAML, text: str) -> Iterator[Node]:
    constructor, parser = yaml.get_constructor_parser(io.StringIO(text))
    try:
        while constructor.composer.check_node():
            yield constructor.composer.get_node()
    finally:
        parser.dispose()


class _Reader:
    def __init__(self, yaml: YAML, file: str, problems: list[Problem]) -> None:
        self.yaml, self.doc, self.nodes, self.problems = yaml, YamlDoc(file, None), 0, problems

    def read(self, node: Node) -> YamlDoc:
        self.doc.data = self._value(node, ())
        self._mark((), node)
        return self.doc

    def _mark(self, path: Path, node: Node) -> None:
        self.doc.places[path] = (node.start_mark.line + 1, node.start_mark.column + 1)

    def _refuse(self, node: Node, path: Path, message: str) -> None:
        mark = node.start_mark
        self.problems.append(Problem(self.doc.file, mark.line + 1, mark.column + 1, show(path), message))

    def _value(self, node: Node, path: Path) -> Any:
        self.nodes += 1
        if self.nodes > _MAX_NODES:
            mark, text = node.start_mark, f"more than {_MAX_NODES} values; aliases expand too far"
            raise MarkedYAMLError(problem=text, problem_mark=mark)
        if len(path) > _MAX_DEPTH:
            raise RecursionError
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node.tag not in (f"{_CORE}map", f"{_CORE}seq"):
            self._refuse(node, path, f"the tag {_tag(node)} is not allowed; leave it out")
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        assert isinstance(node, SequenceNode)  # noqa: S101 - the composer knows these three
        return [self._item(item, (*path, i)) for i, item in enumerate(node.value)]

    def _item(self, node: Node, path: Path) -> Any:
        self._mark(path, node)
        return self._value(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if not isinstance(key_node, ScalarNode):
                self._refuse(key_node, path, "a key must be plain text")
            elif key == "<<":
                self._refuse(key_node, path, "merge keys (<<) are not part of YAML 1.2; repeat the fields")
            elif key in result:
                first, _ = self.doc.places[(*path, key)]
                self._refuse(key_node, (*path, key), f"given twice, first in line {first}; leave one out")
            else:
                self._mark((*path, key), key_node)
                result[key] = self._value(value_node, (*path, key))
        return result

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        if node.tag == f"{_CORE}timestamp":
            return str(node.value)  # dates are text here
        if node.tag not in _SCALARS:
            self._refuse(node, path, f"the tag {_tag(node)} is not allowed; leave it out")
            return str(node.value)
        try:
            value = self.yaml.constructor.construct_object(node, deep=True)
        except (LookupError, ValueError):
            self._refuse(node, path, f"{node.value[:40]!r} cannot be read as {_tag(node).removeprefix('!!')}")
            return str(node.value)
        if isinstance(value, int) and abs(value) >= _MAX_NUMBER:
            self._refuse(node, path, f"the number {node.value[:20]}... is too large")
            return 0
        return value


def _tag(node: Node) -> str:
    return str(node.tag).replace(_CORE, "!!")
