"""`Stage`: the waist between one network and everything that uses it.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.config.stage import AugmentationLevel, LowResConfig, SamplerConfig, StageConfig
from cascade.diffusion.denoiser import (
    Conditioning,
    Denoiser,
    HasOrigin,
    HasPins,
    Network,
)
from cascade.diffusion.guidance import guided
from cascade.diffusion.noise import LowResolution, Noise, level_from_variance
from cascade.diffusion.samplers import OnStep, calls, initial, levels
from cascade.diffusion.schedule import make_schedule
from cascade.drawing import Drawing, advance
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.model.adapters import merged_state
from cascade.model.initial import initialize
from cascade.model.layers import set_backend
from cascade.model.precision import warn_if_emulated
from cascade.model.unet import UNet
from cascade.tensors import check_tensors, read_weights, require_finite
from cascade.text.encoder import TextEmbedding
from cascade_kernels.dispatch import unsupported_reason
from cascade_kernels.names import Backend


class Stage:
    """A stage's configuration with its denoiser: built, loaded, saved and sampled from.

    Attributes:
        config: every property of the checkpoint.
        denoiser: the network under its parametrisation.
        size: width and height of what a base draws, pixels.
    """

    def __init__(self, config: StageConfig, network: Network) -> None:
        self.config = config
        self.schedule = make_schedule(config.diffusion.schedule)
        self.size = config.size, config.size
        self._backend: Backend = "auto"
        self.denoiser = Denoiser(
            network, self.schedule, config.diffusion.prediction, config.unet.learned_variance
        )

    @classmethod
    def build(cls, config: StageConfig, seed: int = 0) -> "Stage":
        """Build a stage with freshly initialised weights, a function of the seed."""
        network = meta_network(config)
        initialize(network, seed)
        return cls(config, network)

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> "Stage":
        """Load `config.json` and `model.safetensors` of a stage folder, in float32.

        Raises:
            UserError: a file is missing, truncated, does not belong to the other, or holds what is
                no number.
        """
        config = read_stage_config(folder)
        check_weights(folder, config)
        network = meta_network(config)
        tensors = read_weights(folder / "model.safetensors", device)
        network.load_state_dict(tensors, assign=True)
        return cls(config, network.eval())

    def save(
        self,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write the stage as a folder; the weights last, so that a folder with them is whole.

        Args:
            weights: the network's, where it holds but a part of them.

        Raises:
            UserError: a weight is no number, or the folder cannot be written.
        """
        state = merged_state(self.network) if weights is None else weights
        require_finite(state, f"the stage '{self.config.name}'")
        text = self.config.model_dump_json(indent=2)
        tensors = {
            name: value.detach().to("cpu", dtype).contiguous() for name, value in state.items()
        }
        write_bytes((text + "\n").encode(), folder / "config.json")
        # One key: safetensors writes several in an order that changes from save to save.
        write_bytes(save(tensors, metadata={"config": text}), folder / "model.safetensors")

    def with_network(self, network: Network, config: StageConfig | None = None) -> "Stage":
        """Return this stage around another network: a wrapper, an engine, or tuned weights."""
        return Stage(config or self.config, network)

    def merged(self) -> "Stage":
        """Return this stage with the adapters of its network, if any, merged into the weights."""
        network = meta_network(self.config)
        network.load_state_dict(merged_state(self.network), assign=True)
        return self.with_network(network.train(self.network.training))

    @contextmanager
    def pinned(self) -> Iterator["Stage"]:
        """Give this stage around the weights of now, whatever is swapped until it is left."""
        if not isinstance(self.denoiser.network, HasPins):
            yield self
            return
        with self.denoiser.network.pinned() as network:
            stage = copy.copy(self)
            stage.denoiser = self.denoiser.around(network)
            yield stage

    def set_backend(self, backend: Backend) -> None:
        """Choose the implementation of the network's operations and of the sampler's step.

        Args:
            backend: "auto" takes a kernel where it was measured to be the fastest path, "triton"
                always, "reference" never.

        Raises:
            UserError: the stage runs on an engine, or "triton" is wanted and cannot run on its
                device.
        """
        if not isinstance(self.denoiser.network, torch.nn.Module):
            raise UserError(
                f"Stage '{self.config.name}' runs on an engine, which has kernels of its own; "
                "leave the choice of kernels out."
            )
        reason = unsupported_reason(self.device, torch.float32) if backend == "triton" else ""
        if reason:
            raise UserError(f"The Triton kernels cannot run here: {reason}; or take 'auto'.")
        set_backend(self.network, backend)
        self._backend = backend

    @property
    def network(self) -> torch.nn.Module:
        """The network as a module.

        Raises:
            TypeError: the network is an engine and has no weights to give.
        """
        network = self.denoiser.network
        if not isinstance(network, torch.nn.Module):
            raise TypeError(f"stage '{self.config.name}' runs on an engine, not on a module")
        return network

    @property
    def device(self) -> torch.device:
        """Where the weights lie, or where an engine takes its inputs; a function's is the CPU."""
        return self.denoiser.device

    def fingerprint(self) -> str:
        """Return sha256 over settings and weights (names, types, shapes, bytes), or the origin."""
        digest = hashlib.sha256(self.config.model_dump_json().encode())
        if isinstance(self.denoiser.network, HasOrigin):
            digest.update(self.denoiser.network.origin.encode())
            return digest.hexdigest()
        for name, value in sorted(merged_state(self.network).items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def sample(
        self,
        text: TextEmbedding,
        null: TextEmbedding,
        noise: Noise,
        low_res: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        level: AugmentationLevel | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Sample one image per row of text, B C H W in [-1, 1]; arguments as of `begin`.

        Args:
            on_step: called after every step with (index, x, denoised).

        Raises:
            NoPictureError: a number of them is NaN or infinite.
        """
        with self.pinned() as stage:
            drawing = stage.begin(text, null, noise, low_res, sampler, level)
            while not drawing.done:
                [denoised] = advance([drawing])
                if on_step is not None and denoised is not None:
                    on_step(drawing.steps - 1, drawing.x, denoised)
            return drawing.pictures()

    @torch.no_grad()
    def begin(
        self,
        text: TextEmbedding,
        null: TextEmbedding,
        noise: Noise,
        low_res: Tensor | None = None,
        sampler: SamplerConfig | None = None,
        level: AugmentationLevel | None = None,
    ) -> Drawing:
        """Return a request for one image per row of text.

        Args:
            text: the captions' embeddings, B rows.
            null: the unconditional text, B rows.
            noise: one generator per picture; a picture does not depend on its batch.
            low_res: B C h w, what a super-resolution stage enlarges; its side times the stage's
                factor is the side of the result, so fully convolutional stages take any side.
            sampler: how to sample; the checkpoint's own settings by default.
            level: the augmentation level; the checkpoint's own by default.
        """
        sampler = sampler or self.config.sampler
        height, width = self._sides(low_res)
        cond = self.conditioning(text, low_res, (height, width), noise, level)
        embedding, mask = null.embedding.to(self.device), null.mask.to(self.device)
        empty = replace(cond, text=embedding, text_mask=mask)
        scale, interval = sampler.guidance, sampler.guidance_interval
        denoise = guided(
            self.denoiser, cond, empty, scale, sampler.threshold, interval, backend=self._backend
        )
        down = levels(self.schedule, sampler)
        x = initial(noise, (3, height, width), float(down[0])).to(self.device)
        warn_if_emulated(sampler.precision, self.device)
        return Drawing(self.config.name, denoise, calls(sampler, down), x, noise, sampler.precision)

    def conditioning(
        self,
        text: TextEmbedding,
        low_res: Tensor | None,
        size: tuple[int, int],
        noise: Noise,
        level: AugmentationLevel | None,
    ) -> Conditioning:
        """Return what the network is told beside the noisy picture; arguments as of `sample`."""
        embedding, mask = text.embedding.to(self.device), text.mask.to(self.device)
        if self.config.low_res is None:
            return Conditioning(text=embedding, text_mask=mask)
        if low_res is None:
            raise ValueError(f"stage '{self.config.name}' needs a low-resolution picture")
        time = self.level_time(level or self.config.low_res.sampling_level)
        low_res = low_res.to(self.device)
        levels = torch.full((len(low_res),), time, dtype=torch.float64, device=self.device)
        enlarged, aug = self.low_resolution()(low_res, size, levels, noise)
        return Conditioning(text=embedding, text_mask=mask, low_res=enlarged, aug=aug)

    def low_resolution(self) -> LowResolution:
        """Return the module that upscales and noises this stage's low-resolution image.

        Raises:
            ValueError: the stage is a base stage.
        """
        return LowResolution(self._low_res())

    def level_time(self, level: AugmentationLevel) -> float:
        """Return a level's position in [0, 1] on the augmentation schedule, whatever its unit."""
        if level.unit == "time":
            return level.value
        return level_from_variance(self.low_resolution().schedule, level.value)

    def _low_res(self) -> LowResConfig:
        if self.config.low_res is None:
            raise ValueError(f"stage '{self.config.name}' is a base stage: no low resolution")
        return self.config.low_res

    def _sides(self, low_res: Tensor | None) -> tuple[int, int]:
        if low_res is None:
            return self.size[1], self.size[0]
        factor = self.config.size // self._low_res().size
        return low_res.shape[-2] * factor, low_res.shape[-1] * factor


def check_weights(folder: Path, config: StageConfig) -> None:
    """Compare a stage folder's weights with its configuration; reads the file's header alone.

    Raises:
        UserError: the file is missing, truncated, or holds other tensors than the network's.
    """
    check_tensors(folder / "model.safetensors", meta_network(config))


def meta_network(config: StageConfig) -> UNet:
    """Build the stage's network without weights, on the meta device."""
    with torch.device("meta"):
        return UNet(config.unet)
