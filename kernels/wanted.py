"""Gradients that somebody wants, and no others: None stands for one that nobody does."""


def empty_where(wanted, *tensors):
    """Uninitialised memory in the shape of each tensor whose gradient is wanted."""
    return [x.new_empty(x.shape) if w else None for w, x in zip(wanted, tensors, strict=True)]


def stand_ins(like, gradients):
    """What a custom op can return: its outputs are tensors, so None becomes an empty one."""
    return tuple(like.new_empty(0) if x is None else x for x in gradients)


def chosen(wanted, gradients):
    """What autograd is told: the gradients, None where one is not wanted."""
    return tuple(x if w else None for w, x in zip(wanted, gradients, strict=True))
