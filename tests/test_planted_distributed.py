"""Do the tests of several processes have teeth? Rows as in test_planted_bugs.py; that each check
passes without the bug stands in test_distributed.py."""

import pytest
import test_distributed as distributed_tests
from oracles import name_of, planted

from minicoca import ranks
from minicoca.engine import augment, optim, train
from minicoca.kernels import info_nce_ranks


def of(*names):
    """Losses and gradients of two processes, of some cases."""

    def check():
        distributed_tests.check_as_one(2, names)

    check.__name__ = f"test_losses_and_every_gradient[{', '.join(names)}]"
    return check


def ten_steps(**changes):
    def check():
        distributed_tests.check_ten_steps(2, **changes)

    check.__name__ = f"test_ten_steps[{changes}]"
    return check


both, moved = of("whole both"), of("muon both")
BUGS = [
    # DDP's mean not undone.
    (train, "total_loss(found, config) * ranks.world", "total_loss(found, config)", both),
    # Means of means.
    (train, "outputs[\"caption\"] * (t[:, 1:] != PAD).sum() / targets",
     "outputs[\"caption\"] / parts / ranks.world", both),
    (train, "int((tokens[:, 1:] != PAD).sum())", "len(tokens)", both),
    # The pair's own logit counted twice.
    (info_nce_ranks, "F.softplus(row - diagonal)",
     "F.softplus(torch.logaddexp(row, diagonal) - diagonal)", both),
    # Columns over a process's own images only.
    (info_nce_ranks, "column = ranks.to_owners(part, counts).logsumexp(0)",
     "column = ranks.to_owners(part, counts)[ranks.rank]", both),
    (info_nce_ranks, "torch.logaddexp(column, diagonal), counts", "column, counts", both),
    # Text gradients not summed.
    (info_nce_ranks, "dtext = ranks.to_owners(dtext, counts).sum(0)",
     "dtext = ranks.to_owners(dtext, counts)[ranks.rank]", both),
    (info_nce_ranks, "share = 1 / (2 * sum(counts))", "share = 1 / (2 * len(image))", both),
    # What is drawn, drawn for each process.
    (train, "config.augment, rng, place)", "config.augment, rng)", moved),
    (augment, "max(0, all_ // 2 - first)", "len(images_BII3) // 2", moved),
    (train, "places[first : first + len(images)]", "places[: len(images)]", moved),
    # Gradients that stay at home.
    (train, "last=i + 1 == parts", "last=False", of("parts both")),
    (train, "self.ranks.sum(leaf.grad) / self.ranks.world", "leaf.grad", of("fsdp both")),
    (train, "dtemperature = temperature.grad / len(batches)", "dtemperature = temperature.grad",
     of("parts both")),
    (optim, "torch.hypot(norm, whole(torch.nn.utils.get_total_norm(parted)))", "norm",
     of("fsdp both")),
    (train, "torch.where(parted, self.ranks.sum(squares), squares)", "squares", of("fsdp both")),
    # Muon's shares, and what FSDP2 has of them.
    (optim, "ranks.gather(moves, ranks.shares(len(ahead)))",
     "ranks.gather(moves, ranks.shares(len(ahead))).roll(ranks.world - 1, 0)", ten_steps()),
    (ranks, "begin = sum(counts[: self.rank])", "begin = 0", ten_steps()),
    (train, "own(leaf).copy_(own(as_parts(torch.from_numpy(value).to(leaf.device), leaf)))",
     "own(leaf).copy_(own(as_parts(torch.from_numpy(value), leaf)) * (own(leaf) is leaf))",
     ten_steps(parallel="fsdp")),
]  # fmt: skip


@pytest.mark.parametrize(("module", "old", "new", "check"), BUGS, ids=map(name_of, BUGS))
def test_a_planted_bug_is_caught(module, old, new, check):
    with planted(module, old, new), pytest.raises(AssertionError):
        check()


def test_there_are_enough():
    assert len(BUGS) >= 15
