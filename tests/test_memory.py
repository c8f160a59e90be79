"""What the losses hold at their peak, measured in fresh processes; not reckoned."""

import subprocess
import sys
from functools import cache

import pytest

SCRIPT = """
import sys, torch
from torch.nn.functional import cross_entropy
from minicoca.bench import peak_mb
from minicoca.engine import ops
what, how, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.manual_seed(0)
if what != "captions":
    leaves = [torch.nn.functional.normalize(torch.randn(size, 512)) for _ in range(2)]
    leaves.append(torch.tensor(-2.66))
if what == "sigmoid":
    leaves.append(torch.tensor(-8.0))
    captions = torch.arange(size) // 2
    def eager(x, y, log_temperature, bias):
        logits = torch.exp(-log_temperature) * (x @ y.T) + bias
        own = torch.eye(size, dtype=torch.bool)
        losses = torch.nn.functional.softplus(torch.where(own, -logits, logits))
        return (losses * (own | (captions[:, None] != captions))).sum() / size
    def ours(*given):
        return ops.sigmoid_loss(*given, captions)
elif what == "pairs":
    def eager(x, y, log_temperature):
        logits = torch.exp(-log_temperature) * (x @ y.T)
        labels = torch.arange(len(x))
        return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2
    ours = ops.contrastive_loss
else:
    leaves = [torch.randn(size, 512), 0.05 * torch.randn(512, 49_408)]
    targets = torch.randint(1, 49_408, (size,))
    def eager(x, weight):
        return cross_entropy(x @ weight, targets)
    def ours(x, weight):
        return ops.caption_loss(x, {"weight": weight}, targets)
for leaf in leaves:
    leaf.requires_grad_()
before = peak_mb()
(ours if how == "ours" else eager)(*leaves).backward()
given_back = sum(leaf.grad.nbytes for leaf in leaves) / 1e6
print("PEAK", peak_mb() - before - given_back)
"""


@cache
def peak_of(what, how, size):
    """Megabytes of workspace: the peak over the inputs, without the gradients that are returned."""
    command = [sys.executable, "-c", SCRIPT, what, how, str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.split("PEAK")[1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux's peak memory")
class TestPeaks:
    def test_pairs(self):
        """16,384 pairs within 2 GB; eager takes more for half as many."""
        assert peak_of("pairs", "ours", 16_384) < 2_000
        assert peak_of("pairs", "eager", 8_192) > 2 * peak_of("pairs", "ours", 8_192)

    def test_pairs_grow_by_the_batch_not_by_its_square(self):
        """Twice the pairs: at most twice the memory over the workspace that both have."""
        small, large = (peak_of("pairs", "ours", size) for size in (8_192, 16_384))
        assert large < 2 * small, (small, large)
        assert peak_of("pairs", "eager", 8_192) > 3 * peak_of("pairs", "eager", 4_096)

    def test_sigmoid_pairs(self):
        """As the softmax's: by the batch, not by its square."""
        assert peak_of("sigmoid", "ours", 16_384) < 2 * peak_of("sigmoid", "ours", 8_192)
        assert peak_of("sigmoid", "eager", 8_192) > 2 * peak_of("sigmoid", "ours", 8_192)

    def test_captions(self):
        """4,864 tokens of 49,408 words within 1 GB, a third of eager's at most."""
        ours, eager = (peak_of("captions", how, 4_864) for how in ("ours", "eager"))
        assert ours < 1_000 and ours < eager / 3, (ours, eager)
        assert peak_of("captions", "ours", 2_432) > 0.5 * ours  # the head's share does not grow
