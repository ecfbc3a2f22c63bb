"""A reader of distributed checkpoints that executes nothing of what they hold."""

import io
import pickle
from pathlib import Path
from typing import Any, Final

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import ReadItem

_DTYPES: Final = frozenset(
    name for name, value in vars(torch).items() if isinstance(value, torch.dtype)
)
_ALLOWED: Final = {
    "torch": frozenset({"Size"}) | _DTYPES,
    "torch.serialization": frozenset({"_get_layout"}),
    "torch.distributed.checkpoint.filesystem": frozenset({"_StorageInfo"}),
    "torch.distributed.checkpoint.metadata": frozenset(
        {
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        }
    ),
    # Where the checkpoint was written: a name, nothing more. Python 3.13 moved the class.
    "pathlib": frozenset({"PosixPath", "WindowsPath"}),
    "pathlib._local": frozenset({"PosixPath", "WindowsPath"}),
}


class SafeReader(FileSystemReader):
    """A reader whose index may hold nothing but what the writer puts there."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Read the index, once it is known to be harmless.

        Raises:
            pickle.UnpicklingError: it names anything that no index holds.
        """
        with (Path(self.path) / ".metadata").open("rb") as file:
            found = _Index(file).load()
        if not isinstance(found, Metadata):
            raise pickle.UnpicklingError("its .metadata is no index of a checkpoint")
        return super().read_metadata(*args, **kwargs)


class SafePlanner(DefaultLoadPlanner):
    """A planner to which a value that is no tensor is plain data."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Take one value, unless it is more than data."""
        torch.load(value, map_location="cpu", weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED.get(module, frozenset()):
            raise pickle.UnpicklingError(f"its .metadata names {module}.{name}")
        return super().find_class(module, name)
