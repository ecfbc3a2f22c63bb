"""`cascade bench serve`: what became of requests is told right, and servers are real ones."""

import asyncio
import base64
import io
import json
import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade.config.folders import read_stage_config
from cascade.config.serve import KeysConfig
from cascade.config.stage import SamplerConfig
from cascade.diffusion.noise import Noise
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.results import Result
from cascade_bench.serve import counters
from cascade_bench.serve.against import late_guidance, naive_program
from cascade_bench.serve.command import bench_serve
from cascade_bench.serve.load import (
    Answer,
    Clients,
    Shot,
    closed_loop,
    open_loop,
    poisson,
)
from cascade_bench.serve.loads import Bench
from cascade_bench.serve.mixture import admission, job
from cascade_bench.serve.process import Server, ended_by_signal, serving, write_keys
from cascade_bench.serve.records import Load, Steadiness, percentile
from cascade_bench.settings import ServeBenchConfig

Command = Callable[..., Any]
Handler = Callable[[Any], Coroutine[None, None, Any]]
PATIENCE = 60.0


def png(colour: str = "red", note: str = "") -> bytes:
    info = PngInfo()
    info.add_text("note", note)
    file = io.BytesIO()
    Image.new("RGB", (4, 4), colour).save(file, format="PNG", pnginfo=info)
    return file.getvalue()


def drawn(number: int = 1, **headers: str) -> Any:
    one = {"b64_json": base64.b64encode(png()).decode()}
    return httpx2.Response(200, json={"data": [one] * number}, headers=headers)


def streamed(*events: tuple[str, dict[str, Any]]) -> Any:
    lines = "".join(f"event: {name}\ndata: {json.dumps(told)}\n\n" for name, told in events)
    return httpx2.Response(200, text=f": ping\n\n{lines}")


COMPLETED = (
    "image_generation.completed",
    {"b64_json": base64.b64encode(png()).decode()},
)
SHOT = Shot(0.0, 0, "a dog", 3)


def asked(
    handler: Handler,
    *shots: Shot,
    patience: float = PATIENCE,
    retries: int = 0,
    sending: Any = open_loop,
) -> Any:
    """Send requests to a server that is a function."""

    async def sent() -> list[Answer]:
        transport = httpx2.MockTransport(handler)
        async with httpx2.AsyncClient(base_url="http://here", transport=transport) as http:
            found: list[Answer] = await sending(
                Clients(http, ["one", "two"], patience, retries), shots
            )
            return found

    return asyncio.run(sent())


def answering(response: Any) -> Handler:
    async def handler(request: Any) -> Any:
        if isinstance(response, Exception):
            raise response
        return response

    return handler


async def never(request: Any) -> Any:
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (drawn(), "drawn"),
        (drawn(2), "failed"),  # two pictures where one was asked for
        (httpx2.Response(429, headers={"retry-after": "3"}), "refused"),
        (httpx2.Response(503, headers={"retry-after": "3"}), "refused"),
        (httpx2.Response(504), "late"),
        (httpx2.Response(500), "failed"),
        (httpx2.Response(200, text="no JSON"), "failed"),
        (httpx2.Response(200, json={}), "failed"),
        (httpx2.Response(429, headers={"retry-after": "tomorrow"}), "failed"),
        (httpx2.RemoteProtocolError("closed"), "cut"),
    ],
)
def test_what_became_of_a_request_is_told(response: Any, outcome: str) -> None:
    (answer,) = asked(answering(response), SHOT)
    assert answer.outcome == outcome
    assert bool(answer.told) == (outcome != "drawn")


@pytest.mark.parametrize(
    ("events", "outcome"),
    [
        ([("image_generation.partial_image", {"b64_json": ""}), COMPLETED], "drawn"),
        ([], "cut"),
        ([("error", {"error": {"code": "deadline_exceeded"}})], "late"),
        ([("error", {"error": {"code": "internal_error"}})], "failed"),
    ],
)
def test_a_stream_ends_with_a_picture_or_is_none(events: Any, outcome: str) -> None:
    (answer,) = asked(answering(streamed(*events)), replace(SHOT, streamed=True))
    assert answer.outcome == outcome


def test_who_gets_no_answer_is_lost_and_who_leaves_is_not() -> None:
    lost, left = asked(never, SHOT, replace(SHOT, leaves=0.01), patience=0.1)
    assert (lost.outcome, left.outcome) == ("lost", "left")
    assert lost.seconds > 0.1


def test_a_picture_that_comes_after_the_patience_is_late() -> None:
    async def slow(request: Any) -> Any:
        await asyncio.sleep(1.1)
        return drawn()

    (answer,) = asked(slow, SHOT, patience=1.0)
    assert answer.outcome == "late"


def test_a_refusal_that_does_not_say_when_to_come_again_is_noted() -> None:
    answers = asked(answering(httpx2.Response(503)), SHOT)
    assert [answer.advised for answer in answers] == [False]


def test_a_client_comes_again_as_often_as_wanted_and_when_it_was_told_to() -> None:
    times: list[float] = []

    async def third(request: Any) -> Any:
        times.append(time.monotonic())
        wait = {"retry-after": "0.1"}
        return drawn() if len(times) == 3 else httpx2.Response(429, headers=wait)

    (answer,) = asked(third, SHOT, retries=2)
    assert answer.outcome == "drawn"
    assert times[1] - times[0] >= 0.1
    assert answer.seconds >= 0.2  # from the first time on
    times.clear()
    (answer,) = asked(third, SHOT, retries=1)
    assert (answer.outcome, len(times)) == ("refused", 2)


def test_a_slow_server_does_not_slow_the_arrivals() -> None:
    arrived = 0

    async def answering_last(request: Any) -> Any:
        nonlocal arrived
        arrived += 1
        while arrived < 10:
            await asyncio.sleep(0.01)
        return drawn()

    answers = asked(answering_last, *(replace(SHOT, at=0.02 * place) for place in range(10)))
    assert [answer.outcome for answer in answers] == ["drawn"] * 10


def test_a_client_of_a_closed_loop_waits_for_its_answer() -> None:
    at_once = most = 0

    async def counting(request: Any) -> Any:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.01)
        at_once -= 1
        return drawn()

    answers = asked(counting, *[SHOT] * 6, sending=closed_loop)
    assert [answer.outcome for answer in answers] == ["drawn"] * 6
    assert most == 2  # clients


def test_each_client_sends_its_own_key() -> None:
    seen: list[tuple[str, Any]] = []

    async def noting(request: Any) -> Any:
        seen.append((request.headers["authorization"], json.loads(request.content)))
        return drawn()

    asked(noting, SHOT, replace(SHOT, client=1, asked={"model": "m"}))
    body = {"prompt": "a dog", "seed": 3, "n": 1}
    assert sorted(seen, key=str) == [("Bearer one", body), ("Bearer two", body | {"model": "m"})]


def test_arrivals_are_those_of_their_seed_and_rate() -> None:
    first, again, other = (poisson(50.0, 20.0, seed, 4, {}) for seed in (1, 1, 2))
    assert first == again != other
    times = [shot.at for shot in first]
    assert times == sorted(times)
    assert times[-1] < 20
    assert len(first) == 1000
    # Gaps of a Poisson process are exponential, whose deviation is its mean; 1000 tell it to 5 %.
    gaps = [after - before for before, after in pairwise(times)]
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.2)
    assert len(poisson(0.01, 20.0, 1, 4, {})) == 1
    assert {shot.client for shot in first} == {0, 1, 2, 3}


def test_pictures_are_compared_by_their_pixels(tmp_path: Path) -> None:
    bench = Bench(ServeBenchConfig(), tmp_path, {})
    first = Answer(SHOT, "drawn", pictures=(png(note="at noon"),))
    same = Answer(SHOT, "drawn", pictures=(png(note="later"),))
    other = Answer(SHOT, "drawn", pictures=(png("blue"),))
    # The second picture of a request is that of the next seed.
    two = Answer(replace(SHOT, seed=2, pictures=2), "drawn", pictures=(png("blue"), png()))
    assert bench.different([first, same, two]) == 0
    assert bench.different([other]) == 1
    assert bench.different([replace(other, shot=replace(SHOT, asked={"steps": 1}))]) == 0


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 95, 99)] == [50.0, 95.0, 99.0]
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) is None


def test_memory_that_grows_is_seen() -> None:
    flat = Steadiness.of([(float(second), 100) for second in range(40)])
    grown = Steadiness.of([(float(second), 100 + second) for second in range(40)])
    assert flat == Steadiness(before=100, after=100)
    assert grown is not None
    assert grown.after - grown.before == 20
    assert Steadiness.of([(0.0, 100)] * 3) is None


def test_what_is_drawn_counts_over_the_time_to_the_last_answer() -> None:
    load = Load(
        asked=2.0,
        seconds=5.0,
        pictures=10,
        outcomes={"drawn": 10, "cut": 1, "lost": 2, "refused": 3},
        latencies=(1.0,) * 10,
        lag=0.0,
        unadvised=0,
        different=0,
        memory=(),
        left_over={},
        told=(),
    )
    assert (load.rate, load.unanswered) == (2.0, 3)


def test_fast_has_guidance_in_the_first_half_of_the_steps(tiny_cascade: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    configs = [read_stage_config(tiny_cascade / name) for name in ("base16", "sr32")]
    fields = late_guidance(configs, 8)["guidance_interval"]
    assert set(fields) == {"base16"}  # the other one has no guidance
    stage = cascade.stages[0]
    sampler = SamplerConfig.parse(
        stage.config.sampler.values_with(
            {"steps": 8, "guidance_interval": tuple(fields["base16"])}
        ),
        "here",
    )
    table = cascade.prompts(["a dog"])
    drawing = stage.begin(
        table.rows(["a dog"]), table.rows([None]), Noise([0]), None, sampler, None
    )
    rows: list[int] = []
    while not drawing.done:
        rows.append(drawing.rows)
        query = drawing.ask()
        with torch.no_grad():
            drawing.answer(drawing.denoise.denoiser.predict(*query))
    assert rows == [2, 2, 2, 2, 1, 1, 1, 1]


def test_keys_are_those_that_the_server_reads(tmp_path: Path) -> None:
    keys = write_keys(2, tmp_path / "keys.toml")
    read = KeysConfig.read(tmp_path / "keys.toml").keys
    assert len(set(keys)) == 3
    assert [key.admin for key in read] == [False, False, True]


FIGURES = """# TYPE cascade_pictures_waiting gauge
cascade_pictures_waiting{model="bench"} 2.0
# TYPE cascade_pictures_drawing gauge
cascade_pictures_drawing{model="bench"} 0.0
# TYPE cascade_clients gauge
cascade_clients 1.0
# TYPE cascade_http_streams gauge
cascade_http_streams 0.0
"""


def test_what_a_server_still_counts_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("ours", "http://here", ["client", "admin"], None, Path("log"))  # type: ignore[arg-type]
    answers = [FIGURES] * 3

    def get(url: str, headers: dict[str, str], trust_env: bool) -> Any:
        assert (url, headers) == ("http://here/metrics", {"authorization": "Bearer admin"})
        return httpx2.Response(200, text=answers.pop(0))

    monkeypatch.setattr(httpx2, "get", get)
    monkeypatch.setattr(counters, "_SOON", 0.0)
    assert counters.left_over(server) == {
        "cascade_pictures_waiting": 2.0,
        "cascade_clients": 1.0,
    }
    monkeypatch.setattr(counters, "_SOON", 60.0)
    answers[:] = [FIGURES, FIGURES.replace("2.0", "0.0").replace("1.0", "0.0")]
    assert counters.left_over(server) == {}  # it had not noticed at once
    answers[:] = ["# nothing\n"]
    with pytest.raises(UserError, match="tells no cascade_pictures_waiting"):
        counters.left_over(server)


def test_a_job_tells_when_it_is_begun() -> None:
    async def handler(request: Any) -> Any:
        if request.method == "POST":
            return httpx2.Response(202, json={"id": "j"}, headers={"location": "/v1/jobs/j"})
        assert request.url.path == "/v1/jobs/j/events"
        return httpx2.Response(200, stream=Slowly())

    class Slowly(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            for name in ("started", "progress", "completed"):
                yield f"event: image.job.{name}\ndata: {{}}\n\n".encode()
                await asyncio.sleep(0.05)

    async def one(asking: Clients, shots: Any) -> Any:
        return await job(asking, shots[0])

    answer = asked(handler, SHOT, sending=one)
    assert answer.outcome == "drawn"
    assert answer.begun + 0.1 <= answer.seconds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"against": "eager,litserve"}, "no list of eager, diffusers"),
        ({"against": "diffusers"}, "diffusers cannot express"),
        ({"options": ("limits.patience=3",)}, "patience"),
        ({"clients": 1}, "takes two clients"),
        ({"device": "abacus"}, "no device 'abacus'"),
    ],
)
def test_mistakes_are_told_before_a_server_is_started(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        bench_serve(ServeBenchConfig.model_validate(change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_compared_with_what_it_was_made_of(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no bundle"):
        bench_serve(ServeBenchConfig(bundle=tmp_path), tmp_path / "out")
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(UserError, match="give it as --cascade"):
        bench_serve(ServeBenchConfig(bundle=tmp_path), tmp_path / "out")


def test_its_flags_reach_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[Any] = []

    def bench(config: ServeBenchConfig, output: Path) -> Any:
        received.append((config, output))
        raise UserError("That is all.")

    monkeypatch.setattr("cascade_bench.serve.command.bench_serve", bench)
    flags = ("--parts", "load,soak", "--loads", "0.5,2", "--serve", "batch.rows=4")
    done = command("bench", "serve", *flags, "--seconds", "3", "--threads", "1")
    assert (done.status, done.err) == (2, "Error: That is all.\n")
    config = ServeBenchConfig(
        parts=("load", "soak"), loads=(0.5, 2.0), options=("batch.rows=4",), seconds=3.0, threads=1
    )
    assert received == [(config, Path("runs/bench"))]
    done = command("bench", "serve", "--loads", "0.5,much")
    assert done.status == 2
    assert "--loads" in done.err


@pytest.mark.dist
@pytest.mark.slow
def test_a_naive_server_draws_our_pictures_one_request_after_another(
    tiny_cascade: Path, tmp_path: Path
) -> None:
    config = ServeBenchConfig(steps=2, large=3, threads=1, clients=2)
    bench = Bench(config, tmp_path, {})
    with serving(naive_program(bench, "eager", tiny_cascade), tmp_path) as server:
        (answer,) = bench.send(server, [replace(SHOT, pictures=2)], open_loop)
        assert answer.outcome == "drawn"
        expected = Cascade.load(tiny_cascade).sample("a dog", [3, 4], steps=2).images
        found = [Image.open(io.BytesIO(picture)) for picture in answer.pictures]
        # Two threads may round otherwise than one: a grey level.
        for one, other in zip(found, expected, strict=True):
            difference = torch.tensor([*one.tobytes()]) - torch.tensor([*other.tobytes()])
            assert difference.abs().max() <= 1
        beside = admission(bench, server, jobs=False)
        assert beside.large is not None
        assert 0 <= beside.begun <= beside.done
        assert server.memory() > 2**20
        port = server.port
    assert server.process.poll() is not None
    with (
        pytest.raises(UserError, match="has ended"),
        serving(replace(naive_program(bench, "eager", tmp_path), name="broken"), tmp_path, port),
    ):
        pass


@pytest.mark.dist
@pytest.mark.slow
def test_a_server_is_loaded_left_and_ended_and_loses_nothing(
    tiny_cascade: Path, tmp_path: Path
) -> None:
    config = ServeBenchConfig(
        cascade=str(tiny_cascade),
        parts=("load", "soak", "against"),
        loads=(4.0,),
        seconds=2.0,
        clients=2,
        waiting=4,
        rounds=2,
        large=3,
        soak=4.0,
        leaving=0.5,
        threads=1,
    )
    result, told = bench_serve(config, tmp_path)
    assert Result.load(result.path(tmp_path / "serve")) == result
    assert len(told) == 5
    figures: Any = result.figures
    assert set(figures["load average"]) == set(config.parts)
    for one in (figures["capacity"], *figures["loads"], figures["soak"]):
        load = Load.model_validate(one)
        assert load.pictures > 0
        assert (load.unanswered, load.outcomes.get("failed", 0)) == (0, 0), load.told
        assert (load.different, load.unadvised, load.left_over) == (0, 0, {})
        assert load.memory
    assert Load.model_validate(figures["soak"]).outcomes["left"] > 0
    ended, killed = (figures["endings"][name] for name in ("SIGTERM", "SIGKILL"))
    assert (ended["status"], killed["status"]) == (0, -signal.SIGKILL)
    assert ended["outcomes"] == {"drawn": 2}
    again = figures["endings"]["restarted"]
    assert (again["outcome"], again["different"]) == ("drawn", 0)
    for found in figures["against"]["admissions"].values():
        assert all(0 <= one["begun"] <= one["done"] for one in found)
    for taken in (figures["against"]["seconds"], figures["against"]["processor"]):
        assert set(taken) == {"ours", "ours, fast", "eager"}
        # The processors' time is told in ticks, of which a tiny picture may take none.
        assert all(len(of) == 2 and min(of) >= 0 for of in taken.values())
    assert figures["against"]["distances"]["ours"] == 0


def test_a_bench_that_is_told_to_end_takes_its_servers_along() -> None:
    before, ended = signal.getsignal(signal.SIGTERM), []

    def bench() -> None:
        with ended_by_signal():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
            finally:
                ended.append("the servers")

    with pytest.raises(SystemExit) as told:
        bench()
    assert (told.value.code, ended) == (143, ["the servers"])
    assert signal.getsignal(signal.SIGTERM) is before
