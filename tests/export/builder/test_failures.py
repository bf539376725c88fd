"""Messages as the libraries write them, and what the user reads."""

from __future__ import annotations

import pytest

from upfusion.export.builder.failures import error_from_messages, error_from_node, readable
from upfusion.runtime.errors import BuildError, DeviceError, UPFusionError

NO_TACTIC = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic Selection: no "
    "tactics to implement the operation within workspace limit. Consider increase the allowed workspace size if "
    "applicable.; [tactic.cpp:264: run] Error during tactic selection. In compileGraph at "
    "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
)
NO_DRIVER = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (In generateForCurrent at "
    "/_src/runtime/core/cudaDeviceProfile.cpp:221 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)


def test_positions_in_the_librarys_source_are_left_out() -> None:
    text = readable(NO_TACTIC)
    assert text.startswith("Tactic Selection: no tactics to implement the operation within workspace limit.")
    assert "cpp" not in text
    assert "cudaError 35" in readable(NO_DRIVER)


@pytest.mark.parametrize(
    ("message", "kind", "hint"),
    [
        (NO_TACTIC, BuildError, "--workspace"),
        (NO_DRIVER, DeviceError, "upfusion doctor"),
        ("Error Code 2: OutOfMemory (Requested size was 3221225472 bytes.)", DeviceError, "smaller"),
        ("Cannot compile operation 'project' for Turing (SM75): FP32 GEMM is not supported.", BuildError, "sm75"),
        ("something new", BuildError, "--verbose"),
    ],
)
def test_the_first_message_is_the_cause(message: str, kind: type[UPFusionError], hint: str) -> None:
    error = error_from_messages("cannot build", [message, NO_DRIVER])
    assert type(error) is kind
    assert hint in error.hint


def test_a_library_that_says_nothing() -> None:
    assert "gave no reason" in str(error_from_messages("cannot build", []))


def test_a_node_without_a_name_or_a_reason() -> None:
    error = error_from_node("a.onnx", "UNSUPPORTED_NODE", "", "MaxUnpool", "false")
    assert error.problem == "a.onnx: node (unnamed) (MaxUnpool) cannot be imported: unsupported node"
