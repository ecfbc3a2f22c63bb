"""Train the judge that tells what a picture of the small world shows.

    python tools/mini/judge.py build/mini/base64 --held build/mini/held64 --minutes 1.5

Writes the judge's folder with `accuracy.json`: its share of right answers on the last pictures of
the dataset, which it is not trained on, and on combinations that training never sees. The learning
rate falls to zero within the minutes on any machine: the first steps are measured, and the number
of steps fixed by that.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from cascade.cli.console import run_command
from cascade.environment import environment, usable_device
from cascade.errors import UserError
from cascade.evaluate.judge import Judge
from cascade.evaluate.stored import to_floats
from cascade.files import write_bytes
from judge_pictures import Labelled
from judge_training import Training, train

KEPT: Final = 0.02
"""Share of the pictures, the last ones, that are not trained on."""


def main(
    data: Annotated[Path, typer.Argument(help="The base's dataset, as prepare.py wrote it.")],
    held: Annotated[
        Path | None, typer.Option(help="Dataset of held-out combinations, to test with.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder of the judge.")] = Path("build/mini/judge"),
    minutes: Annotated[float, typer.Option(min=0.01, help="Training ends within them.")] = 1.5,
    batch_size: Annotated[int, typer.Option(min=2, help="Pictures of a step.")] = 1024,
    learning_rate: Annotated[float, typer.Option(min=0, help="The highest.")] = 3e-3,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network first, within the minutes.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
    ] = None,
) -> None:
    """Train, test and write."""
    where = usable_device(device)
    pictures = Labelled.open(data)
    first = len(pictures.images) - max(1, round(KEPT * len(pictures.images)))
    tests = {"not trained on": pictures.part(slice(first, None))}
    if held is not None:
        tests["held out"] = Labelled.open(held)
        if tests["held out"].vocabulary != pictures.vocabulary:
            raise UserError(f"{held} and {data} have different vocabularies; make both again.")
    training = Training(minutes, batch_size, learning_rate, compiled)
    judge, told = train(pictures.part(slice(first)).to(where), training)
    judge.save(output)
    judge = Judge.load(output, where)  # as it ships, in bfloat16
    record = {
        "environment": environment(),
        "training": told,
        "accuracy": {name: tested(judge, test) for name, test in tests.items()},
    }
    text = json.dumps(record, indent=2) + "\n"
    write_bytes(text.encode(), output / "accuracy.json")
    Console(soft_wrap=True).print(text, markup=False, highlight=False)


def tested(judge: Judge, pictures: Labelled) -> Mapping[str, float]:
    """Return the number of true pictures a judge was shown, and its share of right answers."""
    found = judge.accuracy(to_floats(pictures.images.numpy()), pictures.stated())
    return {"pictures": len(pictures.images), **{str(name): share for name, share in found.items()}}


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
