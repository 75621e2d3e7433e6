from __future__ import annotations

import math

import pytest
import torch

from training.recipes import SEED
from training.schedule import lr_at, lr_corners

# (peak, warm-up epochs, epochs) of the vendor's commands: one card, four, eight, eight for 90.
RUNS = [(0.256, 2, 50), (1.024, 8, 50), (2.048, 16, 50), (2.048, 16, 90)]


def vendor_lr(base: float, warmup: int, epochs: int, epoch: int) -> float:
    """lr_cosine_policy of the vendor's lr_policy.py, written down again."""
    if epoch < warmup:
        return base * (epoch + 1) / warmup
    e, es = epoch - warmup, epochs - warmup
    return 0 + (0.5 * (1 + math.cos(math.pi * e / es)) * (base - 0))


@pytest.mark.parametrize(("peak", "warmup", "epochs"), RUNS)
def test_the_curve_is_the_vendors(peak: float, warmup: int, epochs: int) -> None:
    for epoch in range(epochs):
        expected = vendor_lr(peak, warmup, epochs, epoch)
        assert lr_at(epoch, peak=peak, warmup=warmup, epochs=epochs) == pytest.approx(
            expected, rel=1e-15
        )


@pytest.mark.parametrize(("peak", "warmup", "epochs"), RUNS)
def test_after_warm_up_it_is_torchs_cosine(peak: float, warmup: int, epochs: int) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs - warmup)
    for epoch in range(warmup, epochs):
        ours = lr_at(epoch, peak=peak, warmup=warmup, epochs=epochs)
        assert ours == pytest.approx(cosine.get_last_lr()[0], abs=2e-15)
        optimizer.step()
        cosine.step()


def test_warm_up_starts_at_a_share_of_the_peak() -> None:
    assert [lr_at(e, peak=0.256, warmup=2, epochs=50) for e in range(3)] == [0.128, 0.256, 0.256]


@pytest.mark.parametrize(
    ("global_batch", "warmup"), [(64, 0), (255, 0), (256, 2), (1024, 8), (2048, 16)]
)
def test_the_recipes_warm_up_grows_with_the_global_batch(global_batch: int, warmup: int) -> None:
    assert SEED.warmup_epochs(global_batch) == warmup


@pytest.mark.parametrize(("global_batch", "lr"), [(256, 0.256), (1024, 1.024), (64, 0.064)])
def test_the_recipes_rate_grows_with_the_global_batch(global_batch: int, lr: float) -> None:
    assert SEED.peak_lr(global_batch) == pytest.approx(lr)


@pytest.mark.parametrize("warmup", [0, 1, 2, 8])
@pytest.mark.parametrize("epochs", [1, 2, 5])
def test_the_corners_lie_on_the_curve_of_any_run(warmup: int, epochs: int) -> None:
    corners = lr_corners(peak=1.0, warmup=warmup, epochs=epochs)
    assert corners[0][0] == 0
    assert corners[-1][0] == epochs - 1
    for epoch, lr in corners:
        assert lr == lr_at(epoch, peak=1.0, warmup=warmup, epochs=epochs)


@pytest.mark.parametrize(("image_size", "short_side"), [(224, 256), (160, 183), (64, 73), (32, 37)])
def test_evaluation_resizes_as_256_is_to_224(image_size: int, short_side: int) -> None:
    assert SEED.eval_short_side(image_size) == short_side
