"""`cascade sample`: pictures from prompts."""

from cascade.cli import values
from cascade.cli.console import Quiet, resumable
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import (
    BUNDLE_FLAGS,
    GUIDANCE_INTERVAL,
    LORA_FLAGS,
    TEXT_FLAGS,
    refuse_without_bundle,
)
from cascade.config.sample import SampleConfig
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.progress import say
from cascade.request import Request, scales

FLAGS = (
    Flag("prompt", ("prompts",), parser=values.name, metavar="TEXT"),
    Flag("output", ("output",), names=values.OUTPUT, parser=values.path, metavar="FOLDER"),
    Flag("negative_prompt", ("negative_prompts",), kind=str),
    Flag("cascade", ("cascade",), parser=values.cascade, metavar="FOLDER"),
    Flag("num_images", ("num_images",)),
    Flag("seed", ("seed",)),
    Flag("sampler", ("sampler",)),
    Flag("steps", ("steps",)),
    Flag("timesteps", ("timesteps",), kind=list[str], metavar="NAME"),
    Flag("guidance", ("guidance",)),
    GUIDANCE_INTERVAL,
    Flag("precision", ("precision",)),
    Flag("noise_level", ("noise_level",)),
    Flag("last_stage", ("last_stage",), parser=values.name, metavar="NAME"),
    Flag("size", ("size",)),
    Flag("aspect", ("aspect",), metavar="W:H"),
    Flag("batch_size", ("batch_size",)),
    Flag("device", ("device",)),
    Flag("kernels", ("kernels",)),
    *LORA_FLAGS,
    *TEXT_FLAGS,
    *BUNDLE_FLAGS,
)


@with_options(SampleConfig, FLAGS)
def sample(
    options: Options[SampleConfig],
    quiet: Quiet = False,
) -> None:
    """Draw pictures: a PNG per picture and stage, and a grid.

    A picture is a function of its prompt, its seed and its settings; what is drawn beside it moves
    about one value in ten thousand, by one grey level. Each batch is written when it is drawn,
    and the same command goes on where it was stopped.
    """
    config = options.settings()
    require_writable(config.output)
    seeds = range(config.seed, config.seed + config.num_images)
    prompts = [text for text in config.prompts for _ in seeds]
    numbers = [*seeds] * len(config.prompts)
    if config.bundle is None:
        refuse_without_bundle(config.engines)
    else:
        _refuse_with_bundle(config)

    from cascade.environment import usable_device
    from cascade.gallery import sample_to_folder
    from cascade.lora import lora_files, with_lora
    from cascade.pipeline import Cascade, Opened

    device = None if config.device is None else usable_device(config.device)
    if config.bundle is None:
        opened = Opened.at(config.cascade or "mini", embeddings=config.embeddings)
        stages = scales(opened.configs, config.size or opened.configs[-1].size)
        request = Request.of(stages, prompts, numbers, config)
        files = lora_files(config.lora, opened.configs)
        loaded = opened.load(device, config.encoder_mode)
        loaded = with_lora(loaded, files, config.lora_scale, config.lora_unet_only)
    else:
        loaded = Cascade.load(
            config.bundle,
            device,
            embeddings=config.embeddings,
            encoder_mode=config.encoder_mode,
            engines=config.engines,
        )
        stages = scales(loaded.configs, config.size or loaded.configs[-1].size)
        request = Request.of(stages, prompts, numbers, config)
    loaded = loaded.upscaled_to(stages[-1].size)
    if config.kernels != "auto":
        for stage in loaded.stages:
            stage.set_backend(config.kernels)
    with resumable():
        gallery = sample_to_folder(loaded, request, config.output, columns=config.num_images)
    if gallery.kept:
        say(f"{gallery.kept} of {gallery.pictures} pictures were there already.")
    if gallery.shown < gallery.pictures:
        say(f"The grid shows {gallery.shown} of {gallery.pictures} pictures.")
    say(f"The grid is {gallery.grid}.")


def _refuse_with_bundle(config: SampleConfig) -> None:
    """Refuse flags of what a bundle has decided."""
    if config.cascade is not None:
        raise UserError("A bundle holds its own cascade; leave --cascade or --bundle out.")
    if config.precision is not None:
        raise UserError(
            "A bundle's engines keep the precision they were exported in; leave --precision or "
            "--bundle out."
        )
    if config.lora:
        raise UserError(
            "A bundle's engines keep their weights; give --lora to 'cascade export', or leave it "
            "or --bundle out."
        )
