"""What a personalisation foretells: rows, steps, pictures, and the time that they add up to."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cascade.config.dreambooth import Recipe
from cascade.dreambooth.forecast import forecast
from cascade.dreambooth.plan import make_plan, run_folder

Settings = Callable[..., Any]


# A pace of one second a row in training, and of a hundredth in drawing.
ROWS = SimpleNamespace(
    step=lambda stage, run, rows: float(run.gradient_accumulation_steps * rows),
    evaluation=lambda stage, precision, rows: rows / 100,
)


def test_rows_of_every_kind_and_what_is_drawn_are_added_up(
    settings: Settings, tmp_path: Path
) -> None:
    plan = make_plan(settings(tmp_path / "mine", validation_images=4))
    base, sr, samples = forecast(plan, list(plan.stages), ROWS, 1)
    # Five steps of two photos and two class images; five class images in batches of two, by two
    # steps with guidance.
    assert base.seconds == 5 * 4 + 3 * 2 * 4 / 100
    assert (base.steps, base.before) == ("5", "5 class images")
    assert base.batch == "2 photos + 2 class images"
    assert (sr.seconds, sr.batch, sr.before) == (3 * 2, "2 photos", "")
    # Four pictures: three steps with guidance, then two without.
    assert abs(samples.seconds - (3 * 8 + 2 * 4) / 100) < 1e-9
    assert samples.size == 32


def test_what_is_done_takes_no_time_and_processes_share_the_work(
    settings: Settings, recipe: Recipe, tmp_path: Path
) -> None:
    run = recipe.base.model_copy(update={"gradient_accumulation_steps": 2, "batch_size": 4})
    plan = make_plan(settings(tmp_path / "mine", recipe.model_copy(update={"base": run})))
    (base,) = forecast(plan, ["base16"], ROWS, 2)
    assert abs(base.seconds - (5 * 2 * 2 + 3 * 2 * 4 / 100 / 2)) < 1e-9
    (run_folder(plan, "base16") / "checkpoints" / "step-3").mkdir(parents=True)
    (begun,) = forecast(plan, ["base16"], ROWS, 2)
    assert (begun.steps, begun.seconds, begun.before) == ("5 (3 done)", 2 * 2 * 2, "")
    assert forecast(plan, [], ROWS, 1) == []
