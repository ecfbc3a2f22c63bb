"""Settings of the text encoder."""

from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, cast, get_args

from pydantic import BeforeValidator, Field

from cascade.errors import UserError

LoadedMode = Literal["float32", "bfloat16", "int8", "layerwise"]
EncoderModeName = Literal["auto", LoadedMode]
"""`int8` keeps the linear layers' weights in 8 bits with a scale per row and computes in bfloat16;
`layerwise` computes in float32 and holds one block of layers at a time, read from disk for every
batch: large batches make it bearable. `auto` is `cascade.text.encoder.choose_mode`."""

_MODES: Final = get_args(EncoderModeName)


def encoder_mode(value: object) -> EncoderModeName:
    """Check the name of a mode.

    Raises:
        UserError: there is no such mode; for float16 it says why.
    """
    if isinstance(value, str) and value in _MODES:
        return cast(EncoderModeName, value)
    # The feed-forward activations of T5 v1.1 exceed 65504, float16's largest number.
    reason = ", since T5 overflows in float16 and returns NaN" if "16" in str(value) else ""
    raise UserError(
        f"The text encoder cannot be held in '{value}'{reason}; take one of {', '.join(_MODES)}."
    )


EncoderMode: TypeAlias = Annotated[
    EncoderModeName,
    BeforeValidator(encoder_mode),
    Field(
        description="how the text encoder is held: auto takes the most exact that fits into half "
        "of the memory; layerwise reads one block at a time from disk"
    ),
]
Embeddings: TypeAlias = Annotated[
    Path | None,
    Field(description="a store made by 'cascade embed', used instead of the text encoder"),
]
