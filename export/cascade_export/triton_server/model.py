"""The cascade as a Python model inside NVIDIA's Triton Inference Server.

The samplers are this package's own; a stage's network is a call of another model of the same
server (its business logic scripting), which merges the calls of concurrent requests into batches.
The module `triton_python_backend_utils` exists inside the server only.

Shapes: `N` images of a request, `B` rows, `L` text tokens, `D` width of the text encoder.
"""

import json
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack
from transformers.modeling_outputs import BaseModelOutput

from cascade.config.folders import CascadeManifest, read_manifest, read_stage_config
from cascade.errors import UserError
from cascade.files import read_json
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder
from cascade.text.files import EncoderFiles, find_vocabulary
from cascade.text.prompts import PromptEncoder, load_text, open_text
from cascade_export.engines.version import fixed_length
from cascade_export.graph.graph import feeds
from cascade_export.parity.limits import to_levels
from cascade_export.triton_server.repository import PICTURES_AT_ONCE, TEXT_MODEL

_CPU = torch.device("cpu")


class RemoteError(RuntimeError):
    """Another model of the server did not answer."""


class Remote:
    """Another model of the same server.

    Args:
        triton: the module `triton_python_backend_utils`.
    """

    def __init__(self, triton: Any, model: str, output: str) -> None:
        self._triton = triton
        self._model = model
        self._output = output

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Call it with tensors by name, batch first; return the answer on the CPU.

        Raises:
            RemoteError: it refused or failed.
        """
        triton = self._triton
        request = triton.InferenceRequest(
            model_name=self._model,
            requested_output_names=[self._output],
            inputs=[
                triton.Tensor(name, value.detach().cpu().contiguous().numpy())
                for name, value in inputs.items()
            ],
        )
        response = request.exec()
        if response.has_error():
            raise RemoteError(f"{self._model}: {response.error().message()}")
        # Through DLPack: the server may have left the answer on its GPU.
        answer = triton.get_output_tensor_by_name(response, self._output)
        out: Tensor = from_dlpack(answer.to_dlpack()).cpu()
        return out


class RemoteNetwork:
    """A stage's network as a model of the server: a `cascade.diffusion.denoiser.Network`.

    Args:
        max_length: tokens that texts are padded to, since only calls of one shape share a batch.
    """

    def __init__(self, remote: Remote, max_length: int) -> None:
        self.device = _CPU
        self._remote = remote
        self._max_length = max_length

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does."""
        text, text_mask = fixed_length(text, text_mask, self._max_length)
        call = feeds(x, t, text, text_mask, low_res, aug)
        rows = {name: call[name][:, None] for name in ("t", "aug") if name in call}
        return self._remote(
            {n: v.float() if v.is_floating_point() else v for n, v in (call | rows).items()}
        )


class RemoteTextEncoder(TextEncoder):
    """A `TextEncoder` whose model is one of the server's."""

    def __init__(self, folder: Path, remote: Remote) -> None:
        config = read_json(folder / "config.json")
        files = EncoderFiles(folder, config, find_vocabulary(folder), {})
        super().__init__(files, _RemoteT5(remote), "float32")

    @property
    def device(self) -> torch.device:
        """Return the device of its inputs."""
        return _CPU


class _RemoteT5(nn.Module):
    """A model of the server that is called as transformers' encoders are."""

    def __init__(self, remote: Remote) -> None:
        super().__init__()
        self._remote = remote

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        out = self._remote({"ids": input_ids, "mask": attention_mask})
        return BaseModelOutput(last_hidden_state=out)


class CascadeModel:
    """The model that the server calls; its `model.py` names it `TritonPythonModel`."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the cascade's settings and text encoder; the other models need not be ready yet."""
        self._triton: Any = import_module("triton_python_backend_utils")
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = read_manifest(folder)
        self._batch_size = int(parameters[PICTURES_AT_ONCE])
        self._cascade = Cascade(
            manifest,
            self._encoder(folder, manifest, parameters.get(TEXT_MODEL)),
            [self._stage(folder / name, args["model_name"]) for name in manifest.stages],
        )

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request with its images, or with what was wrong."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        triton = self._triton
        try:
            pictures = self._draw(request)
        except (UserError, RemoteError) as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))
        return triton.InferenceResponse(output_tensors=[triton.Tensor("pictures", pictures)])

    def _draw(self, request: Any) -> np.ndarray:
        """Sample the images of a request, N H W 3 uint8."""
        prompts = [value.decode("utf-8") for value in self._values(request, "prompt") or []]
        seeds = [int(value) for value in self._values(request, "seed") or []]
        changes: dict[str, Any] = {"batch_size": self._batch_size}
        steps, guidance = self._values(request, "steps"), self._values(request, "guidance")
        if steps is not None:
            changes["steps"] = int(steps[0])
        if guidance is not None:
            changes["guidance"] = float(guidance[0])
        samples = self._cascade.sample(prompts, seeds, **changes)
        return to_levels(samples.tensor).to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()

    def _values(self, request: Any, name: str) -> list[Any] | None:
        """Return a request's input as a flat list; None where it was left out."""
        tensor = self._triton.get_input_tensor_by_name(request, name)
        return None if tensor is None else list(tensor.as_numpy().reshape(-1))

    def _stage(self, folder: Path, model: str) -> Stage:
        config = read_stage_config(folder)
        remote = Remote(self._triton, f"{model}-{config.name}", "out")
        return Stage(config, RemoteNetwork(remote, config.text.max_length))

    def _encoder(self, folder: Path, manifest: CascadeManifest, model: str | None) -> PromptEncoder:
        text = folder / manifest.text_encoder
        if model is not None:
            return RemoteTextEncoder(text, Remote(self._triton, model, "embedding"))
        return load_text(open_text(text, None))
