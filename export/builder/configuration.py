"""The library's settings for one build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upfusion.export.builder.binding import trt
from upfusion.export.builder.library import Library
from upfusion.export.builder.messages import Request
from upfusion.export.builder.monitor import Monitor
from upfusion.export.builder.network import shape_of
from upfusion.runtime.errors import BuildError, InputError
from upfusion.runtime.files import replacing


def configuration_for(
    builder: trt.Builder, network: trt.INetworkDefinition, request: Request, library: Library, monitor: Monitor
) -> tuple[trt.IBuilderConfig, dict[str, Any]]:
    """Return the configuration, and what was set in it for the record.

    TF32 is cleared for every precision: it rounds FP32 products to FP16's ten mantissa bits, and what an FP16 graph
    keeps in FP32 is there because it needs more.

    Raises:
        InputError: an option that this library does not have, or that would change nothing.
        BuildError: the library refuses the profile.
    """
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    config.clear_flag(trt.BuilderFlag.TF32)
    # So that the engine can say what its layers read and write, in which type.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.max_aux_streams = request.aux_streams
    settings: dict[str, Any] = {
        "strongly_typed": True,
        "tf32": False,
        "profiling_verbosity": "detailed",
        "aux_streams": request.aux_streams,
    }
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # The runtime owns all memory and captures calls in CUDA graphs, which an engine that allocates prevents.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
        settings["require_user_allocation"] = True
    if request.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        settings["workspace_bytes"] = request.workspace_bytes
    _refuse_options_without_effect(request, library)
    if request.optimization_level is not None:
        config.builder_optimization_level = request.optimization_level
        settings["optimization_level"] = request.optimization_level
    if request.timing_cache is not None:
        _set_timing_cache(config, Path(request.timing_cache))
        settings["timing_cache"] = Path(request.timing_cache).name
    if library.capabilities.ahead_of_time:
        _set_targets(config, request, library)
    profile = _profile_for(builder, network, request)
    if profile is not None:
        if config.add_optimization_profile(profile) < 0:
            raise BuildError("the library refuses the size range of the manifest", "export again with other sizes")
        settings["profile"] = {
            tensor.name: [list(tensor.minimum), list(tensor.optimum), list(tensor.maximum)] for tensor in request.inputs
        }
    return config, settings


def save_timing_cache(config: trt.IBuilderConfig, path: str) -> None:
    """Write what the build has measured, for the next build on the same GPU with the same library."""
    with replacing(path) as temporary, open(temporary, "wb") as stream:
        stream.write(memoryview(config.get_timing_cache().serialize()))


def _refuse_options_without_effect(request: Request, library: Library) -> None:
    """Raise InputError for an option that the library takes without doing anything."""
    if not library.capabilities.ahead_of_time:
        return
    for option, value in (
        ("--timing-cache", request.timing_cache),
        ("--optimization-level", request.optimization_level),
    ):
        if value is not None:
            raise InputError(
                f"{option} has no effect with {library.name}: it tunes on the GPU that runs the engine, at first load",
                f"leave {option} away, or use --builder tensorrt on that GPU",
            )


def _set_timing_cache(config: trt.IBuilderConfig, path: Path) -> None:
    """Start from the measurements in ``path``, or from none where there is no such file yet.

    Raises:
        InputError: the file was recorded by another library or on another GPU.
    """
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if cache is None or not config.set_timing_cache(cache, False):
        raise InputError(
            f"{path} is not a timing cache of this library on this GPU",
            "name a new file: a cache is good for one library version and one kind of GPU",
        )


def _set_targets(config: trt.IBuilderConfig, request: Request, library: Library) -> None:
    """Name the GPUs to build for; without any, the library builds for all since Ampere.

    Raises:
        InputError: the library does not build for one of them.
    """
    unknown = [target for target in request.targets if target not in library.capabilities.targets]
    if unknown:
        raise InputError(
            f"{library.name} {library.version} does not build for {', '.join(unknown)}; it builds for "
            f"{', '.join(library.capabilities.targets)}",
            f"leave {', '.join(unknown)} out of --target, or build on such a GPU with --builder tensorrt",
        )
    if hasattr(trt, "ComputeCapability") and request.targets:
        # Not in TensorRT's typings: the configuration has these members exactly where the enumeration exists.
        targeted: Any = config
        targeted.num_compute_capabilities = len(request.targets)
        for index, target in enumerate(request.targets):
            if not targeted.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), index):
                raise BuildError(f"{library.name} refuses the target {target}", "leave it out of --target")


def _profile_for(
    builder: trt.Builder, network: trt.INetworkDefinition, request: Request
) -> trt.IOptimizationProfile | None:
    """Return the manifest's size range as a profile; None for a graph of one size."""
    if not any(-1 in shape_of(network.get_input(i)) for i in range(network.num_inputs)):
        return None
    profile = builder.create_optimization_profile()
    for tensor in request.inputs:
        profile.set_shape(tensor.name, trt.Dims(tensor.minimum), trt.Dims(tensor.optimum), trt.Dims(tensor.maximum))
    return profile
