"""`cascade bench serve`: a real server process under load, and beside naive servers."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from cascade.config.base import apply_override
from cascade.config.folders import BUNDLED, cascade_folder, read_manifest, read_stage_config
from cascade.config.serve import LimitConfig, ServeConfig
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.formats.export import check_expressible
from cascade.plugins import opener
from cascade.results import Result
from cascade.tables import Table
from cascade_bench.data_processes import family
from cascade_bench.device import facts
from cascade_bench.providers import known
from cascade_bench.serve.against import against
from cascade_bench.serve.loads import Bench, capacity, loads
from cascade_bench.serve.mixture import admissions
from cascade_bench.serve.naive import NAIVE
from cascade_bench.serve.process import HOST, Program, ended_by_signal, serving, write_keys
from cascade_bench.serve.soak import endings, soak
from cascade_bench.serve.tables import tables
from cascade_bench.settings import ServeBenchConfig

MODEL: Final = "bench"
PACKAGES: Final = ("fastapi", "uvicorn", "httpx2", "onnxruntime", "diffusers")
_DIFFUSERS: Final = "diffusers"


def bench_serve(config: ServeBenchConfig, output: Path) -> tuple[Result, list[Table]]:
    """Measure every part that is asked for; the record is `serve` in `output`.

    It is written after each part.

    Raises:
        UserError: a setting is wrong, or a server does not do its part.
    """
    naive = _checked(config)
    device = torch.device(usable_device(config.device))
    figures: dict[str, Any] = {"load average": {}}
    with ended_by_signal(), TemporaryDirectory() as scratch:
        asked = {"model": MODEL}
        steps = {} if config.steps is None else {"num_inference_steps": config.steps}
        bench = Bench(config, Path(scratch), asked | steps)
        keys = write_keys(config.clients, bench.scratch / _KEYS)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "load": lambda: _load(bench, our_program(bench, keys), soaked=False),
            "soak": lambda: _load(bench, our_program(bench, keys), soaked=True),
            "mixture": lambda: _mixture(bench, our_program(bench, keys, config.large)),
            "against": lambda: {
                "against": against(
                    bench, our_program(bench, keys, config.large), naive_folder(config), naive
                )
            },
        }
        for part in config.parts:
            before = facts(device)
            figures |= parts[part]()
            figures["load average"][part] = [_average(before), _average(facts(device))]
            result = Result.of("bench serve", config, figures, packages=PACKAGES, also=before)
            result.write(output / "serve", tables(figures, config))
    return result, tables(figures, config)


def our_program(bench: Bench, keys: Sequence[str], times: int = 1) -> Program:
    """Return how our server is started.

    Args:
        times: how much more patience and room it has than the settings say.
    """
    config = bench.config
    if config.bundle is not None:
        served = ["--bundle", f"{MODEL}={config.bundle.resolve()}"]
    else:
        served = ["--cascade", f"{MODEL}={naive_folder(config).resolve()}"]
    # Calls that are made at a time share the threads.
    threads = max(1, config.threads_or_cores // _served(config, times).batch.calls)
    words = ["cascade", "serve", *served, "--host", HOST, "--device", config.device]
    words += ["--keys", str(bench.scratch / _KEYS), "--threads", str(threads)]
    for setting in _settings(config, times):
        words += ["--set", setting]
    return Program("ours", lambda port: [*words, "--port", str(port)], threads, keys)


def _served(config: ServeBenchConfig, times: int) -> ServeConfig:
    """Return the settings of our server, as far as they are given."""
    values: dict[str, Any] = {}
    for override in _settings(config, times):
        apply_override(values, override)
    return ServeConfig.parse(values, "--serve")


def _settings(config: ServeBenchConfig, times: int) -> list[str]:
    """Return what `--set` of our server is given."""
    room = times * config.waiting
    return [
        f"limits.seconds={times * config.patience}",
        f"limits.waiting={room}",
        f"limits.waiting_per_client={room}",
        f"limits.pictures={min(room, max(config.large, LimitConfig().pictures))}",
        *config.options,
    ]


def naive_folder(config: ServeBenchConfig) -> Path:
    """Return the folder of the cascade."""
    return cascade_folder(config.cascade or BUNDLED[0])


_KEYS: Final = "keys.toml"


def _load(bench: Bench, program: Program, *, soaked: bool) -> dict[str, Any]:
    with serving(program, bench.scratch) as server:
        most = capacity(bench, server)
        if not most.pictures:
            raise UserError(f"Our server draws nothing: {most.outcomes} {'; '.join(most.told)}.")
        if not soaked:
            found = loads(bench, server, most.rate)
            return {
                "capacity": most.model_dump(mode="json"),
                "loads": [load.model_dump(mode="json") for load in found],
            }
        of = soak(bench, server, most)
        return {"soak": of.model_dump(mode="json"), "endings": endings(bench, program, server)}


def _mixture(bench: Bench, program: Program) -> dict[str, Any]:
    with serving(program, bench.scratch) as server:
        found = admissions(bench, server)
    return {"mixture": {name: [one.model_dump() for one in of] for name, of in found.items()}}


def _average(found: dict[str, str]) -> str:
    return found["load average"]


def _checked(config: ServeBenchConfig) -> list[str]:
    """Refuse what cannot be measured; return the naive servers."""
    family()  # refuses where the system does not tell what processes take
    for times in (1, config.large):
        _served(config, times)
    if config.bundle is not None and opener(config.bundle) is None:
        raise UserError(f"{config.bundle} is no bundle; make one with 'cascade export'.")
    if {"mixture", "against"} & {*config.parts} and config.clients < 2:
        raise UserError("Who waits beside whom takes two clients; give --clients 2 or more.")
    if "against" not in config.parts:
        return []
    if config.bundle is not None and config.cascade is None:
        raise UserError(
            "Naive servers draw with the cascade that the bundle was made of; give it as "
            "--cascade, or leave 'against' out of --parts."
        )
    naive = known(config.against, NAIVE)
    if _DIFFUSERS in naive:
        _check_diffusers(naive_folder(config))
    return naive


def _check_diffusers(folder: Path) -> None:
    if find_spec(_DIFFUSERS) is None:
        raise UserError(
            "To compare with diffusers, install it: pip install diffusers; or leave it out of "
            "--against."
        )
    names = read_manifest(folder).stages
    for name in names:
        check_expressible(read_stage_config(folder / name))
    if len(names) != 2:
        raise UserError(
            f"{folder} has {len(names)} stages and diffusers is compared by two; leave it out of "
            "--against."
        )
