"""The drop-in (`trt_model`): what stands for the Keras model to its user, with Keras's semantics over an engine."""
