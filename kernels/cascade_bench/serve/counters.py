"""What a server of ours still counts, by its own figures."""

import time
from typing import Final

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from cascade.errors import UserError
from cascade_bench.serve.process import Server

COUNTED: Final = (
    "cascade_pictures_waiting",
    "cascade_pictures_drawing",
    "cascade_clients",
    "cascade_http_streams",
)
"""Gauges that are 0 where nobody asks for anything."""

_SOON: Final = 10.0  # seconds within which a server has noticed that its last client left
_LOOK: Final = 0.2


def left_over(server: Server) -> dict[str, float]:
    """Return what is not back at 0 although every request has ended; by name."""
    deadline = time.monotonic() + _SOON
    while (found := _counted(server)) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return found


def _counted(server: Server) -> dict[str, float]:
    headers = {"authorization": f"Bearer {server.keys[-1]}"}
    response = httpx2.get(f"{server.url}/metrics", headers=headers, trust_env=False)
    if not response.is_success:
        raise UserError(
            f"{server.name} does not tell its figures: {response.status_code} "
            f"{response.text[:200]}."
        )
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    missing = [name for name in COUNTED if name not in families]
    if missing:
        raise UserError(f"{server.name} tells no {missing[0]}; give it the version of this bench.")
    values = {name: sum(one.value for one in families[name].samples) for name in COUNTED}
    return {name: value for name, value in values.items() if value}
