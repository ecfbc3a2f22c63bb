"""How an encoder's weights are held: whole in one type, quantised, or one block at a time.

T5-XXL's encoder has 4.7 billion weights: 18 GiB in float32, 9 in bfloat16, 5 quantised. Where its
blocks are read one after another, the whole process takes about 2 GiB.
"""

import math
import os
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from cascade.config.encoder import EncoderMode, HeldMode, encoder_mode
from cascade.errors import UserError
from cascade.progress import silence
from cascade.tensors import require_finite
from cascade.text.files import EMBEDDINGS, EncoderFiles

_TYPES: Final[dict[HeldMode, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.bfloat16,
    "layerwise": torch.float32,
}
_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def choose(files: EncoderFiles, device: torch.device) -> HeldMode:
    """Return the most exact mode whose weights take at most half of a device's memory.

    The whole memory counts, not what is free at the moment: a run that is started again on the
    same machine chooses as before. `int8` is never chosen; it changes the embeddings by 1 %.
    """
    values = sum(math.prod(shape) for shape in files.shapes().values())
    memory = device_memory(device)
    if values * 4 <= memory // 2:
        return "float32"
    return "bfloat16" if values * 2 <= memory // 2 else "layerwise"


def device_memory(device: torch.device) -> int:
    """Memory of a GPU, or what this machine, or this container, lets a process have; bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [path.read_text(encoding="ascii").strip() for path in _LIMITS if path.is_file()]
    return min([memory, *(int(limit) for limit in limits if limit.isdigit())])


def hold(
    files: EncoderFiles, mode: EncoderMode, device: torch.device
) -> tuple[nn.Module, HeldMode]:
    """Build the encoder, frozen, and the mode it is held in.

    Raises:
        UserError: weights are missing, damaged or of another model; the mode is float16 or
            unknown, or needs a package that is not installed.
    """
    mode = encoder_mode(mode)
    model = skeleton(files)
    held = choose(files, device) if mode == "auto" else mode
    if held == "int8":
        _require_torchao()
    dtype = _TYPES[held]
    for prefix, module in _parts(model):
        is_block = prefix.startswith("block.")
        if held == "layerwise" and is_block:
            _stream(module, prefix, files, dtype, device)
        elif held == "layerwise" and isinstance(module, nn.Embedding):
            _keep_in_file(module, prefix, files, dtype, device)
        else:
            _fill(module, prefix, files, dtype, device)
            weights = {prefix + name: value for name, value in module.state_dict().items()}
            require_finite(weights, str(files.folder))
        if held == "int8" and is_block:
            _quantise(module)
    return model.eval().requires_grad_(False), held


def skeleton(files: EncoderFiles) -> nn.Module:
    """Build the encoder on the meta device, and make sure that its files fit it and each other.

    Raises:
        UserError: weights are missing, of other shapes, or fewer than the vocabulary's pieces.
    """
    with silence():
        from transformers import T5EncoderModel
    with torch.device("meta"):
        model: nn.Module = T5EncoderModel(files.config).encoder
    held = files.shapes()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differing = [name for name in wanted if held.get(name) != wanted[name]]
    if differing:
        raise UserError(
            f"The text encoder in {files.folder} lacks {len(differing)} weights, {differing[0]} "
            "among them; fetch model.safetensors and config.json of the same model again."
        )
    if len(files.tokenizer) > wanted[EMBEDDINGS][0]:
        raise UserError(
            f"{files.vocabulary} has {len(files.tokenizer)} pieces but the encoder in "
            f"{files.folder} embeds {wanted[EMBEDDINGS][0]}; use the vocabulary that belongs to "
            "the encoder."
        )
    return model


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The embeddings, the blocks and the last normalisation, with the prefixes of their names."""
    blocks = model.get_submodule("block")
    parts = [(f"block.{name}.", block) for name, block in blocks.named_children()]
    return [
        ("embed_tokens.", model.get_submodule("embed_tokens")),
        *parts,
        ("final_layer_norm.", model.get_submodule("final_layer_norm")),
    ]


def _fill(
    module: nn.Module,
    prefix: str,
    files: EncoderFiles,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    tensors = files.read([prefix + name for name in module.state_dict()], dtype)
    state: dict[str, Tensor] = {
        name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items()
    }
    module.load_state_dict(state, assign=True)


def _stream(
    block: nn.Module, prefix: str, files: EncoderFiles, dtype: torch.dtype, device: torch.device
) -> None:
    """Make a block read its weights when it is called, and forget them afterwards."""

    def read(module: nn.Module, inputs: Any) -> None:
        _fill(module, prefix, files, dtype, device)

    def forget(module: nn.Module, inputs: Any, output: Any) -> None:
        module.to(torch.device("meta"))

    block.register_forward_pre_hook(read)
    block.register_forward_hook(forget)


def _keep_in_file(
    embeddings: nn.Embedding,
    prefix: str,
    files: EncoderFiles,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Look rows up in the file's own type and convert those alone: half a gigabyte for T5-XXL."""

    def convert(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    _fill(embeddings, prefix, files, None, device)
    embeddings.register_forward_hook(convert)


def _require_torchao() -> None:
    try:
        with silence():
            import torchao  # noqa: F401
    except ImportError:
        raise UserError(
            "The encoder mode 'int8' needs the package torchao; install it with "
            "pip install 'dreamcascade[quantized]', or take bfloat16 or layerwise."
        ) from None


def _quantise(block: nn.Module) -> None:
    """Hold a block's linear layers in 8 bits, a scale per output row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(block, Int8WeightOnlyConfig())
