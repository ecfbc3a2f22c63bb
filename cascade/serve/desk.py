"""Where requests for pictures are taken: checked, put in the queue, and followed to their end."""

import asyncio
import hashlib
import secrets
import time
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any, Final

from torch import Tensor

from cascade.config.serve import ServeConfig
from cascade.errors import UserError
from cascade.request import Request
from cascade.serve import logs
from cascade.serve.encode import encoded
from cascade.serve.images import ImageRequest, picture_size
from cascade.serve.jobs import Job, Jobs
from cascade.serve.keys import Client, Keys
from cascade.serve.metrics import Metrics
from cascade.serve.models import Models, Unknown
from cascade.serve.problems import Problem, problem_of
from cascade.serve.scheduler import Scheduler
from cascade.serve.ticket import Busy, Order
from cascade.serve.traces import Traces

_ENCODERS: Final = 2  # threads that make files: beside the networks they are quick


class Desk:
    """Takes requests.

    Attributes:
        jobs: that are kept.
        ready: whether the models are warm.
        failure: why they will not be.
        draining: whether no more requests are taken.
    """

    def __init__(
        self,
        models: Models,
        scheduler: Scheduler,
        config: ServeConfig,
        keys: Keys,
        metrics: Metrics,
        traces: Traces | None,
    ) -> None:
        self.models, self.scheduler, self.config = models, scheduler, config
        self.keys, self.metrics, self.traces = keys, metrics, traces
        self.jobs = Jobs(config.jobs)
        self.ready, self.draining = not config.warm_up, False
        self.failure: str | None = None
        self._threads = ThreadPoolExecutor(_ENCODERS, "encode")

    async def names(self, client: Client) -> list[str]:
        """Return the names of the models that a client sees."""
        return client.seen(await asyncio.to_thread(self.models.names))

    async def take(
        self, client: Client, asked: ImageRequest, id: str, key: str | None, as_job: bool
    ) -> Job:
        """Put a request in the queue, or find what was made of it before.

        Args:
            id: of the HTTP request.
            key: of a client that may send the request again.

        Raises:
            Problem: it is refused.
        """
        asked.check(self.config.limits, as_job)
        model = await self._model(client, asked)
        order, size, exact, name = await asyncio.to_thread(self._order, client, asked, model)
        # From here on nothing is waited for: no other request comes between check and queue.
        body = _digest(asked, as_job)
        found = self.jobs.again(client.name, key, body) if key is not None else None
        if found is not None:
            return found
        if self.draining:
            message = "The server is being stopped; ask again in a moment."
            raise Problem(503, message, "server_stopping", retry_after=self.config.drain)
        self.keys.check(client, asked.count)
        job = Job(asked, order, size, exact, name)
        try:
            job.ticket = self.scheduler.submit(order, job.hear)
        except Busy as busy:
            problem = problem_of(busy)
            self.metrics.refused(str(problem.error.code))
            raise problem from None
        self.keys.charge(client, asked.count)
        if as_job or key is not None:
            self.jobs.keep(client.name, job, key, body)
        context = self.traces.here() if self.traces else None
        job.start(self._encode, lambda done: self._ended(done, client, id, context))
        return job

    def leave(self, job: Job) -> None:
        """Note that who waited for a job has gone: it ends, unless it is kept for another time."""
        if not job.keep:
            self.cancel(job)

    def cancel(self, job: Job) -> None:
        """End a job before its next step."""
        if job.ended is None and job.ticket is not None:
            self.scheduler.cancel(job.ticket)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Draw, and look for changed models; at the end let what is drawn end, and stop."""
        self.scheduler.start()
        tasks = [asyncio.create_task(self._warm_up()), asyncio.create_task(self._reload())]
        try:
            yield
        finally:
            self.draining = True
            for task in tasks:
                task.cancel()
            await asyncio.to_thread(self._stop)

    async def _warm_up(self) -> None:
        if self.ready:
            return
        try:
            await asyncio.to_thread(self.scheduler.warm_up)
        except UserError as error:
            logs.warn(str(error))
            self.failure = "warming up failed; the server's log says why"
        else:
            self.ready = True

    async def _reload(self) -> None:
        while self.config.reload:
            await asyncio.sleep(self.config.reload)
            for look in (self.models.refresh, self.keys.refresh):
                try:
                    await asyncio.to_thread(look)
                except UserError as error:
                    logs.warn(str(error))

    def _stop(self) -> None:
        self.scheduler.drain(self.config.drain)
        self.scheduler.stop()
        self.models.close()
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self.traces is not None:
            self.traces.close()

    async def _model(self, client: Client, asked: ImageRequest) -> str:
        seen = await self.names(client)
        if asked.model is None and len(seen) == 1:
            return seen[0]
        if asked.model is None:
            message = f"Missing required parameter: 'model'; this server has {', '.join(seen)}."
            raise Problem(400, message, "missing_required_parameter", "model")
        if asked.model not in seen:
            raise unknown(asked.model)
        return asked.model

    def _order(
        self, client: Client, asked: ImageRequest, model: str
    ) -> tuple[Order, str, bool, str]:
        """Check a request against its model; in a thread, for it reads files."""
        try:
            stages = self.models.configs(model)
            manifest, exact = self.models.manifest(model), self.models.exact(model)
        except Unknown:  # it has left since
            raise unknown(model) from None
        except UserError as error:  # of a file: for who runs the server
            raise problem_of(error) from error
        first = secrets.randbelow(2**32) if asked.seed is None else asked.seed
        seeds = range(first, first + asked.count)
        try:
            options = asked.options(stages)
            request: Request = self.models.request(model, asked.prompt, seeds, options)
        except Unknown:
            raise unknown(model) from None
        except UserError as error:
            raise Problem(400, str(error), "invalid_value") from None
        deadline = time.monotonic() + self.config.limits.seconds
        order = Order(
            f"job_{uuid.uuid4().hex}", model, request, client.turn, deadline, asked.previews
        )
        width, height = picture_size(stages, request)
        exact = exact or self.config.batch.mode == "exact"
        return order, f"{width}x{height}", exact, manifest.name

    async def _encode(self, job: Job, at: int, image: Tensor) -> str:
        request = job.order.request
        notes = request.notes(at, len(request.settings) - 1, job.cascade)
        quality = job.asked.output_compression
        work = asyncio.get_running_loop().run_in_executor
        return await work(self._threads, encoded, image, job.kind, quality, notes)

    def _ended(self, job: Job, client: Client, id: str, context: Any) -> None:
        if job.ended is None or job.ticket is None:
            return
        self.scheduler.cancel(job.ticket)  # it has ended already unless telling it has failed
        logs.note(
            "pictures",
            request_id=id,
            job=job.id,
            client=client.turn,
            user_sha256=logs.hashed(job.asked.end_user),
            model=job.order.model,
            n=job.asked.count,
            prompt_sha256=logs.hashed(job.asked.prompt),
            status=job.status,
            seconds=round(job.ended - job.created, 3),
            queued_seconds=round((job.begun or job.ended) - job.created, 3),
        )
        if self.traces is not None:
            self.traces.record(job, context)


def unknown(model: str) -> Problem:
    """Say that there is no such model, or none that the client sees."""
    message = f"The model '{model}' does not exist, or your key does not see it."
    return Problem(404, message, "model_not_found", "model")


def _digest(asked: ImageRequest, as_job: bool) -> str:
    """Return what is the same for requests that ask the same."""
    return hashlib.sha256(f"{as_job} {asked.model_dump_json()}".encode()).hexdigest()
