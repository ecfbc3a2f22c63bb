"""Which loss a stage is trained with, by its own configuration."""

from cascade.config.train import ObjectiveConfig
from cascade.diffusion.objective import BaseObjective, Objective, SuperResObjective
from cascade.stage import Stage


def make_objective(stage: Stage, config: ObjectiveConfig) -> Objective:
    """The loss of a base or of a super-resolution stage; L_vb joins where variance is learned."""
    vb_weight = config.vb_weight if stage.config.unet.learned_variance else 0.0
    base = BaseObjective(config.weighting, config.gamma, vb_weight)
    if stage.config.low_res is None:
        return base
    low, high = (stage.level_time(level) for level in stage.config.low_res.training_levels)
    return SuperResObjective(base, stage.low_resolution(), (low, high))
