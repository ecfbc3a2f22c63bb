"""Settings of `cascade serve`; imports no web framework."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from cascade.config.base import MOST_THREADS, AtOnce, Frozen, Name
from cascade.config.encoder import Embeddings, EncoderMode
from cascade.config.engine import EngineOptions
from cascade.config.sample import SampleOptions
from cascade.config.stage import Steps
from cascade.launch import cores

Batching = Literal["exact", "padded", "mixed"]
Seconds = Annotated[float, Field(strict=True, ge=0.0, le=10**6)]
Many = Annotated[int, Field(strict=True, gt=0, le=10**6)]
Megabytes = Annotated[int, Field(strict=True, gt=0, le=10**9)]
Bytes = Annotated[int, Field(strict=True, ge=1024, le=10**9)]


class LimitConfig(Frozen):
    """What a request may ask, and how much may wait."""

    pictures: AtOnce = Field(default=10, description="pictures of one request, its n")
    steps: Steps = Field(default=250, description="steps of a stage that a request may ask")
    prompt: Many = Field(default=32_000, description="characters of a prompt")
    body: Bytes = Field(default=2**20, description="bytes of a request's body")
    waiting: Many = Field(
        default=64, description="pictures that wait; a request beyond them is refused with 503"
    )
    waiting_per_client: Many = Field(
        default=32,
        description="pictures of one client that wait or are drawn; beyond them it is refused with "
        "429",
    )
    seconds: Seconds = Field(
        default=600.0, description="a request that is not done by then is given up"
    )
    connections: Many = Field(
        default=512, description="requests answered at a time, streams too; more are refused"
    )

    @model_validator(mode="after")
    def _room_for_one_request(self) -> Self:
        if self.pictures > min(self.waiting, self.waiting_per_client):
            raise ValueError(
                f"a request may ask for {self.pictures} pictures and never finds room for them; "
                "raise waiting and waiting_per_client, or lower pictures"
            )
        return self


class BatchConfig(Frozen):
    """How requests share the network's calls."""

    mode: Batching = Field(
        default="exact",
        description="exact lets pictures share a call where an engine's rows are proven not to "
        "depend on each other, and asks for each alone where not; padded fills every call up to "
        "its rows, mixed shares freely and the last bits move",
    )
    rows: AtOnce = Field(
        default=8, description="rows of a call at most; a picture under guidance takes two"
    )
    # Pictures that begin together end together: on a CPU, where sharing calls gains little, more
    # than two let whoever comes next wait for all of them.
    at_once: AtOnce = Field(default=2, description="pictures worked on at a time; others wait")
    calls: AtOnce = Field(
        default=1,
        description="calls of networks at a time; on a CPU one for each core, on a thread each, "
        "draw most, and each picture takes longer",
    )

    @model_validator(mode="after")
    def _pictures_for_every_call(self) -> Self:
        if self.calls > self.at_once:
            raise ValueError(
                f"{self.calls} calls at a time need as many pictures; raise at_once, or lower calls"
            )
        return self


class JobConfig(Frozen):
    """How long finished jobs and answers to repeated requests are kept."""

    kept: Many = Field(default=256, description="finished jobs that are kept; the oldest leave")
    seconds: Seconds = Field(default=3600.0, description="how long a finished job is kept")
    memory: Megabytes = Field(default=256, description="MB of kept pictures")


class KeyOptions(Frozen):
    """What a client may do."""

    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("*",),
        min_length=1,
        description="models it sees, by name or pattern (my-*); may be repeated",
    )
    requests_per_minute: Many | None = Field(default=None, description="more are refused")
    pictures_per_day: Many | None = Field(default=None, description="more are refused")
    admin: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="whether it may read /metrics"
    )


class KeyConfig(KeyOptions):
    """A client's key, as `cascade serve-key` writes it: its hash alone."""

    name: Name = Field(description="the client")
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(
        description="of the key"
    )


class KeysConfig(Frozen):
    """The file of keys."""

    keys: tuple[KeyConfig, ...] = Field(min_length=1, description="the clients'")

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        for values in ([key.name for key in self.keys], [key.sha256 for key in self.keys]):
            if len(set(values)) < len(values):
                raise ValueError("a name or a hash stands there twice; give each client one key")
        return self


class ServerEngines(EngineOptions):
    """How engines run beside a server's other threads."""

    threads: Annotated[int | None, Field(strict=True, gt=0, le=MOST_THREADS)] = Field(
        default=None,
        description="of a network's call on the CPU; the cores, shared by the calls made at a "
        "time, by default",
    )
    spinning: Annotated[bool, Field(strict=True)] = Field(
        default=False, description=EngineOptions.model_fields["spinning"].description
    )


class ServeConfig(Frozen):
    """`cascade serve`: which cascades, to whom, and how much at a time."""

    cascades: tuple[str, ...] = Field(
        default=(),
        description="a cascade folder, or NAME=FOLDER to call the model otherwise; may be "
        "repeated; 'mini' if neither this nor a bundle",
    )
    bundles: tuple[str, ...] = Field(
        default=(),
        description="a bundle made by 'cascade export', or NAME=FOLDER; a fine-tune of it is the "
        "model NAME:SUBJECT; may be repeated",
    )
    options: Mapping[str, SampleOptions] = Field(
        default={}, description="by model, what differs from its checkpoints' settings"
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen at")
    port: Annotated[int, Field(strict=True, ge=0, le=65_535)] = Field(
        default=8000, description="port to listen at; 0 takes a free one"
    )
    device: str | None = Field(
        default=None, description="where the networks run: cpu, cuda, ...; the GPU if there is one"
    )
    engine: Name | None = Field(
        default=None, description="run bundles' graphs on another engine than their own"
    )
    engines: ServerEngines = Field(
        default=ServerEngines(), description="how a bundle's engines run"
    )
    max_memory: Megabytes | None = Field(
        default=None,
        description="MB for weights; models that nobody draws from leave, the longest unused first",
    )
    embeddings: Embeddings = None
    encoder_mode: EncoderMode = "auto"
    texts: Many = Field(default=1024, description="prompts whose embeddings are kept")
    keys: Path | None = Field(
        default=None,
        description="a file of clients' keys (cascade serve-key); without it every client is "
        "served",
    )
    hosts: tuple[str, ...] = Field(
        default=(),
        description="names by which browsers and clients may call this server, beside its address; "
        "may be repeated",
    )
    origins: tuple[str, ...] = Field(
        default=(), description="web pages that may call it, https://name; may be repeated"
    )
    warm_up: Annotated[bool, Field(strict=True)] = Field(
        default=True, description="draw once with every size of batch before /ready says so"
    )
    reload: Seconds = Field(
        default=5.0, description="seconds between looks for changed models and keys; 0 is never"
    )
    drain: Seconds = Field(
        default=30.0, description="seconds that requests get to end when the server is stopped"
    )
    traces: str | None = Field(
        default=None, description="OTLP endpoint of OpenTelemetry traces, http://host:4318"
    )
    limits: LimitConfig = Field(default=LimitConfig(), description="what may be asked")
    batch: BatchConfig = Field(default=BatchConfig(), description="how calls are shared")
    jobs: JobConfig = Field(default=JobConfig(), description="what is kept")

    @property
    def threads(self) -> int | None:
        """Threads of a network's call on the CPU; None leaves them to who makes it."""
        if self.engines.threads is None and self.batch.calls > 1:
            return max(1, cores() // self.batch.calls)
        return self.engines.threads
