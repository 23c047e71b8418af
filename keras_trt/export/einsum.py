"""`Einsum` of two tensors as transposes and one matrix product, which TensorRT fuses into attention.

tf2onnx computes shapes at run time for it; here they are those that the graph has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .writer import Writer


@dataclass(frozen=True)
class Plan:
    """An einsum as a matrix product: axes are told by their letters.

    Attributes:
        batch: in both operands and in the output, in the output's order.
        left: in the left operand and the output alone.
        right: in the right operand and the output alone.
        summed: in both operands and not in the output.
        output: the output.
    """

    batch: str
    left: str
    right: str
    summed: str
    output: str


def plan(equation: str, ranks: Sequence[int]) -> tuple[str, str, Plan] | None:
    """Return the letters of both operands and the plan, or `None` for what is no single matrix product.

    Args:
        equation: of two operands, as `"abc,cd->abd"`, perhaps with `...`.
        ranks: of the operands.
    """
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    operands = inputs.split(",")
    if len(operands) != 2 or not arrow:
        return None
    missing = [rank - len(one.replace("...", "")) for one, rank in zip(operands, ranks, strict=True)]
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if letter not in equation]
    letters = "".join(free[: max(missing)]) if "..." in equation else ""
    first, second = (
        one.replace("...", letters[len(letters) - count :]) for one, count in zip(operands, missing, strict=True)
    )
    output = output.replace("...", letters)
    if any(len(set(one)) != len(one) for one in (first, second, output)):
        return None  # a diagonal
    if not set(output) <= set(first + second):
        return None
    if any((letter in first) != (letter in second) and letter not in output for letter in set(first + second)):
        return None  # a sum over one operand alone
    both = [letter for letter in first if letter in second]
    return (
        first,
        second,
        Plan(
            batch="".join(letter for letter in output if letter in both),
            left="".join(letter for letter in output if letter not in second),
            right="".join(letter for letter in output if letter not in first),
            summed="".join(letter for letter in both if letter not in output),
            output=output,
        ),
    )


def einsum(graph: Any, node: Any, _name: str, _arguments: Any) -> None:
    """The tf2onnx handler: transposes, reshapes where axes must be merged, `MatMul`; else ONNX's own `Einsum`."""
    shapes = [graph.get_shape(one) for one in node.input]
    found = None
    if None not in shapes:
        found = plan(node.get_attr_str("equation"), [len(shape) for shape in shapes])
    merged = _merged(found, shapes) if found is not None else None
    if found is None or merged is None:
        node.type = "Einsum"  # the same attribute, the same operator
        return
    operands = list(node.input)
    _Product(Writer(graph, node), operands, *found).write(merged)


def _merged(found: tuple[str, str, Plan], shapes: Sequence[Sequence[int]]) -> dict[str, int] | None:
    """Return the size of each axis, -1 where it is open; `None` where a reshape would have two open sizes."""
    first, second, how = found
    sizes: dict[str, int] = {}
    for letters, shape in zip((first, second), shapes, strict=True):
        for letter, size in zip(letters, shape, strict=True):
            known = sizes.get(letter, -1)
            if known > 0 and size > 0 and known != size:
                return None  # broadcast
            sizes[letter] = max(known, size)
    # Without a batch, the axes on the left stay as they are: `MatMul` takes any number of them.
    for group in (how.left if how.batch else "", how.right, how.summed):
        if len(group) > 1 and any(sizes[letter] < 0 for letter in group):
            return None
    return sizes


class _Product:
    """Writes the nodes of one plan."""

    def __init__(self, write: Writer, operands: Sequence[str], first: str, second: str, how: Plan) -> None:
        self._write, self._operands = write, operands
        self._first, self._second, self._how = first, second, how

    def write(self, sizes: dict[str, int]) -> None:
        how, write = self._how, self._write
        open_left = not how.batch and bool(how.left)
        left = self._transposed(self._operands[0], self._first, how.batch + how.left + how.summed)
        left = self._grouped(left, sizes, how.batch, [*how.left] if open_left else [how.left], [how.summed])
        right = self._transposed(self._operands[1], self._second, how.batch + how.summed + how.right)
        right = self._grouped(right, sizes, how.batch, [how.summed], [how.right])
        product = write.node("MatMul", [left, right])
        letters = how.batch + how.left + how.right
        if (len(how.left) != 1 and not open_left) or len(how.right) != 1:
            copied = how.batch + (how.left if open_left else "")
            shape = [0] * len(copied) + [sizes[letter] for letter in letters[len(copied) :]]
            product = write.node("Reshape", [product, write.constant(np.array(shape, np.int64))])
        order = [letters.index(letter) for letter in how.output]
        if order == sorted(order):
            write.result("Identity", [product])
        else:
            write.result("Transpose", [product], perm=order)

    def _transposed(self, x: str, letters: str, wanted: str) -> str:
        order = [letters.index(letter) for letter in wanted]
        return x if order == sorted(order) else self._write.node("Transpose", [x], perm=order)

    def _grouped(self, x: str, sizes: dict[str, int], batch: str, *groups: Sequence[str]) -> str:
        """Merge each group of axes behind the batch into one; no axis becomes one of size 1."""
        flat = [group for part in groups for group in part]
        if all(len(group) == 1 for group in flat):
            return x
        shape = [0] * len(batch)
        for group in flat:
            position = len(shape)
            # 0 copies the size at the same place, which is right as long as nothing before it was merged.
            copied = len(group) == 1 and "".join(flat).find(group) + len(batch) == position
            shape.append(0 if copied else int(np.prod([sizes[letter] for letter in group])))
        return self._write.node("Reshape", [x, self._write.constant(np.array(shape, np.int64))])
