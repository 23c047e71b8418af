"""`compile_trt` on every model (`hook`): its own methods (`attach`) on an engine that follows its weights (`watch`)."""
