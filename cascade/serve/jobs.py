"""A request while it is drawn and after: what has come of it so far, for whoever follows it.

What a job tells is a list of numbered entries that only grows, so a follower that was cut off goes
on behind the last entry it has. Everything here runs in the event loop but `Job.hear`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from torch import Tensor

from cascade.config.serve import JobConfig
from cascade.serve.images import FileFormat, ImageRequest
from cascade.serve.problems import Problem, problem_of
from cascade.serve.ticket import (
    Begun,
    Cancelled,
    Drawn,
    Ended,
    Event,
    Order,
    Preview,
    Stepped,
    Ticket,
)

Status = Literal["queued", "in_progress", "completed", "failed", "cancelled"]
EntryKind = Literal["started", "partial_image", "image", "completed", "failed", "cancelled"]
Encode = Callable[["Job", int, Tensor], Awaitable[str]]
"""Makes the file of a job's picture, in base64."""

_BYTES: Final = 300  # that an entry takes beside its picture


@dataclass(frozen=True)
class Entry:
    """Something that has come of a job.

    Attributes:
        number: from 1.
        at: Unix time.
        picture: which of the job's; None where it is about all of them.
        preview: which of a picture's.
        stage: of a preview.
        size: width and height of the picture, pixels.
        image: its file, in base64.
    """

    number: int
    kind: EntryKind
    at: float
    picture: int | None = None
    preview: int | None = None
    stage: str | None = None
    size: str | None = None
    image: str | None = None


@dataclass(frozen=True)
class Progress:
    """How far a job is; not kept."""

    done: int  # steps of all its pictures and stages
    of: int


@dataclass(eq=False)
class Job:
    """A request that was taken.

    Attributes:
        asked: what the client sent.
        order: what is drawn.
        size: width and height of its pictures.
        exact: whether its bits are those of the pictures drawn alone.
        cascade: the model's name, for people.
        ticket: its place in the queue.
        keep: whether it goes on when nobody follows it.
        status: of the whole.
        problem: why it is not completed.
    """

    asked: ImageRequest
    order: Order
    size: str
    exact: bool
    cascade: str
    ticket: Ticket | None = None
    keep: bool = False
    status: Status = "queued"
    problem: Problem | None = None
    created: float = field(default_factory=time.time)
    begun: float | None = None
    ended: float | None = None
    progress: Progress = Progress(0, 0)
    images: dict[int, str] = field(default_factory=dict)
    log: list[Entry] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: asyncio.Queue[Event] = asyncio.Queue()
        self._news = asyncio.Event()
        self._last = 0
        self._drawing: asyncio.Task[None] | None = None

    @property
    def id(self) -> str:
        """Its name."""
        return self.order.id

    @property
    def kind(self) -> FileFormat:
        """The format of its files."""
        return self.asked.format

    @property
    def memory(self) -> int:
        """Bytes that its pictures take."""
        return sum(_BYTES + len(entry.image or "") for entry in self.log)

    def hear(self, event: Event) -> None:
        """Take an event, from any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(self._inbox.put_nowait, event)

    def start(self, encode: Encode, done: Callable[["Job"], None]) -> None:
        """Follow what is heard; `done` is called at the end."""
        self._drawing = asyncio.create_task(self._run(encode, done))

    async def follow(self, after: int = 0) -> AsyncIterator[Entry | Progress]:
        """Tell every entry behind a number, and how far it is, until the job ends."""
        shown = Progress(0, 0)
        while True:
            news, ended = self._news, self.ended is not None
            for entry in [entry for entry in self.log if entry.number > after]:
                after = entry.number
                yield entry
            if ended:
                return
            if news is self._news:
                if self.progress != shown:
                    shown = self.progress
                    yield shown
                await news.wait()

    async def wait(self) -> None:
        """Wait until it has ended."""
        async for _ in self.follow(self._last):
            pass

    async def _run(self, encode: Encode, done: Callable[["Job"], None]) -> None:
        try:
            while self.ended is None:
                await self._take(await self._inbox.get(), encode)
        finally:
            if self.ended is None:
                self._end(RuntimeError("its events could not be told"))
            done(self)

    async def _take(self, event: Event, encode: Encode) -> None:
        match event:
            case Begun():
                self.begun, self.status = time.time(), "in_progress"
                self._tell("started")
            case Stepped():
                self.progress = Progress(event.done, event.of)
                self._wake()
            case Preview(picture=at):
                file = await encode(self, at, event.image)
                told = {"preview": event.number, "stage": event.stage, "image": file}
                self._tell("partial_image", picture=at, size=_size(event.image), **told)
            case Drawn(picture=at):
                self.images[at] = await encode(self, at, event.image)
                image = self.images[at]
                self._tell("image", picture=at, size=_size(event.image), image=image)
            case Ended():
                self._end(event.error)

    def _end(self, error: Exception | None) -> None:
        self.problem = None if error is None else problem_of(error)
        if error is None:
            self.status = "completed"
        else:
            self.status = "cancelled" if isinstance(error, Cancelled) else "failed"
        # Previews have had their time: who comes later finds the pictures.
        self.log = [entry for entry in self.log if entry.kind != "partial_image"]
        self.ended = time.time()
        self._tell(self.status)

    def _tell(self, kind: Any, **what: Any) -> None:
        self._last += 1
        self.log.append(Entry(self._last, kind, time.time(), **what))
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"


class Jobs:
    """The jobs that are kept, each for the client that made it; the oldest finished ones leave."""

    def __init__(self, config: JobConfig) -> None:
        self._config = config
        self._jobs: dict[str, tuple[str, Job]] = {}
        self._answers: dict[tuple[str, str], tuple[str, Job]] = {}

    def __len__(self) -> int:
        """Return how many are kept."""
        self._prune()
        return len(self._jobs)

    @property
    def memory(self) -> int:
        """Bytes that their pictures take."""
        return sum(job.memory for _, job in self._jobs.values())

    def keep(self, owner: str, job: Job, key: str | None = None, body: str = "") -> None:
        """Keep a job, and find it again by a client's key for the same body."""
        job.keep = True
        self._jobs[job.id] = owner, job
        if key is not None:
            self._answers[owner, key] = body, job
        self._prune()

    def find(self, owner: str, id: str) -> Job:
        """Return a client's job.

        Raises:
            Problem: it has none of this name, or no more.
        """
        self._prune()
        held = self._jobs.get(id)
        if held is None or held[0] != owner:
            message = f"There is no job '{id}'; finished ones are kept for a time."
            raise Problem(404, message, "job_not_found", "id")
        return held[1]

    def remove(self, owner: str, id: str) -> Job | None:
        """Forget a client's job and return it, if there is one."""
        held = self._jobs.get(id)
        if held is None or held[0] != owner:
            return None
        self._forget(id)
        return held[1]

    def again(self, owner: str, key: str, body: str) -> Job | None:
        """Return the job that a client has made with the same key, unless it has failed.

        Raises:
            Problem: it was made of another body.
        """
        self._prune()
        held = self._answers.get((owner, key))
        if held is None or held[1].status in ("failed", "cancelled"):
            return None
        if held[0] != body:
            message = "This Idempotency-Key was sent with another body; take a new key."
            raise Problem(422, message, "idempotency_key_reused")
        return held[1]

    def _prune(self) -> None:
        """Let finished jobs go that are too old, too many or too large, but for the newest."""
        finished = [job for _, job in self._jobs.values() if job.ended is not None]
        finished.sort(key=lambda job: job.ended or 0.0)
        oldest = time.time() - self._config.seconds
        memory, count = self.memory, len(finished)
        for job in finished[:-1]:
            late = (job.ended or 0.0) < oldest
            if not (late or count > self._config.kept or memory > self._config.memory * 10**6):
                return
            memory, count = memory - job.memory, count - 1
            self._forget(job.id)
        if finished and (finished[-1].ended or 0.0) < oldest:
            self._forget(finished[-1].id)

    def _forget(self, id: str) -> None:
        _, gone = self._jobs.pop(id)
        self._answers = {name: held for name, held in self._answers.items() if held[1] is not gone}
