"""Batches that the gate has sampled, kept aside: an export that is cut short does not repeat them.

Each is a file under the hash of everything that it follows from.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from cascade.files import write_bytes

Values = dict[str, Tensor]
"""A batch's tensors by name, on the CPU."""


@dataclass(frozen=True)
class Kept:
    """A folder of batches.

    Attributes:
        origins: by stage, what the answers of its networks follow from.
    """

    folder: Path
    origins: Mapping[str, str]

    def obtain(
        self,
        stage: str,
        settings: Sequence[str],
        inputs: Sequence[Tensor],
        make: Callable[[], Values],
    ) -> Values:
        """Return a stage's batch, made and kept if it is not there.

        Args:
            settings: what decides it beside the networks and `inputs`.
        """
        digest = hashlib.sha256(json.dumps([self.origins[stage], *settings]).encode())
        for value in inputs:
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        path = self.folder / f"{digest.hexdigest()}.safetensors"
        if path.is_file():
            try:
                return load_file(path)
            except SafetensorError:  # damaged since: it is made again
                path.unlink()
        made = make()
        write_bytes(save({name: value.contiguous() for name, value in made.items()}), path)
        return made
