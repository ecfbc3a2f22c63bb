"""Flags that several commands take: of text, of LoRA files, of bundles."""

from pathlib import Path
from typing import Annotated, Final, get_args

import typer

from cascade.cli import values
from cascade.cli.options import Flag
from cascade.config.encoder import EncoderModeName, encoder_mode
from cascade.config.engine import BundleOptions
from cascade.errors import UserError

_TEXT, _LORA, _BUNDLES = "Text", "LoRA", "Bundles"

ENCODER_MODE: Final = Flag(
    "encoder_mode",
    ("encoder_mode",),
    _TEXT,
    parser=encoder_mode,
    metavar=f"[{'|'.join(get_args(EncoderModeName))}]",
)
TEXT_FLAGS: Final = (
    Flag("embeddings", ("embeddings",), _TEXT, parser=values.folder, metavar="FOLDER"),
    ENCODER_MODE,
)
CopyTextEncoder = Annotated[
    bool,
    typer.Option(
        "--copy-text-encoder/--refer-to-text-encoder",
        help="Copy the encoder too (T5-XXL: up to 19 GB), or use it where it is.",
    ),
]

GUIDANCE_INTERVAL: Final = Flag(
    "guidance_interval", ("guidance_interval",), kind=str, metavar="LOW,HIGH"
)
LORA_FLAGS: Final = (
    Flag("lora", ("lora",), _LORA, metavar="FILE"),
    Flag("lora_scale", ("lora_scale",), _LORA),
    Flag("lora_unet_only", ("lora_unet_only",), _LORA, names=("--lora-unet-only",)),
)

THREAD_FLAGS: Final = (
    Flag("threads", ("engines.threads",), _BUNDLES),
    Flag("spinning", ("engines.spinning",), _BUNDLES),
)
_ENGINE_FLAGS: Final = (
    Flag("subject", ("engines.subject",), _BUNDLES, parser=values.name, metavar="NAME"),
    Flag("engine", ("engines.engine",), _BUNDLES, parser=values.name, metavar="NAME"),
    *THREAD_FLAGS,
    Flag("compile", ("engines.compiled",), _BUNDLES, names=("--compile",)),
    Flag("max_memory", ("engines.max_memory",), _BUNDLES),
)
BUNDLE_FLAGS: Final = (
    Flag("bundle", ("bundle",), _BUNDLES, parser=values.folder, metavar="FOLDER"),
    *_ENGINE_FLAGS,
)

BundleArgument = Annotated[
    Path | None,
    typer.Argument(parser=values.folder, metavar="BUNDLE", help="An exported cascade."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", parser=values.folder, metavar="FOLDER", help="The same as BUNDLE."),
]


def refuse_without_bundle(options: BundleOptions) -> None:
    """Refuse flags that only a bundle has a use for."""
    for flag in _ENGINE_FLAGS:
        name = flag.paths[0].removeprefix("engines.")
        if getattr(options, name) != BundleOptions.model_fields[name].default:
            spelt = flag.spelt if name != "spinning" else "--no-spinning"
            raise UserError(f"{spelt} belongs to a bundle; give --bundle too.")
