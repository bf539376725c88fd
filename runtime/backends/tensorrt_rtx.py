"""TensorRT-RTX: portable engines whose kernels are compiled on the machine that runs them, and kept on disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upfusion.runtime.backends.engine import EngineBackend
from upfusion.runtime.backends.engine_library import Context, Engine, EngineOptions, Library
from upfusion.runtime.backends.misfit import misfit, rebuild_command, unusable
from upfusion.runtime.backends.trt_logger import logger_of, taken_errors
from upfusion.runtime.cuda import Cuda, CudaCore, Stream
from upfusion.runtime.errors import DeviceError, MissingDependencyError, UPFusionError
from upfusion.runtime.files import replacing
from upfusion.runtime.manifest import Manifest

if TYPE_CHECKING:
    import tensorrt_rtx as trt

log = logging.getLogger(__name__)


class TensorRTRTXBackend(EngineBackend):
    """A TensorRT-RTX engine on one GPU."""

    def __init__(
        self, path: str | Path, manifest: Manifest, options: EngineOptions | None = None, *, device_id: int = 0
    ) -> None:
        """Load the engine; its digest was checked before.

        Raises:
            MissingDependencyError: TensorRT-RTX or cuda-core is not installed.
            DeviceError: no GPU, one that the engine was not built for, another version, or too little memory.
            ManifestError: the plan has other inputs and outputs than its manifest.
        """
        path = Path(path)
        options = options or EngineOptions()
        try:
            library = TensorRTRTXLibrary(options.cache or path.with_name(path.name + ".cache"))
            cuda = CudaCore(device_id)
        except (MissingDependencyError, DeviceError) as error:
            raise unusable(path, manifest, error) from error
        super().__init__(path, manifest, library, cuda, options)


class TensorRTRTXLibrary(Library):
    """The ``tensorrt_rtx`` package, with a file for compiled kernels."""

    def __init__(self, cache_path: Path) -> None:
        try:
            import tensorrt_rtx as trt
        except ImportError as error:
            raise MissingDependencyError(
                f"TensorRT-RTX cannot be imported: {error}", "pip install 'upfusion[rtx]'"
            ) from error
        self.title = f"TensorRT-RTX {getattr(trt, '__version__', '')}"
        self._logger = logger_of(trt)
        self._runtime = trt.Runtime(self._logger)
        self._cache_path = cache_path
        self._cache: trt.IRuntimeCache | None = None
        self._saved = b""

    def open(self, path: Path, manifest: Manifest, cuda: Cuda) -> Engine:
        """Return the engine of a plan.

        Raises:
            DeviceError: it does not fit this library or this GPU.
        """
        import tensorrt_rtx as trt

        plan = path.read_bytes()
        validity, reasons = self._runtime.get_engine_validity(plan[: self._runtime.engine_header_size])
        engine: Engine | None = None
        if validity != trt.EngineValidity.INVALID:
            engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            named = [
                name.lower().replace("_", " ")
                for name, member in trt.EngineInvalidityDiagnostics.__members__.items()
                if reasons & int(member)
            ]
            said = "; ".join(part for part in (", ".join(named), self.complaints()) if part)
            if cuda.target.upper() in trt.ComputeCapability.__members__:
                remedy = rebuild_command(path, manifest, "tensorrt-rtx", cuda.target)
            else:  # data-centre GPUs since Hopper
                remedy = rebuild_command(path, manifest, "tensorrt") + " on this machine"
            raise misfit(path, manifest, cuda, self.title, said, remedy)
        if validity == trt.EngineValidity.SUBOPTIMAL:
            log.warning("%s runs on %s, but not at its best: build it for %s", path.name, cuda.name, cuda.target)
        return engine

    def context(self, engine: Any, *, own_graph: bool) -> Context | None:
        """Return an execution context without activation memory, whose kernels are compiled before they are used."""
        import tensorrt_rtx as trt

        plan: trt.ICudaEngine = engine
        config = plan.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # One way or the other: a graph captured inside a capture was never tried.
        config.cuda_graph_strategy = (
            trt.CudaGraphStrategy.DISABLED if own_graph else trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        )
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        if self._cache is None:
            self._cache = self._stored_cache(config)
        if not config.set_runtime_cache(self._cache):
            log.warning("TensorRT-RTX refuses the cache of compiled kernels: they are compiled anew")
        context: Context | None = plan.create_execution_context(config)
        return context

    def capturable(self, context: Any, stream: Stream) -> bool:
        """Whether calls can be captured: where the engine was built to leave every allocation to its user."""
        used: trt.IExecutionContext = context
        return bool(used.is_stream_capturable(stream.handle))

    def warmed(self) -> None:
        """Keep the compiled kernels on disk, if there are new ones."""
        if self._cache is None:
            return
        compiled = bytes(memoryview(self._cache.serialize()))
        if compiled == self._saved:
            return
        try:
            with replacing(self._cache_path) as temporary:
                temporary.write_bytes(compiled)
        except (OSError, UPFusionError) as error:
            log.warning("compiled kernels are not kept: %s", error)
            return
        self._saved = compiled
        log.info("wrote %s (%d bytes of compiled kernels)", self._cache_path, len(compiled))

    def complaints(self) -> str:
        """Return the library's errors since the last call, or nothing."""
        return taken_errors(self._logger)

    def _stored_cache(self, config: Any) -> Any:
        """Return the cache with what the file holds, if it fits this library and this GPU."""
        settings: trt.IRuntimeConfig = config
        cache = settings.create_runtime_cache()
        try:
            stored = self._cache_path.read_bytes()
        except OSError:
            return cache
        if cache.deserialize(stored):
            self._saved = stored
        else:
            log.info("%s is of another GPU or version and is written anew", self._cache_path)
        return cache
