"""Everything that Keras offers, one by one: exported, checked, run by ONNX Runtime, built by TensorRT-RTX."""
