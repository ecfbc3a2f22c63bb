"""Who asks: keys, what they may see, and how much they may ask for.

Counts are kept in memory: they begin anew with the server.
"""

import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from cascade.config.serve import KeyConfig, KeysConfig
from cascade.serve.problems import Problem

_DAY: Final = 86_400
_MINUTE: Final = 60
_CHALLENGE: Final = {"www-authenticate": "Bearer"}


@dataclass(frozen=True)
class Client:
    """Who asks.

    Attributes:
        name: owns its jobs and answers; "" is everybody, where there are no keys.
        turn: clients with different ones take turns.
        models: patterns of the models it sees.
        admin: whether it may read /metrics.
    """

    name: str
    turn: str
    models: tuple[str, ...] = ("*",)
    admin: bool = False

    def sees(self, model: str) -> bool:
        """Return whether it may know of a model."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)

    def seen(self, models: Sequence[str]) -> list[str]:
        """Return those of some models that it may know of."""
        return [model for model in models if self.sees(model)]


@dataclass
class _Use:
    """How much a client has asked for.

    Attributes:
        asked: times of its requests of the last minute.
        day: number of the day, in UTC, of `pictures`.
    """

    asked: deque[float] = field(default_factory=deque)
    day: int = 0
    pictures: int = 0


class Keys:
    """The clients of a file of keys, or everybody.

    Args:
        path: of the file.
        clock: seconds since 1970.

    Raises:
        UserError: the file is missing or wrong.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._keys: tuple[KeyConfig, ...] | None = None
        self._stamp: tuple[int, int] | None = None
        self.refresh()
        self._uses: dict[str, _Use] = {}

    @property
    def needed(self) -> bool:
        """Whether a client needs a key."""
        return self._keys is not None

    def refresh(self) -> None:
        """Read the file again where it has changed; one that is wrong changes nothing.

        Raises:
            UserError: it is missing or wrong; told once for each change.
        """
        if self._path is None:
            return
        with suppress(FileNotFoundError):  # reading says so
            status = self._path.stat()
            stamp = status.st_mtime_ns, status.st_ino
            if stamp == self._stamp:
                return
            self._stamp = stamp
        self._keys = KeysConfig.read(self._path).keys

    def identify(self, authorization: str | None, address: str) -> Client:
        """Return who sent an Authorization header.

        Args:
            address: where the request came from; without keys, addresses take turns.

        Raises:
            Problem: there are keys, and this is none of them.
        """
        if self._keys is None:
            return Client("", address)
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            message = "This server wants a key: send 'Authorization: Bearer KEY'."
            raise Problem(401, message, "missing_api_key", headers=_CHALLENGE)
        sent = hashlib.sha256(key.strip().encode(errors="surrogateescape")).hexdigest()
        found: KeyConfig | None = None
        for one in self._keys:  # all of them: the time taken tells nothing
            if hmac.compare_digest(one.sha256, sent):
                found = one
        if found is None:
            message = "This server does not know the key; ask who runs it for another."
            raise Problem(401, message, "invalid_api_key", headers=_CHALLENGE)
        return Client(found.name, found.name, found.models, found.admin)

    def check(self, client: Client, pictures: int) -> None:
        """Refuse a request for pictures that is beyond what a client may ask for.

        Raises:
            Problem: when to ask again.
        """
        config = self._config(client)
        if config is None:
            return
        now, use = self._clock(), self._use(client)
        while use.asked and use.asked[0] <= now - _MINUTE:
            use.asked.popleft()
        if config.requests_per_minute is not None and len(use.asked) >= config.requests_per_minute:
            wait = use.asked[0] + _MINUTE - now
            message = f"Your key has {config.requests_per_minute} requests a minute; ask later."
            raise Problem(429, message, "rate_limit_exceeded", retry_after=wait)
        if config.pictures_per_day is None:
            return
        if pictures > config.pictures_per_day:
            message = f"Your key has {config.pictures_per_day} pictures a day; ask for fewer."
            raise Problem(400, message, "invalid_value", "n")
        if use.pictures + pictures > config.pictures_per_day:
            wait = (use.day + 1) * _DAY - now
            message = f"Your key has {config.pictures_per_day} pictures a day (UTC); ask tomorrow."
            raise Problem(429, message, "insufficient_quota", retry_after=math.ceil(wait))

    def charge(self, client: Client, pictures: int) -> None:
        """Count a request for pictures that was taken."""
        config = self._config(client)
        if config is None:
            return
        use = self._use(client)
        use.pictures += pictures
        if config.requests_per_minute is not None:
            use.asked.append(self._clock())

    def _config(self, client: Client) -> KeyConfig | None:
        return next((key for key in self._keys or () if key.name == client.name), None)

    def _use(self, client: Client) -> _Use:
        use = self._uses.setdefault(client.name, _Use())
        today = int(self._clock() // _DAY)
        if use.day != today:
            use.day, use.pictures = today, 0
        return use
