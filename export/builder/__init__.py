"""From an ONNX graph to an engine, with TensorRT 10, TensorRT 11 or TensorRT-RTX, by one code path.

The libraries differ in features, not in the order of calls, so the code asks for features and never for versions.
Every build runs in a process of its own: a failed build can change the next one in the same process, a crash of the
native library must not take the caller along, and only so is the peak memory that of the build.

::

    engine      the caller's side: checks, worker, rename, manifest
    choice      which library, and why not the other
    process     starts the worker, reads its messages, stops it
    messages    what goes through the two pipes
    worker      the process: everything below runs there
    library     the one loader of both libraries, with what each can do
"""

from upfusion.export.builder.choice import choose_builder
from upfusion.export.builder.engine import engine_from_onnx
from upfusion.export.builder.gpus import installed_gpus
from upfusion.export.builder.options import BUILDERS, BuildOptions

__all__ = ["BUILDERS", "BuildOptions", "choose_builder", "engine_from_onnx", "installed_gpus"]
