"""Typed ONNX → plan. TensorRT-RTX does this on a machine without a GPU too."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

from ...errors import BuildError, KerasTRTError, UnsupportedOperatorError
from ...options import Precision
from ...precision import tensor_types
from ..base import BuildSpec, Finding, Report, Timings
from . import monitor, timing, types
from .flavor import Flavor

_logger = logging.getLogger("keras_trt.tensorrt")


class PlanBuilder:
    """Parses and builds with one TensorRT.

    Args:
        flavor: which one.

    Raises:
        BuildError: if it cannot be used on this machine, as without a driver.
    """

    default_precision: Precision = "fp16"

    def __init__(self, flavor: Flavor) -> None:
        self._flavor = flavor
        self.title: str = flavor.title
        self.precisions: tuple[Precision, ...] = flavor.precisions
        self.beside_8_bits: Literal["fp16", "fp32"] = flavor.beside_8_bits
        trt = flavor.trt
        with flavor.log() as log:
            try:
                self._builder = trt.Builder(flavor.logger)
            except TypeError as error:  # pybind's way to say that the factory returned null
                raise BuildError(f"{flavor.title} could not be started: {error}", log="\n".join(log)) from error

    def supports(self, graph: bytes) -> list[Finding]:
        """Return the nodes of a typed graph that the parser refuses; none where it takes the graph."""
        with self._flavor.log():
            _network, parser = self._parse(graph)
            return _findings(parser, graph)

    def build(
        self,
        graph: bytes,
        spec: BuildSpec,
        timings: Timings | None = None,
        *,
        for_this_gpu: bool,
        report: Report | None = None,
    ) -> bytes:
        """Build a plan.

        Args:
            graph: the typed ONNX graph.
            spec: what to build for.
            timings: where what TensorRT measures is kept, or `None`.
            for_this_gpu: whether TensorRT-RTX may build for the GPU at hand alone. Without it, the plan runs on
                every GPU from compute capability 8.0 on that RTX supports, and no GPU is needed to build it.
            report: called with the share that is done, where TensorRT says it.

        Raises:
            UnsupportedOperatorError: names the nodes that the parser refuses.
            PrecisionError: if the engine would not have the types of the graph.
            BuildError: with TensorRT's log, for a build that fails, as for want of GPU memory.
            KeyboardInterrupt: after Ctrl-C, once TensorRT has stopped.
        """
        with self._flavor.log() as log:
            try:
                if self._flavor.strongly_typed or spec.precision != "fp16":
                    return self._build(graph, spec, timings, for_this_gpu=for_this_gpu, obey=True, report=report)
                try:
                    return self._build(graph, spec, timings, for_this_gpu=for_this_gpu, obey=True, report=report)
                except BuildError as error:
                    if isinstance(error, UnsupportedOperatorError):
                        raise
                    # A layer without a form in half precision fails the whole build where the builder must obey.
                    _logger.info("Built again with types preferred, not obeyed: %s", error)
                    return self._build(graph, spec, timings, for_this_gpu=for_this_gpu, obey=False, report=report)
            except KerasTRTError as error:
                if not isinstance(error, BuildError) or error.log:
                    raise
                about: dict[str, Any] = {"log": "\n".join(log)}
                if isinstance(error, UnsupportedOperatorError):
                    about["nodes"] = error.nodes
                raise type(error)(str(error), **about) from error
            except (TypeError, RuntimeError, ValueError, MemoryError) as error:  # what pybind makes of C++'s errors
                raise BuildError(f"{self._flavor.title} failed: {error!r}", log="\n".join(log)) from error

    def _build(
        self,
        graph: bytes,
        spec: BuildSpec,
        timings: Timings | None,
        *,
        for_this_gpu: bool,
        obey: bool,
        report: Report | None,
    ) -> bytes:
        flavor, trt, builder = self._flavor, self._flavor.trt, self._builder
        network, parser = self._parse(graph)
        if findings := _findings(parser, graph):
            refused = "; ".join(map(str, findings[:5]))
            nodes = [finding.node for finding in findings]
            raise UnsupportedOperatorError(f"{flavor.title} refused the graph: {refused}", nodes=nodes)
        asked = tensor_types(graph)
        config = builder.create_builder_config()
        if config is None:
            raise BuildError(f"{flavor.title} made no builder configuration.")
        # The inspector then tells each layer's types and the ONNX nodes that it came from.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if spec.optimization_level is not None:
            config.builder_optimization_level = spec.optimization_level
        if spec.precision == "fp32":
            config.clear_flag(trt.BuilderFlag.TF32)  # TensorRT's default is on
        else:
            config.set_flag(trt.BuilderFlag.TF32)
        if spec.refittable:
            config.set_flag(trt.BuilderFlag.REFIT)
        if for_this_gpu and hasattr(config, "num_compute_capabilities"):
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(trt.ComputeCapability.CURRENT, 0):
                raise BuildError(f"{flavor.title} refused to build for this GPU.")
        profile = self._profile(network, spec)
        if config.add_optimization_profile(profile) < 0:
            raise BuildError(f"{flavor.title} refused the profile {spec.profile}.")
        told = 0
        if flavor.strongly_typed:
            types.prove_network_types(network, asked)
        else:
            told = self._choose_types(config, network, spec, types.ordered(asked, graph), obey=obey)
        if timings is not None and flavor.measures:
            timing.attach(flavor, config, timings.read())
        with monitor.watched(flavor, config, report or (lambda _: None)):
            plan = builder.build_serialized_network(network, config)
        if plan is None:
            raise BuildError(f"{flavor.title} could not build the engine.")
        if timings is not None and flavor.measures:
            timings.update(lambda stored: timing.merged(flavor, config, stored))
        if told:
            # Nothing orders 8 bits: what is not shown to be in them is not known to be.
            obeyed = obey and spec.precision == "fp16"
            types.prove_engine_types(self._inspect(plan), spec.precision, obeyed=obeyed)
        return bytes(plan)

    def _parse(self, graph: bytes) -> tuple[Any, Any]:
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
        if not parser.parse(graph) and parser.num_errors == 0:
            raise BuildError(f"{self._flavor.title} could not read the graph and does not say why.")
        return network, parser

    def _choose_types(self, config: Any, network: Any, spec: BuildSpec, asked: dict[str, str], *, obey: bool) -> int:
        """Bring a weakly typed network to the types of the graph; return how many layers were told to be lower."""
        trt = self._flavor.trt
        if hasattr(trt, "PreviewFeature") and hasattr(trt.PreviewFeature, "PROFILE_SHARING_0806"):
            # Without it only one context may use the engine's profile: a second one answers garbage.
            config.set_preview_feature(trt.PreviewFeature.PROFILE_SHARING_0806, True)
        if spec.precision not in ("fp16", "int8") or not hasattr(trt.BuilderFlag, "FP16"):
            return 0
        config.set_flag(trt.BuilderFlag.FP16)
        if spec.precision == "int8" and hasattr(trt.BuilderFlag, "INT8"):
            # What is quantized says so by itself, and an order for any layer would hinder its fusion.
            config.set_flag(trt.BuilderFlag.INT8)
            return sum(kind == "int8" for kind in asked.values())
        if obey and hasattr(trt.BuilderFlag, "OBEY_PRECISION_CONSTRAINTS"):
            config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
        elif hasattr(trt.BuilderFlag, "PREFER_PRECISION_CONSTRAINTS"):
            config.set_flag(trt.BuilderFlag.PREFER_PRECISION_CONSTRAINTS)
        return types.order_types(trt, network, asked)

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

    def _inspect(self, plan: Any) -> str:
        """Return the inspector's JSON for a plan."""
        trt = self._flavor.trt
        runtime = trt.Runtime(self._flavor.logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise BuildError(f"{self._flavor.title} could not load the engine that it has just built.")
        inspector = engine.create_engine_inspector()
        if inspector is None:
            raise BuildError(f"{self._flavor.title} made no engine inspector, so the precision cannot be proved.")
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _findings(parser: Any, graph: bytes) -> list[Finding]:
    findings = []
    for index in range(parser.num_errors):
        parser_error = parser.get_error(index)
        place, reason = parser_error.node(), f"{parser_error.desc()} ({parser_error.code().name})"
        if hasattr(parser_error, "node_name") and hasattr(parser_error, "node_operator"):
            findings.append(Finding(parser_error.node_name(), parser_error.node_operator(), reason))
        else:  # 8.6 gives the node's place in the graph alone
            import onnx

            nodes = onnx.load_from_string(graph).graph.node
            node = nodes[place] if 0 <= place < len(nodes) else onnx.NodeProto()
            findings.append(Finding(node.name, node.op_type, reason))
    return findings


def _check_names(network: Sequence[str], profile: Sequence[str]) -> None:
    if set(network) != set(profile):
        raise BuildError(
            f"The profile does not name the inputs of the graph. Received: {sorted(profile)}, "
            f"expected: {sorted(network)}."
        )
