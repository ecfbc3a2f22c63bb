"""Every field of the official client is taken or refused, and none is ours by another meaning."""

from typing import Any, get_type_hints

import pytest
from openai.types.image_generate_params import (
    ImageGenerateParamsNonStreaming,
    ImageGenerateParamsStreaming,
)
from pydantic import ValidationError

from cascade.serve.images import REFUSED, ImageRequest

EXTENSIONS = {
    "guidance_interval",
    "guidance_scale",
    "negative_prompt",
    "noise_level",
    "num_inference_steps",
    "sampler",
    "seed",
}


def test_the_fields_are_the_clients_and_the_extensions() -> None:
    theirs = get_type_hints(ImageGenerateParamsNonStreaming)
    theirs |= get_type_hints(ImageGenerateParamsStreaming)
    assert set(ImageRequest.model_fields) == set(theirs) | EXTENSIONS
    assert set(theirs) & EXTENSIONS == set()
    assert set(REFUSED) < set(theirs)


@pytest.mark.parametrize("field", sorted(set(ImageRequest.model_fields) - {"prompt"}))
def test_null_is_the_same_as_nothing(field: str) -> None:
    asked = ImageRequest.model_validate({"prompt": "a dog", field: None})
    assert asked == ImageRequest.model_validate({"prompt": "a dog"})


@pytest.mark.parametrize("field", sorted(REFUSED))
@pytest.mark.parametrize("value", [1, "x", {}, False])
def test_a_refused_field_takes_no_value(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        ImageRequest.model_validate({"prompt": "a dog", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 0),
        ("n", 1.0),
        ("n", True),
        ("n", "1"),
        ("n", 10**30),
        ("stream", 1),
        ("seed", 0.5),
        ("prompt", 3),
        ("prompt", "\ud800"),
        ("guidance_scale", float("nan")),
        ("guidance_scale", {"base16": float("inf")}),
        ("guidance_interval", [2.0, 1.0]),
        ("num_inference_steps", {"base16": 0}),
        ("noise_level", 1.5),
        ("sampler", "euler"),
    ],
)
def test_a_value_of_another_kind_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        ImageRequest.model_validate({"prompt": "a dog", field: value})
