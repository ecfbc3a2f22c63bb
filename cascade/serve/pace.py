"""How long drawing has taken of late, and so how long what is in hand will take."""

from typing import Final

from cascade.serve.ticket import Order

_NEWEST: Final = 0.2  # weight of the latest measurement in the average
_LEAST: Final = 1.0  # seconds: nobody is told to come back sooner


class Pace:
    """Exponential averages of the seconds that a picture's step takes, by model and stage.

    Where pictures share a call its time is shared too: seconds of the machine, not of waiting.
    """

    def __init__(self) -> None:
        self._steps: dict[tuple[str, str], float] = {}

    def note(self, model: str, stage: str, seconds: float) -> None:
        """Note how long a step has taken."""
        before = self._steps.get((model, stage), seconds)
        self._steps[model, stage] = before + _NEWEST * (seconds - before)

    def picture(self, order: Order) -> float:
        """Return the seconds of a picture; stages that have not been drawn yet are not in it."""
        return sum(
            setting.sampler.count * self._steps.get((order.model, setting.stage), 0.0)
            for setting in order.request.settings
        )


def retry(seconds: float) -> float:
    """Return after how many seconds to come back, where there is room after so many."""
    return max(seconds, _LEAST)
