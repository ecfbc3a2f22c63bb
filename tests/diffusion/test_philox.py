"""Philox against its authors' known answers, and the noise that is made of it."""

import math

import pytest
import torch

from cascade.diffusion.philox import PhiloxNoise, philox4x32, round_keys

CPU = torch.device("cpu")


# From the known-answer tests of the authors' library, Random123 (kat_vectors, philox4x32 10).
@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)  # fmt: skip
def test_known_answers(counter: str, key: str, answer: str) -> None:
    c0, c1, c2, c3 = (torch.tensor([int(word, 16)]) for word in counter.split())
    low, high = (int(word, 16) for word in key.split())
    bits = high << 32 | low
    seed = torch.tensor([bits - 2**64 if bits >= 2**63 else bits])
    words = philox4x32((c0, c1, c2, c3), round_keys(seed))
    assert [f"{int(word):08x}" for word in words] == answer.split()


def test_an_image_draws_the_same_alone_and_in_a_batch() -> None:
    batch, alone = PhiloxNoise([5, 6, 2**63 - 1], CPU), PhiloxNoise([2**63 - 1], CPU)
    for shape in ((3, 9, 9), (5,), (1, 64, 64)):  # 243 and 5 leave counters half used
        assert torch.equal(batch.normal(*shape)[2], alone.normal(*shape)[0])
        assert torch.equal(batch.uniform()[2], alone.uniform()[0])
    assert len(batch) == 3


def test_a_draw_depends_on_how_many_were_drawn_before_and_on_the_whole_seed() -> None:
    seeds = [0, 1, 1 << 32]  # the two words of the key
    noise = PhiloxNoise(seeds, CPU)
    draws = torch.cat([noise.normal(8), noise.normal(8)])
    assert len(draws.unique()) == draws.numel()
    again = PhiloxNoise(seeds, CPU)
    assert torch.equal(torch.cat([again.normal(8), again.normal(8)]), draws)


def test_draws_have_their_distributions() -> None:
    noise = PhiloxNoise(range(2000), CPU)
    normal, uniform = noise.normal(3, 8, 8), noise.uniform()
    assert normal.shape == (2000, 3, 8, 8)
    assert normal.dtype == torch.float32
    assert uniform.dtype == torch.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    count = normal.numel()
    # Five standard errors: those of the first four moments of a unit normal are
    # sqrt((1, 2, 15, 96) / count), of a uniform's mean sqrt(1 / 12 / count).
    values = normal.double()
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(values.pow(power).mean() - mean) < 5 * math.sqrt(variance / count)
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * 2000)
    # The largest of n normals is near sqrt(2 ln n) = 5.1; Box-Muller of 32 bits ends at 6.66.
    assert 4 < values.abs().max() < 6.7


def test_images_and_places_are_independent() -> None:
    noise = PhiloxNoise([*range(64), *(seed << 32 for seed in range(1, 65))], CPU)
    rows = noise.normal(4096).double()
    correlation = (rows @ rows.T / 4096).fill_diagonal_(0)
    # 8128 pairs of standard deviation 1/64: six of it is passed once in 10^5 times.
    assert correlation.abs().max() < 6 / 64
    # The two numbers of a Box-Muller pair, and those of neighbouring pairs and counters.
    for lag in (1, 2, 3, 4, 5):
        product = (rows[:, lag:] * rows[:, :-lag]).mean()
        assert abs(product) < 5 / math.sqrt(rows.numel())


@pytest.mark.slow
def test_compiled_it_draws_the_same_in_one_graph_whatever_the_sizes() -> None:
    from torch._dynamo.utils import counters

    torch.compiler.reset()
    before = counters["stats"]["unique_graphs"]
    for seeds in (range(8), range(7, 10)):
        plain, compiled = PhiloxNoise(seeds, CPU), PhiloxNoise(seeds, CPU, compiled=True)
        for side in (16, 17, *[9] * 8):
            assert torch.equal(compiled.uniform(), plain.uniform())
            assert torch.equal(compiled.normal(3, side, side), plain.normal(3, side, side))
    assert counters["stats"]["unique_graphs"] - before == 2  # normals and uniforms


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_draws_what_the_cpu_draws(compiled: bool) -> None:
    seeds = range(7, 7 + 16)
    here, there = PhiloxNoise(seeds, CPU), PhiloxNoise(seeds, torch.device("cuda"), compiled)
    assert torch.equal(there.uniform().cpu(), here.uniform())  # integers and one exact product
    # The float64 libraries differ in their last bits: one rounding of float32 apart at most.
    torch.testing.assert_close(
        there.normal(3, 64, 64).cpu(), here.normal(3, 64, 64), rtol=1.2e-7, atol=1e-13
    )
