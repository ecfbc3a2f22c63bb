"""A stage's training objective: its loss, and the fate of a learned variance.

Shapes: the last convolution has `3 + 3` output channels, the prediction's before the variance's
(Nichol & Dhariwal 2021, eq. 15).
"""

from torch import nn

from cascade.config.stage import StageConfig
from cascade.config.train import ObjectiveConfig
from cascade.diffusion.objective import BaseObjective, Objective, SuperResObjective
from cascade.errors import UserError
from cascade.stage import Stage


def make_objective(stage: Stage, config: ObjectiveConfig) -> Objective:
    """Return the loss of a base or of a super-resolution stage.

    L_vb joins where the variance is learned and not frozen.
    """
    trained = stage.config.unet.learned_variance and config.variance != "freeze"
    base = BaseObjective(config.weighting, config.gamma, config.vb_weight if trained else 0.0)
    if stage.config.low_res is None:
        return base
    low, high = (stage.level_time(level) for level in stage.config.low_res.training_levels)
    return SuperResObjective(base, stage.low_resolution(), (low, high))


def held_out_objective(stage: Stage) -> Objective:
    """Return what held-out rows are scored by: the plain error of what the network predicts.

    A super-resolution stage is told the level that it samples with, and what it enlarges has it.
    """
    if stage.config.low_res is None:
        return BaseObjective()
    level = stage.level_time(stage.config.low_res.sampling_level)
    return SuperResObjective(BaseObjective(), stage.low_resolution(), (level, level))


def check_variance(stage: StageConfig, objective: ObjectiveConfig) -> None:
    """Refuse a setting of the learned variance where there is none."""
    if objective.variance is not None and not stage.unet.learned_variance:
        raise UserError(
            f"Stage '{stage.name}' has no learned variance to {objective.variance}; "
            "leave the setting out."
        )


def undecayed(stage: Stage, objective: ObjectiveConfig) -> list[nn.Parameter]:
    """Return the parameters without weight decay: the last convolution's with frozen variance.

    The loss on the mean alone gives the variance's rows a gradient of exactly zero, for which every
    optimizer here takes a step of exactly zero; decay would be all that moves them.
    """
    if objective.variance != "freeze":
        return []
    return list(stage.network.get_submodule("conv_out").parameters())


def without_variance(config: StageConfig) -> StageConfig:
    """Return a stage's configuration without its variance: fewer output channels.

    The rows that predict the image stand first among its weights, so they fit the result. Where it
    sampled with the learned variance it samples with the smallest fixed one.
    """
    sampler = config.sampler
    if sampler.variance == "learned":
        sampler = sampler.model_copy(update={"variance": "fixed_small"})
    unet = config.unet.model_copy(update={"learned_variance": False})
    return config.model_copy(update={"unet": unet, "sampler": sampler})
