"""TensorRT: engines that were tuned on the kind of GPU they run on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from upfusion.runtime.backends.engine import EngineBackend
from upfusion.runtime.backends.engine_library import Context, Engine, EngineOptions, Library
from upfusion.runtime.backends.misfit import misfit, rebuild_command, unusable
from upfusion.runtime.backends.trt_logger import logger_of, taken_errors
from upfusion.runtime.cuda import Cuda, CudaCore, Stream
from upfusion.runtime.errors import DeviceError, MissingDependencyError
from upfusion.runtime.manifest import Manifest


class TensorRTBackend(EngineBackend):
    """A TensorRT engine on one GPU."""

    def __init__(
        self, path: str | Path, manifest: Manifest, options: EngineOptions | None = None, *, device_id: int = 0
    ) -> None:
        """Load the engine; its digest was checked before.

        Raises:
            MissingDependencyError: TensorRT or cuda-core is not installed.
            DeviceError: no GPU, another GPU, another version of TensorRT, or too little memory.
            ManifestError: the plan has other inputs and outputs than its manifest.
        """
        path = Path(path)
        try:
            library, cuda = TensorRTLibrary(), CudaCore(device_id)
        except (MissingDependencyError, DeviceError) as error:
            raise unusable(path, manifest, error) from error
        super().__init__(path, manifest, library, cuda, options or EngineOptions())


class TensorRTLibrary(Library):
    """The ``tensorrt`` package."""

    def __init__(self) -> None:
        try:
            import tensorrt as trt
        except ImportError as error:
            raise MissingDependencyError(
                f"TensorRT cannot be imported: {error}", "pip install 'upfusion[tensorrt]'"
            ) from error
        self.title = f"TensorRT {getattr(trt, '__version__', '')}"
        self._logger = logger_of(trt)
        self._runtime = trt.Runtime(self._logger)

    def open(self, path: Path, manifest: Manifest, cuda: Cuda) -> Engine:
        """Return the engine of a plan.

        Raises:
            DeviceError: it does not fit this library or this GPU.
        """
        engine: Engine | None = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            remedy = rebuild_command(path, manifest, "tensorrt")
            raise misfit(path, manifest, cuda, self.title, self.complaints(), remedy)
        return engine

    def context(self, engine: Any, *, own_graph: bool) -> Context | None:
        """Return an execution context without activation memory."""
        import tensorrt as trt

        plan: trt.ICudaEngine = engine
        context: Context | None = plan.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        return context

    def capturable(self, context: Any, stream: Stream) -> bool:
        """Whether calls can be captured: always, after one plain call."""
        return True

    def warmed(self) -> None:
        """Nothing is compiled at run time, so there is nothing to keep."""

    def complaints(self) -> str:
        """Return the library's errors since the last call, or nothing."""
        return taken_errors(self._logger)
