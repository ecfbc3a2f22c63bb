"""Settings of `cascade embed`."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from cascade.config.base import Frozen, Rows
from cascade.config.encoder import EncoderMode
from cascade.config.stage import TextConfig


class EmbedConfig(Frozen):
    """Captions to embed, by which encoder and conventions, and the store that gets them."""

    output: Path = Field(description="folder of the store")
    encoder: Path | None = Field(default=None, description="folder of a T5 encoder")
    cascade: str | None = Field(
        default=None, description="a cascade, for its encoder and conventions, instead"
    )
    captions: tuple[Path, ...] = Field(
        default=(),
        description="a text file, a caption per line; a .jsonl file; or a folder with "
        "captions.jsonl; may be repeated",
    )
    caption: tuple[str, ...] = Field(default=(), description="one caption; may be repeated")
    data: tuple[str, ...] = Field(
        default=(),
        description="a pack, a folder or an address, whose captions are embedded beside its "
        "pictures; may be repeated",
    )
    prefix: str = Field(default="", description="text to put before every caption of the packs")
    cache: Path | None = Field(
        default=None,
        description="gets what is fetched of packs at an address; the user's cache if left out",
    )
    text: TextConfig | None = Field(
        default=None, description="conventions, with an encoder; a cascade has its own"
    )
    encoder_mode: EncoderMode = "auto"
    batch_size: Rows = Field(default=32, description="captions embedded at once")
    shard: str | None = Field(
        default=None,
        description="do the I-th of N shares of the captions, and of the packs' shards; torchrun's "
        "own if left out",
    )
    shard_size: Annotated[int, Field(strict=True, gt=0, le=2**20)] = Field(
        default=256, description="size of the store's files, MiB"
    )
    device: str | None = Field(
        default=None, description="where the encoder runs: cpu, cuda, ...; the GPU if there is one"
    )

    @model_validator(mode="after")
    def _has_work(self) -> Self:
        if not self.captions and not self.caption and not self.data:
            raise ValueError("there is nothing to embed; give captions, a caption, or packed data")
        if self.prefix and not self.data:
            raise ValueError("a prefix is for the captions of packs; give data, or leave it out")
        if (self.encoder is None) == (self.cascade is None):
            raise ValueError(
                "the encoder comes from a folder or from a cascade; give one of the two"
            )
        if self.cascade is not None and self.text is not None:
            raise ValueError(
                "a cascade has its own conventions; leave out the settings of the text"
            )
        return self
