"""Typed ONNX → plan. TensorRT-RTX does this on a machine without a GPU too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import BuildError
from ...precision import tensor_types
from ..base import BuildSpec, Finding
from . import types
from .flavor import Flavor


class PlanBuilder:
    """Parses and builds with one TensorRT.

    Args:
        flavor: which one.

    Raises:
        BuildError: if it cannot be used on this machine, as without a driver.
    """

    def __init__(self, flavor: Flavor) -> None:
        self._flavor = flavor
        trt = flavor.trt
        with flavor.log() as log:
            try:
                self._builder = trt.Builder(flavor.logger)
            except TypeError as error:  # pybind's way to say that the factory returned null
                raise BuildError(f"{flavor.title} could not be started: {error}", log="\n".join(log)) from error

    def supports(self, onnx: bytes) -> list[Finding]:
        """Return the nodes of a typed graph that the parser refuses; none where it takes the graph."""
        _network, parser = self._parse(onnx)
        return _findings(parser)

    def build(self, onnx: bytes, spec: BuildSpec, *, for_this_gpu: bool) -> bytes:
        """Build a plan.

        Args:
            onnx: the typed graph.
            spec: what to build for.
            for_this_gpu: whether TensorRT-RTX may build for the GPU at hand alone. Without it, the plan runs on
                every GPU from compute capability 8.0 on that RTX supports, and no GPU is needed to build it.

        Raises:
            BuildError: with TensorRT's log: for nodes that the parser refuses, types that it changed, and for a
                build that fails, as for want of GPU memory.
        """
        flavor, trt = self._flavor, self._flavor.trt
        builder = self._builder
        with flavor.log() as log:
            network, parser = self._parse(onnx)
            if findings := _findings(parser):
                refused = "; ".join(f"{f.operator} (node '{f.node}'): {f.reason}" for f in findings[:5])
                raise BuildError(f"{flavor.title} refused the graph: {refused}", log="\n".join(log))
            asked = tensor_types(onnx)
            config = builder.create_builder_config()
            if config is None:
                raise BuildError(f"{flavor.title} made no builder configuration.", log="\n".join(log))
            self._configure(config, network, spec, asked)
            if for_this_gpu and hasattr(config, "num_compute_capabilities"):
                config.num_compute_capabilities = 1
                if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
                    raise BuildError(f"{flavor.title} refused to build for this GPU.", log="\n".join(log))
            config_profile = self._profile(network, spec)
            if config.add_optimization_profile(config_profile) < 0:
                raise BuildError(f"{flavor.title} refused the profile {spec.profile}.", log="\n".join(log))
            if flavor.strongly_typed:
                types.prove_network_types(network, asked)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise BuildError(f"{flavor.title} could not build the engine.", log="\n".join(log))
            if not flavor.strongly_typed:
                self._prove(plan, asked)
            return bytes(plan)

    def _parse(self, onnx: bytes) -> tuple[Any, Any]:
        trt = self._flavor.trt
        flags = 0
        # The bits of these flags differ between versions: 1 << 1 is three different things.
        for flag in (
            getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None),
            getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None),
        ):
            if flag is not None:
                flags |= 1 << int(flag)
        builder = self._builder
        network = builder.create_network(flags)
        if network is None:
            raise BuildError(f"{self._flavor.title} made no network.")
        parser = trt.OnnxParser(network, self._flavor.logger)
        if not parser.parse(onnx) and parser.num_errors == 0:
            raise BuildError(f"{self._flavor.title} could not read the graph and does not say why.")
        return network, parser

    def _configure(self, config: Any, network: Any, spec: BuildSpec, asked: dict[str, str]) -> None:
        trt = self._flavor.trt
        # The inspector then tells each layer's types and the ONNX nodes that it came from.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if spec.optimization_level is not None:
            config.builder_optimization_level = spec.optimization_level
        if spec.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT's default is on
        else:
            config.set_flag(trt.BuilderFlag.TF32)
        if self._flavor.strongly_typed:
            return
        if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
            # Without it only one context may use the engine's profile: a second one answers garbage.
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if spec.precision == "fp16" and hasattr(trt.BuilderFlag, "FP16"):
            config.set_flag(trt.BuilderFlag.FP16)
            if hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
                config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
            types.order_types(trt, network, asked)

    def _profile(self, network: Any, spec: BuildSpec) -> Any:
        builder = self._builder
        profile = builder.create_optimization_profile()
        names = [network.get_input(index).name for index in range(network.num_inputs)]
        _check_names(names, list(spec.profile.shapes))
        for name, shapes in spec.profile.shapes.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if not profile:  # set_shape itself accepts nearly everything
            raise BuildError(f"{self._flavor.title} refused the shapes {spec.profile}.")
        return profile

    def _prove(self, plan: Any, asked: dict[str, str]) -> None:
        trt = self._flavor.trt
        runtime = trt.Runtime(self._flavor.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(f"{self._flavor.title} could not load the engine that it has just built.")
        types.prove_engine_types(trt, engine, asked)


def _findings(parser: Any) -> list[Finding]:
    findings = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        # 8.6 does not name the node.
        node = parser_error.node_name() if hasattr(parser_error, "node_name") else f"#{parser_error.node()}"
        operator = parser_error.node_operator() if hasattr(parser_error, "node_operator") else "?"
        findings.append(Finding(node, operator, f"{parser_error.desc()} ({parser_error.code().name})"))
    return findings


def _check_names(network: Sequence[str], profile: Sequence[str]) -> None:
    if set(network) != set(profile):
        raise BuildError(
            f"The profile does not name the inputs of the graph. Received: {sorted(profile)}, "
            f"expected: {sorted(network)}."
        )
