"""Fourier transforms as products with matrices of cosines and sines: TensorRT has no transforms, nor complex numbers.

A complex tensor of TensorFlow's graph becomes two of ONNX's, which are known by its name while a graph is converted.
The node that made it stays, without readers, and is dropped with all such nodes.
The product costs n² where a fast transform costs n log n: for the frames of audio, on a GPU, that is no loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .writer import Writer

Pair = tuple[str, str]


class Fourier:
    """The tf2onnx handlers of one conversion."""

    def __init__(self) -> None:
        self._pairs: dict[str, Pair] = {}

    def handlers(self) -> dict[str, Callable[..., None]]:
        """Return a handler for each operator with a complex input or output."""
        return {
            "RFFT": self._transform,
            "FFT": self._transform,
            "IFFT": self._transform,
            "IRFFT": self._transform,
            "FFT2D": self._transform_twice,
            "IFFT2D": self._transform_twice,
            "Complex": self._complex,
            "Real": lambda graph, node, *_: self._part(graph, node, 0),
            "Imag": lambda graph, node, *_: self._part(graph, node, 1),
            "Conj": self._conjugate,
            "ComplexAbs": self._absolute,
        }

    def _transform(self, graph: Any, node: Any, *_: Any) -> None:
        kind, x = node.type, node.input[0]
        pair, sizes = self._pairs.get(x), graph.get_shape(x)
        length = None
        if len(node.input) > 1:
            if not node.inputs[1].is_const():
                return  # `check` refuses what stays
            length = int(node.inputs[1].get_tensor_value(as_list=False).item())
        open_size = sizes is not None and sizes[-1] < 0
        if sizes is None or (kind != "RFFT" and pair is None) or (open_size and length is not None):
            return
        output, write = node.output[0], Writer(graph, node, keep=kind != "IRFFT")
        if open_size:
            real, imaginary = _open_matrix(write, kind, (pair or (x,))[0], -1)
        else:
            matrix = _matrix(kind, sizes[-1], length or sizes[-1])
            real, imaginary = (write.constant(part.astype(np.float32)) for part in (matrix.real, matrix.imag))
        if pair is None:
            self._pairs[output] = (write.node("MatMul", [x, real]), write.node("MatMul", [x, imaginary]))
        elif kind == "IRFFT":
            write.result("Sub", [write.node("MatMul", [pair[0], real]), write.node("MatMul", [pair[1], imaginary])])
        else:
            self._pairs[output] = _product(write, pair, (real, imaginary))

    def _transform_twice(self, graph: Any, node: Any, *_: Any) -> None:
        """Transform the last axis, then the one before it, by a product from the left: the matrices are symmetric."""
        kind, pair, sizes = node.type.removesuffix("2D"), self._pairs.get(node.input[0]), graph.get_shape(node.input[0])
        if pair is None or sizes is None:
            return  # `check` refuses what stays
        write = Writer(graph, node, keep=True)
        matrices: list[Pair] = []
        for axis in (-1, -2):
            if sizes[axis] < 0:
                matrices.append(_open_matrix(write, kind, pair[0], axis))
            else:
                matrix = _matrix(kind, sizes[axis], sizes[axis])
                matrices.append((write.constant(np.float32(matrix.real)), write.constant(np.float32(matrix.imag))))
        self._pairs[node.output[0]] = _product(write, matrices[1], _product(write, pair, matrices[0]))

    def _complex(self, _graph: Any, node: Any, *_: Any) -> None:
        self._pairs[node.output[0]] = (node.input[0], node.input[1])

    def _part(self, graph: Any, node: Any, which: int) -> None:
        pair = self._pairs.get(node.input[0])
        if pair is not None:
            Writer(graph, node).result("Identity", [pair[which]])

    def _absolute(self, graph: Any, node: Any, *_: Any) -> None:
        pair = self._pairs.get(node.input[0])
        if pair is not None:
            write = Writer(graph, node)
            write.result("Sqrt", [write.node("Add", [write.node("Mul", [part, part]) for part in pair])])

    def _conjugate(self, graph: Any, node: Any, *_: Any) -> None:
        pair = self._pairs.get(node.input[0])
        if pair is not None:
            write = Writer(graph, node, keep=True)
            self._pairs[node.output[0]] = (pair[0], write.node("Neg", [pair[1]]))


def _product(write: Writer, left: Pair, right: Pair) -> Pair:
    """Return a product of complex matrices: (a + ib)(c + id) = ac - bd + i(ad + bc)."""
    ac, ad, bc, bd = (write.node("MatMul", [one, two]) for one in left for two in right)
    return write.node("Sub", [ac, bd]), write.node("Add", [ad, bc])


def _open_matrix(write: Writer, kind: str, x: str, axis: int) -> Pair:
    """Return the nodes that compute the matrix of FFT or IFFT for an axis whose size is open."""
    from onnx import TensorProto

    def whole(value: Any) -> str:
        return write.constant(np.array(value, np.int64))

    size = write.node("Gather", [write.node("Shape", [x]), whole(axis)])
    places = write.node("Range", [whole(0), size, whole(1)])
    products = write.node("Mul", [write.node("Unsqueeze", [places, whole([1])]), places])
    # Less whole turns, which as whole numbers lose nothing.
    turns = write.node("Mul", [write.node("Div", [products, size]), size])
    floats = [write.node("Cast", [one], to=TensorProto.FLOAT) for one in (write.node("Sub", [products, turns]), size)]
    sign = 1 if kind == "IFFT" else -1
    angles = write.node("Mul", [write.node("Div", floats), write.constant(np.float32(sign * 2 * np.pi))])
    real, imaginary = write.node("Cos", [angles]), write.node("Sin", [angles])
    if kind == "IFFT":
        return write.node("Div", [real, floats[1]]), write.node("Div", [imaginary, floats[1]])
    return real, imaginary


def _matrix(kind: str, size: int, length: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    """Return the matrix that a row of `size` numbers is multiplied with; rows and columns of what is cut are zero.

    Args:
        kind: TensorFlow's operator.
        size: of the last axis of the input.
        length: of the transform, which pads or cuts the input.
    """
    columns = length // 2 + 1 if kind == "RFFT" else length
    sign = 1 if kind in ("IFFT", "IRFFT") else -1
    angles = sign * 2 * np.pi * np.outer(np.arange(size), np.arange(columns)) / length
    matrix: np.ndarray[Any, np.dtype[np.complex128]] = np.exp(1j * angles)
    if kind == "IRFFT":
        # The half that is not given is the conjugate of the other: each counts twice but for the first and, of an even
        # length, the middle one, whose imaginary parts do not count.
        half = length // 2 + 1
        weights = np.full(size, 2.0)
        weights[0], weights[half:] = 1, 0
        single = [0] if length % 2 else [0, *([length // 2] if length // 2 < size else [])]
        weights[single] = 1
        matrix *= weights[:, None] / length
        matrix[single] = matrix[single].real
        return matrix
    matrix[length:] = 0
    if kind == "IFFT":
        matrix /= length
    return matrix
