"""Which loss a stage is trained with, by its own configuration."""

from cascade.config.train import ObjectiveConfig
from cascade.diffusion.objective import BaseObjective, Objective, SuperResObjective
from cascade.stage import Stage


def make_objective(stage: Stage, config: ObjectiveConfig) -> Objective:
    """The loss of a base or of a super-resolution stage.

    L_vb joins where the variance is learned and not frozen.
    """
    trained = stage.config.unet.learned_variance and config.variance != "freeze"
    base = BaseObjective(config.weighting, config.gamma, config.vb_weight if trained else 0.0)
    if stage.config.low_res is None:
        return base
    low, high = (stage.level_time(level) for level in stage.config.low_res.training_levels)
    return SuperResObjective(base, stage.low_resolution(), (low, high))
