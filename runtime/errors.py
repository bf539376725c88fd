"""The one family of errors that users see.

::

    UPFusionError                 what happened, and what to do about it
    ├── InputError                images, folders, sizes, options
    ├── ArtifactError             a file that is missing, truncated, foreign or does not match its manifest
    │   ├── CheckpointError
    │   └── ManifestError
    ├── MissingDependencyError    a package or a file that must be installed or downloaded first
    ├── DeviceError               no GPU, another GPU, a driver that does not fit, out of memory
    ├── ExportError               the ONNX graph could not be made, or is not the network
    ├── BuildError                the engine could not be built
    ├── TrainingError             a training run that cannot go on
    └── VerificationError         two artifacts disagree by more than the tolerance

Foreign exceptions are translated once, at the border where the foreign library is called. The command line
prints this family on stderr and exits with 2; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations


class UPFusionError(Exception):
    """A failure that the user can act on.

    ``problem`` states what happened with the values (file names, sizes, versions); ``hint`` states the next
    thing to do, as a command where there is one.
    """

    def __init__(self, problem: str, hint: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.problem}\nhint: {self.hint}" if self.hint else self.problem


class InputError(UPFusionError):
    """An image, a folder, a size or an option that cannot be used."""


class ArtifactError(UPFusionError):
    """A file that is missing, truncated, foreign, or does not match its manifest."""


class CheckpointError(ArtifactError):
    """A checkpoint that does not hold exactly this network."""


class ManifestError(ArtifactError):
    """A manifest that is missing, unreadable, or says something else than the file beside it."""


class MissingDependencyError(UPFusionError):
    """A package or a file that must be installed or downloaded first."""


class DeviceError(UPFusionError):
    """No GPU, another GPU, a driver that does not fit, or not enough memory."""


class ExportError(UPFusionError):
    """The ONNX graph could not be made, or it is not the network."""


class BuildError(UPFusionError):
    """The engine could not be built."""


class TrainingError(UPFusionError):
    """A training run that cannot go on: its gradient is no longer finite."""


class VerificationError(UPFusionError):
    """Two artifacts disagree by more than the tolerance."""
