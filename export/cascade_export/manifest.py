"""What a bundle's files say of it: `bundle.json`, and `about.json` of each of its subjects."""

from pathlib import Path
from typing import Final, Literal

from cascade.config.base import Frozen
from cascade.config.stage import MANIFEST, CascadeManifest, StageConfig
from cascade.errors import UserError
from cascade.files import read_json
from cascade_export.engines import EngineKind
from cascade_export.precision import Precision
from cascade_export.targets import Quantisation
from cascade_export.tolerance import PictureDeviation
from cascade_export.weights import digest

SCHEMA: Final = 1
BUNDLE: Final = "bundle.json"
ABOUT: Final = "about.json"
_AGAIN = "copy the bundle or export it again"


class Weights(Frozen):
    """A weights file, its path relative to the bundle."""

    file: str
    sha256: str
    size: int


class StageEntry(Frozen):
    """One stage.

    Attributes:
        graph: sha256 of `graph.onnx`.
        weights: its own.
        islands: modules left in fp32 beside the default ones.
        plan: key of the plan that TensorRT's engines run.
    """

    graph: str
    weights: Weights
    islands: tuple[str, ...] = ()
    plan: str | None = None


class TextEntry(Frozen):
    """The text encoder.

    Attributes:
        form: an encoder's own folder, which transformers runs, or a graph for ONNX Runtime.
        model: digest of the encoder's weights, as `EncoderFiles.model_digest`.
        tokenizer: digest of its vocabulary.
        graph: sha256 of the graph, where there is one.
        weights: the graph's.
    """

    form: Literal["torch", "graph"]
    model: str
    tokenizer: str
    graph: str | None = None
    weights: Weights | None = None


class Proof(Frozen):
    """What the parity gate found; the whole report lies in the bundle.

    Attributes:
        executed: False where another runtime ran the graphs in the engines' place.
        pictures: by stage, how far the engines' pictures are from eager's.
    """

    executed: bool
    pictures: dict[str, PictureDeviation]


class BundleManifest(Frozen):
    """`bundle.json`.

    Attributes:
        cascade: name, licence and stages of what was exported.
        engine: the kind that it was proven with.
        precision: of graphs and weights.
        quantisation: of the graphs.
        targets: compute capabilities of the plans; empty where there are none.
        text: the text encoder.
        stages: by name, base first.
        versions: of what made the bundle.
        proof: by the parity gate; a draft has none.
    """

    schema_version: int = SCHEMA
    cascade: CascadeManifest
    engine: EngineKind
    precision: Precision
    quantisation: Quantisation = "none"
    targets: tuple[int, ...] = ()
    text: TextEntry
    stages: dict[str, StageEntry]
    versions: dict[str, str]
    proof: Proof | None = None


class SubjectStage(Frozen):
    """A stage of a subject: its settings, which tuning changes too, and its weights."""

    config: StageConfig
    weights: Weights


class Subject(Frozen):
    """`about.json`: a fine-tune that a bundle serves beside its own weights."""

    name: str
    cascade: CascadeManifest
    stages: dict[str, SubjectStage]
    proof: Proof


def read_manifest(folder: Path) -> BundleManifest:
    """Read a bundle's manifest.

    Raises:
        UserError: there is none, it is damaged, or of a later version of this project.
    """
    path = folder / BUNDLE
    if not path.is_file():
        raise UserError(_no_bundle(folder))
    values = read_json(path)
    version = values.get("schema_version")
    if isinstance(version, int) and version > SCHEMA:
        raise UserError(
            f"{folder} was made by a later version of dreamcascade (bundle schema {version}, here "
            f"{SCHEMA}); update dreamcascade, or export again."
        )
    return BundleManifest.parse(values, str(path))


def check_file(path: Path, sha256: str, size: int | None = None) -> None:
    """Prove a file of a bundle.

    Raises:
        UserError: it is missing, truncated or altered.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; {_AGAIN}.")
    held = path.stat().st_size
    if size is not None and held != size:
        raise UserError(f"{path} has {held} bytes instead of {size}; {_AGAIN}.")
    if digest(path) != sha256:
        raise UserError(f"{path} is not the file that the bundle was made with; {_AGAIN}.")


def describe_weights(folder: Path, path: Path, sha256: str) -> Weights:
    """What a bundle's manifest says of a weights file in its folder."""
    file = path.relative_to(folder).as_posix()
    return Weights(file=file, sha256=sha256, size=path.stat().st_size)


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
