"""One picture of an order on its way through the stages.

Shapes: `C H W` pixels in [-1, 1], `R` rows of a call.
"""

from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from itertools import accumulate

import torch
from torch import Tensor

from cascade.diffusion.noise import Noise, derive_seed
from cascade.drawing import Drawing
from cascade.errors import UserError
from cascade.sampling import of_size
from cascade.serve.queue import Work
from cascade.serve.shelf import Loaded
from cascade.serve.ticket import Drawn, Event, Preview, Stepped
from cascade.serve.watch import Watch
from cascade.stage import Stage


class Picture:
    """A picture that has left the queue; it is drawn with the weights of its beginning.

    Attributes:
        work: the order.
        index: its place in the order.
        loaded: the model.
        at: how many stages are done.
        since: when it left the queue.
        seconds: what its present stage has taken.
        in_call: whether a network is being called for it.
    """

    def __init__(self, work: Work, index: int, loaded: Loaded, since: float, padded: bool) -> None:
        """Do nothing yet; `padded` gives every text the length of the longest there may be."""
        self.work, self.index, self.loaded, self.since = work, index, loaded, since
        self.at, self.seconds, self.in_call = 0, 0.0, False
        self._padded = padded
        self._pins = ExitStack()
        self._stages: list[Stage] = []
        self._drawing: Drawing | None = None
        self._steps = 0
        counts = [setting.sampler.count for setting in work.order.request.settings]
        self._previews = preview_steps(counts, work.order.previews)

    @property
    def done(self) -> bool:
        """Return whether all stages are."""
        return self.at == len(self.work.order.request.settings)

    @property
    def drawing(self) -> Drawing:
        """The request in its present stage."""
        assert self._drawing is not None, "it has begun"
        return self._drawing

    @property
    def lane(self) -> Hashable:
        """What pictures have in common that can share a call."""
        stage = self._stages[self.at]
        return (
            id(stage.denoiser.network),  # weights that are pinned twice are one object
            stage.config.diffusion.schedule,
            stage.config.unet.learned_variance,
            self.loaded.exact,
            self.drawing.precision,
            self.drawing.x.shape[1:],
        )

    def left(self) -> float:
        """Return which part of its steps is still to be made."""
        return 1.0 - self._steps * self.work.pictures / self.work.of

    def begin(self, watch: Watch) -> None:
        """Embed its texts, and begin with the first stage.

        Raises:
            UserError: the model is not the one that was asked for any more, or cannot draw it.
        """
        request = self.work.order.request
        stages = of_size(self.loaded.cascade.stages, request.size)[: len(request.settings)]
        if [one.config.name for one in stages] != [one.stage for one in request.settings]:
            raise UserError(
                f"The stages of '{self.loaded.model}' have changed since it was asked; ask again."
            )
        self._stages = [self._pins.enter_context(stage.pinned()) for stage in stages]
        self._begin_stage(None, watch)

    def take(self, answer: Tensor, watch: Watch) -> list[Event]:
        """Take a network's answer, R C H W, and return what is to be told.

        Raises:
            NoPictureError: what a stage has drawn is no picture.
        """
        denoised = self.drawing.answer(answer)
        if denoised is None:
            return []
        self._steps += 1
        self.work.steps += 1
        events: list[Event] = [Stepped(self.work.steps, self.work.of)]
        stage, finished = self.drawing.stage, None
        if self.drawing.done:
            finished = self.drawing.pictures().cpu()
        if self._steps in self._previews:
            image = denoised.x0.clamp(-1.0, 1.0).cpu() if finished is None else finished
            if bool(torch.isfinite(image).all()):
                number = self._previews.index(self._steps)
                events.append(Preview(self.index, number, stage, image[0]))
        if finished is not None:
            self.at += 1
            if self.done:
                events.append(Drawn(self.index, finished[0]))
            else:
                self._begin_stage(finished, watch)
        return events

    def close(self) -> None:
        """Let the weights go."""
        self._pins.close()
        self._drawing = None

    def _begin_stage(self, low_res: Tensor | None, watch: Watch) -> None:
        """Begin as `sample_stage` does, with a batch of one."""
        request, stage = self.work.order.request, self._stages[self.at]
        setting = request.settings[self.at]
        texts = self.loaded.texts(stage.config)
        prompt, negative = request.prompts[self.index], request.negatives[self.index]
        watch.text(self.loaded.model, prompt in texts)
        text, null = texts.rows([prompt]), texts.rows([negative])
        if self._padded:
            length = stage.config.text.max_length
            text, null = text.extended(length), null.extended(length)
        noise = Noise([derive_seed(request.seeds[self.index], setting.stage)])
        self._drawing = stage.begin(text, null, noise, low_res, setting.sampler, setting.level)


def preview_steps(counts: Sequence[int], previews: int) -> list[int]:
    """Return after which steps to show a picture, evenly over all of them, fewer if they are few.

    One that lies nearer to the end of a stage than to its neighbours shows that stage's picture.

    Args:
        counts: steps of each stage.
    """
    total = sum(counts)
    apart = total / (previews + 1)
    steps = {round(apart * (number + 1)) for number in range(previews)} - {0, total}
    for end in [*accumulate(counts)][:-1]:
        nearest = min(steps, key=lambda step: abs(step - end), default=None)
        if nearest is not None and abs(nearest - end) <= apart / 2:
            steps = steps - {nearest} | {end}
    return sorted(steps)
