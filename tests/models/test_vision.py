"""Models of images: every patch is seen, from both ends, and nothing else."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

import exlstm
from exlstm.models.vision import VisionConfig, vision_from_pattern

CONFIG = vision_from_pattern("ms", height=6, breadth=8, channels=3, classes=5, width=8, patch=2, heads=2)


def model_of(dtype=torch.float64, **changes):
    """With positions and a head that show."""
    torch.manual_seed(0)
    model = exlstm.VisionXLSTM(replace(CONFIG, **changes)).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


def images(rows=3, dtype=torch.float64):
    return torch.randn(rows, 3, 6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_patches_are_read_row_by_row():
    """The image with two patches exchanged is the row of vectors with these exchanged, before positions."""
    model, x = model_of(), images()
    assert model.features(x).shape == (3, 12, 8)
    with torch.no_grad():
        got = model.embed(x).flatten(2).mT
        for row, (top, left) in {0: (0, 0), 1: (0, 2), 4: (2, 0), 11: (4, 6)}.items():
            patch = x[:, :, top : top + 2, left : left + 2].flatten(1)
            want = patch @ model.embed.weight.flatten(1).T + model.embed.bias
            torch.testing.assert_close(got[:, row], want)


@pytest.mark.parametrize("pool", ["mean", "ends"])
def test_every_patch_reaches_every_feature(pool):
    """One block alone would see nothing behind a patch; two in opposite directions see all."""
    model, x = model_of(pool=pool), images(1).requires_grad_()
    for place in (0, 5, 11):
        (gradient,) = torch.autograd.grad(model.features(x)[0, place].sum(), x)
        by_patch = gradient[0].abs().sum(0).unfold(0, 2, 2).unfold(1, 2, 2).sum((-1, -2))
        assert (by_patch > 0).all()
    alone = model_of(blocks=CONFIG.blocks[:1])
    (gradient,) = torch.autograd.grad(alone.features(x)[0, 0].sum(), x)
    assert not gradient[0, :, 2:].any()
    assert model(x).shape == (1, 5)


@torch.no_grad()
def test_pools_and_positions():
    """The mean, or both ends; positions tell equal patches apart."""
    x = images()
    for pool, of in (("mean", lambda y: y.mean(1)), ("ends", lambda y: torch.cat([y[:, 0], y[:, -1]], dim=1))):
        model = model_of(pool=pool)
        torch.testing.assert_close(model(x), model.head(of(model.features(x))))
    flat = torch.ones(1, 3, 6, 8, dtype=torch.float64)
    moved = copy.deepcopy(model)
    moved.positions_ND.copy_(model.positions_ND.flip(0))
    assert (moved(flat) - model(flat)).abs().max() > 1e-3


@torch.no_grad()
def test_rows_are_independent_and_copies_are_equal():
    model, x = model_of(), images()
    torch.testing.assert_close(model(x[1:2]), model(x)[1:2])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    assert model(x[:0]).shape == (0, 5)


def test_it_is_built_without_memory_and_starts_even():
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in exlstm.VisionXLSTM(CONFIG).parameters())
    torch.manual_seed(0)
    logits = exlstm.VisionXLSTM(CONFIG)(images(8, torch.float32)).softmax(1)
    assert logits.max() < 0.6


def test_it_learns_where_a_spot_is():
    """One of four patches is bright: positions, both directions and the head all have a part in it."""
    torch.manual_seed(0)
    config = vision_from_pattern("mm", height=4, breadth=4, channels=1, classes=4, width=8, patch=2, heads=2)
    model = exlstm.VisionXLSTM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    def batch(rows):
        place = torch.randint(4, (rows,))
        x = 0.3 * torch.randn(rows, 4, 4)
        for row, spot in enumerate(place.tolist()):
            x[row, 2 * (spot // 2) : 2 * (spot // 2) + 2, 2 * (spot % 2) : 2 * (spot % 2) + 2] += 1
        return x[:, None], place

    for _ in range(60):
        x, place = batch(32)
        torch.nn.functional.cross_entropy(model(x), place).backward()
        optimizer.step()
        optimizer.zero_grad()
    x, place = batch(200)
    with torch.no_grad():
        assert (model.eval()(x).argmax(1) == place).float().mean() > 0.9


@pytest.mark.parametrize(
    ("call", "fragment"),
    [
        (lambda model: model(images()[0]), r"shape \(3, 6, 8\)"),
        (lambda model: model(images()[:, :2]), r"\[batch, 3, 6, 8\]"),
        (lambda model: model(images(dtype=torch.float32)), "convert one of them"),
        (lambda model: model(None), "a NoneType"),
        (lambda model: replace(CONFIG, patch=4), "divide the height 6"),
        (lambda model: replace(CONFIG, blocks=()), "at least 1"),
        (lambda model: replace(CONFIG, pool="first"), "pool"),
        (lambda model: VisionConfig(**{**vars(CONFIG), "classes": 0}), "classes is 0"),
    ],
)
def test_wrong_input_is_refused(call, fragment):
    with pytest.raises(ValueError, match=fragment):
        call(model_of())
