"""The opener of bundles: the entry point `dreamcascade.openers` of `bundle.json`."""

from pathlib import Path

import torch

from cascade.config.encoder import EncoderModeName
from cascade.config.engine import BundleOptions
from cascade.pipeline import Cascade
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines import engine_class


def open_cascade(
    folder: Path | str,
    device: torch.device | str | None = None,
    embeddings: Path | str | None = None,
    encoder_mode: EncoderModeName = "auto",
    options: BundleOptions | None = None,
) -> Cascade:
    """Open a bundle's engines as a cascade, which samples as any other.

    Args:
        device: where the engines run; by default the GPU, if there is one that they can use.

    Raises:
        UserError: it is no bundle or not whole, or an engine or the text encoder cannot run so.
    """
    bundle, options = Bundle.open(folder), options or BundleOptions()
    return bundle.cascade(
        options.subject,
        device or engine_class(options.engine or bundle.manifest.engine).default_device(),
        engine=options.engine,
        options=options,
        max_memory=None if options.max_memory is None else options.max_memory * 10**6,
        embeddings=embeddings,
        encoder_mode=encoder_mode,
    )
