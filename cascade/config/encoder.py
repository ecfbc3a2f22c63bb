"""How commands hold the text encoder."""

from typing import Annotated, Final, Literal, TypeAlias, cast, get_args

from pydantic import BeforeValidator

from cascade.errors import UserError

EncoderModeName = Literal["auto", "float32", "bfloat16", "int8", "layerwise"]
_MODES: Final = get_args(EncoderModeName)


def encoder_mode(value: object) -> EncoderModeName:
    """Check the name of a mode; see `cascade.text.modes`.

    Raises:
        UserError: there is no such mode; float16 is told why.
    """
    if isinstance(value, str) and value in _MODES:
        return cast(EncoderModeName, value)
    reason = ", since T5 overflows in float16 and returns NaN" if "16" in str(value) else ""
    raise UserError(
        f"The text encoder cannot be held in '{value}'{reason}; take one of {', '.join(_MODES)}."
    )


EncoderMode: TypeAlias = Annotated[EncoderModeName, BeforeValidator(encoder_mode)]
