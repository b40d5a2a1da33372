"""Which model came from which, in the order and with the lines of a tree."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from training_fsm.domain.facts import ModelRef
from training_fsm.domain.model import Model
from training_fsm.store.model_reads import ModelVersion

INDENTED_MAX = 12
"""So many generations are indented; below them an only child stands under its parent, or long lines leave the page."""


class Relative(Model):
    """A member of a family; what is not in this log is only known by its descendants."""

    model: str
    version: int
    parent: ModelRef | None
    """None for the first of a line as far as it is known."""
    generation: int
    """Generations since the first of the line."""
    asked_for: bool
    """The one that the tree was asked for."""
    details: ModelVersion | None
    """None: no run of this log registered it."""

    @property
    def ref(self) -> ModelRef:
        """Name and version."""
        return ModelRef(name=self.model, version=self.version)


class Row(NamedTuple):
    """A member with the lines that lead to it."""

    lines: str
    relative: Relative


class _Node(NamedTuple):
    parent: ModelRef | None
    generation: int
    version: ModelVersion | None


def family(versions: Sequence[ModelVersion], asked_for: ModelRef | None = None) -> Iterator[Row]:
    """Versions below their parents, siblings as they are given; ancestors that are not among them are put in."""
    nodes = _nodes(versions)
    children: dict[ModelRef | None, list[ModelRef]] = {}
    for ref, node in nodes.items():
        children.setdefault(node.parent, []).append(ref)
    # A registry that began to count anew can make a model its own ancestor: such a ring is entered where it is oldest.
    tops = [*children.get(None, ()), *nodes]
    drawn: set[ModelRef] = set()
    for top in tops:
        stack = [(top, "", "")]
        while stack:
            ref, own_lines, below = stack.pop()
            if ref in drawn:
                continue
            drawn.add(ref)
            node = nodes[ref]
            yield Row(
                own_lines,
                Relative(
                    model=ref.name,
                    version=ref.version,
                    parent=node.parent,
                    generation=node.generation,
                    asked_for=ref == asked_for,
                    details=node.version,
                ),
            )
            stack.extend(reversed([(child, *lines) for child, lines in _below(children.get(ref, []), below)]))


def _nodes(versions: Sequence[ModelVersion]) -> dict[ModelRef, _Node]:
    known = {version.ref: version for version in versions}
    nodes: dict[ModelRef, _Node] = {}
    for version in versions:
        root, parent = version.root, version.parent
        if root not in known:
            nodes.setdefault(root, _Node(None, 0, None))
        if parent is not None and parent not in known and parent != root:
            nodes.setdefault(parent, _Node(root, version.depth - 1, None))
        nodes[version.ref] = _Node(parent, version.depth, known[version.ref])
    return nodes


def _below(children: Sequence[ModelRef], lines: str) -> Iterator[tuple[ModelRef, tuple[str, str]]]:
    """Each child with the lines before it, and those before its own children."""
    if len(children) == 1 and len(lines) >= 3 * INDENTED_MAX:
        yield children[0], (f"{lines}↳ ", lines)
        return
    for number, child in enumerate(children, 1):
        last = number == len(children)
        yield child, (f"{lines}{'└─' if last else '├─'} ", f"{lines}{'  ' if last else '│ '} ")
