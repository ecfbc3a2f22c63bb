"""A judge that tells what a picture of the small world shows: whether a prompt was followed.

It errs on true pictures too; a share of right answers is told beside its share on those.

Shapes: `B` pictures, `H W` rows and columns, `K` answers; pixels in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import torch
from safetensors.torch import save
from torch import Tensor

from cascade.errors import UserError
from cascade.evaluate.features import extract
from cascade.evaluate.judge_config import AttributeName, JudgeConfig, Stated
from cascade.evaluate.judge_network import SIDE, JudgeNetwork
from cascade.files import read_json, write_bytes
from cascade.tensors import check_tensors, read_weights

FOLDER: Final = "judge"
"""Where a cascade's folder keeps its judge."""

_BATCH: Final = 256


@dataclass(frozen=True)
class Judge:
    """A trained network with the words of what it answers."""

    config: JudgeConfig
    network: JudgeNetwork

    @classmethod
    def load(cls, folder: Path, device: torch.device | str = "cpu") -> Self:
        """Load `config.json` and `model.safetensors` of a judge's folder, in float32."""
        if not folder.is_dir():
            raise UserError(
                f"There is no judge in {folder}; give the folder of one, or of a cascade that has "
                "one."
            )
        path = folder / "config.json"
        config = JudgeConfig.parse(read_json(path), str(path))
        with torch.device("meta"):
            network = JudgeNetwork(config.widths, list(config.counts.values()))
        weights = folder / "model.safetensors"
        check_tensors(weights, network)
        network.load_state_dict(read_weights(weights, device), assign=True)
        return cls(config, network.eval().requires_grad_(False))

    def save(self, folder: Path) -> None:
        """Write the judge as a folder, its weights in bfloat16; they come last."""
        text = self.config.model_dump_json(indent=2)
        tensors = {
            name: value.detach().to(torch.bfloat16).contiguous()
            for name, value in self.network.folded().state_dict().items()
        }
        write_bytes((text + "\n").encode(), folder / "config.json")
        write_bytes(save(tensors), folder / "model.safetensors")

    def stated(self, prompt: str) -> Stated:
        """Return what a prompt states, by words that the judge knows."""
        return self.config.stated(prompt)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> dict[AttributeName, Tensor]:
        """Return every attribute's probabilities `B K` of `B 3 H W`, in the order of its answers.

        Pictures that are not of 64 pixels are made so, antialiased.
        """
        device = next(self.network.parameters()).device
        logits = extract(self.network, images, SIDE, device, _BATCH)
        parts = logits.split(list(self.config.counts.values()), 1)
        return {
            name: part.softmax(1) for name, part in zip(self.config.attributes, parts, strict=True)
        }

    def answers(self, images: Tensor) -> dict[AttributeName, list[str]]:
        """Return the likeliest answer about every picture, `B 3 H W`, for each attribute."""
        return {
            name: [self.config.attributes[name].answers[k] for k in found.argmax(1).tolist()]
            for name, found in self.probabilities(images).items()
        }

    def accuracy(self, images: Tensor, stated: Sequence[Stated]) -> dict[AttributeName, float]:
        """Return the share of right answers of every attribute that is stated of some picture."""
        if len(images) != len(stated):
            raise ValueError(f"{len(images)} pictures but statements about {len(stated)}")
        found: dict[AttributeName, float] = {}
        for name, answers in self.answers(images).items():
            hits = [
                answer == wanted[name]
                for answer, wanted in zip(answers, stated, strict=True)
                if name in wanted
            ]
            if hits:
                found[name] = sum(hits) / len(hits)
        return found
