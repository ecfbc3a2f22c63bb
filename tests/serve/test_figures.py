"""What a server tells of itself: health, figures, a log, traces."""

import io
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from cascade.errors import UserError
from cascade.serve import logs

DRAW = "/v1/images/generations"
BODY = {"model": "tiny", "prompt": "a secret dog", "user": "anne@example.org"}


@pytest.fixture
def served(make: Callable[..., Any]) -> Any:
    return make()


@pytest.fixture
def http(served: Any) -> Iterator[TestClient]:
    with TestClient(served.app, "http://localhost") as client:
        yield client


def _ready(http: TestClient) -> dict[str, Any]:
    for _ in range(500):
        answer = http.get("/ready")
        if answer.status_code == 200:
            break
        time.sleep(0.01)
    return {"status": answer.status_code, **answer.json()}


def test_a_server_is_ready_once_it_is_warm_and_until_it_is_stopped(make: Any) -> None:
    served = make()
    served.scheduler.go.clear()
    with TestClient(served.app, "http://localhost") as http:
        assert http.get("/health").json() == {"status": "ok"}
        assert (http.get("/ready").status_code, http.get("/ready").json()["status"]) == (
            503,
            "warming up",
        )
        served.scheduler.go.set()
        assert _ready(http) == {"status": "ready"}
        served.app.state.desk.draining = True
        assert (http.get("/ready").status_code, http.get("/ready").json()["status"]) == (
            503,
            "draining",
        )
        refused = http.post(DRAW, json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        assert http.get("/health").status_code == 200
    assert served.models.closed


def test_a_server_that_cannot_warm_up_is_never_ready(
    make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = make()

    def fails() -> None:
        raise UserError("a file is damaged; export it again.")

    monkeypatch.setattr(served.scheduler, "warm_up", fails)
    with TestClient(served.app, "http://localhost") as http:
        for _ in range(500):
            if "failed" in http.get("/ready").json()["status"]:
                break
            time.sleep(0.01)
        assert http.get("/ready").status_code == 503
    assert "export it again" in caplog.text


def test_figures_are_prometheuss_and_name_nothing_that_a_client_sent(
    http: TestClient, served: Any
) -> None:
    http.post(DRAW, json=BODY)
    http.post(DRAW, json={"prompt": "x", "model": "made-up"})
    http.get("/made-up/path")
    http.request("MADE-UP", "/health")
    served.scheduler.metrics.step("tiny", "base16", 2, 4, 0.03)
    served.scheduler.metrics.waited("tiny", 0.5)
    served.scheduler.metrics.drawn("tiny", 1.5)
    served.scheduler.metrics.text("tiny", kept=True)
    text = http.get("/metrics").text
    assert "made-up" not in text
    assert "secret" not in text
    found = {
        (sample.name, frozenset(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert found["cascade_requests_total", frozenset({"tiny", "drawn"})] == 1
    assert found["cascade_http_requests_total", frozenset({DRAW, "POST", "200"})] == 1
    assert found["cascade_http_requests_total", frozenset({"none", "GET", "404"})] == 1
    assert found["cascade_http_requests_total", frozenset({"/health", "other", "405"})] == 1
    assert found["cascade_step_seconds_count", frozenset({"tiny", "base16"})] == 1
    assert found["cascade_batch_rows_sum", frozenset({"tiny", "base16"})] == 4
    assert found["cascade_batch_pictures_sum", frozenset({"tiny", "base16"})] == 2
    assert found["cascade_queue_wait_seconds_sum", frozenset({"tiny"})] == 0.5
    assert found["cascade_drawing_seconds_sum", frozenset({"tiny"})] == 1.5
    assert found["cascade_texts_total", frozenset({"tiny", "true"})] == 1
    assert found["cascade_http_streams", frozenset()] == 0


def test_the_queue_is_seen_while_it_lasts_and_leaves_nothing(http: TestClient, served: Any) -> None:
    served.scheduler.go.clear()
    id = http.post("/v1/jobs/images", json=BODY | {"n": 3}).json()["id"]
    assert 'cascade_pictures_waiting{model="tiny"} 3.0' in http.get("/metrics").text
    http.post(f"/v1/jobs/{id}/cancel")
    assert served.idle()
    assert "cascade_pictures_waiting{" not in http.get("/metrics").text


def test_two_servers_of_a_process_have_figures_of_their_own(make: Any) -> None:
    first, second = make(), make()
    with TestClient(first.app, "http://localhost") as http:
        http.get("/health")
        assert 'route="/health"' in http.get("/metrics").text
    with TestClient(second.app, "http://localhost") as http:
        assert 'route="/health"' not in http.get("/metrics").text


def test_the_log_has_a_line_for_each_request_and_a_hash_for_each_prompt(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        for name in ("cascade.serve", "uvicorn", "uvicorn.access"):
            logger = logging.getLogger(name)
            patch.setattr(logger, "handlers", [])
            patch.setattr(logger, "propagate", True)
            patch.setattr(logger, "disabled", False)
        logs.write_lines(stream)
        with TestClient(served.app, "http://localhost") as http:
            http.post(DRAW, json=BODY | {"n": 2}, headers={"x-request-id": "mine"})
            logs.warn("look at this")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    by_event = {line["event"]: line for line in lines}
    pictures, request = by_event["pictures"], by_event["request"]
    assert pictures["prompt_sha256"] == logs.hashed("a secret dog")
    assert (pictures["n"], pictures["model"], pictures["status"]) == (2, "tiny", "completed")
    assert pictures["seconds"] >= pictures["queued_seconds"] >= 0
    assert pictures["request_id"] == request["request_id"] == "mine"
    assert (request["route"], request["status"]) == (DRAW, 200)
    assert by_event["look at this"]["level"] == "warning"
    assert "secret" not in stream.getvalue()
    assert "anne" not in stream.getvalue()


def test_a_fault_stands_in_the_log_with_its_traceback(
    http: TestClient, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    served.scheduler.fails = RuntimeError("what broke")
    assert http.post(DRAW, json=BODY).status_code == 500
    (record,) = [record for record in caplog.records if record.exc_info]
    line = json.loads(logs.JsonLines().format(record))
    assert "what broke" in line["traceback"]


class _Collector(BaseHTTPRequestHandler):
    got: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.got.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *told: object) -> None:
        pass


def test_traces_reach_their_collector_without_prompts(make: Any) -> None:
    _Collector.got = []
    server = HTTPServer(("127.0.0.1", 0), _Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        served = make(traces=f"http://127.0.0.1:{server.server_port}/")
        with TestClient(served.app, "http://localhost") as http:
            http.post(DRAW, json=BODY)
            http.post(DRAW, json=BODY | {"n": "many"})
    finally:
        server.shutdown()
        server.server_close()
    assert {path for path, _ in _Collector.got} == {"/v1/traces"}
    sent = b"".join(body for _, body in _Collector.got)
    for name in (b"queued", b"drawn", b"pictures", b"cascade.model", b"POST /v1/images"):
        assert name in sent
    assert b"secret" not in sent


def test_traces_without_their_packages_are_refused_in_a_sentence(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(UserError, match=r"dreamcascade\[traces\]"):
        make(traces="http://127.0.0.1:4318")
