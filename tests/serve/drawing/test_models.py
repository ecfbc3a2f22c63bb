"""Models leave memory when there is no room, and never while somebody draws."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from cascade.config.sample import SampleOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.serve.models import Models, Unknown
from cascade.serve.options import under
from cascade.serve.shelf import Loaded

Make = Callable[..., Any]


def held(models: Models, model: str) -> Loaded:
    loaded = models.acquire(model)
    assert loaded is not None
    return loaded


@pytest.fixture
def library(fake: Make, cascade: Cascade) -> Any:
    """Three cascades of 4 bytes that share 2."""
    names = ("", "dog", "cat")
    made = {name: Cascade(cascade.manifest, cascade.encoder, cascade.stages) for name in names}
    return fake(made, sizes=dict.fromkeys(names, 4), shared=2)


def test_models_are_called_as_their_library_and_their_name_there(library: Any) -> None:
    models = Models({"tiny": library, "empty": type(library)({})})
    assert models.names() == ["tiny", "tiny:dog", "tiny:cat"]
    assert [config.name for config in models.configs("tiny:dog")] == ["base16", "sr32"]
    assert models.manifest("tiny").name == "tiny"
    assert models.exact("tiny:cat")
    for wrong in ("", "empty", "tiny:", "tiny:bird", "dog", "tiny:dog:cat"):
        for method in (models.configs, models.manifest, models.exact, models.acquire):
            with pytest.raises(Unknown, match="no model"):
                method(wrong)
    library.made["bird"] = library.made["dog"]
    assert models.names()[-1] == "tiny:bird"
    models.open("tiny:bird")
    assert library.opened == ["bird"]


def test_the_longest_unused_leaves_and_what_is_held_stays(library: Any) -> None:
    models = Models({"tiny": library}, max_memory=10)  # two of them
    models.open("tiny")
    models.open("tiny:dog")
    models.open("tiny")  # used again
    dog_free = held(models, "tiny:cat")
    assert library.open_now == {"", "cat"}
    base = held(models, "tiny")
    assert models.acquire("tiny:dog") is None
    assert library.open_now == {"", "cat"}, "nothing leaves where that would not do"
    models.release(dog_free)
    assert held(models, "tiny:dog").model == "tiny:dog"
    assert library.open_now == {"", "dog"}
    models.release(base)


def test_one_that_is_held_twice_stays_until_the_second_release(library: Any) -> None:
    models = Models({"tiny": library}, max_memory=6)
    first, second = held(models, "tiny"), held(models, "tiny")
    assert first is second
    models.release(first)
    assert models.acquire("tiny:dog") is None
    models.release(second)
    assert held(models, "tiny:dog").cascade is library.made["dog"]
    assert library.open_now == {"dog"}


def test_what_is_shared_is_counted_once_whoever_leaves(library: Any) -> None:
    models = Models({"tiny": library}, max_memory=10)
    for name in ("tiny", "tiny:dog", "tiny:cat", "tiny", "tiny:dog", "tiny:cat") * 2:
        models.open(name)
        assert len(library.open_now) <= 2
        assert models._shelf._used == 2 + 4 * len(library.open_now)
    models.close()
    assert models._shelf._used == 0
    assert library.open_now == set()


def test_a_model_larger_than_all_memory_is_refused_at_the_start_and_later(library: Any) -> None:
    with pytest.raises(UserError, match=r"'tiny' takes .* raise max_memory"):
        Models({"tiny": library}, max_memory=5)
    models = Models({"tiny": library}, max_memory=6)
    library.made["bird"], library.sizes["bird"] = library.made["dog"], 50
    models.open("tiny")
    with pytest.raises(UserError, match="'tiny:bird' takes"):
        models.acquire("tiny:bird")
    assert held(models, "tiny").model == "tiny"


def test_who_acquires_a_changed_model_gets_the_new_one(library: Any, cascade: Cascade) -> None:
    models = Models({"tiny": library})
    old = held(models, "tiny:dog")
    library.revisions["dog"] = "second"
    library.made["dog"] = Cascade(cascade.manifest, cascade.encoder, cascade.stages)
    library.damaged.add("dog")
    models.refresh()
    same = held(models, "tiny:dog")
    assert same is old
    models.release(same)
    library.damaged.clear()
    models.refresh()
    new = held(models, "tiny:dog")
    assert (old.revision, new.revision) == ("first", "second")
    assert new.cascade is library.made["dog"]
    assert new.cascade is not old.cascade
    models.refresh()
    assert held(models, "tiny:dog") is new
    models.release(old)
    assert new.model in {one.model for one in models._shelf._held}


def test_a_removed_model_leaves_with_its_last_release(library: Any) -> None:
    models = Models({"tiny": library})
    old = held(models, "tiny:dog")
    del library.made["dog"]
    models.refresh()
    with pytest.raises(Unknown):
        models.acquire("tiny:dog")
    assert models._shelf._used > 0
    models.release(old)
    assert models._shelf._used == 0


def test_damage_is_told_once(library: Any, heard_log: pytest.LogCaptureFixture) -> None:
    models = Models({"tiny": library})
    models.open("tiny:dog")
    library.revisions["dog"] = "second"
    library.damaged.add("dog")
    for _ in range(3):
        models.refresh()
    assert heard_log.text.count("stays as it was opened") == 1


@pytest.fixture
def heard_log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What is logged."""
    caplog.set_level("WARNING", "cascade")
    return caplog


def test_many_threads_open_a_model_once_and_give_all_back(library: Any) -> None:
    models = Models({"tiny": library}, max_memory=10)
    names = models.names()
    failed: list[str] = []

    def use(number: int) -> None:
        for turn in range(60):
            name = names[(number + turn) % 3]
            loaded = models.acquire(name)
            if loaded is None:
                continue
            if name.partition(":")[2] not in library.open_now:
                failed.append(name)
            models.release(loaded)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert models._shelf._used == 2 + 4 * len(library.open_now)
    models.close()
    assert models._shelf._used == 0


def test_models_of_one_encoder_share_what_it_embeds(library: Any) -> None:
    models = Models({"tiny": library}, texts=2)
    first, second = held(models, "tiny"), held(models, "tiny:dog")
    [base, later] = first.cascade.configs
    texts = first.texts(base)
    assert texts is second.texts(base) is first.texts(later)
    for prompt in ("a", "b", "c"):
        texts.rows([prompt, None])
    assert ["a" in texts, "b" in texts, "c" in texts] == [False, True, True]


def test_a_model_whose_encoder_embeds_nothing_is_not_left_open(
    library: Any, cascade: Cascade
) -> None:
    class Broken:
        def embed(self, *asked: object) -> None:
            raise UserError("The encoder is broken; fetch it again.")

    encoder: Any = Broken()
    library.made["dog"] = Cascade(cascade.manifest, encoder, cascade.stages)
    models = Models({"tiny": library})
    with pytest.raises(UserError, match="broken"):
        models.acquire("tiny:dog")
    assert library.open_now == set()


def test_options_of_no_model_or_that_do_not_fit_are_refused_at_the_start(library: Any) -> None:
    with pytest.raises(UserError, match="'tiny:bird', which is not served; known are tiny,"):
        Models({"tiny": library}, {"tiny:bird": SampleOptions(steps=3)})
    with pytest.raises(UserError, match="no stage 'sr99'"):
        Models({"tiny": library}, {"tiny": SampleOptions(last_stage="sr99")})


def test_a_models_options_hold_where_the_client_says_nothing(library: Any) -> None:
    own = SampleOptions(
        guidance=7.0,
        timesteps="super27",
        samplers={"sr32": {"steps": 9, "guidance": 2.0}},
        levels={"sr32": {"value": 0.5}},
    )
    models = Models({"tiny": library}, {"tiny": own})

    def asked(**options: object) -> list[tuple[int, float, float | None]]:
        request = models.request("tiny", "a dog", [1, 2], SampleOptions(**options))
        assert request.prompts == ("a dog", "a dog")
        return [
            (one.sampler.count, one.sampler.guidance, one.level.value if one.level else None)
            for one in request.settings
        ]

    assert asked() == [(27, 7.0, None), (9, 2.0, 0.5)]
    assert asked(steps=4) == [(4, 7.0, None), (4, 2.0, 0.5)]
    assert asked(guidance=3.0, noise_level=0.1) == [(27, 3.0, None), (9, 3.0, 0.1)]
    assert asked(samplers={"sr32": {"timesteps": (900.0, 5.0)}})[1] == (2, 2.0, 0.5)
    assert asked(samplers={"base16": {"steps": 6}})[0] == (6, 7.0, None)
    with pytest.raises(UserError, match="no stage"):
        asked(levels={"sr99": {"value": 0.5}})


def test_options_of_both_are_checked_together() -> None:
    own = SampleOptions(steps=5, aspect="3:2", negative_prompts="grey")
    both = under(own, SampleOptions(timesteps="super27", negative_prompts=("", "red")))
    assert (both.steps, both.aspect) == (None, "3:2")
    assert both.negative_prompts == ("", "red")
