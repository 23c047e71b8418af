import keras_trt  # before Keras, on which it then puts its methods

__all__ = ["keras_trt"]
