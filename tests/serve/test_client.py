"""The official client, against a server on loopback."""

import base64
import io
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import ImageGenCompletedEvent, ImageGenPartialImageEvent
from PIL import Image

from cascade.errors import UserError
from cascade.serve.ticket import Busy, TooLate


@pytest.fixture
def served(serve: Callable[..., Any]) -> Iterator[Any]:
    with serve() as running:
        yield running


@pytest.fixture
def client(served: Any) -> OpenAI:
    return served.client()


def _opened(file: str | None) -> Image.Image:
    assert file is not None
    return Image.open(io.BytesIO(base64.b64decode(file)))


def test_a_picture_comes_with_what_it_was_made_of(client: OpenAI, served: Any) -> None:
    drawn = client.images.generate(model="tiny", prompt="a dog", extra_body={"seed": 5})
    assert (drawn.size, drawn.output_format, drawn.background) == ("32x32", "png", "opaque")
    assert drawn.data is not None
    picture = _opened(drawn.data[0].b64_json)
    assert picture.tobytes() == served.picture(5).tobytes()
    assert {name: picture.text[name] for name in ("prompt", "seed", "cascade")} == {
        "prompt": "a dog",
        "seed": "5",
        "cascade": "tiny",
    }
    assert drawn.model_extra == {"model": "tiny", "seeds": [5], "exact": True}


def test_pictures_of_a_request_have_seeds_that_count_up(client: OpenAI, served: Any) -> None:
    drawn = client.images.generate(model="tiny", prompt="a dog", n=3, extra_body={"seed": 7})
    assert drawn.data is not None
    files = [_opened(image.b64_json).tobytes() for image in drawn.data]
    assert files == [served.picture(seed).tobytes() for seed in (7, 8, 9)]


def test_a_seed_that_is_not_given_is_told_and_draws_the_same_again(client: OpenAI) -> None:
    first = client.images.generate(model="tiny", prompt="a dog")
    assert first.model_extra is not None
    (seed,) = first.model_extra["seeds"]
    again = client.images.generate(model="tiny", prompt="a dog", extra_body={"seed": seed})
    assert first.data == again.data


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_other_formats_are_smaller_at_a_lower_quality_and_have_notes(
    client: OpenAI, kind: Any
) -> None:
    sizes = []
    for quality in (100, 20):
        drawn = client.images.generate(
            model="tiny",
            prompt="a dog " + "on a beach " * 2000,
            output_format=kind,
            output_compression=quality,
            extra_body={"seed": 1},
        )
        assert drawn.data is not None
        picture = _opened(drawn.data[0].b64_json)
        assert (picture.format, drawn.output_format) == (kind.upper(), kind)
        assert '"seed": "1"' in picture.getexif()[0x010E]
        sizes.append(len(drawn.data[0].b64_json or ""))
    assert sizes[1] < sizes[0]


def test_an_earlier_stage_is_a_size(client: OpenAI, served: Any) -> None:
    drawn = client.images.generate(
        model="tiny", prompt="a dog", size="16x16", extra_body={"seed": 2}
    )
    assert drawn.size == "16x16"
    assert drawn.data is not None
    assert _opened(drawn.data[0].b64_json).tobytes() == served.picture(2, 16).tobytes()


@pytest.mark.parametrize("size", ["44x24", "22x12"])
def test_a_shape_that_a_stage_makes_is_a_size(client: OpenAI, served: Any, size: str) -> None:
    drawn = client.images.generate(model="tiny", prompt="a dog", size=size)
    assert drawn.data is not None
    picture = _opened(drawn.data[0].b64_json)
    assert drawn.size == "{}x{}".format(*picture.size) == size
    assert picture.text["aspect"] == "11:6"


def test_a_size_that_no_stage_makes_is_told_the_nearest(client: OpenAI) -> None:
    with pytest.raises(
        openai.BadRequestError, match="16x16, 32x32, and in this shape 22x12, 44x24"
    ):
        client.images.generate(model="tiny", prompt="a dog", size="1536x768")
    with pytest.raises(openai.BadRequestError, match="16x16, 32x32; or take auto"):
        client.images.generate(model="tiny", prompt="a dog", size="900x100")


def test_what_is_asked_stage_by_stage_is_what_is_drawn(client: OpenAI, served: Any) -> None:
    client.images.generate(
        model="tiny",
        prompt="a dog",
        extra_body={
            "num_inference_steps": {"base16": 7, "sr32": 1},
            "guidance_scale": 2.5,
            "guidance_interval": [0.5, 50.0],
            "sampler": {"sr32": "ddim"},
            "noise_level": {"sr32": 0.25},
            "negative_prompt": "a cat",
        },
    )
    base, last = served.scheduler.orders[-1].request.settings
    assert (base.sampler.steps, base.sampler.guidance) == (7, 2.5)
    assert base.sampler.guidance_interval == (0.5, 50.0)
    assert (last.sampler.steps, last.sampler.name, last.level.value) == (1, "ddim", 0.25)
    assert served.scheduler.orders[-1].request.negatives == ("a cat",)


def test_an_empty_table_of_stages_asks_nothing(client: OpenAI, served: Any) -> None:
    fields = ("num_inference_steps", "guidance_scale", "guidance_interval", "sampler")
    nothing: dict[str, object] = {field: {} for field in (*fields, "noise_level")}
    for more in ({}, nothing):
        client.images.generate(model="tiny", prompt="a dog", extra_body={"seed": 1, **more})
    first, second = served.scheduler.orders
    assert first.request == second.request


def test_a_stream_has_previews_and_then_the_picture(client: OpenAI, served: Any) -> None:
    events = list(
        client.images.generate(
            model="tiny", prompt="a dog", stream=True, partial_images=2, extra_body={"seed": 3}
        )
    )
    previews, last = events[:-1], events[-1]
    assert all(isinstance(event, ImageGenPartialImageEvent) for event in previews)
    assert [event.partial_image_index for event in previews] == [0, 1]
    assert {event.size for event in previews} == {"16x16"}
    assert isinstance(last, ImageGenCompletedEvent)
    assert _opened(last.b64_json).tobytes() == served.picture(3).tobytes()
    assert (last.size, last.quality, last.usage.total_tokens) == ("32x32", "auto", 0)


def test_every_field_that_events_have_by_the_clients_types_is_there(client: OpenAI) -> None:
    for event in client.images.generate(
        model="tiny", prompt="a dog", stream=True, partial_images=1
    ):
        type(event).model_validate(event.model_dump())


def test_an_error_within_a_stream_is_raised(client: OpenAI, served: Any) -> None:
    served.scheduler.fails = RuntimeError("a secret of the server's")
    with pytest.raises(openai.APIError) as told:
        list(client.images.generate(model="tiny", prompt="a dog", stream=True))
    assert told.value.code == "internal_error"
    assert "secret" not in str(told.value)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:dog"]
    assert client.models.retrieve("tiny:dog").owned_by == "dreamcascade"
    with pytest.raises(openai.NotFoundError) as told:
        client.models.retrieve("huge")
    assert told.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"n": 11}, "n"),
        ({"n": 2, "stream": True}, "n"),
        ({"size": "48x48"}, "size"),
        ({"size": "32"}, "size"),
        ({"output_format": "gif"}, "output_format"),
        ({"output_compression": 50}, "output_compression"),
        ({"response_format": "url"}, "response_format"),
        ({"partial_images": 4}, "partial_images"),
        ({"partial_images": 1}, "partial_images"),
        ({"quality": "high"}, "quality"),
        ({"background": "transparent"}, "background"),
        ({"style": "vivid"}, "style"),
        ({"extra_body": {"size_of_it": 3}}, "size_of_it"),
        ({"extra_body": {"num_inference_steps": 251}}, "num_inference_steps"),
        ({"extra_body": {"num_inference_steps": {"sr32": 251}}}, "num_inference_steps"),
        ({"extra_body": {"guidance_scale": {"sr64": 2.0}}}, "guidance_scale"),
        ({"extra_body": {"noise_level": 2.0}}, "noise_level"),
        ({"extra_body": {"seed": 2**64}}, "seed"),
        ({"extra_body": {"seed": 2**64 - 1}, "n": 2}, "seed"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 32_001}, "prompt"),
    ],
)
def test_a_mistake_names_its_field(client: OpenAI, served: Any, asked: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as told:
        client.images.generate(**{"model": "tiny", "prompt": "a dog", **asked})
    assert told.value.param == param
    assert told.value.type == "invalid_request_error"
    assert served.scheduler.orders == []


def test_a_mistake_that_the_settings_find_is_told(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="negative prompt does nothing"):
        client.images.generate(
            model="tiny",
            prompt="a dog",
            extra_body={"negative_prompt": "a cat", "guidance_scale": 1.0},
        )


def test_a_model_that_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as told:
        client.images.generate(model="gpt-image-2", prompt="a dog")
    assert (told.value.code, told.value.param) == ("model_not_found", "model")


def test_pictures_are_not_edited(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="change none"):
        client.images.edit(model="tiny", prompt="a dog", image=b"png")


def test_a_full_queue_says_when_to_come_again(client: OpenAI, served: Any) -> None:
    served.scheduler.refuses = Busy(2.5)
    with pytest.raises(openai.InternalServerError) as told:
        client.images.generate(model="tiny", prompt="a dog")
    assert (told.value.status_code, told.value.response.headers["retry-after"]) == (503, "3")
    served.scheduler.refuses = Busy(0.2, of_client=True)
    with pytest.raises(openai.RateLimitError) as limited:
        client.images.generate(model="tiny", prompt="a dog")
    assert limited.value.response.headers["retry-after"] == "1"


def test_the_client_comes_again_by_itself_when_the_queue_was_full(served: Any) -> None:
    served.scheduler.refuses = Busy(0.1)
    with pytest.raises(openai.InternalServerError):
        served.client(max_retries=1).images.generate(model="tiny", prompt="a dog")
    read = served.client().get("/../metrics", cast_to=str)
    assert 'cascade_refused_total{reason="server_busy"} 2.0' in read


@pytest.mark.parametrize(
    ("error", "status"),
    [(TooLate(), 504), (RuntimeError("why"), 500), (UserError("/a/path is damaged"), 500)],
)
def test_expensive_work_is_not_repeated_unasked(served: Any, error: Exception, status: int) -> None:
    served.scheduler.fails = error
    with pytest.raises(openai.InternalServerError) as told:
        served.client(max_retries=2).images.generate(model="tiny", prompt="a dog")
    assert told.value.status_code == status
    assert len(served.scheduler.orders) == 1
    assert "path" not in str(told.value)


def test_a_damaged_model_is_the_servers_fault_and_tells_no_path(client: Any, served: Any) -> None:
    served.models.damage = UserError("/a/path/config.json is damaged.")
    with pytest.raises(openai.InternalServerError) as told:
        client.images.generate(model="tiny", prompt="a dog")
    assert "path" not in str(told.value)


def test_a_request_that_is_late_is_given_up(serve: Callable[..., Any]) -> None:
    with serve(limits={"seconds": 0.2}) as served:
        served.scheduler.go.clear()
        with pytest.raises(openai.InternalServerError) as told:
            served.client().images.generate(model="tiny", prompt="a dog")
        assert told.value.code == "deadline_exceeded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_drawing(served: Any, stream: bool) -> None:
    served.scheduler.go.clear()
    impatient = served.client(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):
        list(impatient.images.generate(model="tiny", prompt="a dog", stream=stream))
    impatient.close()
    assert served.idle()
    assert served.scheduler.steps == 0


def test_a_body_that_is_too_large_is_refused(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as told:
        client.images.generate(model="tiny", prompt="x" * 2**20)
    assert (told.value.status_code, told.value.code) == (413, "body_too_large")


def test_requests_have_ids(client: OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        model="tiny", prompt="a dog", extra_headers={"x-request-id": "mine-1"}
    )
    assert raw.headers["x-request-id"] == "mine-1"
    with pytest.raises(openai.NotFoundError) as told:
        client.images.generate(
            model="huge", prompt="a dog", extra_headers={"x-request-id": "not {harmless}"}
        )
    assert len(told.value.request_id or "") == 32
