"""What tests share: where data lies, which of them need a GPU, one thread per worker."""

import json
import logging
import os
import resource
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image, ImageDraw
from torch.profiler import ProfilerActivity, profile

# Without a GPU only Triton's interpreter runs the kernels; Triton reads this when it is imported,
# and the imports below import it.
os.environ["TRITON_INTERPRET"] = "0" if torch.cuda.is_available() else "1"

from cascade.config.folders import CascadeManifest
from cascade.config.stage import (
    DiffusionConfig,
    LowResConfig,
    SamplerConfig,
    StageConfig,
    TextConfig,
)
from cascade.config.unet import UNetConfig
from cascade.stage import Stage

ROOT = Path(__file__).resolve().parent.parent

# How long an example takes is the machine's affair.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure() -> None:
    """Keep every test, and every process a test starts, off the network and on this checkout."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    roots = (ROOT, ROOT / "kernels", ROOT / "export")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(str, roots))


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip the tests marked `gpu` where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device; this machine has none")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Parallel workers that each start a thread per core slow each other down."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that a test starts
        os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # processes, each of them


@pytest.fixture(autouse=True)
def _log() -> Iterator[None]:
    """Leave the log as it was found: a command that is run in this process listens to it."""
    logger = logging.getLogger("cascade")
    before = logger.level, logger.handlers[:], logger.propagate
    yield
    logger.level, logger.handlers[:], logger.propagate = before
    logger.setLevel(before[0])  # forget what was remembered of the level


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Hear what runs are going to do, which costs each of them a probe of this machine."""
    caplog.set_level(logging.INFO, "cascade")
    return caplog


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the working tree."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The shared data folder (photos, captions, tokenizers); absent, the test is skipped."""
    folder = Path(os.environ.get("DREAMCASCADE_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no shared data folder at {folder}; name one in DREAMCASCADE_SHARED")
    return folder


TINY_UNET = UNetConfig(
    channels=(16, 32),
    blocks=(1, 1),
    attention=("none", "joint"),
    head_channels=16,
    text_width=128,  # the bundled text encoder's
    context_width=32,
    time_width=32,
    pool_heads=4,
    norm_groups=8,
)
TINY_SUPER_RESOLUTION = TINY_UNET.model_copy(
    update={
        "attention": ("none", "cross"),
        "low_res": True,
        "resample": "convolution",
        "skip_scale": 2**-0.5,
    }
)
TINY_TEXT = TextConfig(max_length=16, cleaning="lower")
TINY_BASE = StageConfig(
    name="base16",
    size=16,
    unet=TINY_UNET,
    diffusion=DiffusionConfig(prediction="v"),
    text=TINY_TEXT,
    sampler=SamplerConfig(name="dpmpp_2m", steps=3, guidance=3.0),
)
TINY_SR = StageConfig(
    name="sr32",
    size=32,
    unet=TINY_SUPER_RESOLUTION,
    diffusion=DiffusionConfig(prediction="v"),
    low_res=LowResConfig(size=16, noise_at="low", upsample="bicubic", crop=16),
    text=TINY_TEXT,
    sampler=SamplerConfig(name="ddim", steps=2, guidance=1.0),
)


@pytest.fixture(scope="session")
def tiny_cascade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete two-stage cascade, 16 -> 32 pixels, of random weights.

    Shared by all tests: read it, and copy it to change it.
    """
    folder = tmp_path_factory.mktemp("cascades") / "tiny"
    shutil.copytree(ROOT / "cascade" / "zoo" / "mini" / "text", folder / "text")
    for seed, config in enumerate((TINY_BASE, TINY_SR)):
        stage = Stage.build(config, seed)
        _wake(stage.network, seed)
        stage.save(folder / config.name)
    manifest = CascadeManifest(name="tiny", stages=("base16", "sr32"), recipe="mini")
    (folder / "cascade.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def toml() -> Callable[[Mapping[str, object]], str]:
    """Write settings as a TOML file has them; what is None is left out."""

    def lines(values: Mapping[str, object]) -> Iterator[str]:
        yield from (f"{name} = {held(one)}" for name, one in values.items() if one is not None)

    def held(value: object) -> str:
        if isinstance(value, Mapping):
            return f"{{ {', '.join(lines(value))} }}"
        if isinstance(value, list):
            return f"[{', '.join(map(held, value))}]"
        return json.dumps(value)

    return lambda values: "\n".join(lines(values))


@pytest.fixture(scope="session")
def training_file(tiny_cascade: Path, toml: Callable[..., str]) -> Callable[..., Path]:
    """Write ten captioned pictures and the file of a run that trains a tiny stage on them."""

    def written(folder: Path, stage: str = "base16", **settings: object) -> Path:
        config = json.loads((tiny_cascade / stage / "config.json").read_text(encoding="utf-8"))
        data = folder / f"data-{stage}"
        data.mkdir(parents=True)
        shape = (10, 3, config["size"], config["size"])
        rng = np.random.default_rng(0)
        np.save(data / "images.npy", rng.integers(0, 256, shape, dtype=np.uint8))
        (data / "captions.jsonl").write_text('["a dog", "a cat on the beach"]\n' * 10)
        values = {
            "stage": config,
            "data": {"folder": str(data)},
            "text_encoder": str(tiny_cascade / "text"),
            "output": str(folder / "run"),
        }
        file = folder / f"{stage}.toml"
        file.write_text(toml({**values, **settings}), encoding="utf-8")
        return file

    return written


@pytest.fixture
def full_disk() -> Callable[[int], AbstractContextManager[None]]:
    """Let no file grow beyond a number of bytes: writing more fails, as it does on a full disk."""

    @contextmanager
    def limited(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limited


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of four photos of 64 pixels: a shape of one kind before other backgrounds.

    Shared by all tests: read it, and copy it to change it.
    """
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(4):
        noise = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        photo = Image.fromarray(noise).resize((64, 64), Image.Resampling.BICUBIC)
        left, top = (int(value) for value in rng.integers(4, 24, 2))
        ImageDraw.Draw(photo).ellipse((left, top, left + 32, top + 24), fill=(200, 60, 20 * index))
        photo.save(folder / f"{index}.png")
    return folder


def _wake(network: torch.nn.Module, seed: int) -> None:
    """Draw the zero-initialised weights at random: a new network predicts 0 whatever it sees."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)


@dataclass(frozen=True)
class Outcome:
    """Exit status and what was printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run `cascade` with arguments; anything but an exit is an uncaught error and fails."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    from cascade.cli.app import main

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["cascade", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return Outcome(int(end.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def allocated(tmp_path: Path) -> Callable[[Callable[[], object]], int]:
    """The most a call has allocated at once, from the allocator's own log."""

    def measure(run: Callable[[], object]) -> int:
        run()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
            run()
        log.export_chrome_trace(str(tmp_path / "trace.json"))
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        held = [event["args"] for event in events if event.get("name") == "[memory]"]
        before = held[0]["Total Allocated"] - held[0]["Bytes"]
        return int(max(args["Total Allocated"] for args in held) - before)

    return measure
