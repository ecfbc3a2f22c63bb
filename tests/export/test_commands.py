"""`cascade export` and `cascade sample --bundle` from the outside."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade_export.bundle.bundle import Bundle
from cascade_export.settings import ExportConfig

Command = Callable[..., Any]


def pixels(folder: Path, stage: str, name: str) -> np.ndarray:
    with Image.open(folder / stage / name) as picture:
        return np.asarray(picture, dtype=np.int16)


def test_a_bundle_samples_as_its_cascade(
    command: Command, bundle: Bundle, tiny_cascade: Path, tmp_path: Path
) -> None:
    common = ("sample", "--prompt", "a dog", "--num_images", 2, "--seed", 5, "--device", "cpu")
    flags = ("--steps", 2, "--guidance", 4, "--noise_level", 0.3)
    assert command(*common, *flags, "--cascade", tiny_cascade, "-o", tmp_path / "one").status == 0
    shown = command(*common, *flags, "--bundle", bundle.folder, "-o", tmp_path / "two")
    assert shown.status == 0
    for stage in ("base16", "sr32"):
        for name in ("00-5.png", "00-6.png"):
            one, two = pixels(tmp_path / "one", stage, name), pixels(tmp_path / "two", stage, name)
            # A difference of 1e-6 may cross the boundary between two grey levels.
            assert np.abs(one - two).max() <= 1


def test_a_bundle_draws_other_sizes_as_its_cascade(
    command: Command, bundle: Bundle, tiny_cascade: Path, tmp_path: Path
) -> None:
    common = ("sample", "--prompt", "a dog", "--num_images", 1, "--steps", 2, "--device", "cpu")
    flags = ("--size", 64, "--aspect", "3:2")
    assert command(*common, *flags, "--cascade", tiny_cascade, "-o", tmp_path / "one").status == 0
    shown = command(*common, *flags, "--bundle", bundle.folder, "-o", tmp_path / "two")
    assert shown.status == 0, shown.err
    for stage in ("base16", "sr32", "sr32-at-64"):
        one, two = (pixels(tmp_path / name, stage, "00-0.png") for name in ("one", "two"))
        assert one.shape[0] < one.shape[1]
        assert np.abs(one - two).max() <= 1  # a difference of 1e-6 may cross a boundary
    again = command(*common, "--size", 48, "--bundle", bundle.folder, "-o", tmp_path / "three")
    assert again.status == 2
    assert "makes pictures of 16, 32, 64 pixels" in again.err


def test_a_subject_under_every_flag(command: Command, bundle: Bundle, tmp_path: Path) -> None:
    flags = ("--bundle", bundle.folder, "--subject", "sec-dog", "--num_images", 1)
    runs = ("--threads", 1, "--no-spinning", "--max-memory", 5)
    shown = command("sample", "--prompt", "a dog", *flags, *runs, "-o", tmp_path / "out")
    assert shown.status == 0, shown.err
    assert (tmp_path / "out" / "sr32" / "00-0.png").is_file()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty folders B and C, since a path that leads nowhere is told before all else."""
    monkeypatch.chdir(tmp_path)
    for name in "BC":
        (tmp_path / name).mkdir()


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--subject", "dog"), "--subject belongs to a bundle"),
        (("--max-memory", 5), "--max-memory belongs to a bundle"),
        (("--no-spinning",), "--no-spinning belongs to a bundle"),
        (("--bundle", "B", "--cascade", "mini"), "leave --cascade or --bundle out"),
        (("--bundle", "B", "--precision", "bf16"), "leave --precision or --bundle out"),
        (("--bundle", "B", "--lora", "x"), "give --lora to 'cascade export'"),
        (("--bundle", "nowhere"), "There is no folder nowhere"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_sample_s_refusals(
    command: Command, tmp_path: Path, flags: tuple[object, ...], told: str
) -> None:
    shown = command("sample", "--prompt", "a dog", "-o", tmp_path / "out", *flags)
    assert shown.status == 2
    assert told in shown.err


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ((), "give --output"),
        (("-o", "B", "--into", "C", "--subject", "x"), "give --output"),
        (("--into", "B"), "--into and --subject go together"),
        (("-o", "B", "--subject", "x"), "--into and --subject go together"),
        *(
            (
                ("--into", "B", "--subject", "x", *flags),
                f"{flags[0][2:].replace('-', '_')} is what B",
            )
            for flags in (
                ("--engine", "torch"),
                ("--precision", "fp32"),
                ("--text-encoder", "graph"),
                ("--max-batch", 4),
                ("--usual-batch", 2),
                ("--retry",),
            )
        ),
        (("-o", "B", "--max-batch", 2), "takes any batch; leave --max-batch out"),
        (("-o", "B", "--usual-batch", 2), "takes any batch; leave --usual-batch out"),
        (("-o", "B", "--usual-batch", 5), "usual_batch is 5 and max_batch 4"),
        (("-o", "B", "--lora-scale", 0.5), "lora_scale belongs to lora"),
        (("-o", "B", "--lora-unet-only"), "lora_unet_only belongs to lora"),
        (("-o", "B", "--calibration-prompt", "x"), "calibration_prompts belong to quantization"),
        (("-o", "B", "--prompt", "a \udcff"), "no text"),
        (("-o", "B", "--target", "sm٨٩"), "write targets as in sm89,sm120"),
        (("-o", "B", "--target", "89"), "write targets as in sm89,sm120"),
        (("-o", "B", "--target", "sm89"), "builds no plans"),
        (("-o", "B", "--precision", "bf16", "--device", "cpu"), "no bf16 on a CPU"),
        (("-o", "B", "--device", "tpu"), "There is no device 'tpu'"),
        (("-o", "B", "--device", "meta"), "There is no device 'meta'"),
        (("-o", "B", "--engine", "tensorrt-rtx", "--target", "sm90"), "does not build for sm90"),
    ],
)
@pytest.mark.usefixtures("folders")
def test_export_s_refusals(command: Command, flags: tuple[object, ...], told: str) -> None:
    shown = command("export", *flags)
    assert shown.status == 2
    assert told in shown.err


@pytest.mark.usefixtures("folders")
def test_a_file_flags_and_set_say_how_to_export(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[ExportConfig] = []
    monkeypatch.setattr("cascade_export.cli.export._make", lambda config, _: made.append(config))
    (tmp_path / "export.toml").write_text("output = 'B'\nretry = true\n[gate]\nsteps = 3\n")
    plain, new = ("export", "--config", "export.toml"), ("--calibration-prompt", "a dog")
    for flag in ("--quantize", "--quantise"):
        shown = command(*plain, flag, "int8", *new, "--target", "sm89", "--set", "gate.steps=2")
        assert shown.status == 0, shown.err
        assert ("--quantise is --quantize now" in shown.err) == (flag == "--quantise")
    one, other = (config.model_dump(exclude={"gate": {"command"}}) for config in made)
    assert one == other
    assert (one["quantization"], one["targets"], one["gate"]["steps"]) == ("int8", (89,), 2)
    assert made[0].retry
    assert made[0].gate.command.startswith("cascade export --config export.toml --quantize")


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_export_and_into(
    command: Command, tiny_cascade: Path, tuned_cascade: Path, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    check = ("--prompt", "a dog", "--prompt", "a cat", "--prompt", "", "--steps", 2)
    shown = command("export", "--cascade", tiny_cascade, "-o", output, *check, "--device", "cpu")
    assert shown.status == 0, shown.err
    assert "base16" in shown.out
    assert f"cascade sample --bundle {output}" in shown.out
    report = (output / "report" / "parity.html").read_text()
    assert "cascade export --cascade" in report
    added = ("--cascade", tuned_cascade, "--into", output, "--subject", "dog", *check)
    shown = command("export", *added, "--device", "cpu")
    assert shown.status == 0, shown.err
    assert Bundle.open(output).subject("dog").proof.executed
    again = command("export", *added)
    assert again.status == 2
    assert "has a subject 'dog' already" in again.err
    shutil.rmtree(output / "subjects")
    assert command("export", "--cascade", tiny_cascade, "-o", output).status == 2
