"""Other projects' networks, each with its own training step.

diffusers' network has the same weights as ours and answers as ours does. Its step is that of its
DreamBooth script (examples/dreambooth/train_dreambooth.py, in pixels). imagen-pytorch's network has
our numbers of channels and blocks and is another one; its step is that of `ImagenTrainer`. Neither
keeps an average, nor do we.

Shapes: as in `cascade_bench.networks`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade.config.stage import StageConfig
from cascade.formats.export import check_expressible
from cascade.formats.keys import entries
from cascade.formats.unet import unet_to_diffusers
from cascade.progress import silence
from cascade_bench.networks import Compilation, Made, Training, Weights
from cascade_bench.problem import CannotError, missing
from cascade_bench.timing import Run

_STEPS = 1000  # of the diffusion, in both


class DiffusersNetwork(nn.Module):
    """diffusers' `UNet2DConditionModel` behind our network's signature.

    Raises:
        UserError: diffusers is not installed, or has no network of this kind.
    """

    def __init__(self, config: StageConfig, weights: Weights) -> None:
        super().__init__()
        check_expressible(config)
        with silence():
            try:
                from diffusers import UNet2DConditionModel
            except ImportError as error:
                raise missing("diffusers", error) from None
        kind: Any = UNet2DConditionModel  # published without types
        self.network = kind.from_config(unet_to_diffusers(config.unet, config.size))
        parts = (entry.split(weights[entry.ours]) for entry in entries(config.unet))
        self.network.load_state_dict({name: part for of in parts for name, part in of.items()})

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as ours does; every token is read, which is IF's convention."""
        image = x if low_res is None else torch.cat([x, low_res], dim=1)
        image = image.contiguous(memory_format=torch.channels_last)
        out = self.network(image, t, text, class_labels=aug, return_dict=False)[0]
        answer: Tensor = out
        return answer


def diffusers(config: StageConfig, weights: Weights, compiled: Compilation | None = None) -> Made:
    """diffusers' network."""  # noqa: D403
    return Made(DiffusersNetwork(config, weights), _diffusers_step, compiled)


def _diffusers_step(made: Made, training: Training) -> Run:
    from diffusers import DDPMScheduler

    assert isinstance(made.network, DiffusersNetwork)
    inputs, run = training.inputs, training.run
    if run.gradient_checkpointing == "selective":
        raise CannotError("diffusers recomputes whole blocks or nothing")
    device = inputs.x.device
    network = copy.deepcopy(made.network.network).to(device).train()
    if run.gradient_checkpointing == "full":
        network.enable_gradient_checkpointing()
    if made.compiled is not None:
        network.compile(mode=made.compiled)
    kind: Any = DDPMScheduler
    scheduler = kind(_STEPS, beta_schedule="squaredcos_cap_v2")
    optimizer = torch.optim.AdamW(network.parameters(), lr=run.optimizer.learning_rate)

    def step() -> None:
        noise = torch.randn_like(inputs.x)
        t = torch.randint(0, _STEPS, (len(noise),), device=device)
        noisy = scheduler.add_noise(inputs.x, noise, t)
        enlarges = inputs.low_res is not None  # from the noisy picture itself, in its script
        image = torch.cat([noisy, noisy], dim=1) if enlarges else noisy
        labels = t if enlarges else None
        with torch.autocast(device.type, torch.bfloat16, enabled=training.half):
            out = network(image, t, inputs.text, class_labels=labels, return_dict=False)[0]
        loss = F.mse_loss(out[:, :3].float(), noise)  # a learned variance is left out
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), run.optimizer.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()  # for its progress bar

    return step


class ImagenPytorchNetwork(nn.Module):
    """imagen-pytorch's `Unet` with our channels and blocks, behind our network's signature.

    It attends to pictures and text wherever ours attends.

    Raises:
        UserError: imagen-pytorch is not installed.
    """

    def __init__(self, config: StageConfig) -> None:
        super().__init__()
        with _no_hub():
            try:
                from imagen_pytorch import Unet
            except ImportError as error:
                raise missing("imagen-pytorch", error) from None
        unet, attends = config.unet, tuple(kind != "none" for kind in config.unet.attention)
        first = unet.channels[0]
        if any(each % first for each in unet.channels):
            raise CannotError("imagen-pytorch has multiples of its first channels alone")
        with redirect_stdout(StringIO()):  # it has advice for narrow ones
            self.network: Any = Unet(  # published without types
                dim=first,
                dim_mults=tuple(each // first for each in unet.channels),
                num_resnet_blocks=unet.blocks,
                layer_attns=attends,
                layer_cross_attns=attends,
                attn_dim_head=unet.head_channels,
                cond_dim=unet.context_width,
                text_embed_dim=unet.text_width,
                max_text_len=config.text.max_length,
                lowres_cond=config.low_res is not None,
            )

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict from a noisy picture."""
        out: Tensor = self.network(
            x,
            t / _STEPS,
            text_embeds=text,
            text_mask=text_mask,
            lowres_cond_img=low_res,
            lowres_noise_times=None if aug is None else aug / _STEPS,
        )
        return out


def imagen_pytorch(config: StageConfig, weights: Weights) -> Made:
    """imagen-pytorch's network; the weights are its own."""
    return Made(ImagenPytorchNetwork(config), _imagen_pytorch_step, comparable=False)


def _imagen_pytorch_step(made: Made, training: Training) -> Run:
    from imagen_pytorch import Imagen, ImagenTrainer, NullUnet

    assert isinstance(made.network, ImagenPytorchNetwork)
    stage, run, inputs = training.stage, training.run, training.inputs
    if run.gradient_checkpointing != "none":
        raise CannotError("imagen-pytorch recomputes nothing")
    unets, sides = [copy.deepcopy(made.network.network)], [inputs.x.shape[-1]]
    if stage.low_res is not None:
        unets, sides = [NullUnet(), *unets], [sides[0] * stage.low_res.size // stage.size, *sides]
    trainer = ImagenTrainer(
        Imagen(unets, image_sizes=sides, text_embed_dim=stage.unet.text_width),
        lr=run.optimizer.learning_rate,
        max_grad_norm=run.optimizer.max_grad_norm,
        precision="bf16" if training.half else "no",
        use_ema=False,
        verbose=False,
        accelerate_cpu=inputs.x.device.type == "cpu",
    )
    images = inputs.x.clamp(-1, 1) / 2 + 0.5

    def step() -> None:
        trainer(images, text_embeds=inputs.text, text_masks=inputs.mask, unet_number=len(unets))
        trainer.update(unet_number=len(unets))

    return step


@contextmanager
def _no_hub() -> Iterator[None]:
    """Let imagen-pytorch be imported without a network: it asks for its default encoder's width."""
    from transformers import T5Config

    with patch.object(T5Config, "from_pretrained", lambda name: T5Config(d_model=768)), silence():
        yield
