"""How the parameters of a run are held where several processes share it (ranks.py): the module that
DDP or FSDP2 wraps, and what is this process's part of a tensor.
"""

import torch
import torch.distributed as dist
from torch import nn


class Tree(nn.Module):
    """A tree of parameters as a module: each leaf has its own name there. Called with a function,
    it gives what that makes of the tree."""

    def __init__(self, tree):
        super().__init__()
        for name, part in sorted(tree.items()):
            if isinstance(part, dict):
                self.add_module(name, Tree(part))
            else:
                parameter = nn.Parameter(part.detach(), requires_grad=part.requires_grad)
                self.register_parameter(name, parameter)

    def tree(self):
        """The parameters as they are now: FSDP2 puts others in their place while it computes."""
        parts = {name: part.tree() for name, part in self.named_children()}
        return parts | dict(self.named_parameters(recurse=False))

    def forward(self, function):
        return function(self.tree())


def shared(params, kind):
    """(module, tree) of parameters that every process has (`ddp`) or has a part of (`fsdp`).

    DDP and FSDP2 take the mean over the processes. What is no array of at least one axis stays
    whole under FSDP2, and so does its gradient stay this process's.
    """
    module = Tree(params)
    if kind == "ddp":
        wrapped = nn.parallel.DistributedDataParallel(module, gradient_as_bucket_view=True)
        return wrapped, module.tree()
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    device = next(module.parameters()).device.type
    scalars = {p for p in module.parameters() if not p.ndim}
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    return fully_shard(module, mesh=mesh, ignored_params=scalars), module.tree()


def syncing(module, last):
    """For a `with`: whether the backward pass in it exchanges gradients; else they add up."""
    if hasattr(module, "set_requires_gradient_sync"):
        module.set_requires_gradient_sync(last)
    return module.no_sync() if hasattr(module, "no_sync") and not last else torch.enable_grad()


def exchange_ms(module):
    """How long DDP exchanges a step's gradients, in part beside the backward pass: the mean of the
    steps that it looks at since the run began (its first ten, then each hundredth). 0: FSDP2."""
    told = getattr(module, "_get_ddp_logging_data", dict)()
    return told.get("avg_backward_comm_time", 0) / 1e6


def own(x):
    """This process's part of a tensor, as a view of it."""
    return x.to_local() if hasattr(x, "to_local") else x


def whole(x):
    """The whole of a tensor of which each process has a part."""
    return x.full_tensor() if hasattr(x, "full_tensor") else x


def as_parts(x, like):
    """A whole tensor that every process has, parted as `like` is."""
    if not hasattr(like, "to_local"):
        return x
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(x, like.device_mesh, like.placements, src_data_rank=None)
