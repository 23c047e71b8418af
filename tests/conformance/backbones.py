"""Backbones of KerasHub, made small: run where keras-hub is installed (`make test-hub`)."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from .case import Case

INSTALLED = find_spec("keras_hub") is not None

_ENCODER = {"vocabulary_size": 50, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 32}
_ENCODER |= {"max_sequence_length": 16, "dropout": 0.1}
_DECODER = {"vocabulary_size": 50, "num_layers": 2, "num_query_heads": 4, "num_key_value_heads": 2, "hidden_dim": 16}
_DECODER |= {"intermediate_dim": 32}
_HEADS = {**_DECODER, "head_dim": 8}
_IMAGE = {"image_shape": (32, 32, 3)}
_NO_POSITIONS = {key: value for key, value in _ENCODER.items() if key != "max_sequence_length"}
_VIT = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, **_IMAGE}
_SMOL = {"attention_bias": False, "attention_dropout": 0.0, "mlp_bias": False, "layer_norm_epsilon": 1e-5}
_SMOL |= {"rope_layer_enabled_list": [True, False], "layer_types": ["full_attention"] * 2, "partial_rotary_factor": 1.0}
_SMOL |= {"max_position_embeddings": 16, "rope_theta": 1e4, "num_attention_heads": 4, "num_key_value_heads": 2}
_SMOL |= {"vocabulary_size": 50, "num_layers": 2, "hidden_dim": 16, "intermediate_dim": 32}
_MIT = {"layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2], "layerwise_sr_ratios": [4, 2]}
_MIT |= {"max_drop_path_rate": 0.1, "layerwise_patch_sizes": [7, 3], "layerwise_strides": [4, 2]}
_MIT |= {"hidden_dims": [8, 16], **_IMAGE}
_RESNET = {"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 128]}
_RESNET |= {"stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2], "block_type": "basic_block", **_IMAGE}
_EFFICIENT = {"stackwise_kernel_sizes": [3, 5], "stackwise_num_repeats": [1, 1], "stackwise_input_filters": [8, 8]}
_EFFICIENT |= {"stackwise_output_filters": [8, 16], "stackwise_expansion_ratios": [1, 2], "stackwise_strides": [1, 2]}
_EFFICIENT |= {"stackwise_squeeze_and_excite_ratios": [0.25, 0.25], "stackwise_block_types": ["v1", "v1"]}
_EFFICIENT |= {"stackwise_width_coefficients": [1.0, 1.0], "stackwise_depth_coefficients": [1.0, 1.0]}
_EFFICIENT |= {"stackwise_force_input_filters": [0, 0], "stackwise_nores_option": [False, False]}
_EFFICIENT |= {"input_shape": (32, 32, 3), "num_features": 32}
_CSP = {"stem_filters": 16, "stem_kernel_size": 3, "stem_strides": 1, "stackwise_depth": [1, 2], **_IMAGE}
_CSP |= {
    "stackwise_strides": [1, 2],
    "stackwise_num_filters": [16, 32],
    "block_type": "dark_block",
    "stage_type": "dark",
}
_SWIN = {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4, "patch_size": 2, **_IMAGE}
_DEBERTA = {**_ENCODER, "bucket_size": 8}

#: Name of the class without `Backbone` → its arguments.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "Albert": {**_ENCODER, "embedding_dim": 8},
    "Bart": _ENCODER,
    "Bert": _ENCODER,
    "Bloom": _NO_POSITIONS,
    "CSPNet": _CSP,
    "DINOV2": {**_VIT, "intermediate_dim": 32, "position_embedding_shape": (32, 32, 3)},
    "DebertaV3": _DEBERTA,
    "DeiT": {**_VIT, "intermediate_dim": 32},
    "DenseNet": {"stackwise_num_repeats": [1, 1], "growth_rate": 8, **_IMAGE},
    "DistilBert": _ENCODER,
    "ESM2": {**_NO_POSITIONS},
    "EfficientNet": _EFFICIENT,
    "Electra": {"vocab_size" if key == "vocabulary_size" else key: value for key, value in _ENCODER.items()}
    | {"embedding_dim": 8},
    "FNet": {key: value for key, value in _ENCODER.items() if key != "num_heads"},
    "Falcon": {"vocabulary_size": 50, "num_layers": 2, "num_attention_heads": 2, "hidden_dim": 16}
    | {"intermediate_dim": 32},
    "GPT2": _ENCODER,
    "GPTNeoX": _ENCODER,
    "Gemma": _HEADS,
    "Llama": _DECODER,
    "Llama3": _DECODER,
    "MiT": _MIT,
    "Mistral": {**_DECODER, "sliding_window": 4},
    "Mixtral": {**_DECODER, "num_experts": 2, "sliding_window": 4},
    "OPT": _ENCODER,
    "Phi3": {**_DECODER, "max_sequence_length": 16, "pretraining_sequence_length": 16},
    "Qwen": _DECODER,
    "Qwen2": _DECODER,
    "Qwen3": _HEADS,
    "ResNet": _RESNET,
    "Roberta": _ENCODER,
    "RoformerV2": {**_NO_POSITIONS, "head_size": 8},
    "SmolLM3": _SMOL,
    "SwinTransformer": _SWIN,
    "T5": _NO_POSITIONS,
    "VGG": {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 16], **_IMAGE},
    "ViT": {**_VIT, "mlp_dim": 32},
    "ViTDet": {"hidden_size": 16, "num_layers": 2, "intermediate_dim": 32, "num_heads": 2, "patch_size": 8}
    | {"global_attention_layer_indices": [1], "num_output_channels": 8, "window_size": 2, **_IMAGE},
    "Whisper": {**_NO_POSITIONS, "num_mels": 8, "max_encoder_sequence_length": 32, "max_decoder_sequence_length": 16},
    "XLMRoberta": _ENCODER,
    "XLNet": _NO_POSITIONS,
    "Xception": {"stackwise_conv_filters": [[4, 8], [8, 8]], "stackwise_pooling": [True, False], **_IMAGE},
}


def _backbone(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import keras_hub

        return getattr(keras_hub.models, f"{name}Backbone")(**_ARGUMENTS[name])

    return build


def _segformer() -> Any:
    import keras_hub

    return keras_hub.models.SegFormerBackbone(image_encoder=_backbone("MiT")(), projection_filters=8)


BACKBONES = [
    *(Case(f"{name}Backbone", _backbone(name), low=0, high=2) for name in _ARGUMENTS),
    Case("SegFormerBackbone", _segformer, low=0, high=2),
]
