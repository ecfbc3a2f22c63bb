"""Bundles: what is written, what is refused, and that they draw what the cascade draws."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cascade.config.engine import BundleOptions
from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade, CascadeOutput
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.lock import LOCK
from cascade_export.bundle.manifest import BundleManifest, Subject
from cascade_export.bundle.requirements import require_export, require_output
from cascade_export.bundle.write import export_bundle
from cascade_export.engines.opening import runner
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.weights import WEIGHTS
from cascade_export.parity.limits import to_levels
from cascade_export.settings import ExportOptions, Gate, ServerOptions

PROMPTS = ["a dog", "a photo of a sec dog on the beach", "a cat", ""]
SUBJECT = "sec-dog"
GATE = Gate(device="cpu")


def greatest_difference(one: CascadeOutput, other: CascadeOutput) -> int:
    """Of all stages' 8-bit values."""
    assert list(one.stages) == list(other.stages)
    return max(
        int((to_levels(images) - to_levels(other.stages[name])).abs().max())
        for name, images in one.stages.items()
    )


def test_it_draws_what_the_cascade_draws(bundle: Bundle, tiny_cascade: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    seeds = [3, 1, 4, 1]
    expected = cascade.sample(PROMPTS, seeds)
    drawn = bundle.cascade().sample(PROMPTS, seeds)
    # Differences of 1e-6 cross the boundary between two grey levels once in a while.
    assert greatest_difference(drawn, expected) <= 1
    assert np.mean(to_levels(drawn.tensor).numpy() != to_levels(expected.tensor).numpy()) < 1e-3


def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(bundle: Bundle) -> None:
    cascade = bundle.cascade()
    together = cascade.sample(PROMPTS, [3, 1, 4, 1])
    for index, seed in enumerate((3, 1, 4, 1)):
        alone = cascade.sample(PROMPTS[index], [seed], batch_size=1)
        for name, images in alone.stages.items():
            # The text encoder, which is no engine here, rounds by its batch.
            assert torch.allclose(images[0], together.stages[name][index], rtol=0, atol=1e-5)
    smaller = cascade.sample(PROMPTS, [3, 1, 4, 1], batch_size=1)
    for name, images in smaller.stages.items():
        assert torch.equal(images, together.stages[name])


def test_a_subject_draws_what_the_fine_tune_draws(
    bundle: Bundle, tuned_cascade: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subject = bundle.subject(SUBJECT)
    drawn = bundle.cascade(subject)
    tuned = Cascade.load(tuned_cascade)
    assert [stage.config for stage in drawn.stages] == [stage.config for stage in tuned.stages]
    assert drawn.manifest.licence == "Research only."
    expected = tuned.sample(PROMPTS)
    assert greatest_difference(drawn.sample(PROMPTS), expected) <= 1
    assert greatest_difference(bundle.cascade().sample(PROMPTS), expected) > 10


def test_a_picture_tells_which_engine_and_whose_weights_drew_it(bundle: Bundle) -> None:
    def drawn_by(subject: str | None = None, engine: str | None = None) -> list[str]:
        return [stage.fingerprint() for stage in bundle.cascade(subject, engine=engine).stages]

    every = [drawn_by(), drawn_by(SUBJECT), drawn_by(engine="torch")]
    assert drawn_by() == every[0]
    assert len({fingerprint for stages in every for fingerprint in stages}) == 6


def test_other_sizes_are_drawn_too_and_tell_their_engine(
    bundle: Bundle, tiny_cascade: Path
) -> None:
    larger, expected = (
        one.upscaled_to(64) for one in (bundle.cascade(), Cascade.load(tiny_cascade))
    )
    assert larger.stages[2].fingerprint() != larger.stages[1].fingerprint()
    drawn = larger.sample("a dog", [1], aspect="2:3")
    assert drawn.tensor.shape[2] > drawn.tensor.shape[3]
    assert greatest_difference(drawn, expected.sample("a dog", [1], aspect="2:3")) <= 1


def test_a_subject_takes_room_only_for_what_it_changes(bundle: Bundle) -> None:
    subject = bundle.subject(SUBJECT)
    own = bundle.manifest.stages["sr32"].weights
    assert subject.stages["sr32"].weights == own
    held = {path.name for path in (bundle.folder / "subjects" / SUBJECT).iterdir()}
    assert held == {"about.json", "base16.safetensors", "report"}


def test_what_is_written(bundle: Bundle) -> None:
    held = {path.relative_to(bundle.folder).as_posix() for path in bundle.folder.rglob("*.*")}
    for stage in ("base16", "sr32"):
        assert {f"stages/{stage}/{name}" for name in ("config.json", GRAPH, WEIGHTS)} <= held
    assert {"text/spiece.model", "text/model.safetensors", "report/parity.html"} <= held
    assert not any("partial" in name for name in held)
    manifest = bundle.manifest
    assert manifest.engine == "onnxruntime"
    assert set(manifest.versions) == {"dreamcascade", "torch", "onnx", "onnx-ir", "onnxscript"}
    assert manifest.proof is not None
    assert manifest.proof.executed
    assert set(manifest.proof.pictures) == {"base16", "sr32"}
    assert bundle.subjects() == [SUBJECT]


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_the_graphs_serve_other_engines(bundle: Bundle, engine: str) -> None:
    pytest.importorskip(engine)
    options = BundleOptions(subject=SUBJECT)
    expected = Cascade.load(bundle.folder, engines=options).sample(PROMPTS[:2])
    other = bundle.cascade(SUBJECT, engine=engine)  # type: ignore[arg-type]
    assert greatest_difference(other.sample(PROMPTS[:2]), expected) <= 1


@pytest.mark.usefixtures("traced")
def test_the_example_exports_and_swaps(
    tiny_cascade: Path,
    tmp_path: Path,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tuned = shutil.copytree(tiny_cascade, tmp_path / "tuned")
    stage = Stage.load(tuned / "base16")
    with torch.no_grad():
        next(stage.network.parameters()).mul_(1.5)
    stage.save(tuned / "base16")
    example = repository / "examples" / "export_and_swap.py"
    words = [example.name, tiny_cascade, tuned, tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    runpy.run_path(str(example), run_name="__main__")
    plain, mine = (line.split()[-1] for line in capsys.readouterr().out.splitlines())
    assert plain != mine


Change = Callable[[Path], object]
CHANGES: dict[str, tuple[Change, str]] = {
    "no manifest": (lambda folder: (folder / "bundle.json").unlink(), "cut short"),
    "half a manifest": (lambda folder: cut(folder / "bundle.json"), "not whole JSON"),
    "a later schema": (lambda folder: edit(folder, schema_version=3), "later version"),
    "an earlier schema": (lambda folder: edit(folder, schema_version=1), "export it again"),
    "an edited value": (lambda folder: edit(folder, versions={}), "not as it was written"),
    "no stages": (lambda folder: edit(folder, stages={}), "has the stages base16, sr32"),
    "an unknown field": (lambda folder: edit(folder, colour="red"), "'colour' is not a setting"),
    "half the weights": (lambda folder: cut(folder / "stages/base16" / WEIGHTS), "bytes instead"),
    "no weights": (lambda folder: (folder / "stages/sr32" / WEIGHTS).unlink(), "is missing"),
    "other weights": (lambda folder: flip(folder / "stages/sr32" / WEIGHTS), "not the file"),
    "another graph": (lambda folder: flip(folder / "stages/base16" / GRAPH), "not the file"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)


def edit(folder: Path, **values: object) -> None:
    path = folder / "bundle.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("name", CHANGES)
def test_a_damaged_bundle_is_refused(my_bundle: Bundle, name: str) -> None:
    change, reason = CHANGES[name]
    change(my_bundle.folder)
    with pytest.raises(UserError, match=reason):
        Bundle.open(my_bundle.folder)


def deciding(folder: Path) -> list[str]:
    """The files of a bundle that decide a picture."""
    every = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return sorted(
        str(path)
        for path in every
        if "report" not in path.parts and path.name not in ("export.json", LOCK)
    )


def test_whatever_decides_a_picture_is_proven(my_bundle: Bundle) -> None:
    folder = my_bundle.folder
    files = deciding(folder)
    assert len(files) == 12  # the manifest, three a stage, three of the text, a subject's two
    for name in files:
        path = folder / name
        whole = path.read_bytes()
        for damage in (flip, cut, Path.unlink):
            damage(path)
            with pytest.raises(UserError) as refused:
                Bundle.open(folder).subject(SUBJECT)
            told = str(refused.value)
            assert path.name in told or (damage is Path.unlink and "no subject" in told), name
            assert "\n" not in told
            path.write_bytes(whole)
    Bundle.open(folder).subject(SUBJECT)


NAMES = ("..", "../evil", "/etc", "a/../b", "", "a\nb", "a\0b", ".", "a\\b")


@pytest.mark.parametrize("value", NAMES)
def test_names_and_places_lead_nowhere_else(my_bundle: Bundle, value: str) -> None:
    held = json.loads((my_bundle.folder / "bundle.json").read_text())
    about = json.loads((my_bundle.folder / "subjects" / SUBJECT / "about.json").read_text())
    (sha256, *_), entry = held["text"]["files"].values(), held["stages"]["base16"]
    wrong = [
        held | {"cascade": held["cascade"] | {"stages": [value, "sr32"]}},
        held | {"stages": {value: entry, "sr32": held["stages"]["sr32"]}},
        held | {"stages": held["stages"] | {"base16": entry | {"plan": value}}},
        held | {"text": held["text"] | {"files": {value: sha256}}},
        held
        | {
            "stages": held["stages"]
            | {"base16": entry | {"weights": entry["weights"] | {"file": value}}}
        },
    ]
    if value != "/etc":  # an absolute place is how an encoder too large to copy is named
        wrong.append(held | {"cascade": held["cascade"] | {"text_encoder": value}})
    for values in wrong:
        with pytest.raises(UserError):
            BundleManifest.parse({k: v for k, v in values.items() if k != "seal"}, "bundle.json")
    with pytest.raises(UserError, match="name"):
        Subject.parse({k: v for k, v in about.items() if k != "seal"} | {"name": value}, "about")
    with pytest.raises(UserError, match="--name"):
        ServerOptions.parse({"name": value}, "options", {"name": "--name"})


def test_other_folders_are_refused(tiny_cascade: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cascade export --cascade"):
        Bundle.open(tiny_cascade)
    with pytest.raises(UserError, match="There is no bundle"):
        Bundle.open(tmp_path / "none")


def test_subjects_that_are_not_there_or_damaged(my_bundle: Bundle) -> None:
    with pytest.raises(UserError, match="no subject 'cat', it has sec-dog"):
        my_bundle.cascade("cat")
    flip(my_bundle.folder / "subjects" / SUBJECT / "base16.safetensors")
    Bundle.open(my_bundle.folder)
    with pytest.raises(UserError, match="not the file"):
        my_bundle.subject(SUBJECT)


def test_an_interrupted_export_goes_on(
    bundle: Bundle,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    traced: list[str],
) -> None:
    cascade, output = Cascade.load(tiny_cascade), tmp_path / "bundle"

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cascade_export.bundle.write.compare", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_bundle(cascade, output, ExportOptions())
    assert traced == ["base16", "sr32"]
    with pytest.raises(UserError, match="cut short"):
        Bundle.open(output)
    cut(output / "stages/sr32" / WEIGHTS)  # written again; the other stage is taken as it is
    done = export_bundle(cascade, output, ExportOptions())
    assert traced == ["base16", "sr32", "sr32"]
    assert done.manifest.stages == bundle.manifest.stages
    assert Bundle.open(output).manifest == done.manifest


@pytest.mark.usefixtures("traced")
def test_engines_that_draw_other_pictures_do_not_pass(tuned_cascade: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not match eager in fp32 \(stage 'base16'"):
        export_bundle(Cascade.load(tuned_cascade), tmp_path / "bundle", ExportOptions())
    assert (tmp_path / "bundle" / "report" / "parity.html").is_file()
    with pytest.raises(UserError, match="cut short"):
        Bundle.open(tmp_path / "bundle")


def test_where_a_bundle_can_be_written(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="whole bundle already"):
        require_output(bundle.folder)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        require_output(tmp_path / "notes.txt")
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        require_output(tmp_path)
    require_output(tmp_path / "new")


def test_fine_tunes_that_do_not_fit(my_bundle: Bundle, tuned_cascade: Path, tmp_path: Path) -> None:
    tuned, gate = Cascade.load(tuned_cascade), Gate()
    with pytest.raises(UserError, match="has a subject 'sec-dog' already"):
        add_subject(my_bundle, tuned, SUBJECT, gate)
    with pytest.raises(UserError, match="no name for a subject"):
        add_subject(my_bundle, tuned, "../dog", gate)
    with pytest.raises(UserError, match="has the stages base16, sr32"):
        add_subject(my_bundle, Cascade(tuned.manifest, tuned.encoder, tuned.stages[:1]), "a", gate)
    config = tuned.stages[0].config
    wider = config.model_copy(update={"unet": config.unet.model_copy(update={"time_width": 64})})
    other = Cascade(tuned.manifest, tuned.encoder, [Stage.build(wider), tuned.stages[1]])
    with pytest.raises(UserError, match="not of the architecture"):
        add_subject(my_bundle, other, "a", gate)
    edited = shutil.copytree(tuned_cascade, tmp_path / "edited")
    flip(edited / "text" / "model.safetensors")
    with pytest.raises(UserError, match="another text encoder"):
        add_subject(my_bundle, Cascade.load(edited), "a", gate)
    assert my_bundle.subjects() == [SUBJECT]


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(UserError, match="no bf16 on a CPU"):
        require_export(ExportOptions(precision="bf16"))
    with pytest.raises(UserError, match="builds no plans"):
        require_export(ExportOptions(targets=(89,)))
    with pytest.raises(UserError, match="bf16"):
        require_export(ExportOptions(engine="tensorrt-rtx", precision="bf16", targets=(75,)))


def test_who_runs_the_gate() -> None:
    assert runner("openvino", "bf16") == "openvino"
    if not torch.cuda.is_available():
        assert runner("tensorrt-rtx", "fp16") == "onnxruntime"
        assert runner("tensorrt", "bf16") == "torch"


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_the_text_encoder_as_a_graph(tiny_cascade: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    made = export_bundle(cascade, tmp_path / "bundle", ExportOptions(text_encoder="graph"))
    assert not (made.folder / "text" / "model.safetensors").exists()
    opened = Bundle.open(made.folder).cascade()
    text = TextConfig(max_length=16, cleaning="lower")
    theirs, ours = (one.encoder.embed(PROMPTS, text) for one in (opened, cascade))
    assert torch.equal(theirs.mask, ours.mask)
    assert (theirs.embedding - ours.embedding).norm() / ours.embedding.norm() <= 1e-5
    assert greatest_difference(opened.sample(PROMPTS), cascade.sample(PROMPTS)) <= 1
    flip(made.folder / "text" / WEIGHTS)
    with pytest.raises(UserError, match="not the file"):
        Bundle.open(made.folder)


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_a_quantised_bundle_is_proven_and_its_scales_are_not_a_strangers(
    tiny_cascade: Path, tmp_path: Path
) -> None:
    request = ExportOptions(quantization="int8", calibration_prompts=("a dog", "a cat"), gate=GATE)
    cascade = Cascade.load(tiny_cascade)
    bundle = export_bundle(cascade, tmp_path / "bundle", request)
    assert bundle.manifest.quantisation == "int8"
    assert bundle.manifest.proof is not None
    for name, deviation in bundle.manifest.proof.pictures.items():
        assert 0.1 < deviation.rms < 255 / 10**1.5  # it computes in 8 bits, and is no wreck
        graph = onnx.load(bundle.stage_folder(name) / GRAPH, load_external_data=False).graph
        assert any(node.op_type == "QuantizeLinear" for node in graph.node)
    with torch.no_grad():
        for parameter in cascade.stage("base16").network.parameters():
            parameter *= 3  # beyond the scales of weights and of what layers answer
    with pytest.raises(UserError, match=r"stage 'base16'.*a bundle of its own"):
        add_subject(bundle, cascade, SUBJECT, GATE)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (ExportOptions(quantization="int8", engine="torch"), "does not run int8 graphs"),
        (ExportOptions(quantization="fp8"), "does not run fp8 graphs"),
        (
            ExportOptions(quantization="fp8", engine="tensorrt-rtx", targets=(89,)),
            "fp8 runs on a GPU",
        ),
    ],
)
def test_a_quantisation_that_cannot_run_is_refused_first(options: ExportOptions, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_export(options)
