"""`bundle.json`, which describes a bundle, and `about.json` of each of its subjects."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from pydantic import Field, StringConstraints, model_validator

from cascade.config.base import NAME, Frozen, Name
from cascade.config.folders import MANIFEST, CascadeManifest
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.files import read_json, write_bytes
from cascade_export.engines import EngineName
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.numerics import Numerics, Precision, Quantization, TextForm
from cascade_export.graph.weights import WEIGHTS, digest
from cascade_export.parity.limits import PictureDeviation

SCHEMA: Final = 2
BUNDLE: Final = "bundle.json"
ABOUT: Final = "about.json"
_AGAIN = "copy the bundle or export it again"
_SEAL = "seal"

Sha256 = Annotated[str, StringConstraints(pattern="^[0-9a-f]{64}$")]

Inside = Annotated[
    str, StringConstraints(pattern=rf"^{NAME[1:-1]}(/{NAME[1:-1]})*$", max_length=1000)
]
"""A file in the bundle: plain names with '/' between them, which lead nowhere else."""


class Weights(Frozen):
    """A weights file, its path relative to the bundle."""

    file: Inside
    sha256: Sha256
    size: int


class StageEntry(Frozen):
    """One stage.

    Attributes:
        islands: modules left in fp32 beside the default ones.
        plan: key of the plan that TensorRT's engines run.
    """

    config: Sha256
    graph: Sha256
    weights: Weights
    islands: tuple[str, ...] = ()
    plan: Name | None = None


class TextEntry(Frozen):
    """The text encoder.

    Attributes:
        form: an encoder's own folder, which transformers runs, or a graph for ONNX Runtime.
        model: digest of the encoder's weights, as `EncoderFiles.model_digest`.
        tokenizer: digest of its vocabulary.
        files: sha256 of the files in its folder, by name; of an encoder outside of the bundle,
            which the digests prove, its configuration's; none where embeddings stand in.
    """

    form: TextForm
    model: Sha256
    tokenizer: Sha256
    files: dict[Name, Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _a_graph_is_there(self) -> Self:
        if self.form == "graph" and not {GRAPH, WEIGHTS} <= self.files.keys():
            raise ValueError(f"must name {GRAPH} and {WEIGHTS} of a text encoder that is a graph")
        return self


class Proof(Frozen):
    """The outcome of the parity gate; the whole report lies in the bundle.

    Attributes:
        executed: False where another runtime ran the graphs in the engines' place.
        pictures: by stage, how far the engines' images are from eager's.
    """

    executed: bool
    pictures: dict[str, PictureDeviation]


class BundleManifest(Frozen):
    """`bundle.json`.

    Attributes:
        targets: compute capabilities of the plans; empty where there are none.
        stages: by name, base first.
        proof: by the parity gate; a draft has none.
    """

    schema_version: Literal[2] = SCHEMA
    cascade: CascadeManifest
    engine: EngineName
    precision: Precision
    quantisation: Quantization = "none"
    targets: tuple[Annotated[int, Field(strict=True)], ...] = ()
    text: TextEntry
    stages: dict[Name, StageEntry]
    versions: dict[str, str]
    proof: Proof | None = None

    @property
    def numerics(self) -> Numerics:
        """Return what the graphs compute in."""
        return Numerics(precision=self.precision, quantization=self.quantisation)

    @model_validator(mode="after")
    def _stages_of_the_cascade(self) -> Self:
        _check_stages(self.cascade, self.stages)
        return self


class SubjectStage(Frozen):
    """A stage of a subject: its settings, which tuning changes too, and its weights."""

    config: StageConfig
    weights: Weights


class Subject(Frozen):
    """`about.json`: a fine-tune that a bundle serves beside its own weights."""

    name: Name
    cascade: CascadeManifest
    stages: dict[Name, SubjectStage]
    proof: Proof

    @model_validator(mode="after")
    def _stages_of_the_cascade(self) -> Self:
        _check_stages(self.cascade, self.stages)
        return self


_Record = TypeVar("_Record", BundleManifest, Subject)


def read_manifest(folder: Path) -> BundleManifest:
    """Read a bundle's manifest."""
    path = folder / BUNDLE
    if not path.is_file():
        raise UserError(_no_bundle(folder))
    values = read_json(path, _AGAIN)
    version = values.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(
            f"{folder} was made by a later version of dreamcascade (bundle schema {version}, here "
            f"{SCHEMA}); update dreamcascade, or export again."
        )
    if isinstance(version, int) and version < SCHEMA:
        raise UserError(
            f"{folder} was made by an earlier version of dreamcascade, which did not prove all "
            "that decides a picture; export it again."
        )
    return _unsealed(BundleManifest, values, path)


def read_subject(path: Path) -> Subject:
    """Read a subject's `about.json`."""
    return _unsealed(Subject, read_json(path, _AGAIN), path)


def write_sealed(record: BundleManifest | Subject, path: Path) -> None:
    """Write a record with the hash of its values, which proves them when it is read."""
    values = record.model_dump(mode="json")
    text = json.dumps(values | {_SEAL: _seal(values)}, indent=2, ensure_ascii=False)
    write_bytes((text + "\n").encode(), path)


def check_file(path: Path, sha256: str, size: int | None = None) -> None:
    """Prove a file of a bundle."""
    if not path.is_file():
        raise UserError(f"{path} is missing; {_AGAIN}.")
    actual = path.stat().st_size
    if size is not None and actual != size:
        raise UserError(f"{path} has {actual} bytes instead of {size}; {_AGAIN}.")
    if digest(path) != sha256:
        raise UserError(f"{path} is not the file that the bundle was made with; {_AGAIN}.")


def describe_weights(folder: Path, path: Path, sha256: str) -> Weights:
    """Describe a weights file for the bundle's manifest."""
    file = path.relative_to(folder).as_posix()
    return Weights(file=file, sha256=sha256, size=path.stat().st_size)


def _unsealed(kind: type[_Record], values: Mapping[str, Any], path: Path) -> _Record:
    """Parse a record first, so that a wrong value is named, and prove it then."""
    fields = {key: value for key, value in values.items() if key != _SEAL}
    record = kind.parse(fields, str(path))
    if values.get(_SEAL) != _seal(fields):
        raise UserError(f"{path} is not as it was written; {_AGAIN}.")
    return record


def _seal(values: Mapping[str, Any]) -> str:
    """Return sha256 over the canonical JSON."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_stages(cascade: CascadeManifest, stages: Mapping[str, object]) -> None:
    if tuple(stages) != cascade.stages:
        raise ValueError(
            f"the cascade has the stages {', '.join(cascade.stages)} and the bundle "
            f"{', '.join(stages) or 'none'}"
        )


def _no_bundle(folder: Path) -> str:
    if not folder.is_dir():
        return f"There is no bundle at {folder}; check the path."
    if (folder / MANIFEST).is_file():
        return (
            f"{folder} is a cascade; make a bundle of it first: cascade export --cascade {folder} "
            "--output BUNDLE."
        )
    return (
        f"{folder} is no bundle: it has no {BUNDLE}; an export that was cut short lacks it until "
        "it is started again and ends."
    )
