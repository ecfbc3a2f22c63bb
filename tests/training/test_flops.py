"""Operations of a training step, against figures worked out by hand."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from cascade.config.stage import LowResConfig, StageConfig
from cascade.model.example import example_inputs
from cascade.model.layers import set_backend
from cascade.stage import meta_network
from cascade.training.flops import training_flops


def test_convolutions_counted_by_hand(stage_config: StageConfig) -> None:
    plain = {"attention": ("none", "none"), "resample": "convolution", "low_res": True}
    unet = stage_config.unet.model_copy(update=plain)
    low_res = LowResConfig(size=8, crop=16)
    whole = StageConfig(
        name="sr", size=32, unet=unet, low_res=low_res.model_copy(update={"crop": None})
    )
    cropped = whole.model_copy(update={"low_res": low_res})
    # All but the text and the embeddings are convolutions: a quarter of the pixels, a quarter of
    # their operations.
    still = (4 * training_flops(cropped) - training_flops(whole)) / 3
    convolutions = training_flops(whole) - still
    assert 0 < still < training_flops(cropped)
    assert convolutions % (32 * 32 * 2 / 4 / 4) == 0  # the coarsest level's pixels, multiply-add
    # 3x3, from both pictures to 8 channels: forward and the weights' gradient.
    first = 2 * 2 * 32 * 32 * 9 * 6 * 8
    last = 3 * 2 * 32 * 32 * 9 * 8 * 3
    assert convolutions > first + last


def test_a_backward_pass_is_two_forward_passes_and_recomputation_at_most_one_more(
    stage_config: StageConfig,
) -> None:
    network = meta_network(stage_config)
    set_backend(network, "reference")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(**example_inputs(stage_config.unet, 1, 8, stage_config.text.max_length))
    forward, row = counter.get_total_flops(), training_flops(stage_config)
    # Without the gradients of the picture and the text, which in so small a network count.
    assert 2.7 * forward < row < 3 * forward
    assert row <= training_flops(stage_config, "selective")
    assert row < training_flops(stage_config, "full") < row + forward
