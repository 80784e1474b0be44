"""Augmentation: reproducible, shape-keeping, and each transform does what it says."""

import pytest
import torch

from spiketrain.data.augment import Affine, Crop, Cutout, EventDropout, Flip, Pipeline, Transform

TRANSFORMS: list[Transform] = [Flip(), Crop(padding=2), Cutout(size=4), Affine(), EventDropout()]


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
@pytest.mark.parametrize("shape", [(32, 1, 12, 10), (32, 3, 2, 12, 10)], ids=["images", "events"])
def test_shape_is_kept_and_the_generator_decides(
    transform: Transform, shape: tuple[int, ...]
) -> None:
    x = torch.rand(shape)
    before = x.clone()
    y = transform(x, draws())
    assert y.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(y, transform(x, draws()))
    assert not torch.equal(y, transform(x, draws(1)))


def test_flip_mirrors_whole_samples_and_about_half_of_them() -> None:
    x = torch.rand(200, 2, 3, 4, 5)
    y = Flip()(x, draws())
    mirrored = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(y, x, strict=True)])
    kept = torch.tensor([torch.equal(a, b) for a, b in zip(y, x, strict=True)])
    assert (mirrored ^ kept).all()
    assert 60 < int(mirrored.sum()) < 140


def test_crop_moves_all_timesteps_alike_and_by_no_more_than_the_padding() -> None:
    x = torch.zeros(50, 3, 2, 9, 9)
    x[..., 4, 4] = 1
    places = Crop(padding=2)(x, draws()).nonzero()
    assert len(places) == 50 * 3 * 2
    for sample in range(50):
        of_sample = places[places[:, 0] == sample][:, 3:]
        assert (of_sample == of_sample[0]).all()
        assert ((of_sample - 4).abs() <= 2).all()


def test_cutout_clears_a_square_of_its_size_at_most() -> None:
    y = Cutout(size=4, p=1)(torch.ones(100, 1, 12, 12), draws())
    cleared = (y == 0).flatten(1).sum(1)
    assert int(cleared.max()) == 16
    assert int(cleared.min()) > 0


def test_affine_without_bounds_changes_nothing() -> None:
    x = torch.rand(4, 3, 2, 8, 8)
    y = Affine(degrees=0, shift=0, scale=0, shear=0)(x, draws())
    torch.testing.assert_close(y, x, atol=1e-5, rtol=0)


def test_event_dropout_only_removes() -> None:
    x = torch.ones(64, 4, 2, 6, 6)
    y = EventDropout(most=0.5)(x, draws())
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert (y.flatten(1).mean(1) > 0.3).all()


def test_a_pipeline_applies_its_transforms_in_order() -> None:
    x = torch.rand(8, 1, 6, 6)
    generator = draws()
    expected = Crop(padding=1)(Flip()(x, generator), generator)
    assert torch.equal(Pipeline((Flip(), Crop(padding=1)))(x, draws()), expected)
