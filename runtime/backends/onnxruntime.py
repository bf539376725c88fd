"""ONNX Runtime: CPU, CUDA and TensorRT execution providers, chosen by name, on buffers allocated once."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from upfusion.runtime.backends.base import Arrays, Shape, resolved
from upfusion.runtime.errors import ArtifactError, DeviceError, InputError, ManifestError, MissingDependencyError
from upfusion.runtime.manifest import METADATA_KEY, Manifest

Provider = Literal["cpu", "cuda", "tensorrt"]

PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""Our names -> ONNX Runtime's."""

DEFAULT_PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "cpu": {},
    # TF32 rounds the inputs of convolutions to 10 bits and thereby swaps channels whose ranks are close.
    "cuda": {"use_tf32": "0"},
    "tensorrt": {},
}

_NUMPY_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_KEPT_SHAPES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeOptions:
    """How ONNX Runtime runs a graph."""

    provider: Provider = "cpu"
    device_id: int = 0
    """Number of the GPU."""
    provider_options: Mapping[str, str] = field(default_factory=dict)
    """By ONNX Runtime's names, as ``enable_cuda_graph``; added to :data:`DEFAULT_PROVIDER_OPTIONS`."""
    threads: int = 0
    """CPU threads that share the work of one operator; 0: one per physical core."""
    spin: bool = True
    """Idle CPU threads wait actively: the lowest latency, at the cost of whatever else runs on those cores."""
    optimization: Literal["none", "basic", "extended", "all"] = "all"
    """Graph optimisations of ONNX Runtime itself."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InputError: an unknown provider or a negative number.
        """
        if self.provider not in PROVIDERS:
            raise InputError(f"unknown execution provider {self.provider}", f"use one of {', '.join(PROVIDERS)}")
        if self.threads < 0 or self.device_id < 0:
            raise InputError("threads and device_id cannot be negative", "use 0 for the default")


def available_providers() -> tuple[Provider, ...]:
    """Return the providers that the installed ONNX Runtime was built with, by our names; a GPU may still be absent.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
    """
    present = _library().get_available_providers()
    names: tuple[Provider, ...] = ("cpu", "cuda", "tensorrt")
    return tuple(name for name in names if PROVIDERS[name] in present)


class OnnxRuntimeBackend:
    """An ONNX graph on one execution provider, never on another one than asked for."""

    manifest: Manifest
    """The one handed in, or the one in the file's metadata."""

    def __init__(self, path: str | Path, manifest: Manifest | None, options: OnnxRuntimeOptions) -> None:
        """Load the graph.

        Raises:
            MissingDependencyError: ONNX Runtime or the execution provider is not installed.
            DeviceError: the provider does not start on this machine.
            ArtifactError: the file is not a graph that ONNX Runtime loads.
            ManifestError: the file carries no manifest and none was given, or it names other inputs and outputs.
        """
        self._path = Path(path)
        self._options = options
        self._session = _session(self._path, options)
        self.manifest = manifest or self._manifest_inside()
        self.device = "CPU" if options.provider == "cpu" else f"{options.provider.upper()}:{options.device_id}"
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}
        for side, specs, found in (
            ("inputs", self.manifest.contract.all_inputs, self._inputs),
            ("outputs", self.manifest.contract.all_outputs, self._outputs),
        ):
            missing = [spec.name for spec in specs if spec.name not in found]
            if missing:
                raise ManifestError(
                    f"{self._path}: the manifest names {side} {', '.join(missing)}, the graph has {', '.join(found)}",
                    "export the artifact again",
                )
        self._steps: OrderedDict[tuple[Shape, ...], _Step] = OrderedDict()

    @property
    def session(self) -> Any:
        """The ``InferenceSession`` itself: its own ``run`` is what benchmarks compare :meth:`run` with."""
        return self._session

    def buffers(self, shapes: Mapping[str, Shape]) -> Arrays:
        """Return input arrays of these shapes; :meth:`run` takes them without a copy on the host."""
        return self._step(tuple(shapes[name] for name in self._inputs)).inputs

    def run(self, inputs: Arrays) -> Arrays:
        """Return all outputs of the graph, in buffers that the next call with these shapes overwrites.

        Raises:
            DeviceError: ONNX Runtime failed, for instance for lack of memory.
        """
        step = self._step(tuple(inputs[name].shape for name in self._inputs))
        for name, buffer in step.inputs.items():
            if inputs[name] is not buffer:
                np.copyto(buffer, inputs[name], casting="no")
        try:
            return step.run()
        except Exception as error:  # ONNX Runtime raises RuntimeError and classes of its own
            raise self._translated(error) from error

    def another(self) -> OnnxRuntimeBackend:
        """Return a further context on the same session, with buffers of its own."""
        twin = copy.copy(self)
        twin._steps = OrderedDict()
        return twin

    def close(self) -> None:
        """Forget the buffers and this reference to the session."""
        self._steps.clear()
        self._session = None

    def _step(self, shapes: tuple[Shape, ...]) -> _Step:
        """Return the bound buffers for these input shapes, in the order of the graph's inputs."""
        step = self._steps.get(shapes)
        if step is None:
            try:
                step = _Step(self._session, self._options, shapes)
            except Exception as error:
                raise self._translated(error) from error
            self._steps[shapes] = step
            if len(self._steps) > _KEPT_SHAPES:
                self._steps.popitem(last=False)
        else:
            self._steps.move_to_end(shapes)
        return step

    def _manifest_inside(self) -> Manifest:
        """Return the manifest in the graph's metadata."""
        text = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ManifestError(
                f"{self._path} carries no manifest, in its metadata or beside it: not a graph of upfusion's",
                "export the checkpoint with upfusion export CHECKPOINT -o fusion.onnx",
            )
        return Manifest.from_json(text, where=f"{self._path} (metadata)")

    def _translated(self, error: Exception) -> DeviceError:
        """Return ONNX Runtime's complaint as one of ours."""
        text = str(error)
        if "allocate memory" in text or "out of memory" in text.lower():
            return DeviceError(
                f"{self._path}: out of memory on {self.device}: {_first_line(text)}",
                "use a smaller image or batch, close other programs on the device, or make a leaner graph: "
                "upfusion export CHECKPOINT -o lean.onnx --lean",
            )
        return DeviceError(
            f"{self._path}: ONNX Runtime failed on {self.device}: {_first_line(text)}", "upfusion doctor"
        )


class _Step:
    """Buffers for one set of input shapes, bound to the session once."""

    def __init__(self, session: Any, options: OnnxRuntimeOptions, shapes: tuple[Shape, ...]) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._on_device: dict[str, Any] = {}
        self.inputs: dict[str, npt.NDArray[Any]] = {}
        self.outputs: dict[str, npt.NDArray[Any]] = {}
        self._late: dict[str, int] = {}
        device = "cpu" if options.provider == "cpu" else "cuda"
        sizes: dict[str, int] = {}
        for value, shape in zip(session.get_inputs(), shapes, strict=True):
            sizes.update((size, actual) for size, actual in zip(value.shape, shape, strict=True) if _named(size))
            array = self.inputs[value.name] = np.zeros(shape, _NUMPY_TYPES[value.type])
            if device == "cpu":
                self._binding.bind_cpu_input(value.name, array)
            else:
                self._on_device[value.name] = _device_value(array, options.device_id)
                self._binding.bind_ortvalue_input(value.name, self._on_device[value.name])
        for place, value in enumerate(session.get_outputs()):
            output_shape = resolved(value.shape, sizes)
            if output_shape is None:  # a size that only ONNX Runtime knows
                self._late[value.name] = place
                self._binding.bind_output(value.name, "cpu")
                continue
            array = self.outputs[value.name] = np.zeros(output_shape, _NUMPY_TYPES[value.type])
            if device == "cpu":
                self._binding.bind_output(value.name, "cpu", 0, array.dtype.type, output_shape, array.ctypes.data)
            else:
                self._on_device[value.name] = _device_value(array, options.device_id)
                self._binding.bind_ortvalue_output(value.name, self._on_device[value.name])

    def run(self) -> Arrays:
        """Run the graph on what lies in ``inputs``."""
        for name, array in self.inputs.items():
            if name in self._on_device:
                self._on_device[name].update_inplace(array)
        self._session.run_with_iobinding(self._binding)
        for name, array in self.outputs.items():
            if name in self._on_device:
                np.copyto(array, self._on_device[name].numpy())
        if self._late:
            values = self._binding.get_outputs()
            return {**self.outputs, **{name: values[place].numpy() for name, place in self._late.items()}}
        return self.outputs


def _device_value(array: npt.NDArray[Any], device_id: int) -> Any:
    """Return memory on the GPU of an array's shape and type."""
    return _library().OrtValue.ortvalue_from_shape_and_type(array.shape, array.dtype.type, "cuda", device_id)


def _named(size: object) -> bool:
    """Whether a dimension in ONNX Runtime's description of a tensor has a name instead of a size."""
    return isinstance(size, str)


def _session(path: Path, options: OnnxRuntimeOptions) -> Any:
    """Return a session on exactly the provider asked for."""
    library = _library()
    provider = PROVIDERS[options.provider]
    present: Sequence[str] = library.get_available_providers()
    if provider not in present:
        raise MissingDependencyError(
            f"ONNX Runtime {library.__version__} here has no {provider}; it has {', '.join(present)}",
            "pip uninstall onnxruntime, then pip install 'onnxruntime-gpu[cuda,cudnn]'"
            + (" with TensorRT 10 beside it" if options.provider == "tensorrt" else "")
            + "; or run on the CPU: --device cpu",
        )
    settings = library.SessionOptions()
    settings.intra_op_num_threads = options.threads
    settings.log_severity_level = 3
    settings.add_session_config_entry("session.intra_op.allow_spinning", "1" if options.spin else "0")
    settings.graph_optimization_level = {
        "none": library.GraphOptimizationLevel.ORT_DISABLE_ALL,
        "basic": library.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        "extended": library.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
        "all": library.GraphOptimizationLevel.ORT_ENABLE_ALL,
    }[options.optimization]
    chosen: dict[str, str] = {} if options.provider == "cpu" else {"device_id": str(options.device_id)}
    chosen |= {**DEFAULT_PROVIDER_OPTIONS[options.provider], **options.provider_options}
    providers: list[Any] = [(provider, chosen)]
    if options.provider == "tensorrt" and PROVIDERS["cuda"] in present:  # for nodes that TensorRT leaves out
        providers.append((PROVIDERS["cuda"], {"device_id": str(options.device_id), **DEFAULT_PROVIDER_OPTIONS["cuda"]}))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # it announces the fallback that is refused below
            session = library.InferenceSession(str(path), settings, providers=providers)
    except Exception as error:  # pybind classes without a common base
        raise _unloadable(path, options, type(error).__name__, str(error)) from error
    if session.get_providers()[0] != provider:
        raise DeviceError(
            f"ONNX Runtime could not start {provider} on this machine and offers {session.get_providers()[0]} instead",
            "upfusion doctor says which GPU and libraries it sees; or run on the CPU: --device cpu",
        )
    session.disable_fallback()
    return session


def _unloadable(path: Path, options: OnnxRuntimeOptions, kind: str, text: str) -> ArtifactError | DeviceError:
    """Return why ONNX Runtime made no session of a file, as one of ours."""
    if kind == "InvalidProtobuf" or "No graph was found" in text:
        return ArtifactError(f"{path} is truncated or not an ONNX file", "copy it again, or export it again")
    if options.provider != "cpu" and any(word in text for word in ("CUDA", "cuda", "TensorRT", "tensorrt", "device")):
        return DeviceError(
            f"{path}: ONNX Runtime could not start on {options.provider}: {_first_line(text)}",
            "upfusion doctor says which GPU and libraries it sees; or run on the CPU: --device cpu",
        )
    return ArtifactError(
        f"{path}: ONNX Runtime {_library().__version__} does not load it: {_first_line(text)}",
        "update onnxruntime, or export it again with the same version of upfusion",
    )


def _first_line(text: str) -> str:
    """Return the first line of a foreign message."""
    return text.strip().splitlines()[0] if text.strip() else "no message"


def _library() -> Any:
    """Return the onnxruntime module.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            f"ONNX Runtime cannot be imported: {error}", "pip install onnxruntime (or onnxruntime-gpu for CUDA)"
        ) from error
    return onnxruntime
