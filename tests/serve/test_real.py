"""The server over real networks: the bits of `cascade sample`, and nothing left behind."""

import base64
import io
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from PIL import Image

from cascade.config.sample import SampleOptions
from cascade.config.serve import BatchConfig, LimitConfig, ServeConfig
from cascade.pipeline import Cascade
from cascade.serve.app import create_app
from cascade.serve.folder import CascadeFolder
from cascade.serve.metrics import Metrics
from cascade.serve.models import Models
from cascade.serve.scheduler import Scheduler


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def scheduler(tiny_cascade: Path, metrics: Metrics) -> Scheduler:
    models = Models({"tiny": CascadeFolder(tiny_cascade, "cpu")})
    return Scheduler(models, BatchConfig(), LimitConfig(), metrics)


@pytest.fixture
def client(scheduler: Scheduler, run: Callable[..., Any]) -> Iterator[OpenAI]:
    app = create_app(scheduler._models, scheduler, ServeConfig())
    with run(app) as url, OpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as client:
        yield client


def _pixels(file: str | None) -> bytes:
    assert file is not None
    return Image.open(io.BytesIO(base64.b64decode(file))).tobytes()


def test_a_served_picture_is_the_one_that_is_sampled(client: OpenAI, tiny_cascade: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    options = SampleOptions(steps=2, batch_size=1)
    wanted = cascade.sample("a dog", seeds=[3, 4, 5], options=options).images

    def asks(seed: int) -> bytes:
        drawn = client.images.generate(
            model="tiny", prompt="a dog", extra_body={"seed": seed, "num_inference_steps": 2}
        )
        assert drawn.data is not None
        return _pixels(drawn.data[0].b64_json)

    with ThreadPoolExecutor(3) as clients:
        assert list(clients.map(asks, (3, 4, 5))) == [picture.tobytes() for picture in wanted]


def test_previews_come_from_the_stages_and_nothing_stays_in_the_queue(
    client: OpenAI, scheduler: Scheduler
) -> None:
    events = list(
        client.images.generate(model="tiny", prompt="a dog", stream=True, partial_images=3)
    )
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * 3 + ["image_generation.completed"]
    assert [event.size for event in events][-1] == "32x32"
    assert scheduler.counts().idle


def test_a_client_that_leaves_frees_its_place(
    client: OpenAI, scheduler: Scheduler, metrics: Metrics
) -> None:
    with pytest.raises(openai.APITimeoutError):
        client.images.generate(
            model="tiny",
            prompt="a dog",
            n=10,
            timeout=0.2,
            extra_body={"num_inference_steps": 250, "guidance_scale": 3.0},
        )
    ended = {"model": "tiny", "outcome": "cancelled"}
    for _ in range(1000):
        if metrics.registry.get_sample_value("cascade_requests_total", ended):
            break
        time.sleep(0.01)
    else:
        pytest.fail("it goes on")
    assert scheduler.counts().idle
