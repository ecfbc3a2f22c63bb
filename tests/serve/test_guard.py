"""What reaches a server: hosts, pages, sizes, and bodies that are no requests."""

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from cascade.serve.guard import Crowd

BODY = {"model": "tiny", "prompt": "a dog"}
DRAW = "/v1/images/generations"


@pytest.fixture
def http(make: Callable[..., Any]) -> Iterator[TestClient]:
    served = make(limits={"body": 4096})
    with TestClient(served.app, "http://localhost:8000", raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.:1", "127.0.0.1:8000", "[::1]:8000"])
def test_the_machine_itself_may_call(http: TestClient, host: str) -> None:
    assert http.get("/v1/models", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "",
        "a@localhost",
        "[",
        "127.0.0.2",
    ],
)
def test_a_name_that_was_made_to_resolve_here_is_refused(http: TestClient, host: str) -> None:
    answer = http.post(DRAW, json=BODY, headers={"host": host})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "host_refused"


def test_the_address_that_was_called_and_names_that_are_given_are_known(
    make: Callable[..., Any],
) -> None:
    served = make(host="0.0.0.0", hosts=("pictures.example",))
    with TestClient(served.app, "http://192.0.2.7:8000") as http:
        assert http.get("/health").status_code == 200
        for host, status in (("pictures.example", 200), ("192.0.2.8", 403)):
            assert http.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:9000"])
def test_a_foreign_page_is_refused(http: TestClient, origin: str) -> None:
    answer = http.post(DRAW, json=BODY, headers={"origin": origin})
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_refused"


def test_a_page_of_the_server_itself_may_call(http: TestClient) -> None:
    headers = {"origin": "http://localhost:8000"}
    assert http.post(DRAW, json=BODY, headers=headers).status_code == 200


def test_pages_that_are_named_get_what_browsers_want(make: Callable[..., Any]) -> None:
    served = make(origins=("https://studio.example",))
    with TestClient(served.app, "http://localhost") as http:
        page = {"origin": "https://studio.example"}
        asks = page | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type,authorization",
        }
        before = http.options(DRAW, headers=asks)
        assert before.headers["access-control-allow-origin"] == page["origin"]
        answer = http.post(DRAW, json=BODY, headers=page)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
            200,
            page["origin"],
        )
        assert http.get("/v1/models", headers={"origin": "https://other"}).status_code == 403


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_a_form_can_send_is_no_request(http: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    answer = http.post(DRAW, content=json.dumps(BODY), headers=headers)
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", [DRAW, "/v1/jobs/images"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(http: TestClient, path: str, announced: bool) -> None:
    content: Any = b" " * 8192 if announced else (b" " * 1024 for _ in range(8))
    answer = http.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b"[" * 2000,
        b'{"prompt": "a", "n": ' + b"9" * 2000 + b"}",
        b'{"prompt": "a", "n": ' + b"9" * 4000 + b"}",
        b'{"prompt": "a", "guidance_scale": 1e999}',
        b'{"prompt": "a", "guidance_scale": NaN}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "\\ud800": 1}',
        b'{"prompt": "a", "model": "\\ud800"}',
        b'{"prompt": "a", "model": "tiny", "noise_level": {"\\ud800": 0.5}}',
        b'{"prompt": "a", "svg": ' + b"[" * 900 + b"]" * 900 + b"}",
    ],
)
def test_what_is_no_request_is_answered_with_what_is_wrong(http: TestClient, body: bytes) -> None:
    answer = http.post(DRAW, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/v1/models/", 404),
        ("GET", DRAW, 405),
        ("POST", "/v1/images/edits", 404),
        ("POST", "/v1/images/variations", 404),
        ("GET", "/v1/jobs/none", 404),
        ("GET", "/docs", 404),
    ],
)
def test_every_refusal_is_the_same_object(
    http: TestClient, method: str, path: str, status: int
) -> None:
    answer = http.request(method, path)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_a_fault_of_the_servers_tells_nothing_of_itself(make: Callable[..., Any]) -> None:
    served = make()
    served.scheduler.refuses = ZeroDivisionError("a secret")
    with TestClient(served.app, "http://localhost", raise_server_exceptions=False) as http:
        answer = http.post(DRAW, json=BODY, headers={"x-request-id": "mine"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert answer.json()["error"]["type"] == "server_error"
    assert answer.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(("host", "warned"), [("0.0.0.0", True), ("::1", False)])
def test_a_server_for_everyone_warns(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture, host: str, warned: bool
) -> None:
    with caplog.at_level(logging.WARNING, "cascade.serve"), TestClient(make(host=host).app):
        pass
    assert ("may draw" in caplog.text) == warned


def test_a_crowd_is_told_to_come_back() -> None:
    inside, done = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        inside.set()
        await done.wait()

    async def call(app: Crowd, path: str) -> list[Message]:
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            sent.append(message)

        await app({"type": "http", "path": path, "headers": []}, receive, send)
        return sent

    async def come() -> None:
        app = Crowd(slow, most=1)
        first = asyncio.create_task(call(app, DRAW))
        await inside.wait()
        start, body = await call(app, DRAW)
        assert start["status"] == 503
        assert (b"retry-after", b"1") in start["headers"]
        assert json.loads(body["body"])["error"]["code"] == "server_busy"
        alive = asyncio.create_task(call(app, "/health"))
        done.set()
        assert (await alive, await first) == ([], [])
        assert await call(app, DRAW) == []  # the place is free again

    asyncio.run(come())
