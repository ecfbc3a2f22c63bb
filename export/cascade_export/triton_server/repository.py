"""A model repository for NVIDIA's Triton Inference Server, written from a bundle.

    REPOSITORY/<name>-<stage>/1/model.onnx/{model.onnx, weights.safetensors}    or 1/model.plan
    REPOSITORY/<name>-text/1/model.onnx/...            where the bundle's text encoder is a graph
    REPOSITORY/<name>/1/{model.py, cascade.json, <stage>/config.json, text/}

The stages are models of their own, which the server batches and places; `<name>` is a Python model
that runs this package's samplers and calls them (`.model`). Plans of TensorRT
are taken where the bundle has them; those of TensorRT for RTX belong to another runtime, which the
server has not, and ONNX Runtime runs their graphs instead.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from cascade.config.folders import MANIFEST, CascadeManifest
from cascade.errors import UserError
from cascade.files import copy_file, new_folder, write_bytes
from cascade.formats.weights import write_encoder
from cascade.text.files import EncoderFiles, find_vocabulary
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines import engine_class
from cascade_export.engines.tensorrt.plan_cache import PlanCache
from cascade_export.engines.version import StageFiles
from cascade_export.graph.graph import GRAPH, Graph, TensorSpec
from cascade_export.graph.weights import WEIGHTS
from cascade_export.settings import ServerOptions

PICTURES_AT_ONCE: Final = "pictures_at_once"
TEXT_MODEL: Final = "text_model"
_VERSION: Final = "1"
_TYPES: Final = {"float32": "TYPE_FP32", "int64": "TYPE_INT64", "bool": "TYPE_BOOL"}
PLANS_LEFT_OUT: Final = (
    "The bundle's plans are TensorRT for RTX's, which this server cannot load: ONNX Runtime runs "
    "the stages here."
)
_MODEL: Final = '''"""The whole cascade as one model of the server."""

from cascade_export.triton_server.model import CascadeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def write_repository(
    bundle: Bundle, output: Path, subject: str | None = None, options: ServerOptions | None = None
) -> list[Path]:
    """Write a bundle as a model repository.

    Returns:
        The models' folders; the whole cascade's is the last.

    Raises:
        UserError: a model of one of the names is there already, the subject is unknown, the
            bundle has no text encoder, or a plan takes too few rows.
    """
    options = options or ServerOptions()
    chosen = None if subject is None else bundle.subject(subject)
    files = bundle.files(chosen)
    _require_text(bundle)
    as_graph = bundle.manifest.text.form == "graph"
    names = [f"{options.name}-{part.config.name}" for part in files]
    names += [f"{options.name}-text"] if as_graph else []
    for name in (*names, options.name):
        if (output / name).exists():
            raise UserError(
                f"{output / name} is there already; choose another name or another repository."
            )
    plans = [_plan(bundle, part, options) for part in files]
    manifest = bundle.manifest.cascade if chosen is None else chosen.cascade
    models = [output / name for name in (*names, options.name)]
    with ExitStack() as undo:  # the server would load half of a model
        for folder in models if output.exists() else [output]:
            undo.enter_context(new_folder(folder))
        for name, part, plan in zip(names, files, plans, strict=False):
            _write_stage(output / name, part, plan, options)
        if as_graph:
            _write_text(output / names[-1], bundle.text_folder, options)
        _write_cascade(output / options.name, bundle, manifest, files, options)
    return models


def plans_left_out(bundle: Bundle) -> bool:
    """Return whether a bundle has plans that the server cannot load."""
    engine = engine_class(bundle.manifest.engine)
    return engine.runs_plans and not engine.server_takes_plans


def model_config(
    name: str,
    backend: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    rest: Sequence[str],
    max_rows: int = 0,
) -> str:
    """Compose a `config.pbtxt`: protobuf text of the server's `ModelConfig`."""
    lines = [f'name: "{name}"', f'backend: "{backend}"', f"max_batch_size: {max_rows}"]
    lines += [f"input {{ {value} }}" for value in inputs]
    lines += [f"output {{ {value} }}" for value in outputs]
    return "\n".join([*lines, *rest]) + "\n"


def batched_tensor(spec: TensorSpec) -> str:
    """Describe a graph's input or output whose first dimension is the batch."""
    dims = [-1 if isinstance(dim, str) else dim for dim in spec.dims[1:]]
    spec_text = f'name: "{spec.name}" data_type: {_TYPES[spec.dtype]}'
    if not dims:  # one number a row: the server has no tensors without dimensions, but reshapes
        return f"{spec_text} dims: [ 1 ] reshape {{ shape: [ ] }}"
    return f"{spec_text} dims: [ {', '.join(map(str, dims))} ]"


def _write_stage(folder: Path, part: StageFiles, plan: Path | None, options: ServerOptions) -> None:
    version = folder / _VERSION
    if plan is None:
        _copy_graph(part.graph.path, part.weights, version)
    else:
        copy_file(plan, version / "model.plan")
    backend = "onnxruntime" if plan is None else "tensorrt"
    _write_graph_config(folder, backend, part.graph, options)


def _write_text(folder: Path, source: Path, options: ServerOptions) -> None:
    _copy_graph(source / GRAPH, source / WEIGHTS, folder / _VERSION)
    _write_graph_config(folder, "onnxruntime", Graph.open(source / GRAPH), options)


def _write_graph_config(folder: Path, backend: str, graph: Graph, options: ServerOptions) -> None:
    text = model_config(
        folder.name,
        backend,
        [batched_tensor(spec) for spec in graph.inputs],
        [batched_tensor(spec) for spec in graph.outputs],
        _batching(options),
        options.max_rows,
    )
    write_bytes(text.encode(), folder / "config.pbtxt")


def _batching(options: ServerOptions) -> list[str]:
    timeout = round(1e6 * options.queue_timeout)
    return [
        "instance_group { count: 1 kind: KIND_AUTO }",
        "dynamic_batching {",
        f"  max_queue_delay_microseconds: {options.queue_delay}",
        "  default_queue_policy {",
        "    timeout_action: REJECT",
        f"    default_timeout_microseconds: {timeout}",
        f"    max_queue_size: {options.queue_size}",
        "  }",
        "}",
    ]


def _write_cascade(
    folder: Path,
    bundle: Bundle,
    manifest: CascadeManifest,
    files: Sequence[StageFiles],
    options: ServerOptions,
) -> None:
    """Write the Python model: a cascade's folder without weights, beside the code that runs it."""
    version = folder / _VERSION
    entry, source = bundle.manifest.text, bundle.text_folder
    if entry.form == "graph":
        copy_file(source / "config.json", version / "text" / "config.json")
        copy_file(find_vocabulary(source), version / "text" / "spiece.model")
    elif not Path(manifest.text_encoder).is_absolute():
        encoder = EncoderFiles.open(source)
        write_encoder(encoder, version / "text", version / "text" / encoder.vocabulary.name)
    for part in files:
        settings = part.config.model_dump_json(indent=2) + "\n"
        write_bytes(settings.encode(), version / part.config.name / "config.json")
    write_bytes((manifest.model_dump_json(indent=2) + "\n").encode(), version / MANIFEST)
    write_bytes(_MODEL.encode(), version / "model.py")
    parameters = {PICTURES_AT_ONCE: str(options.pictures_at_once)}
    if entry.form == "graph":
        parameters[TEXT_MODEL] = f"{options.name}-text"
    rest = [f"instance_group {{ count: {options.concurrent} kind: KIND_CPU }}"]
    rest += [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    text = model_config(
        options.name,
        "python",
        [
            'name: "prompt" data_type: TYPE_STRING dims: [ -1 ]',
            'name: "seed" data_type: TYPE_INT64 dims: [ -1 ]',
            'name: "steps" data_type: TYPE_INT32 dims: [ 1 ] optional: true',
            'name: "guidance" data_type: TYPE_FP32 dims: [ 1 ] optional: true',
        ],
        ['name: "pictures" data_type: TYPE_UINT8 dims: [ -1, -1, -1, 3 ]'],
        rest,
    )
    write_bytes(text.encode(), folder / "config.pbtxt")
    write_bytes(_readme(bundle, manifest, options).encode(), folder / "README.md")


def _plan(bundle: Bundle, part: StageFiles, options: ServerOptions) -> Path | None:
    """Return a stage's plan where the server can load it."""
    if part.plan is None or not engine_class(bundle.manifest.engine).server_takes_plans:
        return None
    stored = PlanCache(bundle.plans).named(part.plan.name)
    stored.read()  # proven
    most = stored.manifest.fingerprint.profile["batch"][2]
    if most < options.max_rows:
        raise UserError(
            f"The plan of stage '{part.config.name}' takes {most} rows and a batch would have "
            f"{options.max_rows}; ask for fewer pictures at once, or export with a larger "
            "--max-batch."
        )
    return part.plan / "plan"


def _require_text(bundle: Bundle) -> None:
    if not bundle.text_folder.is_dir():
        raise UserError(
            f"There is no text encoder at {bundle.text_folder}, and the server has no store of "
            "embeddings; export a bundle with its text encoder."
        )


def _copy_graph(graph: Path, weights: Path, version: Path) -> None:
    """Write the folder form of an ONNX model: the graph and what it points to, side by side."""
    copy_file(graph, version / "model.onnx" / "model.onnx")
    copy_file(weights, version / "model.onnx" / WEIGHTS)


def _readme(bundle: Bundle, manifest: CascadeManifest, options: ServerOptions) -> str:
    lines = [
        f"# {options.name}: a cascade for NVIDIA's Triton Inference Server",
        "",
        f"Licence of {manifest.name}: {manifest.licence or 'not stated'}",
        "",
        f"`{options.name}` is a Python model: it draws pictures and calls the models "
        f"`{options.name}-...` beside it, one for each stage. It needs this project in the "
        "server's Python (`pip install 'dreamcascade[export]'`).",
        "",
        "| tensor | type | shape | |",
        "|---|---|---|---|",
        "| `prompt` | string | N | one for all pictures, or one for each |",
        "| `seed` | int64 | N | one for each picture |",
        "| `steps` | int32 | 1 | optional: in place of the checkpoint's |",
        "| `guidance` | float32 | 1 | optional: in place of the checkpoint's |",
        "| `pictures` (output) | uint8 | N, height, width, 3 | |",
        "",
        "Not executed: the repository's configuration and the Python model are tested without a "
        "server.",
    ]
    if plans_left_out(bundle):
        lines += ["", PLANS_LEFT_OUT]
    return "\n".join(lines) + "\n"
