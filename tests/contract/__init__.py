"""Contract tests: every TensorRT and CUDA name that keras_trt uses exists in the bindings it may meet."""
