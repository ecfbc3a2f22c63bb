"""A network spread over the processes of a run, by PyTorch's own engines.

`ddp` copies it to every process. `fsdp` gives each process a share of every weight's rows: the
weights of a block are gathered when it runs and freed behind it (FSDP2, `fully_shard`); gradients,
moments and averages are shared alike. `hsdp` does so within groups of processes that are copies of
each other.
"""

from contextlib import AbstractContextManager, nullcontext
from types import FunctionType, MethodType
from typing import Final, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from cascade.config.parallel import ParallelConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.stream import RankSlice
from cascade.errors import UserError
from cascade.model.precision import in_bf16
from cascade.model.recompute import Block, set_recomputation
from cascade.model.unet import UNet
from cascade.stage import Stage, meta_network
from cascade.training.distributed import Processes
from cascade.training.weights import Weights, fill

# Each aspect ratio of the data is one, and so are the batches of validation; PyTorch's eight are
# fewer than a pack has, and blocks would run as they are from then on.
_SHAPES: Final = 64


def spread_stage(
    config: StageConfig, weights: Weights, run: TrainConfig, processes: Processes
) -> Stage:
    """Build a stage to be trained; of a shared network a process holds only its part.

    Raises:
        UserError: the processes do not divide into the replicas, or a kernel cannot run.
    """
    network = meta_network(config)
    set_recomputation(network, run.gradient_checkpointing)
    if run.compile:
        _compile(network, run.cuda_graphs)
    shared = is_shared(run.parallel, processes)
    if shared:
        _share(network, run, processes)
    on_host = shared and run.parallel.offload
    network.to_empty(device="cpu" if on_host else processes.device)
    fill(network, weights)
    if not shared:
        # Convolutions are fastest so, and their gradients come so: DDP's buckets and cuDNN would
        # copy weights laid out otherwise. FSDP2 shards contiguous weights only.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage = Stage(config, network.train())
    stage.set_backend(run.kernels)
    return stage


def is_shared(parallel: ParallelConfig, processes: Processes) -> bool:
    """Return whether processes hold parts of the network; one alone holds it all."""
    return parallel.strategy != "ddp" and processes.world_size > 1


def with_exchange(network: nn.Module, run: TrainConfig, processes: Processes) -> nn.Module:
    """Return the network to call, whose gradients become the mean over all processes."""
    if processes.world_size == 1 or is_shared(run.parallel, processes):
        return network
    devices = [processes.device] if processes.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)


def accumulating(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Return a context for one of a step's backward passes; the last one exchanges gradients.

    Shared weights reduce each pass's gradients to the process's share, so that no process holds
    more; only copies wait for the last pass.
    """
    if isinstance(network, FSDPModule):
        network.set_requires_all_reduce(last)
        return nullcontext()
    if isinstance(network, DistributedDataParallel) and not last:
        return cast(AbstractContextManager[None], network.no_sync())
    return nullcontext()


def mesh_shape(parallel: ParallelConfig, processes: Processes) -> tuple[int, ...]:
    """Return the mesh that weights are shared over: (processes,) or (replicas, processes of one).

    Raises:
        UserError: the processes do not divide into the replicas.
    """
    world = processes.world_size
    if parallel.strategy == "fsdp":
        return (world,)
    replicas = parallel.replicas or max(1, world // processes.local_world_size)
    if world % replicas:
        raise UserError(
            f"{world} processes do not divide into {replicas} replicas; set "
            f"train.parallel.replicas to a divisor of {world}."
        )
    return (replicas, world // replicas)


def batch_share(config: TrainConfig, processes: Processes) -> RankSlice:
    """Return a process's part of each batch.

    Raises:
        UserError: the batch does not divide among the processes and the passes.
    """
    parts = config.gradient_accumulation_steps * processes.world_size
    if config.batch_size % parts:
        raise UserError(
            f"A batch of {config.batch_size} does not divide into {processes.world_size} processes "
            f"x {config.gradient_accumulation_steps} accumulated parts; use a multiple of {parts}."
        )
    accumulation = config.gradient_accumulation_steps
    return RankSlice(config.batch_size, accumulation, processes.rank, processes.world_size)


def local(parameter: Tensor) -> Tensor:
    """Return what this process holds of a tensor; changed in place, it changes the tensor."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


def forget_gathered(network: nn.Module) -> None:
    """Free the gathered weights of a shared network, which no longer are those of its parts.

    A call without a backward pass leaves some behind.
    """
    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _compile(network: UNet, cuda_graphs: bool) -> None:
    """Compile each block for its own shapes."""
    limit = torch.compiler.config.recompile_limit
    torch.compiler.config.recompile_limit = max(limit, _SHAPES)
    for block in network.blocks:
        # The method and not the module: what shards it stays outside of the graph.
        block.forward = torch.compile(  # type: ignore[method-assign]
            _apart(block), dynamic=False, mode="reduce-overhead" if cuda_graphs else None
        )
    if cuda_graphs:
        network.register_forward_pre_hook(_begin_iteration)


def _apart(block: Block) -> MethodType:
    """Return a block's forward method in code of its own.

    PyTorch keeps what it has compiled by code: of blocks that share theirs it tries one after
    another at each call, and from the ninth on it compiles no more and says little.
    """
    shared = type(block).forward
    own = FunctionType(shared.__code__.replace(), shared.__globals__, shared.__name__)
    return MethodType(own, block)


def _begin_iteration(*_: object) -> None:
    """Let a call without a backward pass reuse the memory of the last one's graphs."""
    if not torch.is_grad_enabled():
        torch.compiler.cudagraph_mark_step_begin()


def _share(network: UNet, run: TrainConfig, processes: Processes) -> None:
    """Shard each block and, as one more unit, all that lies around them."""
    kind = processes.device.type
    shape = mesh_shape(run.parallel, processes)
    mesh = init_device_mesh(kind, shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    bf16 = in_bf16(run.precision, processes.device)
    # Gathered in the type they are computed in; master weights, and sums of gradients, in fp32.
    blocks = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if bf16 else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # autocast's part
    )
    around = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = OffloadPolicy()
    if run.parallel.offload and kind != "cpu":
        offload = CPUOffloadPolicy()
        # Weights lie on the host: what calls the network asks it where its inputs go.
        network.device = processes.device
    reshard = run.parallel.reshard_after_forward
    for block in network.blocks:
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=reshard,
            mp_policy=blocks,
            offload_policy=offload,
        )
    fully_shard(network, mesh=mesh, mp_policy=around, offload_policy=offload)
