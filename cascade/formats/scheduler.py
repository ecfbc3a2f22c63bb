"""Conversion of diffusers' `scheduler_config.json` from and to our settings.

A scheduler file names the schedule, what is predicted, the variance and the thresholding. Guidance
and the number of steps are arguments of diffusers' pipelines; their defaults are used.
"""

from collections.abc import Mapping
from typing import Any

from cascade.config.stage import DiffusionConfig, SamplerConfig, ThresholdConfig
from cascade.formats.settings import Settings

_TIMESTEPS = 1000
_SCHEDULES = {"squaredcos_cap_v2": "squared_cosine", "linear": "linear"}
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
_ORIGINAL = "put the original file of the checkpoint back, and choose a sampler when you sample"
_VARIANCES = {
    "learned_range": "learned",
    "fixed_small": "fixed_small",
    "fixed_large": "fixed_large",
}
# diffusers' defaults, and the only values that ours can stand for.
_DEFAULTS: dict[str, Any] = {
    "beta_end": 0.02,
    "beta_start": 0.0001,
    "clip_sample_range": 1.0,
    "num_train_timesteps": _TIMESTEPS,
    "rescale_betas_zero_snr": False,
    "steps_offset": 0,
    "trained_betas": None,
}
_READ = {
    "beta_schedule",
    "clip_sample",
    "dynamic_thresholding_ratio",
    "prediction_type",
    "sample_max_value",
    "thresholding",
    "timestep_spacing",
    "variance_type",
}


def schedule_from_diffusers(file: Settings) -> str:
    """Read the noise schedule of a `scheduler_config.json`."""
    # Pipelines are saved with the sampler they were last given; the weights are as before.
    file.one_of("_class_name", "DDPMScheduler", "DDPMScheduler", mend=_ORIGINAL)
    file.only(_READ | _DEFAULTS.keys())
    for key, wanted in _DEFAULTS.items():
        file.one_of(key, wanted, wanted)
    return _SCHEDULES[file.one_of("beta_schedule", "linear", *_SCHEDULES)]


def sampling_from_diffusers(
    file: Settings, guidance: float, steps: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read how a stage was trained and is sampled.

    Returns:
        The values of a `DiffusionConfig` and of a `SamplerConfig`.
    """
    schedule = schedule_from_diffusers(file)
    prediction = file.one_of("prediction_type", "epsilon", *_PREDICTIONS)
    variance = file.one_of("variance_type", "fixed_small", *_VARIANCES)
    spacing = file.one_of("timestep_spacing", "leading", "leading", "linspace")
    sampler = {
        "name": "ancestral",
        "steps": steps,
        "spacing": spacing,
        "variance": _VARIANCES[variance],
        "guidance": guidance,
        "threshold": _threshold(file),
    }
    return {"schedule": schedule, "prediction": _PREDICTIONS[prediction]}, sampler


def scheduler_to_diffusers(diffusion: DiffusionConfig, sampler: SamplerConfig) -> dict[str, Any]:
    """Write a stage's `scheduler/scheduler_config.json`."""
    threshold = sampler.threshold
    dynamic = ThresholdConfig(kind="dynamic", cap=1.0) if threshold.kind != "dynamic" else threshold
    return noising_to_diffusers(diffusion.schedule) | {
        "prediction_type": _key_of(_PREDICTIONS, diffusion.prediction),
        "variance_type": _key_of(_VARIANCES, sampler.variance),
        "thresholding": threshold.kind == "dynamic",
        "clip_sample": threshold.kind != "none",
        "dynamic_thresholding_ratio": dynamic.percentile,
        "sample_max_value": dynamic.cap,
        "timestep_spacing": sampler.spacing,
    }


def noising_to_diffusers(schedule: str) -> dict[str, Any]:
    """Write an `image_noising_scheduler/scheduler_config.json`: the schedule alone."""
    return {
        "_class_name": "DDPMScheduler",
        "beta_schedule": _key_of(_SCHEDULES, schedule),
        **_DEFAULTS,
    }


def _threshold(file: Settings) -> dict[str, Any]:
    if file.one_of("thresholding", False, False, True):
        return {
            "kind": "dynamic",
            "percentile": file.get("dynamic_thresholding_ratio", 0.995),
            "cap": file.get("sample_max_value", 1.0),
        }
    return {"kind": "static" if file.one_of("clip_sample", True, False, True) else "none"}


def _key_of(names: Mapping[str, str], ours: str) -> str:
    return next(theirs for theirs, name in names.items() if name == ours)
