"""What is known not to work. Each entry of `NOT_YET` is to be struck off; those of `NOT_EXPORTABLE` stay."""

from __future__ import annotations

from .architectures import ARCHITECTURES, architecture_names
from .backbones import BACKBONES, INSTALLED
from .case import Case, NoBuildError, NoExportError, WrongAnswerError
from .layers import LAYERS, layer_names
from .ops import ACTIVATIONS, OPS, activation_names, op_names
from .trained import TRAINED

#: Section of the table → what Keras offers, and the cases that cover it.
SECTIONS: dict[str, tuple[set[str], list[Case]]] = {
    "keras.layers": (layer_names(), LAYERS),
    "keras.activations": (activation_names(), ACTIVATIONS),
    "keras.ops": (op_names(), OPS),
    "keras.applications": (architecture_names(), ARCHITECTURES),
    "trained models of other packages": ({case.of for case in TRAINED}, TRAINED),
}
if INSTALLED:
    SECTIONS["keras_hub.models"] = ({case.of for case in BACKBONES}, BACKBONES)

_STRINGS = "works on strings, and an engine holds numbers"
_NO_FUNCTION = "is no function of tensors"

NOT_EXPORTABLE = {
    "keras.layers": {
        "FlaxLayer": "runs on JAX, and the export goes through TensorFlow",
        "HashedCrossing": "hashes the decimal digits of its inputs as strings",
        "Hashing": "hashes the decimal digits of its inputs as strings",
        "InputSpec": "is no layer",
        "JaxLayer": "runs on JAX, and the export goes through TensorFlow",
        "Layer": "is a base class",
        "StringLookup": _STRINGS,
        "TextVectorization": _STRINGS,
        "TorchModuleWrapper": "runs on PyTorch, and the export goes through TensorFlow",
        "Wrapper": "is a base class",
    },
    "keras.activations": {"deserialize": _NO_FUNCTION, "get": _NO_FUNCTION, "serialize": _NO_FUNCTION},
    "keras.ops": {
        "convert_to_numpy": "leaves the graph",
        "is_tensor": "is computed when the model is traced",
        "ndim": "is computed when the model is traced",
    },
    "keras.applications": {},
    "trained models of other packages": {},
    "keras_hub.models": {},
}

_BINCOUNT = "counts up to the largest number there is, so that the size of the answer is open"
_PROJECTION = "TensorFlow's `ImageProjectiveTransformV3` has no form in ONNX"
_LOOKUP = "is a hash table of TensorFlow; `accelerate` runs it on the CPU, in front of the engine"
_ONE_ROW = "gives one row where their number is open, in Keras too; `accelerate` sees that, and Keras runs the model"
_SHIFT = "becomes `BitShift` of unsigned integers, which TensorRT does not import"

#: Section → name of the case → what fails first, and the reason.
NOT_YET: dict[str, dict[str, tuple[type[AssertionError], str]]] = {
    "keras.layers": {
        "IntegerLookup": (NoExportError, _LOOKUP),
        "IntegerLookup: one_hot": (NoExportError, _LOOKUP),
    },
    "keras.activations": {},
    "keras.ops": {
        "bincount": (NoExportError, _BINCOUNT),
        "bitwise_left_shift": (NoBuildError, _SHIFT),
        "bitwise_right_shift": (NoBuildError, _SHIFT),
        "inv": (NoExportError, "TensorFlow's `MatrixInverse` has no form in ONNX"),
        "linspace": (NoExportError, "TensorFlow's `BroadcastArgs` has no form in ONNX"),
        "nonzero": (NoBuildError, "TensorRT-RTX refuses `NonZero`"),
        "image.affine_transform": (NoExportError, _PROJECTION),
        "image.elastic_transform": (WrongAnswerError, _ONE_ROW),
        "image.hsv_to_rgb": (NoExportError, "TensorFlow's `HSVToRGB` has no form in ONNX"),
        "image.perspective_transform": (NoExportError, _PROJECTION),
        "image.rgb_to_hsv": (NoExportError, "TensorFlow's `RGBToHSV` has no form in ONNX"),
    },
    "keras.applications": {},
    "trained models of other packages": {},
    "keras_hub.models": {},
}
