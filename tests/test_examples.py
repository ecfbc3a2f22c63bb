"""Every example runs as it is written, and leaves what it says."""

import runpy
import sys
from pathlib import Path

import pytest

from cascade import RECIPES, Cascade
from cascade.config.dreambooth import PriorConfig, Recipe
from cascade.config.folders import read_manifest
from cascade.config.train import TrainConfig
from cascade.diffusion import samplers

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
TESTED = {
    "sample",
    "own_sampler",
    "own_objective",
    "personalise",
    "export_and_swap",
    "serve_client",  # in tests/serve/test_process.py, where there is a server
}


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_every_example_is_tested_and_says_how_it_is_run() -> None:
    paths = sorted(EXAMPLES.glob("*.py"))
    assert {path.stem for path in paths} <= TESTED
    for path in paths:
        assert f"\npython examples/{path.name}" in path.read_text(encoding="utf-8")


def test_sample(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run(monkeypatch, "sample", tmp_path / "out", 1)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"cup-{seed}.png" for seed in range(4)
    ]


def test_own_sampler(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    ddim = samplers.SAMPLERS["ddim"]
    monkeypatch.setitem(samplers.SAMPLERS, "ddim", ddim)  # put back afterwards
    run(monkeypatch, "own_sampler", 3)
    printed = capsys.readouterr().out
    assert "(1, 3, 256, 256)" in printed
    # Without noise DDIM is Euler's method too: the same levels, the same picture but for roundings.
    samplers.SAMPLERS["ddim"] = ddim
    drawn = Cascade.load("mini").sample("a red cup", seeds=[0], sampler="ddim", steps=3)
    assert f"mean {float(drawn.tensor.mean()):.3f}" in printed


def test_own_objective(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "own_objective", tmp_path, 2)
    assert "loss/instance" in capsys.readouterr().out
    assert (tmp_path / "stage" / "model.safetensors").is_file()


def test_personalise(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    photos: Path,
    tiny_cascade: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short = TrainConfig(steps=2, batch_size=1)
    recipe = Recipe(prior=PriorConfig(images=2), base=short, super_resolution=short)
    monkeypatch.setitem(RECIPES, read_manifest(tiny_cascade).recipe, recipe)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run(monkeypatch, "personalise", photos, "dog", tmp_path / "mine", tiny_cascade)
    assert "on the beach: " in capsys.readouterr().out
    assert (tmp_path / "mine" / "on-the-beach.png").is_file()
