"""The model repository for Triton: its files, its configuration, and the Python model in it."""

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format

from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade_export.bundle.bundle import Bundle
from cascade_export.parity.limits import to_levels
from cascade_export.settings import ServerOptions
from cascade_export.triton_server.repository import write_repository

PROMPT = "a photo of a dog"
SEEDS = [3, 4, 5]
OPTIONS = ServerOptions(pictures_at_once=2, concurrent=1)


@pytest.fixture(scope="session")
def repository(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the tiny cascade; read it only."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_repository(bundle, folder, options=OPTIONS)
    return folder


@pytest.fixture(scope="session")
def parse() -> Callable[[Path], Any]:
    """Read a `config.pbtxt` by the server's own protocol, without its client's other needs."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("needs tritonclient, which has the server's protocol")
    path = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    protocol = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(protocol)

    def read(config: Path) -> Any:
        return text_format.Parse(config.read_text(encoding="utf-8"), protocol.ModelConfig())

    return read


def test_every_model_is_configured_as_its_graph_is(
    repository: Path, parse: Callable[[Path], Any]
) -> None:
    for name in ("cascade-base16", "cascade-sr32"):
        config = parse(repository / name / "config.pbtxt")
        assert (config.name, config.backend) == (name, "onnxruntime")
        assert config.max_batch_size == OPTIONS.max_rows == 4
        assert config.dynamic_batching.default_queue_policy.max_queue_size == OPTIONS.queue_size
        # The folder form: a graph with external data.
        session = onnxruntime.InferenceSession(
            str(repository / name / "1" / "model.onnx" / "model.onnx"),
            providers=["CPUExecutionProvider"],
        )
        graph = {value.name: value for value in session.get_inputs()}
        assert {value.name for value in config.input} == set(graph)
        for value in config.input:
            served = [1] if value.HasField("reshape") else list(value.dims)
            wanted = [d if isinstance(d, int) else -1 for d in graph[value.name].shape[1:]]
            assert served == (wanted or [1])
            assert list(value.reshape.shape) == []
        assert [value.name for value in config.output] == ["out"]


def test_the_cascade_is_a_python_model_without_weights(
    repository: Path, parse: Callable[[Path], Any]
) -> None:
    config = parse(repository / "cascade" / "config.pbtxt")
    assert config.backend == "python"
    assert config.max_batch_size == 0
    assert config.parameters["pictures_at_once"].string_value == "2"
    assert [value.name for value in config.input if value.optional] == ["steps", "guidance"]
    assert not list((repository / "cascade" / "1" / "base16").glob("*.safetensors"))


def test_the_python_model_draws_what_eager_draws(
    repository: Path,
    tiny_cascade: Path,
    parse: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = Server(repository, parse)
    model = server.start("cascade", monkeypatch)
    answer = server.ask(model, {"prompt": [PROMPT.encode()], "seed": SEEDS})
    assert answer.error is None
    pictures = answer.tensors["pictures"]
    eager = Cascade.load(tiny_cascade).sample(PROMPT, SEEDS).tensor
    expected = to_levels(eager).permute(0, 2, 3, 1).numpy()
    assert pictures.dtype == np.uint8
    # fp32 against fp32: only a value that lies on the boundary of two levels may round the other
    # way.
    assert np.abs(pictures.astype(int) - expected).max() <= 1
    assert (pictures != expected).mean() < 1e-3
    assert max(server.rows) == 2 * OPTIONS.pictures_at_once


def test_a_request_may_change_the_sampler(
    repository: Path, parse: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(repository, parse)
    model = server.start("cascade", monkeypatch)
    values = {"prompt": [PROMPT.encode()], "seed": [0], "steps": [1], "guidance": [1.0]}
    assert server.ask(model, values).error is None
    assert server.rows == [1, 1]  # one step of each stage, without guidance


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"prompt": [b"a", b"b"], "seed": [0]}, "2 prompts for 1 seeds"),
        ({"prompt": [], "seed": []}, "0 prompts"),
        ({"prompt": [b"a"], "seed": [0], "guidance": [-1.0]}, "guidance"),
    ],
)
def test_a_mistake_is_told_to_the_client(
    repository: Path,
    parse: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    values: Mapping[str, Sequence[Any]],
    told: str,
) -> None:
    server = Server(repository, parse)
    model = server.start("cascade", monkeypatch)
    assert told in str(server.ask(model, values).error)


def test_a_refusal_of_a_stage_is_told_too(
    repository: Path, parse: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(repository, parse)
    model = server.start("cascade", monkeypatch)
    server.full = "cascade-sr32"
    answer = server.ask(model, {"prompt": [PROMPT.encode()], "seed": [0]})
    assert str(answer.error) == "cascade-sr32: the queue is full"


def test_a_repository_keeps_what_it_has(bundle: Bundle, tmp_path: Path) -> None:
    write_repository(bundle, tmp_path)
    with pytest.raises(UserError, match="cascade-base16 is there already"):
        write_repository(bundle, tmp_path)
    others = write_repository(bundle, tmp_path, options=ServerOptions(name="second"))
    assert [folder.name for folder in others] == ["second-base16", "second-sr32", "second"]


def test_a_bundle_without_a_text_encoder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    elsewhere = bundle.manifest.cascade.model_copy(update={"text_encoder": str(tmp_path / "no")})
    poor = Bundle(bundle.folder, bundle.manifest.model_copy(update={"cascade": elsewhere}))
    with pytest.raises(UserError, match="no text encoder"):
        write_repository(poor, tmp_path / "models")


@dataclass(frozen=True)
class Answer:
    """The stub's `InferenceResponse`."""

    tensors: dict[str, np.ndarray]
    error: Any


class Tensor:
    """The stub's `Tensor`."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        assert values.flags.c_contiguous
        self.name, self.values = name, values

    def as_numpy(self) -> np.ndarray:
        return self.values

    def to_dlpack(self) -> Any:
        return torch.utils.dlpack.to_dlpack(torch.from_numpy(self.values))


class Server:
    """Triton in small: `triton_python_backend_utils` over ONNX Runtime, strict about configuration.

    Attributes:
        rows: of every call of a stage.
        full: the name of a model that refuses.
    """

    def __init__(self, repository: Path, parse: Callable[[Path], Any]) -> None:
        self.repository, self._parse = repository, parse
        self.rows: list[int] = []
        self.full = ""
        self._sessions: dict[str, onnxruntime.InferenceSession] = {}

    def start(self, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
        """Load a Python model as the server does."""
        monkeypatch.setitem(sys.modules, "triton_python_backend_utils", self._module())
        path = self.repository / name / "1" / "model.py"
        spec = importlib.util.spec_from_file_location("model", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = self._parse(self.repository / name / "config.pbtxt")
        told = {key: {"string_value": v.string_value} for key, v in config.parameters.items()}
        model = module.TritonPythonModel()
        model.initialize(
            {
                "model_config": json.dumps({"name": name, "parameters": told}),
                "model_name": name,
                "model_repository": str(self.repository / name),
                "model_version": "1",
            }
        )
        return model

    def ask(self, model: Any, values: Mapping[str, Sequence[Any]]) -> Answer:
        """Send one request to the cascade."""
        types: dict[str, Any] = {"prompt": object, "seed": np.int64}
        types |= {"steps": np.int32, "guidance": np.float32}
        tensors = [Tensor(name, np.array(v, dtype=types[name])) for name, v in values.items()]
        (answer,) = model.execute([SimpleNamespace(tensors={t.name: t for t in tensors})])
        assert isinstance(answer, Answer)
        return answer

    def call(self, model: str, outputs: Sequence[str], inputs: Sequence[Tensor]) -> Any:
        """Answer one model's call of another."""
        if model == self.full:
            return _response({}, "the queue is full")
        config = self._parse(self.repository / model / "config.pbtxt")
        assert {tensor.name for tensor in inputs} == {value.name for value in config.input}
        feeds = {}
        for value in config.input:
            array = next(tensor.values for tensor in inputs if tensor.name == value.name)
            dims = list(array.shape[1:])
            assert len(array) <= config.max_batch_size
            assert len(dims) == len(value.dims)
            pairs = zip(value.dims, dims, strict=True)
            assert all(wanted in (-1, held) for wanted, held in pairs)
            feeds[value.name] = array[:, 0] if value.HasField("reshape") else array
        self.rows.append(len(feeds["x"]))
        answers = self._session(model).run(list(outputs), feeds)
        return _response(dict(zip(outputs, answers, strict=True)), None)

    def _session(self, model: str) -> onnxruntime.InferenceSession:
        if model not in self._sessions:
            path = self.repository / model / "1" / "model.onnx" / "model.onnx"
            self._sessions[model] = onnxruntime.InferenceSession(
                str(path), providers=["CPUExecutionProvider"]
            )
        return self._sessions[model]

    def _module(self) -> ModuleType:
        server = self

        class InferenceRequest:
            def __init__(
                self, model_name: str, requested_output_names: list[str], inputs: list[Tensor]
            ) -> None:
                self.asked = (model_name, requested_output_names, inputs)

            def exec(self) -> Any:
                return server.call(*self.asked)

        def response(output_tensors: Sequence[Tensor] = (), error: Any = None) -> Answer:
            return Answer({tensor.name: tensor.values for tensor in output_tensors}, error)

        module = ModuleType("triton_python_backend_utils")
        module.__dict__.update(
            InferenceRequest=InferenceRequest,
            InferenceResponse=response,
            Tensor=Tensor,
            TritonError=str,
            get_input_tensor_by_name=lambda request, name: request.tensors.get(name),
            get_output_tensor_by_name=lambda answer, name: Tensor(name, answer.values[name]),
        )
        return module


def _response(values: Mapping[str, np.ndarray], error: str | None) -> Any:
    return SimpleNamespace(
        values=values,
        has_error=lambda: error is not None,
        error=lambda: SimpleNamespace(message=lambda: error),
    )
