"""Augmentation: reproducible, shape-keeping, and each transform does what it says."""

import pytest
import torch

from spiketrain.data.augment import (
    Affine,
    Crop,
    Cutout,
    EventDropout,
    Flip,
    Levels,
    OneOf,
    Pipeline,
    ResizedCrop,
    Roll,
    Rotate,
    Shear,
    Transform,
)
from spiketrain.data.base import DataSet, Share, Split, part_of
from spiketrain.data.mixing import MixDraw, Mixing, mixed
from spiketrain.manifest import ImageInput
from spiketrain.recipe import RecipeError, load_recipe

TRANSFORMS: list[Transform] = [
    Flip(),
    Crop(padding=2),
    Crop(padding=2, fill="black"),
    ResizedCrop(scale=(0.3, 0.8)),
    Cutout(size=4),
    Cutout(scale=(0.1, 0.4), fill="random"),
    Affine(),
    Affine(fill="black", sampling="nearest"),
    Roll(most=3),
    Rotate(degrees=30),
    Shear(degrees=30),
    EventDropout(),
    OneOf(transforms=(Rotate(degrees=60), Roll(most=2)), nothing=True),
]


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


def test_what_a_transform_draws_is_apart_from_what_it_does() -> None:
    """A part of a batch is changed as it is within the whole."""
    pipeline = Pipeline(tuple(TRANSFORMS))
    x = torch.rand(8, 3, 2, 12, 10)
    drawn = pipeline.draw(tuple(x.shape), draws())
    whole = pipeline.apply(x, drawn)
    parts = [
        pipeline.apply(x[part], part_of(drawn, part))
        for part in (Share(rank, 4).of(8) for rank in range(4))
    ]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda t: t.kind)
def test_transforms_compute_where_the_samples_are(transform: Transform) -> None:
    """On a device without memory, where most of what is made on another device raises."""
    if isinstance(transform, ResizedCrop):
        pytest.skip("it cuts each picture by itself, by numbers that it reads from what was drawn")
    pipeline = Pipeline((transform,))
    drawn = pipeline.draw((4, 3, 8, 8), draws())
    x = torch.empty(4, 3, 8, 8, device="meta")
    levels = Levels(torch.empty(3, 1, 1, device="meta"), torch.empty(3, 1, 1, device="meta"))
    y = pipeline.apply(x, drawn, levels)
    assert (y.device.type, y.shape) == ("meta", x.shape)


def test_a_crop_with_black_pads_as_a_picture_is_padded_before_it_is_normalised() -> None:
    """Against padding the bytes with 0, cutting and then normalising."""
    pixels = torch.randint(0, 256, (20, 3, 6, 5), dtype=torch.uint8)
    labels = torch.zeros(20, dtype=torch.long)
    spec = ImageInput(shape=(3, 6, 5), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    split = Split(pixels, labels)
    data = DataSet("toy", spec, ("a", "b"), split, split, split, {})
    crop = Crop(padding=2, fill="black")
    found, _ = next(data.batches("train", 20, shuffle=draws(), augment=Pipeline((crop,))))

    generator = draws()
    order = torch.randperm(20, generator=generator)
    top, left = crop.draw((20, 3, 6, 5), generator)
    padded = torch.nn.functional.pad(pixels[order], (2, 2, 2, 2))
    cut = torch.stack(
        [
            picture[:, row : row + 6, column : column + 5]
            for picture, row, column in zip(
                padded, top.flatten().tolist(), left.flatten().tolist(), strict=True
            )
        ]
    )
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (spec.mean, spec.std))
    torch.testing.assert_close(found, (cut / 255 - mean) / std)


def test_cutout_by_area_stays_within_its_bounds_and_colours() -> None:
    levels = Levels(torch.full((3, 1, 1), -2.0), torch.full((3, 1, 1), 3.0))
    x = torch.full((200, 3, 20, 30), 100.0)

    def cut(**more: object) -> torch.Tensor:
        transform = Cutout(scale=(0.1, 0.3), ratio=(0.5, 2.0), p=1, **more)
        return transform.apply(x, transform.draw(tuple(x.shape), draws()), levels)

    black = cut(fill="black")
    holes = black != 100
    share = holes[:, 0].flatten(1).double().mean(1)
    assert 0.08 < float(share.min()) < 0.15
    assert 0.25 < float(share.max()) < 0.33
    assert set(black[holes].tolist()) == {-2.0}
    for hole in holes[:, 0]:
        rows, columns = hole.any(1), hole.any(0)
        assert int(hole.sum()) == int(rows.sum()) * int(columns.sum())  # one rectangle
        assert 0.45 < int(rows.sum()) / int(columns.sum()) < 2.3
    random = cut(fill="random")
    colours = random[holes].unique()
    assert len(colours) > 150
    assert -2 <= float(colours.min()) < float(colours.max()) <= 3
    assert set(cut(fill="mean")[holes].tolist()) == {0.0}


def test_what_is_rolled_out_comes_back_in() -> None:
    x = torch.rand(30, 3, 2, 6, 7)
    roll = Roll(most=4)
    drawn = roll.draw(tuple(x.shape), draws())
    y = roll.apply(x, drawn)
    for sample, rolled, down, right in zip(
        x, y, *(d.flatten().tolist() for d in drawn), strict=True
    ):
        assert torch.equal(rolled, sample.roll((down, right), (-2, -1)))


@pytest.mark.parametrize("transform", [Rotate(degrees=45), Shear(degrees=30)])
def test_turning_events_leaves_counts_whole_and_timesteps_together(transform: Transform) -> None:
    x = torch.randint(0, 4, (16, 1, 2, 15, 15)).float().expand(16, 3, 2, 15, 15).contiguous()
    y = transform(x, draws())
    assert set(y.unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    assert torch.equal(y[:, 0], y[:, 2])
    assert not torch.equal(y, x)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    x = torch.rand(1, 2, 9, 9)
    quarter = torch.tensor([torch.pi / 2])
    assert torch.equal(Rotate().apply(x, (quarter,)), x.rot90(1, (-2, -1))) or torch.equal(
        Rotate().apply(x, (quarter,)), x.rot90(-1, (-2, -1))
    )


def test_one_of_them_is_drawn_for_each_sample() -> None:
    x = torch.rand(300, 1, 5, 5)
    mirrored = OneOf(transforms=(Flip(), Cutout(size=20, p=1)), nothing=True)
    y = mirrored(x, draws())
    cleared = (y == 0).flatten(1).all(1)
    same = torch.tensor([torch.equal(a, b) for a, b in zip(y, x, strict=True)])
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(y, x, strict=True)])
    # A third each, and half of the first third is not mirrored.
    assert 60 < int(cleared.sum()) < 140
    assert 30 < int(flipped.sum()) < 75
    assert 110 < int(same.sum()) < 190
    assert int((cleared | same | flipped).sum()) == 300


def test_mixup_adds_what_a_neighbour_has_and_cutmix_takes_a_rectangle_of_it() -> None:
    x, y = torch.rand(5, 3, 8, 10), torch.tensor([0, 1, 2, 3, 4])
    blend, labels = mixed(x, y, MixDraw(0.7, None), 5)
    torch.testing.assert_close(blend[0], 0.7 * x[0] + 0.3 * x[1])
    torch.testing.assert_close(blend[3], 0.7 * x[3] + 0.3 * x[2])
    torch.testing.assert_close(blend[4], x[4])
    torch.testing.assert_close(labels[1], torch.tensor([0.3, 0.7, 0, 0, 0]))
    torch.testing.assert_close(labels[4], torch.tensor([0, 0, 0, 0, 1.0]))

    cut, labels = mixed(x, y, MixDraw(0.75, (0, 4, 5, 10)), 5)
    assert torch.equal(cut[0, :, :4, 5:], x[1, :, :4, 5:])
    assert torch.equal(cut[0, :, 4:], x[0, :, 4:])
    assert torch.equal(cut[0, :, :, :5], x[0, :, :, :5])
    torch.testing.assert_close(labels[0], torch.tensor([0.75, 0.25, 0, 0, 0]))


def test_mixing_draws_shares_and_rectangles_that_belong_together() -> None:
    generator = draws()
    seen = [Mixing(mixup=0.2, cutmix=1.0, p=0.8).draw(20, 30, generator) for _ in range(300)]
    none = [each for each in seen if each is None]
    boxes = [each for each in seen if each is not None and each.box is not None]
    assert 30 < len(none) < 95
    assert 80 < len(boxes) < 160
    for share, (top, bottom, left, right) in boxes:
        assert 0 <= top <= bottom <= 20
        assert 0 <= left <= right <= 30
        assert share == pytest.approx(1 - (bottom - top) * (right - left) / 600)
    again = draws()
    assert seen == [Mixing(mixup=0.2, cutmix=1.0, p=0.8).draw(20, 30, again) for _ in range(300)]


def test_settings_that_came_later_are_written_only_where_they_are_set() -> None:
    assert Crop(padding=2).model_dump() == {"kind": "crop", "padding": 2}
    assert Crop(padding=2, fill="black").model_dump()["fill"] == "black"
    assert Cutout().model_dump() == {"kind": "cutout", "size": 8, "p": 0.5}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.augment=[{kind='cutout', scale=[0.4, 0.1]}]", "scale"),
        ("data.augment=[{kind='resized-crop', ratio=[0.0, 1.0]}]", "ratio"),
        ("data.augment=[{kind='one-of', transforms=[]}]", "transforms"),
        ("data.augment=[{kind='blur'}]", "blur"),
        ("data.mix={p=0.5}", "give mixup, cutmix or both"),
    ],
)
def test_a_wrong_transform_is_named(setting: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("fashion-clif", [setting])
