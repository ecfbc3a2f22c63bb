"""A bundle's cascades for a server: what is open shares what is equal and draws what it drew."""

import threading
from pathlib import Path

import pytest
import torch

from cascade.config.engine import BundleOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.plugins import LIBRARIES, opener
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.library import BundleLibrary, open_library
from cascade_export.bundle.manifest import ABOUT, write_sealed
from cascade_export.engines.base import Engine

SUBJECT = "sec-dog"
QUIET = BundleOptions(threads=1, spinning=False)


@pytest.fixture
def library(bundle: Bundle) -> BundleLibrary:
    """The bundle's cascades."""
    return BundleLibrary(bundle.folder, "cpu", QUIET)


def engines_of(cascade: Cascade) -> list[Engine]:
    found = [stage.denoiser.network for stage in cascade.stages]
    assert all(isinstance(engine, Engine) for engine in found)
    return found  # type: ignore[return-value]


def is_closed(engine: Engine) -> bool:
    try:
        with engine.pinned():
            return False
    except RuntimeError:
        return True


def test_a_bundle_is_found_by_its_entry_point(bundle: Bundle) -> None:
    found = opener(bundle.folder, LIBRARIES)
    assert found is not None
    library = found.load()(bundle.folder, "cpu", None, "auto", QUIET)
    assert library.names() == ("", SUBJECT)


def test_what_is_equal_is_one_engine_and_draws_the_same(
    bundle: Bundle, library: BundleLibrary
) -> None:
    own, tuned = library.open(""), library.open(SUBJECT)
    assert own.encoder is tuned.encoder
    (base, larger), (tuned_base, tuned_larger) = engines_of(own), engines_of(tuned)
    assert larger is tuned_larger  # the subject has left its weights
    assert base is not tuned_base
    assert own.configs[1] != tuned.configs[1]  # and has changed its settings
    for name, cascade in (("", own), (SUBJECT, tuned)):
        alone = bundle.cascade(name or None)
        assert cascade.configs == alone.configs == library.configs(name)
        assert cascade.manifest == alone.manifest == library.manifest(name)
        assert [stage.fingerprint() for stage in cascade.stages] == [
            stage.fingerprint() for stage in alone.stages
        ]
        drawn, expected = (one.sample("a sec dog", [1, 2]) for one in (cascade, alone))
        for stage, images in expected.stages.items():
            assert torch.equal(drawn.stages[stage], images), (name, stage)


def test_the_bytes_that_opening_would_add(bundle: Bundle, library: BundleLibrary) -> None:
    base, larger = (entry.weights.size for entry in bundle.manifest.stages.values())
    assert library.weight_bytes("") == base + larger
    assert library.weight_bytes(SUBJECT) == base + larger
    library.open("")
    assert library.weight_bytes("") == 0
    assert library.weight_bytes(SUBJECT) == base
    library.open(SUBJECT)
    library.close("")
    assert library.weight_bytes("") == base
    assert library.weight_bytes(SUBJECT) == 0


def test_closing_frees_what_no_other_uses(library: BundleLibrary) -> None:
    own, tuned = library.open(""), library.open(SUBJECT)
    assert library.open("") is own
    (base, larger), (tuned_base, _) = engines_of(own), engines_of(tuned)
    library.close("")
    library.close("")
    library.close("no such one")
    assert [is_closed(each) for each in (base, larger, tuned_base)] == [True, False, False]
    again = library.open("")
    assert again is not own
    assert engines_of(again)[1] is larger
    library.close("")
    library.close(SUBJECT)
    assert is_closed(larger)
    assert is_closed(tuned_base)


def test_what_is_being_drawn_is_drawn_to_the_end(library: BundleLibrary) -> None:
    cascade = library.open("")
    expected = cascade.sample("a dog", [1], steps=3).tensor

    def close(name: str, step: int, of: int) -> None:
        library.close("")

    assert torch.equal(cascade.sample("a dog", [1], steps=3, on_step=close).tensor, expected)
    with pytest.raises(RuntimeError, match="closed"):
        cascade.sample("a dog", [1], steps=3)


def test_a_subject_may_come_and_change_while_others_are_served(my_bundle: Bundle) -> None:
    library = BundleLibrary(my_bundle.folder, "cpu", QUIET)
    own, tuned = library.revision(""), library.revision(SUBJECT)
    about = my_bundle.about(SUBJECT)
    path = my_bundle.folder / "subjects" / "twin" / ABOUT
    path.parent.mkdir()
    write_sealed(about.model_copy(update={"name": "twin"}), path)
    assert library.names() == ("", SUBJECT, "twin")
    first = library.revision("twin")
    assert len({own, tuned, first}) == 3
    assert engines_of(library.open("twin"))[0] is engines_of(library.open(SUBJECT))[0]
    write_sealed(
        about.model_copy(update={"name": "twin", "stages": own_stages(my_bundle, about.stages)}),
        path,
    )
    assert library.revision("twin") != first
    assert (library.revision(""), library.revision(SUBJECT)) == (own, tuned)
    library.close("twin")
    again = library.open("twin")
    assert again.encoder is library.open("").encoder
    assert engines_of(again) == engines_of(library.open(""))
    path.unlink()
    assert library.names() == ("", SUBJECT)
    library.close("twin")


def own_stages(bundle: Bundle, stages: object) -> object:
    """A subject's stages with the bundle's own weights."""
    assert isinstance(stages, dict)
    return {
        name: stage.model_copy(update={"weights": bundle.manifest.stages[name].weights})
        for name, stage in stages.items()
    }


@pytest.mark.slow
def test_under_a_limit_all_subjects_take_turns(bundle: Bundle) -> None:
    largest = max(entry.weights.size for entry in bundle.manifest.stages.values())
    options = QUIET.model_copy(update={"max_memory": -(-largest // 10**6)})
    library = BundleLibrary(bundle.folder, "cpu", options)
    cascades = [library.open(""), library.open(SUBJECT)]
    for _ in range(2):
        for name, cascade in zip((None, SUBJECT), cascades, strict=True):
            drawn = cascade.sample("a dog", [1], steps=2).tensor
            assert torch.equal(drawn, bundle.cascade(name).sample("a dog", [1], steps=2).tensor)


def test_threads_that_open_the_same_get_the_same(library: BundleLibrary) -> None:
    found: list[Cascade] = []
    threads = [
        threading.Thread(target=lambda: found.append(library.open(SUBJECT))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    assert all(cascade is found[0] for cascade in found)


@pytest.mark.parametrize(("engine", "exact"), [("onnxruntime", True), ("torch", False)])
def test_it_says_whether_rows_are_exact(bundle: Bundle, engine: str, exact: bool) -> None:
    library = BundleLibrary(bundle.folder, "cpu", BundleOptions(engine=engine))
    assert library.exact is exact
    assert {each.info.batch_invariant for each in engines_of(library.open(""))} == {exact}


def test_what_cannot_be_opened_leaves_nothing_open(
    my_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="leave the subject out"):
        BundleLibrary(my_bundle.folder, "cpu", BundleOptions(subject=SUBJECT))
    with pytest.raises(UserError, match="no option 'compiled'"):
        open_library(my_bundle.folder, "cpu", options=BundleOptions(compiled=True))
    with pytest.raises(UserError, match="There is no bundle"):
        open_library(tmp_path / "none")
    library = BundleLibrary(my_bundle.folder, "cpu", QUIET)
    for ask in (library.open, library.configs, library.manifest, library.revision):
        with pytest.raises(UserError, match="no subject 'cat', it has sec-dog"):
            ask("cat")
    weights = my_bundle.folder / "subjects" / SUBJECT / "base16.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4])
    assert library.configs(SUBJECT)  # told without the weights
    with pytest.raises(UserError, match="bytes instead"):
        library.open(SUBJECT)
    weights.write_bytes(whole)
    opened: list[Engine] = []

    def no_text(self: Bundle, *rest: object) -> None:
        raise UserError("the text encoder is damaged; export again.")

    with monkeypatch.context() as patch:
        patch.setattr(Bundle, "encoder", no_text)
        made = library._opener("onnxruntime")

        def watched(files: object) -> Engine:
            opened.append(made(files))  # type: ignore[arg-type]
            return opened[-1]

        patch.setitem(library._openers, "onnxruntime", watched)
        with pytest.raises(UserError, match="the text encoder is damaged"):
            library.open(SUBJECT)
    assert len(opened) == 2
    assert all(is_closed(engine) for engine in opened)
    assert library.weight_bytes(SUBJECT) > 0
    library.open(SUBJECT)
