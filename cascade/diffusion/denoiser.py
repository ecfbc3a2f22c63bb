"""From a network's raw output to a prediction of the clean image.

The one place that knows what a network predicts (eps, v or x0). Everything above it sees
`denoise(x, sigma)` in the variance-exploding convention `x = x0 + sigma eps`; the network sees the
papers' variance-preserving `z_t = alpha x`, `alpha = 1 / sqrt(1 + sigma^2)`.

Shapes: `B` batch, `C H W` image, `L` text tokens, `D` text width.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.stage import Prediction
from cascade.diffusion.schedule import Schedule
from cascade_kernels.sampler_step import fraction_of


class Network(Protocol):
    """A U-Net, an ONNX Runtime session or a TensorRT engine: plain tensors in, plain tensor out."""

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict from the variance-preserving latent.

        Args:
            x: B 3 H W, `z_t`.
            t: B float, timestep in 0..1000.
            text: B L D, token embeddings.
            text_mask: B L bool, True at real tokens.
            low_res: B 3 H W, up-sampled and noised; None in a base stage.
            aug: B float, timestep of the noise in `low_res`, 0..1000.

        Returns:
            B 3 H W, or B 6 H W where the variance is learned.
        """


@runtime_checkable
class HasDevice(Protocol):
    """A network whose inputs are not where its weights are, if it has any: an engine."""

    @property
    def device(self) -> torch.device:
        """Where inputs are taken from and answers left."""
        ...


@runtime_checkable
class HasPins(Protocol):
    """A network whose weights another thread may swap: an engine."""

    def pinned(self) -> AbstractContextManager[Network]:
        """Give a network that answers with the weights of now until it is left."""
        ...


@runtime_checkable
class HasOrigin(Protocol):
    """A network that was made of files and may be given others: an engine."""

    @property
    def origin(self) -> str:
        """How it runs, and hashes of what it answers with now."""
        ...


@runtime_checkable
class HasSide(Protocol):
    """A network that may take pictures of one size alone: an engine."""

    @property
    def side(self) -> int | None:
        """Side of the squares that it takes; None where it takes pictures of any size."""
        ...


@dataclass(frozen=True)
class Conditioning:
    """Conditioning of a batch of images; every field is batch-first."""

    text: Tensor  # B L D
    text_mask: Tensor  # B L bool
    low_res: Tensor | None = None  # B 3 H W
    aug: Tensor | None = None  # B

    def __len__(self) -> int:
        return self.text.shape[0]

    def rows(self, which: slice) -> "Conditioning":
        """Return some of the rows."""
        low_res = None if self.low_res is None else self.low_res[which]
        aug = None if self.aug is None else self.aug[which]
        return Conditioning(self.text[which], self.text_mask[which], low_res, aug)

    @staticmethod
    def cat(parts: Sequence["Conditioning"]) -> "Conditioning":
        """Stack batches; shorter texts are padded with masked tokens.

        Raises:
            ValueError: nothing to stack, or some parts have a low-resolution image and some not.
        """
        if not parts:
            raise ValueError("nothing to stack")
        length = max(part.text.shape[1] for part in parts)
        missing = [length - part.text.shape[1] for part in parts]
        padded = zip(parts, missing, strict=True)
        text = [F.pad(part.text, (0, 0, 0, short)) for part, short in padded]
        padded = zip(parts, missing, strict=True)
        mask = [F.pad(part.text_mask, (0, short), value=False) for part, short in padded]
        low_res = _cat_optional([part.low_res for part in parts])
        aug = _cat_optional([part.aug for part in parts])
        return Conditioning(torch.cat(text), torch.cat(mask), low_res, aug)


class Denoised(NamedTuple):
    """The prediction at one noise level."""

    x0: Tensor  # B 3 H W, the clean image
    variance: Tensor | None  # B 3 H W, log-interpolation fraction of the variance, or None


# What samplers see: x (B 3 H W, variance-exploding) and sigma (B) to a prediction.
Denoise = Callable[[Tensor, Tensor], Denoised]


class Denoiser(nn.Module):
    """A network with its parametrisation.

    Args:
        learned_variance: whether three more channels hold the variance (Nichol & Dhariwal 2021,
            eq. 15, in the range [-1, 1]).
    """

    def __init__(
        self,
        network: Network,
        schedule: Schedule,
        prediction: Prediction = "eps",
        learned_variance: bool = False,
    ) -> None:
        super().__init__()
        if prediction not in ("eps", "v", "x0"):
            raise ValueError(f"unknown prediction type {prediction!r}")
        self.network: Network = network
        self.schedule = schedule
        self.prediction: Prediction = prediction
        self.learned_variance = learned_variance

    def around(self, network: Network) -> "Denoiser":
        """Return the same parametrisation of another network."""
        return Denoiser(network, self.schedule, self.prediction, self.learned_variance)

    @property
    def device(self) -> torch.device:
        """Where the weights lie, or where an engine takes its inputs; a function's is the CPU."""
        if isinstance(self.network, HasDevice):
            return self.network.device
        if isinstance(self.network, nn.Module):
            return next(self.network.parameters()).device
        return torch.device("cpu")

    def forward(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Denoised:
        """Predict the clean image.

        Args:
            x: B 3 H W, `x0 + sigma eps`, float32 or float64.
            sigma: B, noise levels. Samplers pass float64, which keeps whole timesteps whole.
            cond: B rows.

        Returns:
            The prediction in x's dtype, whatever the network's.

        Raises:
            ValueError: the network returned another number of channels than was declared.
        """
        return self.to_x0(x, self.predict(x, sigma, cond), sigma)

    def predict(self, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        """Return what the network says, B 3 H W or B 6 H W in its own dtype; see `forward`."""
        sigma = sigma.double()
        z = x * _column(torch.rsqrt(1 + sigma**2), x)
        t = self.schedule.timestep(sigma).float()
        out = self.network(z, t, cond.text, cond.text_mask, cond.low_res, cond.aug)
        channels = x.shape[1] * (2 if self.learned_variance else 1)
        if out.shape[1] != channels:
            raise ValueError(f"the network returned {out.shape[1]} channels, not {channels}")
        return out

    def to_x0(self, x: Tensor, out: Tensor, sigma: Tensor) -> Denoised:
        """Turn what the network said at x into a prediction; shapes and dtypes as in `forward`."""
        from_x, from_out = x0_factors(self.prediction, sigma.double())
        # Under autocast the network answers in bfloat16; the conversion below must not.
        out = out.to(x.dtype)
        mean = out[:, : x.shape[1]]
        x0 = _column(from_x, x) * x + _column(from_out, x) * mean
        variance = fraction_of(out[:, x.shape[1] :]) if self.learned_variance else None
        return Denoised(x0, variance)


Level = TypeVar("Level", float, Tensor)


def x0_factors(prediction: Prediction, sigma: Level) -> tuple[Level, Level]:
    """Return (a, b) of `x0 = a x + b out`, for one noise level or for one per image.

    Args:
        sigma: the level, of `x = x0 + sigma eps`; a tensor is float64.
    """
    match prediction:
        case "eps":
            return 0 * sigma + 1, -sigma
        case "v":  # v = alpha eps - sigma_vp x0 (Salimans & Ho 2022, appendix D)
            return 1 / (1 + sigma * sigma), -sigma / (1 + sigma * sigma) ** 0.5
        case "x0":
            return 0 * sigma, 0 * sigma + 1


def levels_of(sigma: float, x: Tensor) -> Tensor:
    """Give every image of x (B C H W) the same noise level: B float64 on x's device."""
    # float64: in float32 a level would no longer be exactly that of its timestep.
    return torch.full((x.shape[0],), sigma, dtype=torch.float64, device=x.device)


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Shape per-image float64 factors (B) to multiply images (B C H W), in the images' dtype."""
    return values.to(like.dtype).view(-1, *(1,) * (like.dim() - 1))


def _cat_optional(tensors: Sequence[Tensor | None]) -> Tensor | None:
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None
    if len(present) != len(tensors):
        raise ValueError("some rows have a low-resolution condition and some have not")
    return torch.cat(present)
