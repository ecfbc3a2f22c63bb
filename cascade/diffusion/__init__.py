"""The mathematics of diffusion on tensors: schedules, denoiser, objectives, guidance, samplers."""
