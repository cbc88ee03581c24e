"""The diagram of the packages: a row for each layer, arrows from a package to what it imports.

The rows are the layers that the tests enforce, the arrows are read from the imports. An arrow that
follows from others is left out.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
import random
from collections.abc import Iterable, Mapping, Sequence

import package_imports
from package_imports import COMMANDS, FOUNDATION, LAYERS

_WIDTH, _ROW, _BOX, _MARGIN, _GAP = 720, 62, 34, 44, 26
_LETTER = 8.2  # width of one, in pixels at 14
_SWEEPS, _TRIES = 16, 60
# Layers that are one box: their names by what the box is called.
_GROUPS = {
    "commands": [name.removeprefix("mobilenet.").removesuffix(".__main__") for name in COMMANDS],
    "configs": [name for name in FOUNDATION if name != "configs"],
}
_GROUP_OF = dict.fromkeys((*COMMANDS, "__main__"), "commands") | dict.fromkeys(
    FOUNDATION, "configs"
)

Graph = Mapping[str, set[str]]


@dataclasses.dataclass
class _Node:
    """A box, or a point on an arrow that crosses a row.

    Attributes:
        name: of the package; empty for a point.
        row: from the top.
        x: of its center, in pixels.
        above, below: what its lines lead to.
    """

    name: str
    row: int
    x: float = 0.0
    above: list[_Node] = dataclasses.field(default_factory=list)
    below: list[_Node] = dataclasses.field(default_factory=list)

    @property
    def width(self) -> float:
        if self.name in _GROUPS:
            return _WIDTH - 2 * _MARGIN
        return len(self.name) * _LETTER + 28 if self.name else 2.0


def grouped(graph: Graph) -> dict[str, set[str]]:
    """The graph in which the commands are one node, and `configs` with the foundation another."""
    result: dict[str, set[str]] = {}
    for package, others in graph.items():
        own = _GROUP_OF.get(package, package)
        targets = {_GROUP_OF.get(other, other) for other in others} - {own}
        result.setdefault(own, set()).update(targets)
    return result


def reduced(graph: Graph) -> dict[str, set[str]]:
    """The graph without edges that a longer path implies (its transitive reduction)."""
    reachable: dict[str, set[str]] = {}

    def reach(node: str) -> set[str]:
        if node not in reachable:
            others = graph.get(node, set())
            reachable[node] = others.union(*(reach(other) for other in others))
        return reachable[node]

    return {
        node: {t for t in targets if not any(t in reach(other) for other in targets - {t})}
        for node, targets in graph.items()
    }


def svg() -> str:
    """The diagram as an `<svg>` element in the colors of the page."""
    graph = reduced(grouped(package_imports.imported_packages()))
    rows = _layout(graph)
    height = len(rows) * _ROW
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        'font-size="14" fill="currentColor" stroke="none">',
        "<title>Packages by layer; arrows lead to what a package imports</title>",
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for row, nodes in enumerate(rows):
        parts.append(
            f'<text x="8" y="{_center(row) + 5}" opacity="0.6">{len(rows) - 1 - row}</text>'
        )
        parts += [_arrow(node, target) for node in nodes for target in node.below if node.name]
    parts += [_box(node) for nodes in rows for node in nodes if node.name]
    return "\n".join([*parts, "</svg>"])


def _layout(graph: Graph) -> list[list[_Node]]:
    """The best of several placements, in the middle of the picture."""
    best = min((_placed(graph, seed) for seed in range(_TRIES)), key=_cost)
    boxes = [node for nodes in best for node in nodes if node.name not in _GROUPS]
    left, right = min(n.x - n.width / 2 for n in boxes), max(n.x + n.width / 2 for n in boxes)
    for node in boxes:
        node.x += (_WIDTH - left - right) / 2
    return best


def _placed(graph: Graph, seed: int) -> list[list[_Node]]:
    rows = _rows(graph)
    _place(rows, seed)
    return rows


def _rows(graph: Graph) -> list[list[_Node]]:
    """Boxes by layer from the top, with a point in each row that an arrow crosses."""
    rows: list[list[_Node]] = []
    nodes: dict[str, _Node] = {}
    for row, packages in enumerate(reversed(LAYERS)):
        names = dict.fromkeys(_GROUP_OF.get(package, package) for package in packages)
        rows.append([nodes.setdefault(name, _Node(name, row)) for name in names])
    for name, node in nodes.items():
        for other in sorted(graph.get(name, ()), key=lambda other: nodes[other].row):
            _connect(rows, node, nodes[other])
    return rows


def _connect(rows: Sequence[list[_Node]], node: _Node, target: _Node) -> None:
    for row in range(node.row + 1, target.row):
        point = _Node("", row)
        rows[row].append(point)
        node.below.append(point)
        point.above.append(node)
        node = point
    node.below.append(target)
    target.above.append(node)


def _place(rows: Sequence[list[_Node]], seed: int) -> None:
    """Puts each node near what it is connected with: first the order in a row, then the position.

    Args:
        rows: of nodes, whose order changes.
        seed: of the order that this starts from.
    """
    shuffle = random.Random(seed).shuffle
    for nodes in rows:
        shuffle(nodes)
        _spread(nodes, [_WIDTH / 2] * len(nodes))
    for sweep in range(_SWEEPS):
        down = sweep % 2 == 0
        for nodes in rows if down else rows[::-1]:
            nodes.sort(key=lambda node: _mean(node, node.above if down else node.below))
            _spread(nodes, [_mean(node, node.above + node.below) for node in nodes])
    for _ in range(_SWEEPS):
        for nodes in rows:
            _spread(nodes, [_mean(node, node.above + node.below) for node in nodes])


def _mean(node: _Node, others: Sequence[_Node]) -> float:
    return sum(other.x for other in others) / len(others) if others else node.x


def _cost(rows: Sequence[Sequence[_Node]]) -> float:
    """How far lines are from vertical, with a penalty for each pair that crosses."""
    cost = 0.0
    for nodes in rows:
        lines = [(node.x, other.x) for node in nodes for other in node.below]
        cost += sum(abs(a - b) for a, b in lines)
        cost += 200 * sum(
            (a - c) * (b - d) < 0 for (a, b), (c, d) in itertools.combinations(lines, 2)
        )
    return cost


def _spread(nodes: Sequence[_Node], positions: Iterable[float]) -> None:
    """Puts nodes at these positions, moved apart where they overlap, within the margins."""
    left: list[float] = []
    end = float(_MARGIN) - _GAP
    for node, x in zip(nodes, positions, strict=True):
        left.append(max(x, end + _GAP + node.width / 2))
        end = left[-1] + node.width / 2
    start = float(_WIDTH - _MARGIN) + _GAP
    for node, x in zip(reversed(nodes), reversed(left), strict=True):
        node.x = min(x, start - _GAP - node.width / 2)
        start = node.x - node.width / 2


def _center(row: int) -> float:
    return row * _ROW + _ROW / 2


def _arrow(node: _Node, target: _Node) -> str:
    """A curve from the lower side of a box to the upper side of another."""
    path = [node, target]
    while not path[-1].name:
        path.append(path[-1].below[0])
    points = [(step.x, _center(step.row)) for step in path]
    points[0] = (_anchor(node, path[1]), points[0][1] + _BOX / 2)
    points[-1] = (_anchor(path[-1], path[-2]), points[-1][1] - _BOX / 2)
    text = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for k, ((x, y), (next_x, next_y)) in enumerate(itertools.pairwise(points)):
        third = (next_y - y) / 3
        text += f"C{x + third * _slope(points, k):.0f} {y + third:.0f} "
        text += f"{next_x - third * _slope(points, k + 1):.0f} {next_y - third:.0f} "
        text += f"{next_x:.0f} {next_y:.0f}"
    title = html.escape(f"{node.name} imports {path[-1].name}")
    return (
        f'<path d="{text}" fill="none" stroke="currentColor" opacity="0.55" '
        f'marker-end="url(#arrow)"><title>{title}</title></path>'
    )


def _slope(points: Sequence[tuple[float, float]], k: int) -> float:
    """Of a curve at its k-th point, as x by y; vertical at both ends."""
    if k in (0, len(points) - 1):
        return 0.0
    (x, y), (next_x, next_y) = points[k - 1], points[k + 1]
    return (next_x - x) / (next_y - y)


def _anchor(node: _Node, other: _Node) -> float:
    """Where a line to another node leaves a box: opposite to it if it can."""
    reach = node.width / 2 - 14
    return min(max(other.x, node.x - reach), node.x + reach) if node.name else node.x


def _box(node: _Node) -> str:
    x, y = node.x - node.width / 2, _center(node.row) - _BOX / 2
    text = f'<text x="{node.x:.0f}" y="{y + 22:.0f}" text-anchor="middle">{html.escape(node.name)}'
    if node.name in _GROUPS:
        members = " ".join(_GROUPS[node.name])
        text = (
            f'<text x="{node.x:.0f}" y="{y + 14:.0f}" text-anchor="middle">{node.name}'
            f'<tspan x="{node.x:.0f}" dy="14" font-size="11" opacity="0.8">{members}</tspan>'
        )
    return (
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{node.width:.0f}" height="{_BOX}" rx="5" '
        'fill="var(--md-default-bg-color, none)" stroke="var(--md-typeset-a-color, currentColor)" '
        f'stroke-width="1.5"/>{text}</text>'
    )
