"""The parity report's files."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from cascade_export.graph.probe import TensorDeviation
from cascade_export.parity.compare import TensorResult, TrajectoryResult
from cascade_export.parity.divergence import Divergence
from cascade_export.parity.findings import Findings, Pair, ParityReport
from cascade_export.parity.limits import PictureDeviation
from cascade_export.parity.report import sheet, write_report

SAME = PictureDeviation(rms=0.0, differing=0.0, greatest=0)
FAR = PictureDeviation(rms=3.0, differing=0.9, greatest=20)
LIMIT = PictureDeviation(rms=0.001, differing=0.001, greatest=1)


def report(
    engine: PictureDeviation, *, executed: bool = True, relative: float = 0.0
) -> ParityReport:
    eager = torch.zeros(2, 3, 16, 16)
    deviation = TensorDeviation(relative=relative, greatest=relative)
    zero = TensorDeviation(relative=0.0, greatest=0.0)
    divergence = Divergence(
        stage="base16", layer="conv_out", node="conv_63", before="", engine=0.5, limit=1e-5
    )
    findings = Findings(
        engine="onnxruntime",
        precision="fp32",
        executed=executed,
        prompts=("a dog", "<b>"),
        seeds=(0, 1),
        environment={"machine": "a test"},
        tensors=(
            TensorResult(stage="base16", case="one row", engine=deviation, eager=zero, limit=1e-5),
        ),
        trajectories=(
            TrajectoryResult(
                stage="base16",
                steps=(0.5, 0.2, 0.1),
                eager_steps=(0.0, 0.0, 0.0),
                engine=engine,
                eager=SAME,
                limit=LIMIT,
            ),
        ),
        departures=() if engine is SAME else (divergence,),
    )
    return ParityReport(findings, {"base16": Pair(eager, eager + 0.01)})


class Text(HTMLParser):
    """The text of a page, and what its pictures are."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if tag == "img" and name == "src"]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_files_tell_the_same(tmp_path: Path) -> None:
    path = write_report(report(FAR), tmp_path, "cascade export --cascade x")
    values = json.loads((tmp_path / "parity.json").read_text(encoding="utf-8"))
    assert values["passed"] is False
    assert values["trajectories"][0]["engine"] == {"rms": 3.0, "differing": 0.9, "greatest": 20}
    assert Findings.model_validate({k: v for k, v in values.items() if k != "passed"})
    page = Text(path.read_text(encoding="utf-8"))
    told = " ".join(page.words)
    assert "do not match eager" in told
    assert "first departs at conv_out" in told
    assert "cascade export --cascade x" in told
    assert len(page.sources) == 1
    assert page.sources[0].startswith("data:image/png;base64,")
    assert Image.open(tmp_path / "base16.png").width > 3 * 128


def test_equal_pictures_have_no_ratio(tmp_path: Path) -> None:
    path = write_report(report(SAME), tmp_path, "x")
    told = " ".join(Text(path.read_text(encoding="utf-8")).words)
    assert "match eager within the limits" in told
    assert "do not match" not in told
    assert "\N{EN DASH}" in told


def test_what_was_not_executed_is_said(tmp_path: Path) -> None:
    path = write_report(report(SAME, executed=False), tmp_path, "x")
    assert "built, not executed" in path.read_text(encoding="utf-8")


def test_nan_is_text_in_json_and_comes_back(tmp_path: Path) -> None:
    write_report(report(FAR, relative=float("nan")), tmp_path, "x")
    text = (tmp_path / "parity.json").read_text(encoding="utf-8")
    values = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert values["tensors"][0]["engine"]["relative"] == "NaN"
    values.pop("passed")
    assert not Findings.model_validate(values).tensors[0].passed


def test_the_difference_is_amplified_by_a_power_of_two() -> None:
    eager = torch.zeros(1, 3, 8, 8)
    _, told = sheet(Pair(eager, eager + 0.01), ("a",))
    assert "amplified 64 times" in told  # 0.64 is the most that stays inside 1
    _, told = sheet(Pair(eager, eager), ("a",))
    assert "equal to the last bit" in told
    _, told = sheet(Pair(eager, eager + float("nan")), ("a",))
    assert "amplified 1 times" in told


def test_many_rows_are_cut() -> None:
    pair = Pair(torch.zeros(10, 3, 8, 8), torch.zeros(10, 3, 8, 8))
    _, told = sheet(pair, tuple("abcdefghij"))
    assert "2 more rows are left out" in told
