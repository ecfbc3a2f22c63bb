"""Keys: who is served, what they see, and how much they may ask for."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from cascade.errors import UserError
from cascade.serve.keys import Client, Keys
from cascade.serve.problems import Problem

DRAW = "/v1/images/generations"
ANNE, BEN, ROOT = ({"authorization": f"Bearer {key}"} for key in ("anne-key", "ben-key", "root"))


def _entry(name: str, key: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **more}


@pytest.fixture
def write(tmp_path: Path, toml: Callable[..., str]) -> Callable[..., Path]:
    """Writes a file of keys."""

    def written(*entries: dict[str, Any]) -> Path:
        path = tmp_path / "keys.toml"
        new = path.with_suffix(".new")
        new.write_text("".join(f"[[keys]]\n{toml(entry)}\n" for entry in entries))
        return new.replace(path)

    return written


@pytest.fixture
def file(write: Callable[..., Path]) -> Path:
    return write(
        _entry("anne", "anne-key"),
        _entry("ben", "ben-key", models=["*:dog"]),
        _entry("root", "root", admin=True),
    )


@pytest.fixture
def http(make: Callable[..., Any], file: Path) -> Iterator[TestClient]:
    with TestClient(make(keys=file).app, "http://anything.example") as client:
        yield client


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer  ", "Basic anne-key", "Bearer ANNE-KEY", "Bearer \xff"]
)
def test_without_a_key_nothing_is_told(http: TestClient, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header.encode("latin-1")}
    for method, path in (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/v1/jobs/x")):
        answer = http.request(method, path, headers=headers)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert http.post(DRAW, json={"prompt": "a dog"}, headers=headers).status_code == 401
    assert http.get("/health").status_code == 200


def test_a_model_that_a_key_does_not_see_is_not_there(http: TestClient) -> None:
    assert [m["id"] for m in http.get("/v1/models", headers=BEN).json()["data"]] == ["tiny:dog"]
    for answer in (
        http.get("/v1/models/tiny", headers=BEN),
        http.post(DRAW, json={"prompt": "a dog", "model": "tiny"}, headers=BEN),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "model_not_found"
    drawn = http.post(DRAW, json={"prompt": "a dog"}, headers=BEN)
    assert drawn.json()["model"] == "tiny:dog"


def test_which_model_is_meant_must_be_said_where_there_are_several(http: TestClient) -> None:
    answer = http.post(DRAW, json={"prompt": "a dog"}, headers=ANNE)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")


def test_a_job_is_its_clients_own(http: TestClient) -> None:
    asked = {"prompt": "a dog", "model": "tiny:dog"}
    job = http.post("/v1/jobs/images", json=asked, headers=ANNE).json()["id"]
    assert http.get(f"/v1/jobs/{job}", headers=ANNE).status_code == 200
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = http.request(method, f"/v1/jobs/{job}{path}", headers=BEN)
        assert answer.status_code == 404
    http.delete(f"/v1/jobs/{job}", headers=BEN)
    assert http.get(f"/v1/jobs/{job}", headers=ANNE).status_code == 200


def test_figures_are_an_admins(http: TestClient) -> None:
    assert http.get("/metrics", headers=ANNE).status_code == 403
    assert http.get("/metrics", headers=ROOT).status_code == 200


def test_keys_are_nowhere_in_the_log(http: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "cascade.serve"):
        http.post(DRAW, json={"prompt": "a secret dog", "model": "tiny"}, headers=ANNE)
        http.get("/v1/models", headers={"authorization": "Bearer wrong-key"})
    told = json.dumps([record.__dict__ for record in caplog.records], default=str)
    assert "anne-key" not in told
    assert "wrong-key" not in told
    assert "secret dog" not in told


def test_a_file_of_keys_that_is_wrong_stops_the_server(
    make: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no configuration file"):
        make(keys=tmp_path / "none.toml")


def test_a_changed_file_of_keys_counts_from_the_next_look_on(write: Callable[..., Path]) -> None:
    path = write(_entry("anne", "anne-key"))
    keys = Keys(path)
    write(_entry("ben", "ben-key"))
    keys.refresh()
    assert keys.identify("Bearer ben-key", "::1").name == "ben"
    with pytest.raises(Problem, match="does not know"):
        keys.identify("Bearer anne-key", "::1")
    path.write_text("keys = 5\n")
    with pytest.raises(UserError, match="keys"):
        keys.refresh()
    keys.refresh()  # it is told once
    path.unlink()
    with pytest.raises(UserError, match="no configuration file"):
        keys.refresh()
    assert keys.identify("Bearer ben-key", "::1").name == "ben"


class _Clock:
    now = 86_400.0 * 20_000 + 60

    def __call__(self) -> float:
        return self.now


Limited = Callable[..., tuple[Keys, Client, _Clock]]


@pytest.fixture
def limited(write: Callable[..., Path]) -> Limited:
    """Makes keys with limits, of one client, and their clock."""

    def made(**limits: int) -> tuple[Keys, Client, _Clock]:
        clock = _Clock()
        keys = Keys(write(_entry("anne", "anne-key", **limits)), clock)
        return keys, keys.identify("bearer anne-key", "::1"), clock

    return made


def _wait(keys: Keys, client: Client, pictures: int) -> int | None:
    """Seconds that a request must wait; None where it is taken."""
    try:
        keys.check(client, pictures)
    except Problem as problem:
        return int(problem.headers["retry-after"])
    keys.charge(client, pictures)
    return None


def test_requests_of_any_minute_are_counted(limited: Limited) -> None:
    keys, client, clock = limited(requests_per_minute=2)
    assert _wait(keys, client, 10) is None
    clock.now += 50
    assert _wait(keys, client, 10) is None
    assert _wait(keys, client, 1) == 10
    clock.now += 10
    assert _wait(keys, client, 1) is None
    assert _wait(keys, client, 1) == 50


def test_pictures_of_a_day_are_counted(limited: Limited) -> None:
    keys, client, clock = limited(pictures_per_day=5)
    assert _wait(keys, client, 4) is None
    assert _wait(keys, client, 2) == 86_400 - 60
    assert _wait(keys, client, 1) is None
    clock.now += 86_400 - 60
    assert _wait(keys, client, 5) is None


def test_more_pictures_than_a_day_has_are_refused_for_good(limited: Limited) -> None:
    keys, client, _ = limited(pictures_per_day=5)
    with pytest.raises(Problem) as told:
        keys.check(client, 6)
    assert told.value.status == 400


def test_what_was_refused_is_not_counted(make: Callable[..., Any], tmp_path: Path) -> None:
    entry = _entry("anne", "anne-key", pictures_per_day=2)
    path = tmp_path / "keys.toml"
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in entry.items())
    path.write_text(f"[[keys]]\n{lines}\n")
    asked = {"prompt": "a dog", "model": "tiny"}
    with TestClient(make(keys=path).app) as http:
        assert http.post(DRAW, json=asked | {"n": 3}, headers=ANNE).status_code == 400
        assert http.post(DRAW, json=asked | {"n": 2}, headers=ANNE).status_code == 200
        limited = http.post(DRAW, json=asked, headers=ANNE)
    assert (limited.status_code, limited.json()["error"]["code"]) == (429, "insufficient_quota")
