"""The command `keras-trt`: `main`, and `cache` for what it does with the engine cache."""
