"""The commands from the outside: help, flags, exit status, files."""

import json
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cascade.cli import app as program
from cascade.cli.app import app
from cascade.cli.dreambooth_flags import comma_separated, scenes_of
from cascade.cli.recipe import PATHS, recipe_from_flags
from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.recipes import RECIPES
from cascade.environment import usable_device
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.text.identifier import check_identifier
from cascade.text.tokenizer import Tokenizer

COMMANDS = sorted(
    made.name or made.callback.__name__.replace("_", "-")
    for made in app.registered_commands
    if made.callback is not None
)
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mini-base64.toml"
Command = Callable[..., Any]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command: Command, name: str) -> None:
    shown = command(name, "--help")
    assert shown.status == 0
    assert "Usage:" in shown.out
    assert shown.err == ""


def test_help_lists_the_commands_and_loses_no_words(command: Command) -> None:
    shown = command("--help")
    assert shown.status == 0
    assert all(name in shown.out for name in COMMANDS)
    assert "[V]" in command("dreambooth", "--help").out
    assert "[0 <= x <= 1]" in command("sample", "--help").out


def test_version(command: Command) -> None:
    assert command("--version").out.strip() == version("dreamcascade")


@pytest.mark.parametrize("arguments", [(), ("smaple",), ("sample",), ("sample", "--stpes", "3")])
def test_usage_errors_exit_with_two(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).status == 2


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cascade.cli.app import app; app(['--help'], standalone_mode=False); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_info_and_identifiers(command: Command, tiny_cascade: Path) -> None:
    shown = command("info", tiny_cascade)
    assert shown.status == 0
    assert "base16" in shown.out
    listed = command("identifiers", "--cascade", tiny_cascade, "--count", 5, "--seed", 1)
    found = listed.out.split()
    assert listed.status == 0
    assert len(set(found)) == 5
    tokenizer = Tokenizer(tiny_cascade / "text" / "spiece.model")
    for identifier in found:
        check_identifier(tokenizer, "lower", identifier, "dog")
    again = command("identifiers", "--cascade", tiny_cascade, "--count", 5, "--seed", 1)
    assert again.out == listed.out


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_sample_from_a_console(tiny_cascade: Path, tmp_path: Path) -> None:
    arguments = ["--cascade", tiny_cascade, "--prompt", "a dog", "--prompt", "a cat"]
    arguments += ["--output", tmp_path / "out", "--num_images", 2, "--seed", 5]
    done = subprocess.run(
        [sys.executable, "-m", "cascade", "sample", *map(str, arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out" / "grid.png") in done.stdout
    names = {p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("*.png")}
    expected = {
        f"{s}/{p}-{n}.png" for s in ("base16", "sr32") for p in ("00", "01") for n in (5, 6)
    }
    assert names == expected | {"grid.png"}


def test_sample_s_flags_reach_the_sampler(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    common = ("sample", "--cascade", tiny_cascade, "--prompt", "a dog", "--num_images", 1)
    changes: dict[str, tuple[object, ...]] = {
        "plain": (),
        "sampler": ("--sampler", "heun"),
        "underscored": ("--sampler", "dpmpp_2m", "--steps", 3),  # the base's own settings
        "steps": ("--steps", 7),
        "guidance": ("--guidance", 9),
        "level": ("--noise_level", 0.9),
        "seed": ("--seed", 1),
    }
    drawn = {}
    for name, change in changes.items():
        assert command(*common, *change, "-o", tmp_path / name, "--device", "cpu").status == 0
        files = sorted((tmp_path / name).glob("*/*.png"))
        drawn[name] = {path.parent.name: pixels(path) for path in files}
    plain = drawn.pop("plain")
    assert drawn.pop("underscored")["base16"] == plain["base16"]
    assert drawn["level"].pop("base16") == plain["base16"]
    for pictures in drawn.values():
        assert all(pictures[stage] != plain[stage] for stage in pictures)
    stopped = command(*common, "-o", tmp_path / "base", "--last_stage", "base16")
    assert stopped.status == 0
    assert pixels(tmp_path / "base" / "base16" / "00-0.png") == plain["base16"]
    assert not (tmp_path / "base" / "sr32").exists()


def test_pictures_of_another_call_stay_and_the_same_call_draws_nothing(
    command: Command, tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # without --output they go into `pictures`
    common = ("sample", "--cascade", tiny_cascade, "--num_images", 2, "--prompt")
    assert command(*common, "a dog").status == 0
    before = {path: path.read_bytes() for path in sorted((tmp_path / "pictures").rglob("*.png"))}
    assert len(before) == 5
    other = command(*common, "a dog", "--negative_prompt", "a cat")
    assert "The grid is pictures/grid-1.png" in other.out
    assert "2 of 2 pictures were there already." in command(*common, "a dog").out
    after = {path: path.read_bytes() for path in (tmp_path / "pictures").rglob("*.png")}
    assert after.items() > before.items()
    assert len(after) == 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_sampling_that_is_stopped_keeps_its_pictures(
    command: Command,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    sample = Cascade.sample_batches

    def stopped(self: Cascade, *arguments: Any) -> Any:
        yield next(sample(self, *arguments))
        signal.raise_signal(number)

    common = ("sample", "--cascade", tiny_cascade, "--prompt", "a dog", "-o", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(Cascade, "sample_batches", stopped)
        done = command(*common, "--batch_size", 2)
    assert done.status == 130
    assert "the same command goes on from here" in done.err
    assert len(list(tmp_path.rglob("*.png"))) == 4
    again = command(*common, "--batch_size", 2)
    assert "2 of 4 pictures were there already." in again.out
    assert len(list(tmp_path.rglob("*.png"))) == 9


def test_a_number_of_steps_replaces_a_checkpoint_s_list(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    listed = shutil.copytree(tiny_cascade, tmp_path / "listed")
    path = listed / "base16" / "config.json"
    values = json.loads(path.read_text())
    values["sampler"]["timesteps"] = [900, 500, 100]
    path.write_text(json.dumps(values))
    drawn = {}
    for name, folder, steps in (
        ("list", listed, ()),
        ("number", listed, ("--steps", 3)),
        ("plain", tiny_cascade, ("--steps", 3)),
    ):
        common = ("--cascade", folder, "--prompt", "a dog", "--num_images", 1)
        stop = ("--last_stage", "base16", "-o", tmp_path / name)
        assert command("sample", *common, *steps, *stop).status == 0
        drawn[name] = pixels(tmp_path / name / "base16" / "00-0.png")
    assert drawn["number"] == drawn["plain"] != drawn["list"]


def test_the_default_device_is_usable() -> None:
    assert usable_device("cpu") == "cpu"
    assert usable_device(usable_device(None)) == usable_device(None)


def test_train_writes_a_stage(command: Command, tiny_cascade: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    (tmp_path / "captions.jsonl").write_text('["a dog"]\n' * 3)
    changes = [
        f"data.folder={tmp_path}",
        f"output={tmp_path / 'run'}",
        f"text_encoder={tiny_cascade / 'text'}",
        f"initial_weights={tiny_cascade / 'base16'}",
        "stage.size=16",
        "stage.unet={channels=[16,32],blocks=[1,1],attention=['none','joint'],head_channels=16,"
        "text_width=128,context_width=32,time_width=32,pool_heads=4,norm_groups=8}",
        "train.steps=2",
        "train.optimizer.warmup_steps=0",
        "train.batch_size=2",
        "train.precision=fp32",
        "train.validate_every=2",
        "validation={prompts=['a dog'], images_per_prompt=2}",
    ]
    arguments = [part for change in changes for part in ("--set", change)]
    done = command("train", CONFIG, *arguments)
    assert done.status == 0
    assert str(tmp_path / "run" / "stage") in done.out
    stage = Stage.load(tmp_path / "run" / "stage")
    assert stage.config.name == "base64"
    assert stage.config.size == 16
    assert stage.fingerprint() != Stage.load(tiny_cascade / "base16").fingerprint()
    with Image.open(tmp_path / "run" / "samples" / "step-000002.png") as grid:
        assert grid.size == (2 * 18 - 2, 16)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[DreamBoothConfig]:
    """What `cascade dreambooth` would have started."""
    configs: list[DreamBoothConfig] = []

    def personalise(config: DreamBoothConfig) -> Path:
        configs.append(config)
        return config.output_dir

    monkeypatch.setattr("cascade.dreambooth.personalise.personalise", personalise)
    return configs


FLAGS: dict[str, Any] = {
    "augmentation": "imagen",
    "prior_loss_weight": 0.25,
    "num_class_images": 17,
    "prior_caption_dropout": 0.125,
    "masks": "some/masks",
    "unmasked_weight": 0.25,
    "unmasked_probability": 0.5,
    "scene_share": 0.75,
    "class_variations": "a cartoon of a {class_noun}, a red {class_noun}",
    "scenes": "on the beach = a beach",
    "scene_weight": 0.125,
    "num_scene_images": 12,
    "sample_batch_size": 5,
    "max_train_steps": 123,
    "learning_rate": 3e-6,
    "train_batch_size": 6,
    "sr_max_train_steps": 321,
    "sr_learning_rate": 2e-6,
    "sr_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 11,
    "adam_beta1": 0.5,
    "adam_beta2": 0.6,
    "adam_weight_decay": 0.5,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 3.0,
    "snr_gamma": 4.0,
    "variance": "freeze",
    "mixed_precision": "bf16",
    "ema_decay": 0.75,
    "seed": 9,
    "checkpointing_steps": 77,
    "checkpoints_total_limit": 3,
    "validation_steps": 55,
}
SWITCHES = {
    "center_crop": ("--random_crop", False),
    "flip": ("--flip", True),
    "prior_preservation": ("--with_prior_preservation", True),
    "sr_prior_preservation": ("--sr_prior_preservation", True),
    "class_scenes": ("--class_scenes", True),
    "sr_scenes": ("--sr_scenes", True),
    "gradient_checkpointing": ("--gradient_checkpointing", True),
    "scale_lr": ("--scale_lr", True),
    "use_8bit_adam": ("--use_8bit_adam", True),
    "keep_checkpoints": ("--keep_checkpoints", True),
}


@pytest.mark.parametrize("spelling", ["_", "-"])
def test_dreambooth_s_flags_in_both_spellings(
    command: Command,
    received: list[DreamBoothConfig],
    tiny_cascade: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spelling: str,
) -> None:
    assert set(PATHS) <= FLAGS.keys() | SWITCHES.keys()
    launched = {"WORLD_SIZE": 3, "RANK": 0, "LOCAL_RANK": 0, "MASTER_ADDR": "", "MASTER_PORT": 1}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)
    Path("some/photos").mkdir(parents=True)
    given: dict[str, Any] = {
        "instance_data_dir": "some/photos",
        "class_noun": "dog",
        "output_dir": "new",
        "pretrained_model_name_or_path": tiny_cascade,
        "identifier": "zug",
        "instance_prompt": "one {identifier} {class_noun}",
        "class_prompt": "one {class_noun}",
        "sr_prompt": "this {class_noun}",
        "class_data_dir": "some/class",
        "stages": "base16, sr32",
        "num_validation_images": 2,
        **FLAGS,
    }
    arguments: list[object] = []
    for name, value in given.items():
        arguments += [f"--{name.replace('_', spelling)}", value]
    arguments += [switch.replace("_", spelling) for switch, _ in SWITCHES.values()]
    arguments += [f"--validation{spelling}prompt", "a zug dog", "--recipe", "paper"]
    assert command("dreambooth", *arguments).status == 0
    (config,) = received
    switches = {name: value for name, (_, value) in SWITCHES.items()}
    parsed = {
        "class_variations": comma_separated(FLAGS["class_variations"]),
        "scenes": scenes_of(FLAGS["scenes"]),
    }
    assert config == DreamBoothConfig(
        cascade=str(tiny_cascade),
        instance_data_dir=Path("some/photos"),
        output_dir=Path("new"),
        class_noun="dog",
        identifier="zug",
        instance_prompt="one {identifier} {class_noun}",
        class_prompt="one {class_noun}",
        sr_prompt="this {class_noun}",
        class_data_dir=Path("some/class"),
        stages=("base16", "sr32"),
        validation_prompts=("a zug dog",),
        validation_images=2,
        seed=9,
        recipe=recipe_from_flags(RECIPES["paper"], FLAGS | switches | parsed, world=3),
    )
    assert config.recipe.base.batch_size == 6 * 2 * 3


def test_the_cascade_names_its_recipe(
    command: Command, received: list[DreamBoothConfig], tiny_cascade: Path
) -> None:
    short = ("--instance_data_dir", tiny_cascade, "--class_noun", "dog", "--output_dir", "y")
    assert command("dreambooth", *short, "--cascade", tiny_cascade).status == 0
    assert received[0].recipe == RECIPES["mini"]
    assert received[0].class_noun == "dog"
    assert received[0].stages == ()
    off = ("--cascade", tiny_cascade, "--no-prior-preservation")
    assert command("dreambooth", *short, *off).status == 0
    assert received[1].recipe.prior is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_says_how_to_go_on_where_it_does(
    command: Command, monkeypatch: pytest.MonkeyPatch, repository: Path, number: signal.Signals
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(number)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("cascade.training.pretrain.pretrain", interrupted)
    stopped = command("train", repository / "configs" / "mini-base64.toml")
    assert stopped.status == 130
    assert "the same command goes on from here" in stopped.err
    assert signal.getsignal(signal.SIGTERM) == before


def test_an_interrupt_of_what_begins_anew_promises_nothing(
    command: Command, tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascade.info.folder.describe", interrupted)
    stopped = command("info", tiny_cascade)
    assert (stopped.status, stopped.err) == (130, "Interrupted.\n")


def test_nobody_else_is_heard() -> None:
    """Packages that are merely installed have nothing to say to a command."""
    done = subprocess.run(
        [sys.executable, "-m", "cascade", "info", "mini"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_pillow_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of a photo's damaged notes is no concern of who trains on its pixels."""

    def damaged(_: object) -> None:
        warnings.warn_explicit(
            "Corrupt EXIF data", UserWarning, "", 1, module="PIL.TiffImagePlugin"
        )

    monkeypatch.setattr(program, "run_command", damaged)
    with warnings.catch_warnings(record=True) as heard:
        program.main()
    assert heard == []
