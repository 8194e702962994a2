"""Which prefixes are computed once: a radix tree of the inputs, and the cheapest way through it.

Three ways to compute the inputs below a node, priced in tokens:

    packed   all of them in one row, every token once
    stem     the way to the node in a pass of its own; rows of what follows attend to its keys
    apart    the node's children each on their own

    header ---- question 1 -+- a        stem: header          rows: [question 1, a, b, c],
             |              +- b                                    [question 2, a, b, c]
             |              `- c
             `- question 2 ...

A packed row pays for attention between all of its tokens, a causal pass for half of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a forward pass may hold, and what it costs."""

    pass_tokens: int
    """Tokens of one pass, padding included; a longer input has a pass of its own."""
    row_tokens: int
    """Tokens of one packed row."""
    kappa: float = 3000.0
    """Keys at which attention costs a token as much as all matrix products do."""
    overhead: float = 12.0
    """Price of a further pass, in tokens."""


@dataclass(frozen=True)
class Group:
    """A stem and the rows that attend to it, or rows that stand alone."""

    stem: int
    """Tokens of the stem, the same beginning of all inputs of the group; 0: none."""
    rows: list[list[int]]
    """Numbers of inputs, in sorted order; those of one row share what they begin with."""


@dataclass(frozen=True)
class Plan:
    """Everything that is to be computed."""

    groups: list[Group]
    tokens: int
    """That go through the model, padding aside."""
    plain_tokens: int
    """That would, with every input on its own."""


@dataclass
class _Node:
    source: int
    """An input that passes through."""
    start: int
    stop: int
    """Depths of the edge above the node: tokens `start` to `stop` of the source."""
    children: list[_Node] = field(default_factory=list)
    first: int = 0
    last: int = 0
    """The inputs at or below the node are `first` to `last`, exclusive."""
    tokens: int = 0
    """Below the node, each once, its own edge left out."""
    price: float = 0.0
    way: str = ""


def make_plan(inputs: Sequence[Ids], budget: Budget) -> Plan:
    """Group inputs by what they begin with.

    Args:
        inputs: token ids, different from each other and sorted as tuples are.
        budget: limits and prices.
    """
    plain = sum(map(len, inputs))
    if not inputs:
        return Plan([], 0, 0)
    root = _tree(inputs)
    for node in _bottom_up(root):
        _price(node, budget)
    groups = list(_merged(_groups(root, inputs, budget)))
    tokens = sum(
        group.stem + sum(row_tokens(inputs, row, group.stem) for row in group.rows)
        for group in groups
    )
    return Plan(groups, tokens, plain)


def plain_plan(inputs: Sequence[Ids]) -> Plan:
    """Every input on its own."""
    total = sum(map(len, inputs))
    return Plan([Group(0, [[number]]) for number in range(len(inputs))], total, total)


def common(a: Ids, b: Ids) -> int:
    """Length of the longest common prefix."""
    length = min(len(a), len(b))
    different = a[:length] != b[:length]
    return int(different.argmax()) if different.any() else length


def row_tokens(inputs: Sequence[Ids], row: Sequence[int], stem: int) -> int:
    """Tokens of a packed row, each once."""
    total, before = 0, None
    for number in row:
        shared = stem if before is None else max(stem, common(inputs[before], inputs[number]))
        total += len(inputs[number]) - shared
        before = number
    return total


def _tree(inputs: Sequence[Ids]) -> _Node:
    root = _Node(0, 0, 0, last=len(inputs))
    path = [root]
    for number, ids in enumerate(inputs):
        shared = common(inputs[number - 1], ids) if number else 0
        while path[-1].stop > shared:
            closed = path.pop()
            closed.last = number
            if path[-1].stop < shared:  # the edge divides here
                split = _Node(closed.source, closed.start, shared, [closed], first=closed.first)
                closed.start = shared
                path[-1].children[-1] = split
                path.append(split)
        leaf = _Node(number, shared, len(ids), first=number)
        path[-1].children.append(leaf)
        path.append(leaf)
    for node in path:
        node.last = len(inputs)
    return root


def _bottom_up(root: _Node) -> Iterator[_Node]:
    order, stack = [], [root]
    while stack:
        node = stack.pop()
        order.append(node)
        stack += node.children
    return reversed(order)


def _price(node: _Node, budget: Budget) -> None:
    depth, kappa = node.stop, budget.kappa
    below = node.tokens = sum(c.stop - c.start + c.tokens for c in node.children)
    total = depth + below
    prices = {"apart": math.fsum(child.price for child in node.children)}
    if not node.children:
        prices = {"packed": depth * (1 + depth / (2 * kappa)) + budget.overhead}
    elif total <= budget.row_tokens:
        prices["packed"] = total * (1 + total / kappa) + budget.overhead
    if depth and node.children:
        packed = _packed_tokens(node, budget.row_tokens)
        rows = math.ceil(packed / budget.row_tokens)
        width = min(packed, budget.row_tokens)
        own = depth * (1 + depth / (2 * kappa)) + budget.overhead
        prices["stem"] = own + packed * (1 + (depth + width) / kappa) + rows * budget.overhead
    if _ends_above(node):
        del prices["apart"]  # an input ends here, and children on their own would lose it
    node.way = min(prices, key=lambda way: prices[way])
    node.price = prices[node.way]


def _groups(root: _Node, inputs: Sequence[Ids], budget: Budget) -> Iterator[Group]:
    stack = [root]
    while stack:
        node = stack.pop()
        if node.way == "apart":
            stack += reversed(node.children)
        elif node.way == "packed":
            yield Group(0, [list(range(node.first, node.last))])
        else:
            pieces = _pieces(node, budget.row_tokens)
            yield Group(node.stop, _packed(pieces, inputs, node.stop, budget.row_tokens))


def _packed_tokens(node: _Node, limit: int) -> int:
    """Tokens of the rows below a stem: what does not fit one row has its beginning in several."""
    total = 0
    stack = [(child, 0) for child in node.children]
    while stack:
        child, above = stack.pop()
        edge = above + child.stop - child.start
        if not child.children or edge + child.tokens <= limit:
            total += edge + child.tokens
        else:
            total += edge if _ends_above(child) else 0
            stack += [(grandchild, edge) for grandchild in child.children]
    return total


def _ends_above(node: _Node) -> bool:
    """Whether an input ends with the node's edge, where others go on."""
    return bool(node.children) and node.children[0].first > node.first


def _pieces(node: _Node, limit: int) -> Iterator[list[int]]:
    """Inputs below a stem in pieces that fit a row, together where they share something more."""
    if _ends_above(node):
        yield [node.first]  # ends with the stem itself
    stack = [(child, 0) for child in reversed(node.children)]
    while stack:
        child, above = stack.pop()
        edge = above + child.stop - child.start
        if not child.children or edge + child.tokens <= limit:
            yield list(range(child.first, child.last))
        else:
            if _ends_above(child):
                yield [child.first]
            stack += [(grandchild, edge) for grandchild in reversed(child.children)]


def _packed(
    pieces: Iterator[list[int]], inputs: Sequence[Ids], stem: int, limit: int
) -> list[list[int]]:
    rows: list[list[int]] = []
    room = -1
    for piece in pieces:
        size = row_tokens(inputs, piece, stem)
        if size > room:
            rows.append([])
            room = limit
        rows[-1] += piece
        room -= size
    return rows


def _merged(groups: Iterator[Group]) -> Iterator[Group]:
    """Rows without a stem in one group."""
    alone: list[list[int]] = []
    for group in groups:
        if group.stem:
            yield group
        else:
            alone += group.rows
    if alone:
        yield Group(0, alone)
