"""LSTM, GRU and simple RNN layers as one ONNX operator instead of a loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..layer_calls import without_cudnn

# Activations of Keras that ONNX's recurrent operators have, under the same definition and without parameters.
_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid", "relu": "Relu", "softsign": "Softsign", "softplus": "Softplus"}


def inner_loop(layer: Any) -> Callable[..., Any] | None:
    """Return what may stand for `layer.inner_loop`, or `None` where no ONNX operator does exactly the same.

    Args:
        layer: any Keras layer.
    """
    import keras

    kinds = {
        keras.layers.LSTMCell: ("LSTM", keras.layers.LSTM),
        keras.layers.GRUCell: ("GRU", keras.layers.GRU),
        keras.layers.SimpleRNNCell: ("RNN", keras.layers.SimpleRNN),
    }
    operator, own = kinds.get(type(getattr(layer, "cell", None)), ("", None))
    if not operator or type(layer) not in (own, keras.layers.RNN):
        return None
    cell = layer.cell
    used = [cell.activation] if operator == "RNN" else [cell.recurrent_activation, cell.activation]
    names = [_ACTIVATIONS.get(getattr(one, "__name__", "")) for one in used]
    own_functions = [getattr(keras.activations, getattr(one, "__name__", ""), None) for one in used]
    if None in names or used != own_functions:
        return None
    if operator == "LSTM":
        names.append(names[1])  # ONNX tells the activation of the state from that of the output

    # Where Keras unrolls the steps, it zeroes its answers to them with the mask as it came, though it goes backwards.
    oddly_masked = layer.unroll and layer.go_backwards and layer.zero_output_for_mask and layer.return_sequences

    plain = without_cudnn(layer) or partial(type(layer).inner_loop, layer)

    def loop(sequences: Any, initial_state: Any, mask: Any = None, training: bool = False) -> Any:
        import tensorflow as tf

        valid = None if mask is None else tf.cast(_flat(mask)[0], tf.bool)
        other_mask = valid is not None and (oddly_masked or valid.shape.rank != 2)
        if other_mask or not tf.convert_to_tensor(sequences).dtype.is_floating:
            return plain(sequences, initial_state, mask, training)
        return _run(layer, operator, names, sequences, initial_state, valid)

    return loop


def _run(layer: Any, operator: str, activations: Sequence[Any], sequences: Any, initial_state: Any, given: Any) -> Any:
    """Return last output, outputs and states, as `keras.layers.RNN.inner_loop` does."""
    import tensorflow as tf

    from .layers import onnx_operator

    x = tf.convert_to_tensor(sequences)
    states = [tf.convert_to_tensor(one) for one in _flat(initial_state)]
    batch, steps = x.shape[0], x.shape[1]
    units = layer.cell.units
    if given is not None:
        if layer.go_backwards:
            x, given = tf.reverse(x, [1]), tf.reverse(given, [1])
        packed = _Packed(given)
        x = packed.pack(x)
    reverse = layer.go_backwards and given is None
    kernel, recurrent, bias = _weights(layer.cell, operator)
    attributes: dict[str, Any] = {"hidden_size": units, "activations": list(activations)}
    if reverse:
        attributes["direction"] = "reverse"
    if operator == "GRU":
        attributes["linear_before_reset"] = int(layer.cell.reset_after)
    # Without lengths an operator runs on over the padding, whose answers nobody reads. Only the carry state of an LSTM
    # cannot be had otherwise: TensorRT's form of lengths is slower, and 10 and later refuse it in half precision.
    lengths = packed.lengths if given is not None and operator == "LSTM" and layer.return_state else None
    kind = x.dtype
    outputs = [(kind, (steps, 1, batch, units))] + [(kind, (1, batch, units))] * len(states)
    operands = [tf.transpose(x, (1, 0, 2)), kernel, recurrent, bias, lengths]
    if not all(_is_zero(state) for state in states):  # zeros are ONNX's default
        operands += [tf.expand_dims(state, 0) for state in states]
    results = onnx_operator(operator, operands, attributes, outputs)
    every = tf.transpose(tf.squeeze(results[0], 1), (1, 0, 2))
    last_states = [tf.squeeze(one, 0) for one in results[1:]]
    if given is None:
        if reverse:
            every = tf.reverse(every, [1])  # Keras gives them in the order in which they were computed
        return last_states[0], every if layer.return_sequences else tf.expand_dims(last_states[0], 1), last_states
    last_states[0] = packed.last(every)
    last_states = [packed.where_valid(last, first) for last, first in zip(last_states, states, strict=True)]
    if layer.return_sequences:
        every = packed.unpack(every, zeros=layer.zero_output_for_mask)
        return every[:, -1], every, last_states
    last = packed.unpack_last(every, zeros=layer.zero_output_for_mask)
    return last, tf.expand_dims(last, 1), last_states


class _Packed:
    """Masked sequences with their valid steps moved to the front: ONNX knows lengths, Keras any mask.

    At a masked step Keras keeps the state and gives the output of the step before, zeros before the first.

    Args:
        mask: `(batch, steps)`, true at valid steps.
    """

    def __init__(self, mask: Any) -> None:
        import tensorflow as tf

        self._mask = mask
        valid = tf.cast(mask, tf.int32)
        self._seen = tf.cumsum(valid, axis=1)
        self.lengths = tf.reduce_sum(valid, axis=1)

    def pack(self, x: Any) -> Any:
        """Return `x` with the valid steps first, in their order."""
        import tensorflow as tf

        steps = tf.range(tf.shape(x)[1])
        # place[b, j, t]: step t is the j-th valid one. Sums of one number and zeros are exact.
        place = tf.equal(tf.expand_dims(self._seen - 1, 1), steps[None, :, None]) & tf.expand_dims(self._mask, 1)
        sources = tf.reduce_sum(tf.where(place, steps[None, None, :], 0), axis=2)
        return _take_steps(x, sources)

    def last(self, y: Any) -> Any:
        """Return what was computed for the last valid step."""
        import tensorflow as tf

        return _take_steps(y, tf.maximum(self.lengths - 1, 0)[:, None])[:, 0]

    def where_valid(self, last: Any, first: Any) -> Any:
        """Return `last`, and `first` for sequences without a valid step."""
        import tensorflow as tf

        return tf.where(tf.expand_dims(self.lengths > 0, 1), last, first)

    def unpack(self, y: Any, *, zeros: bool) -> Any:
        """Return what was computed for packed steps at the steps of the mask."""
        import tensorflow as tf

        spread = _take_steps(y, tf.maximum(self._seen - 1, 0))
        keep = self._mask if zeros else self._seen > 0
        return tf.where(tf.expand_dims(keep, 2), spread, tf.zeros((), spread.dtype))

    def unpack_last(self, y: Any, *, zeros: bool) -> Any:
        """Return the last step of `unpack`, without the others."""
        import tensorflow as tf

        keep = self._mask[:, -1:] if zeros else self.lengths[:, None] > 0
        return tf.where(keep, self.last(y), tf.zeros((), y.dtype))


def _take_steps(x: Any, steps: Any) -> Any:
    """Return `x[b, steps[b, j], :]` for each b and j, by the operator that TensorRT has for it."""
    import tensorflow as tf

    from .layers import onnx_operator

    indices = tf.cast(tf.expand_dims(steps, 2), tf.int64)
    taken_shape = (x.shape[0], steps.shape[1], x.shape[2])
    (taken,) = onnx_operator("GatherND", [x, indices], {"batch_dims": 1}, [(x.dtype, taken_shape)])
    return taken


def _weights(cell: Any, operator: str) -> tuple[Any, Any, Any]:
    """Return kernel, recurrent kernel and bias in ONNX's layout: `(1, gates * units, …)`, gates in ONNX's order."""
    import tensorflow as tf

    gates = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "RNN": (0,)}[operator]  # of Keras: i f c o; ONNX wants i o f c

    def ordered(tensor: Any) -> Any:
        parts = tf.split(tf.convert_to_tensor(tensor), len(gates), axis=-1)
        return tf.concat([parts[gate] for gate in gates], axis=-1)

    kernel, recurrent = (tf.transpose(ordered(one))[None] for one in (cell.kernel, cell.recurrent_kernel))
    if cell.bias is None:
        return kernel, recurrent, None
    bias = ordered(cell.bias)
    # With `reset_after` the bias of a GRU has two rows, of the inputs and of the state.
    bias = tf.reshape(bias, (1, -1)) if bias.shape.rank == 2 else tf.concat([bias, tf.zeros_like(bias)], axis=0)[None]
    return kernel, recurrent, bias


def _is_zero(tensor: Any) -> bool:
    """Tell whether a tensor of the graph is filled with zeros, as the state is that Keras starts from."""
    import tensorflow as tf

    operation = tensor.op
    return operation.type == "Fill" and bool(tf.get_static_value(operation.inputs[1]) == 0)


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]
