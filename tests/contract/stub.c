/* Stands in for the TensorRT libraries, so that the Python bindings of TensorRT can be imported on a machine without
 * them: the C symbols that the bindings look up at load time, each of them returning null. Enough to read names, enums
 * and signatures; nothing can be built or run. bindings.py compiles it once and copies it to every library name. */
#define RETURNS_NULL(name) \
    void* name(void) { return 0; }
#define RETURNS_ONE(name) \
    int name(void) { return 1; }

RETURNS_NULL(createInferBuilder_INTERNAL)
RETURNS_NULL(createInferRefitter_INTERNAL)
RETURNS_NULL(createInferRuntime_INTERNAL)
RETURNS_NULL(createNvOnnxParserRefitter_INTERNAL)
RETURNS_NULL(createNvOnnxParser_INTERNAL)
RETURNS_NULL(getBuilderPluginRegistry)
RETURNS_NULL(getPluginRegistry)
RETURNS_NULL(initLibNvInferPlugins)
RETURNS_ONE(getInferLibVersion)
RETURNS_ONE(getNvOnnxParserVersion)

/* TensorRT 8 alone: its safety registry, and the Caffe and UFF parsers, C and C++ (mangled) entry points. */
RETURNS_NULL(getBuilderSafePluginRegistry)
RETURNS_NULL(createNvCaffeParser_INTERNAL)
RETURNS_NULL(createNvUffParser_INTERNAL)
RETURNS_NULL(shutdownProtobufLibrary)
RETURNS_NULL(_ZN14nvcaffeparser117createCaffeParserEv)
RETURNS_NULL(_ZN14nvcaffeparser123shutdownProtobufLibraryEv)
RETURNS_NULL(_ZN11nvuffparser15createUffParserEv)
RETURNS_NULL(_ZN11nvuffparser23shutdownProtobufLibraryEv)
RETURNS_NULL(_ZN11nvuffparser8FieldMapC1EPKcPKvNS_9FieldTypeEi)
