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

# Reasons that `doctor` has a sentence for are in its words, up to the first colon or semicolon.
_LOOKUP = "takes strings or looks values up, which no GPU does: `accelerate` runs it on the CPU, in front of the engine"
_NO_FUNCTION = "is no function of tensors"

NOT_EXPORTABLE = {
    "keras.layers": {
        "FlaxLayer": "runs on JAX, and the export goes through TensorFlow",
        "HashedCrossing": _LOOKUP,
        "Hashing": _LOOKUP,
        "InputSpec": "is no layer",
        "JaxLayer": "runs on JAX, and the export goes through TensorFlow",
        "Layer": "is a base class",
        "StringLookup": _LOOKUP,
        "TextVectorization": _LOOKUP,
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


def _operation(name: str) -> str:
    return f"the operation '{name}' has no form in ONNX"


_BINCOUNT = f"{_operation('DenseBincount')}: it counts up to the largest number there is, so that its size is open"
_TRACED = (
    "answers otherwise where it is traced, as for an export, than where it is called: it gives one row; `accelerate` "
    "sees that, and Keras runs the model"
)

#: Section → name of the case → what fails first, and the reason.
NOT_YET: dict[str, dict[str, tuple[type[AssertionError], str]]] = {
    "keras.layers": {
        "IntegerLookup": (NoExportError, _LOOKUP),
        "IntegerLookup: one_hot": (NoExportError, _LOOKUP),
    },
    "keras.activations": {},
    "keras.ops": {
        "bincount": (NoExportError, _BINCOUNT),
        "inv": (NoExportError, _operation("MatrixInverse")),
        "linspace": (NoExportError, _operation("BroadcastArgs")),
        "nonzero": (NoBuildError, "TensorRT-RTX refused the graph: NonZero"),
        "image.affine_transform": (NoExportError, _operation("ImageProjectiveTransformV3")),
        "image.elastic_transform": (WrongAnswerError, _TRACED),
        "image.hsv_to_rgb": (NoExportError, _operation("HSVToRGB")),
        "image.perspective_transform": (NoExportError, _operation("ImageProjectiveTransformV3")),
        "image.rgb_to_hsv": (NoExportError, _operation("RGBToHSV")),
    },
    "keras.applications": {},
    "trained models of other packages": {},
    "keras_hub.models": {},
}
