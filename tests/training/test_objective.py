"""Losses and their gradients against the vendor's formula, torch's and timm's; mixed batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from training.mixing import Mixer
from training.objective import Objective, shares
from training.recipes import find_recipe
from training.settings import changed

CLASSES = 7
SEED = find_recipe("seed")


@pytest.fixture
def logits() -> Tensor:
    drawn = torch.randn(5, CLASSES, generator=torch.Generator().manual_seed(1)) * 3
    return drawn.requires_grad_()


LABELS = torch.tensor([0, 6, 3, 3, 1])
SOFT = shares(LABELS, CLASSES) * 0.7 + shares(LABELS.flip(0), CLASSES) * 0.3


def same(logits: Tensor, ours: Tensor, theirs: Tensor) -> None:
    """Equal values and equal gradients."""
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    (first,) = torch.autograd.grad(ours, logits)
    (second,) = torch.autograd.grad(theirs, logits)
    assert torch.allclose(first, second, atol=1e-7)


def vendors(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """LabelSmoothing of the vendor's smoothing.py, written down again."""
    log_probabilities = functional.log_softmax(logits, dim=-1)
    of_label = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    everywhere = -log_probabilities.mean(dim=-1)
    return ((1 - smoothing) * of_label + smoothing * everywhere).mean()


def test_seed_is_the_vendors_and_torchs(logits: Tensor) -> None:
    ours = Objective(SEED, CLASSES)(logits, LABELS)
    same(logits, ours, vendors(logits, LABELS, 0.1))
    again = Objective(SEED, CLASSES)(logits, LABELS)
    same(logits, again, torch.nn.CrossEntropyLoss(label_smoothing=0.1)(logits, LABELS))


def test_mixed_labels_cost_what_their_parts_do(logits: Tensor) -> None:
    objective = Objective(SEED, CLASSES)
    parts = 0.7 * objective(logits, LABELS) + 0.3 * objective(logits, LABELS.flip(0))
    same(logits, objective(logits, SOFT), parts)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("soft", [False, True])
def test_bce_is_timms(logits: Tensor, smoothing: float, threshold: float, *, soft: bool) -> None:
    loss = pytest.importorskip("timm.loss")
    settings = {"label_smoothing": smoothing, "bce_threshold": threshold}
    targets = SOFT if soft else LABELS
    ours = Objective(changed(find_recipe("a3"), settings), CLASSES)(logits, targets)
    timms = loss.BinaryCrossEntropy(smoothing=smoothing, target_threshold=threshold or None)
    same(logits, ours, timms(logits, targets))


# --- mixing ---

IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def mixed(
    mixup: float, cutmix: float, *, seed: int = 3, epoch: int = 0, step: int = 0, first: int = 0
) -> tuple[Tensor, Tensor]:
    recipe = changed(SEED, {"mixup": mixup, "cutmix": cutmix})
    return Mixer(recipe, CLASSES, seed)(IMAGES, LABELS, epoch=epoch, step=step, first=first)


def test_without_alphas_nothing_is_touched() -> None:
    images, targets = mixed(0, 0)
    assert images is IMAGES
    assert targets is LABELS


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0), (0, 1), (0.2, 1)])
def test_what_is_mixed_depends_on_the_slice_alone(mixup: float, cutmix: float) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    images, targets = mixed(mixup, cutmix)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again = mixed(mixup, cutmix)
    assert torch.equal(again[0], images)
    assert torch.equal(again[1], targets)
    for other in ({"seed": 4}, {"epoch": 1}, {"step": 1}, {"first": 5}):
        assert not torch.equal(mixed(mixup, cutmix, **other)[1], targets), other
    assert targets.shape == (5, CLASSES)
    assert torch.allclose(targets.sum(1), torch.ones(5))


def test_mixup_is_torchvisions() -> None:
    for step in range(20):
        images, targets = mixed(0.2, 0, step=step)
        share = targets[0, 0].item()  # of the first one, whose label is 0
        assert torch.allclose(images, share * IMAGES + (1 - share) * IMAGES.roll(1, 0), atol=1e-6)


def test_cutmix_takes_a_rectangle_of_the_one_before() -> None:
    for step in range(20):
        images, targets = mixed(0, 1, step=step)
        taken = (images != IMAGES).any(dim=(0, 1))
        assert torch.equal(images[..., taken], IMAGES.roll(1, 0)[..., taken])
        assert targets[0, 0].item() == pytest.approx(1 - taken.float().mean().item(), abs=1e-6)


def test_of_two_ways_each_is_taken_about_half_the_time() -> None:
    cut = sum(bool((mixed(1, 1, step=step)[0] == IMAGES).any()) for step in range(200))
    assert 70 < cut < 130  # 200 fair draws are outside of that in 2 of 100,000 cases


def test_mixed_pictures_lie_in_memory_as_they_did() -> None:
    recipe = changed(SEED, {"mixup": 0.2})
    images = IMAGES.to(memory_format=torch.channels_last)
    found, _ = Mixer(recipe, CLASSES, 0)(images, LABELS, epoch=0, step=0, first=0)
    assert found.is_contiguous(memory_format=torch.channels_last)
    plain, _ = Mixer(recipe, CLASSES, 0)(IMAGES, LABELS, epoch=0, step=0, first=0)
    assert torch.equal(found, plain)


def test_one_way_alone_draws_as_torchvisions_class() -> None:
    mixer = Mixer(changed(SEED, {"mixup": 0.4}), CLASSES, 8)
    found = mixer(IMAGES, LABELS, epoch=2, step=3, first=4)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(mixer._key(2, 3, 4))
        expected = v2.MixUp(alpha=0.4, num_classes=CLASSES)(IMAGES, LABELS)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
