"""Flags of diffusers' train_dreambooth.py that are none here, and what stands in their place."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand

from cascade.errors import UserError


@dataclass(frozen=True)
class Elsewhere:
    """A flag of diffusers'.

    Attributes:
        told: what stands in its place.
        takes_value: whether a value follows it.
        refused: whether leaving it out would do something else than what was asked for.
        instead: of a flag that is here too, the value that is taken in place of diffusers'.
    """

    told: str
    takes_value: bool = True
    refused: bool = False
    instead: str = ""


def _switch(told: str, *, refused: bool = False) -> Elsewhere:
    return Elsewhere(told, takes_value=False, refused=refused)


_HUB = "nothing is uploaded; the output folder can be, as it is"
_ITS_OWN = "is the checkpoint's own setting"
ELSEWHERE: dict[str, Elsewhere] = {
    "--allow-tf32": _switch("PyTorch's own setting holds"),
    "--class-labels-conditioning": Elsewhere(_ITS_OWN),
    "--dataloader-num-workers": Elsewhere("a thread makes the next batch ahead"),
    "--enable-xformers-memory-efficient-attention": _switch("attention is fused already"),
    "--hub-model-id": Elsewhere(_HUB),
    "--hub-token": Elsewhere(_HUB),
    "--local-rank": Elsewhere("is read from torchrun"),
    "--lr-num-cycles": Elsewhere("there are no restarts", refused=True),
    "--lr-power": Elsewhere("there is no polynomial schedule", refused=True),
    "--num-train-epochs": Elsewhere("give --max-train-steps", refused=True),
    "--offset-noise": _switch("noise has no offset here; leave it out", refused=True),
    "--pre-compute-text-embeddings": _switch("is always so"),
    "--prior-generation-precision": Elsewhere("is the recipe's"),
    "--push-to-hub": _switch(_HUB),
    "--resolution": Elsewhere("is the stage's own size"),
    "--resume-from-checkpoint": Elsewhere("the same command goes on by itself"),
    "--revision": Elsewhere("a cascade is a folder on this machine"),
    "--set-grads-to-none": _switch("is always so"),
    "--skip-save-text-encoder": _switch("a cascade is whole, with its text encoder"),
    "--text-encoder-use-attention-mask": _switch(_ITS_OWN),
    "--tokenizer-max-length": Elsewhere(_ITS_OWN),
    "--tokenizer-name": Elsewhere("is the cascade's own"),
    "--train-text-encoder": _switch("it stays frozen, as in Imagen; leave it out", refused=True),
    "--validation-images": Elsewhere("super-resolution is shown on the photos"),
    "--validation-scheduler": Elsewhere("pictures are drawn by the checkpoint's sampler"),
    "--variant": Elsewhere("belongs to 'cascade import'"),
}
VALUES: dict[tuple[str, str], Elsewhere] = {
    ("--lr-scheduler", "constant-with-warmup"): Elsewhere(
        "it is constant, with --lr-warmup-steps", instead="constant"
    ),
    ("--lr-scheduler", "cosine-with-restarts"): Elsewhere("take cosine", refused=True),
    ("--lr-scheduler", "polynomial"): Elsewhere("take linear or cosine", refused=True),
    ("--lr-scheduler", "piecewise-constant"): Elsewhere("take constant", refused=True),
    ("--mixed-precision", "fp16"): Elsewhere(
        "it overflows without a scaled loss; take bf16 or auto", refused=True
    ),
}
_WITH_VALUES = {flag for flag, _ in VALUES}


class KnowsDiffusers(TyperCommand):
    """A command that answers diffusers' flags, all at once, beside taking its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take out diffusers' flags, say what stands in their place, and parse the others."""
        own = {name for option in self.params for name in (*option.opts, *option.secondary_opts)}
        kept, told = sorted_out(args, {_spelling(name) for name in own} | {"--help"})
        rest = super().parse_args(ctx, kept)
        refused = [f"{flag}: {found.told}" for flag, found in told if found.refused]
        if refused:
            raise UserError(f"Of diffusers' flags these are not here: {'; '.join(refused)}.")
        for flag, found in told:
            typer.echo(f"{flag}: {found.told}.", err=True)
        return rest


def sorted_out(
    args: Sequence[str], own: Collection[str]
) -> tuple[list[str], list[tuple[str, Elsewhere]]]:
    """Arguments of the command's own, and which of the others mean something to diffusers."""
    kept: list[str] = []
    told: list[tuple[str, Elsewhere]] = []
    words = iter(args)
    for word in words:
        flag, equals, value = word.partition("=")
        flag = _spelling(flag)
        if flag in ELSEWHERE and flag not in own:
            told.append((flag, ELSEWHERE[flag]))
            if ELSEWHERE[flag].takes_value and not equals:
                next(words, None)
        elif flag in _WITH_VALUES:
            value = value if equals else next(words, "")
            found = VALUES.get((flag, _spelling(value)))
            if found is not None:
                told.append((f"{flag} {value}", found))
                value = found.instead
            kept += [flag, value] if value else []
        else:
            kept.append(word)
    unknown = [word for word in kept if word.startswith("--") and not _known(word, own)]
    if len(unknown) > 1:
        raise UserError(f"There are no flags {', '.join(unknown)}; see --help for those there are.")
    return kept, told


def _known(word: str, own: Collection[str]) -> bool:
    return _spelling(word.partition("=")[0]) in own


def _spelling(flag: str) -> str:
    return flag.replace("_", "-")
