"""Requests of one stage that share calls of the network, and guidance that is on in some steps."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.stage import SamplerConfig
from cascade.diffusion.noise import Noise
from cascade.drawing import Drawing, advance
from cascade.errors import UserError
from cascade.stage import Stage
from cascade.text.prompts import PromptTable

LENGTH = 32  # tokens, more than any prompt here has
SAMPLERS = (
    SamplerConfig(name="ancestral", steps=4, guidance=3.0),
    SamplerConfig(name="ddim", steps=3, eta=0.5, guidance=2.0),
    SamplerConfig(name="dpmpp_2m", steps=5, guidance=1.0),
    SamplerConfig(name="heun", steps=3, guidance=2.0, guidance_interval=(0.5, 50.0)),
)


class RowByRow(nn.Module):
    """A network whose rows do not depend on each other: each is asked alone, at one length."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.rows: list[int] = []

    def forward(self, *inputs: Tensor | None) -> Tensor:
        x, t, text, mask = (one for one in inputs if one is not None)
        short = LENGTH - text.shape[1]
        text, mask = F.pad(text, (0, 0, 0, short)), F.pad(mask, (0, short), value=False)
        self.rows.append(len(x))
        rows = [[one[i : i + 1] for one in (x, t, text, mask)] for i in range(len(x))]
        return torch.cat([self.network(*row) for row in rows])


def begin(stage: Stage, table: PromptTable, prompt: str, seed: int, how: SamplerConfig) -> Drawing:
    return stage.begin(table.rows([prompt]), table.rows([None]), Noise([seed]), sampler=how)


def finish(drawing: Drawing) -> Tensor:
    while not drawing.done:
        advance([drawing])
    return drawing.pictures()


@pytest.mark.parametrize("fill", [None, 12])
def test_requests_at_different_steps_share_calls_and_keep_their_bits(
    base: Stage, table: PromptTable, fill: int | None
) -> None:
    network = RowByRow(base.network)
    stage = base.with_network(network)
    texts = ["a photo of a dog", "a cat on the beach", "a red backpack", "a photo of a dog"]
    cases = list(enumerate(zip(texts, SAMPLERS, strict=True)))
    alone = [finish(begin(stage, table, text, seed, how)) for seed, (text, how) in cases]
    network.rows.clear()
    waiting = [begin(stage, table, text, seed, how) for seed, (text, how) in cases]
    working: list[Drawing] = []
    while waiting or any(not each.done for each in working):
        working += waiting[:1]  # one joins at every step
        waiting = waiting[1:]
        live = [each for each in working if not each.done]
        expected = sum(each.rows for each in live)
        advance(live, fill)
        assert network.rows[-1] == max(expected, fill or 0)
    for expected_picture, drawing in zip(alone, working, strict=True):
        assert torch.equal(drawing.pictures(), expected_picture)
        assert drawing.steps == drawing.count


def test_outside_of_the_interval_a_step_asks_with_text_alone(
    base: Stage, table: PromptTable
) -> None:
    network = RowByRow(base.network)
    stage = base.with_network(network)
    how = SamplerConfig(name="ddim", timesteps=(990.0, 700.0, 500.0, 100.0), guidance=3.0)
    sigmas = [float(base.schedule.sigma(torch.tensor(t).double())) for t in how.timesteps or ()]
    between = (sigmas[2], sigmas[1])  # both ends belong to it
    some = how.changed("the test", guidance_interval=between)
    drawn = finish(begin(stage, table, "a photo of a dog", 0, some))
    assert network.rows == [1, 2, 2, 1]
    whole = finish(begin(stage, table, "a photo of a dog", 0, how))
    assert not torch.equal(drawn, whole)
    everywhere = how.changed("the test", guidance_interval=(0.0, 1e9))
    assert torch.equal(finish(begin(stage, table, "a photo of a dog", 0, everywhere)), whole)


def test_an_interval_is_two_rising_levels() -> None:
    assert SamplerConfig.parse({"guidance_interval": "0.5,100"}, "it").guidance_interval == (
        0.5,
        100,
    )
    for wrong in ("5", "5,1", "a,b", (3.0, 3.0), "0.5,100,200"):
        with pytest.raises(UserError, match="guidance_interval"):
            SamplerConfig.parse({"guidance_interval": wrong}, "it")
