"""A stage's folder: written whole, read back bit for bit, and refused when it is not whole."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cascade.config.folders import read_stage_config
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.errors import UserError
from cascade.stage import Stage, check_weights
from cascade.tensors import weight_shapes


@pytest.fixture
def folder(tiny_cascade: Path, tmp_path: Path) -> Path:
    """A base stage of one's own."""
    return shutil.copytree(tiny_cascade / "base16", tmp_path / "base16")


def test_saving_and_loading_change_no_bit(base: Stage, tmp_path: Path) -> None:
    base.save(tmp_path / "copy")
    again = Stage.load(tmp_path / "copy")
    assert again.config == base.config
    before, after = base.network.state_dict(), again.network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert again.fingerprint() == base.fingerprint()
    again.save(tmp_path / "second")
    for name in ("config.json", "model.safetensors"):
        first, second = tmp_path / "copy" / name, tmp_path / "second" / name
        assert first.read_bytes() == second.read_bytes()


def test_the_weights_carry_their_configuration(folder: Path) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    # One entry alone: safetensors writes several in a random order, and equal stages must give
    # equal files.
    (text,) = metadata.values()
    assert StageConfig.parse(json.loads(text), "metadata") == read_stage_config(folder)


def test_saving_in_bfloat16_rounds_and_loads_in_float32(base: Stage, tmp_path: Path) -> None:
    base.save(tmp_path, torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    loaded = Stage.load(tmp_path).network.state_dict()
    for name, value in base.network.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], value.bfloat16().float())


def test_loaded_networks_are_whole_and_at_rest(folder: Path) -> None:
    network = Stage.load(folder).network
    tensors = [*network.parameters(), *network.buffers()]
    assert not any(tensor.is_meta for tensor in tensors)
    assert not network.training


def test_building_is_a_function_of_the_seed(base: Stage) -> None:
    state = torch.get_rng_state()
    one, same, other = (Stage.build(base.config, seed).fingerprint() for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's numbers are used up


def test_any_weight_and_any_setting_changes_the_fingerprint(folder: Path) -> None:
    stage = Stage.load(folder)
    seen = {stage.fingerprint()}
    for parameter in stage.network.parameters():
        flat = parameter.detach().view(-1)
        flat[-1] = torch.nextafter(flat[-1], torch.tensor(torch.inf))
        seen.add(stage.fingerprint())
    assert len(seen) == 1 + len(list(stage.network.parameters()))
    subject = SubjectConfig(identifier="zug", class_noun="dog")
    tuned = stage.with_network(
        stage.network, stage.config.model_copy(update={"subjects": (subject,)})
    )
    assert tuned.fingerprint() not in seen


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_and_truncated_files_are_named(folder: Path, name: str) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size // 2)
    with pytest.raises(UserError, match=f"{name} is (damaged|not whole JSON)"):
        Stage.load(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        Stage.load(folder)


def test_json_that_is_no_object_and_settings_that_are_none(folder: Path) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text())
    path.write_text("[1]")
    with pytest.raises(UserError, match=r"config\.json holds no JSON object"):
        read_stage_config(folder)
    path.write_text(json.dumps(values | {"sise": 16}))
    with pytest.raises(UserError, match=r"config\.json: 'sise' is not .*did you mean 'size'"):
        read_stage_config(folder)


def test_weights_of_another_checkpoint_are_refused(tiny_cascade: Path, folder: Path) -> None:
    path = folder / "model.safetensors"
    shutil.copy(tiny_cascade / "sr32" / "model.safetensors", path)
    with pytest.raises(UserError, match=r"do not fit their config\.json") as caught:
        Stage.load(folder)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["one too few", "one too many", "another shape"])
def test_one_tensor_that_differs_is_named(folder: Path, change: str) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = "conv_in.weight"
    if change == "one too few":
        del tensors[name]
    elif change == "one too many":
        name = "a.stranger"
        tensors[name] = torch.zeros(1)
    else:
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, path)
    with pytest.raises(UserError, match=f"1 differ, {name} among them"):
        check_weights(folder, read_stage_config(folder))


def test_the_header_tells_every_shape(base: Stage, folder: Path) -> None:
    shapes = weight_shapes(folder / "model.safetensors")
    expected = {name: tuple(v.shape) for name, v in base.network.state_dict().items()}
    assert shapes == expected
