"""Jobs: drawn whether or not anyone waits, told again from any event, and the same for one key."""

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from PIL import Image

from cascade.config.serve import JobConfig
from cascade.serve.jobs import Jobs

DRAW, JOBS = "/v1/images/generations", "/v1/jobs/images"
BODY = {"model": "tiny", "prompt": "a dog", "n": 2, "seed": 4}


@pytest.fixture
def served(serve: Callable[..., Any]) -> Iterator[Any]:
    with serve() as running:
        yield running


@pytest.fixture
def http(served: Any) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=served.url, timeout=30) as client:
        yield client


def _events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    """The events of a stream, each with its `id` where it has one."""
    number: str | None = None
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "id":
            number = value
        elif name == "data":
            yield {"number": number, **json.loads(value)}
            number = None


def _follow(http: httpx2.Client, id: str, after: int | None = None) -> list[dict[str, Any]]:
    headers = {} if after is None else {"last-event-id": str(after)}
    with http.stream("GET", f"/v1/jobs/{id}/events", headers=headers) as answer:
        return list(_events(answer.iter_lines()))


def _ended(http: httpx2.Client, id: str) -> dict[str, Any]:
    for _ in range(500):
        job: dict[str, Any] = http.get(f"/v1/jobs/{id}").json()
        if job["ended_at"] is not None:
            return job
        time.sleep(0.01)
    raise AssertionError("it does not end")


def test_a_job_is_taken_at_once_and_has_the_pictures_later(
    http: httpx2.Client, served: Any
) -> None:
    served.scheduler.go.clear()
    answer = http.post(JOBS, json=BODY)
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")
    assert http.get(answer.headers["location"]).json()["result"] is None
    served.scheduler.go.set()
    job = _ended(http, answer.json()["id"])
    assert (job["status"], job["seeds"], job["progress"]) == (
        "completed",
        [4, 5],
        {"done": 8, "of": 8},
    )
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(one["b64_json"]))) for one in job["result"]["data"]
    ]
    assert [one.tobytes() for one in pictures] == [served.picture(s).tobytes() for s in (4, 5)]


def test_events_tell_everything_and_go_on_where_a_tab_was_closed(
    http: httpx2.Client, served: Any
) -> None:
    served.scheduler.go.clear()
    id = http.post(JOBS, json=BODY | {"partial_images": 1}).json()["id"]
    with http.stream("GET", f"/v1/jobs/{id}/events") as answer:
        first = next(_events(answer.iter_lines()))
    assert first["type"] == "image.job.started"
    served.scheduler.go.set()
    kept = [e for e in _follow(http, id, int(first["number"])) if e["number"] is not None]
    assert _ended(http, id)["status"] == "completed"
    kinds = [event["type"].removeprefix("image.job.") for event in kept]
    assert [kind for kind in kinds if kind != "partial_image"] == ["image", "image", "completed"]
    assert [event["seed"] for event in kept if event["type"] == "image.job.image"] == [4, 5]
    numbers = [int(event["number"]) for event in kept]
    assert numbers == sorted(set(numbers))
    assert numbers[0] > int(first["number"])


def test_a_job_that_has_ended_tells_its_pictures_again_and_then_that_all_is_told(
    http: httpx2.Client,
) -> None:
    id = http.post(JOBS, json=BODY | {"partial_images": 2}).json()["id"]
    _ended(http, id)
    events = _follow(http, id)
    kinds = [event["type"].removeprefix("image.job.") for event in events]
    assert kinds == ["started", "image", "image", "completed"]
    last = events[-1]["number"]
    answer = http.get(f"/v1/jobs/{id}/events", headers={"last-event-id": last})
    assert answer.status_code == 204


def test_two_who_follow_are_told_the_same(http: httpx2.Client, served: Any) -> None:
    served.scheduler.go.clear()
    id = http.post(JOBS, json=BODY).json()["id"]
    told: list[list[dict[str, Any]]] = []
    threads = [threading.Thread(target=lambda: told.append(_follow(http, id))) for _ in range(2)]
    for thread in threads:
        thread.start()
    served.scheduler.go.set()
    for thread in threads:
        thread.join()
    kept = [[event for event in events if event["number"] is not None] for events in told]
    assert kept[0] == kept[1] != []


def test_cancelling_again_changes_nothing(http: httpx2.Client, served: Any) -> None:
    served.scheduler.go.clear()
    id = http.post(JOBS, json=BODY).json()["id"]
    assert http.post(f"/v1/jobs/{id}/cancel").status_code == 200
    first = _ended(http, id)
    assert (first["status"], first["error"]["code"]) == ("cancelled", "cancelled")
    assert http.post(f"/v1/jobs/{id}/cancel").status_code == 200
    assert _ended(http, id) == first
    assert served.scheduler.steps == 0
    done = http.post(JOBS, json=BODY)
    served.scheduler.go.set()
    assert _ended(http, done.json()["id"])["status"] == "completed"
    assert http.post(f"/v1/jobs/{done.json()['id']}/cancel").json()["status"] == "completed"


def test_deleting_ends_and_forgets_and_again_is_the_same(http: httpx2.Client, served: Any) -> None:
    served.scheduler.go.clear()
    id = http.post(JOBS, json=BODY).json()["id"]
    for _ in range(2):
        assert http.delete(f"/v1/jobs/{id}").status_code == 204
        assert http.get(f"/v1/jobs/{id}").status_code == 404
    assert served.idle()


def test_a_failed_job_says_why(http: httpx2.Client, served: Any) -> None:
    served.scheduler.fails = RuntimeError("a secret")
    id = http.post(JOBS, json=BODY).json()["id"]
    assert _ended(http, id)["error"]["code"] == "internal_error"
    last = _follow(http, id)[-1]
    assert (last["type"], last["error"]["code"]) == ("image.job.failed", "internal_error")


def test_a_job_streams_elsewhere(http: httpx2.Client) -> None:
    answer = http.post(JOBS, json=BODY | {"n": 1, "stream": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize("path", [DRAW, JOBS])
def test_the_same_key_and_body_draw_once(http: httpx2.Client, served: Any, path: str) -> None:
    body = {"model": "tiny", "prompt": "a dog"}
    first, again, other = (
        http.post(path, json=body, headers={"idempotency-key": key}) for key in ("a", "a", "b")
    )
    assert len(served.scheduler.orders) == 2
    if path == DRAW:
        assert first.json() == again.json() != other.json()
    else:
        assert first.json()["id"] == again.json()["id"] != other.json()["id"]


def test_the_same_key_while_it_is_drawn_waits_for_the_same_pictures(
    http: httpx2.Client, served: Any
) -> None:
    served.scheduler.go.clear()
    answers: list[Any] = []
    headers = {"idempotency-key": "one"}

    def ask() -> None:
        answers.append(http.post(DRAW, json=BODY, headers=headers).json())

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not served.scheduler.orders:
        time.sleep(0.01)
    served.scheduler.go.set()
    for thread in threads:
        thread.join()
    assert len(served.scheduler.orders) == 1
    assert answers[0] == answers[1] == answers[2]


def test_a_client_that_was_cut_off_finds_its_pictures_by_its_key(
    http: httpx2.Client, served: Any
) -> None:
    served.scheduler.go.clear()
    headers = {"idempotency-key": "one"}
    with pytest.raises(httpx2.ReadTimeout):
        http.post(DRAW, json=BODY, headers=headers, timeout=0.3)
    served.scheduler.go.set()
    answer = http.post(DRAW, json=BODY, headers=headers)
    assert (answer.status_code, len(served.scheduler.orders)) == (200, 1)


def test_the_same_key_with_another_body_is_refused(http: httpx2.Client) -> None:
    headers = {"idempotency-key": "one"}
    assert http.post(DRAW, json=BODY, headers=headers).status_code == 200
    for path, body in ((DRAW, BODY | {"n": 1}), (JOBS, BODY)):
        answer = http.post(path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (
            422,
            "idempotency_key_reused",
        )


def test_what_has_failed_is_drawn_anew_for_the_same_key(http: httpx2.Client, served: Any) -> None:
    headers = {"idempotency-key": "one"}
    served.scheduler.fails = RuntimeError("once")
    assert http.post(DRAW, json=BODY, headers=headers).status_code == 500
    served.scheduler.fails = None
    assert http.post(DRAW, json=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize("key", ["", "x" * 256, "with space"])
def test_a_key_that_is_no_word_is_refused(http: httpx2.Client, key: str) -> None:
    assert http.post(DRAW, json=BODY, headers={"idempotency-key": key}).status_code == 400


@pytest.mark.parametrize(
    ("limits", "left"),
    [({"kept": 2}, ["2", "3"]), ({"memory": 1}, ["3"]), ({"seconds": 60.0}, ["1", "2", "3"])],
)
def test_finished_jobs_leave_when_they_are_many_large_or_old(
    limits: dict[str, Any], left: list[str]
) -> None:
    jobs, now = Jobs(JobConfig(**limits)), time.time()
    for id, age in (("0", 70.0), ("1", 50.0), ("2", 40.0), ("3", 30.0), ("live", None)):
        ended = None if age is None else now - age
        job: Any = SimpleNamespace(id=id, ended=ended, memory=2 * 10**6, status="completed")
        jobs.keep("anne", job, key=id)
    kept = [id for id in ("0", "1", "2", "3") if jobs.again("anne", id, "") is not None]
    assert kept == left
    assert jobs.find("anne", "live").id == "live"
    assert len(jobs) == len(left) + 1
