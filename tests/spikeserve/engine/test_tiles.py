"""Products in a processor's tiles, where it has some, and how weights are laid out for them, everywhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from spiketrain.quantise import codes_by_channel

pytest.importorskip("numba")
from spikeserve.engine.cpu import amx, products
from spikeserve.engine.cpu.plan import Product
from spikeserve.engine.cpu.products import _Unfolded, _Whole, multiply
from spikeserve.engine.cpu.tiles import Tiles, packed

needs_tiles = pytest.mark.skipif(not amx.available(), reason="this processor has no AMX for bytes")
# Channels in and out, height, width, stride, kernel, padding, dilation.
SHAPES = [
    (64, 64, 9, 7, 1, 3, 1, 1),
    (64, 48, 8, 8, 2, 1, 0, 1),
    (20, 10, 9, 7, 2, 3, 1, 1),
    (3, 33, 6, 5, 1, 3, 2, 2),
    (130, 5, 1, 1, 1, 1, 0, 1),
]


def made(shape: tuple[int, ...], bias: bool = True) -> tuple[Product, torch.Tensor]:
    channels, out, height, width, stride, kernel, padding, dilation = shape
    torch.manual_seed(1)
    weight = torch.randn(out, channels, kernel, kernel)
    geometry = ((stride,) * 2, (padding,) * 2, (dilation,) * 2)
    product = Product("a", "b", weight, torch.randn(out) if bias else None, *geometry)
    x = torch.randint(0, 128, (5, channels, height, width), dtype=torch.uint8)
    return product, x.contiguous(memory_format=torch.channels_last)


@needs_tiles
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("two", [True, False])
def test_a_product_in_tiles_is_the_sum_of_codes_rounded_once(shape, two):
    product, x = made(shape)
    codes, scale = codes_by_channel(product.weight, 127 * 256 + 127 if two else 127)
    (found,) = Tiles(product, codes, scale, two)(x)
    geometry = (product.stride, product.padding, product.dilation)
    sums = nn.functional.conv2d(x.double(), codes.double(), None, *geometry)
    exact = sums * scale.double().view(-1, 1, 1) + product.bias.double().view(-1, 1, 1)
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 3e-7 * exact.abs().max()
    assert found.permute(0, 2, 3, 1).is_contiguous()


@needs_tiles
@pytest.mark.parametrize("shape", [SHAPES[0], (64, 512, 5, 5, 1, 3, 1, 1)])
def test_what_threads_share_out_is_the_whole_to_the_last_bit(shape):
    product, x = made(shape, bias=False)
    codes, scale = codes_by_channel(product.weight, 127 * 256 + 127)
    tiles = Tiles(product, codes, scale, two=True)
    (whole,) = tiles(x)
    out = tiles.empty(x).fill_(torch.nan)
    shares = tiles.shares(out, 3)
    assert len(shares) == 3
    for share in shares:
        tiles.fill(x, out, *share)
    assert torch.equal(out, whole)


@needs_tiles
def test_a_row_does_not_depend_on_those_beside_it():
    product, x = made(SHAPES[0])
    codes, scale = codes_by_channel(product.weight, 127 * 256 + 127)
    tiles = Tiles(product, codes, scale, two=True)
    (all_rows,) = tiles(x)
    for row in range(len(x)):
        (alone,) = tiles(x[row : row + 1])
        assert torch.equal(alone[0], all_rows[row])


@pytest.mark.parametrize("two", [True, False])
def test_packed_weights_are_the_codes(two):
    codes = np.random.default_rng(1).integers(-127, 128, (37, 100))
    if two:
        codes = codes * 256 + 127
    pairs = packed(codes, two)
    # A tile is 16 rows of four inputs for each of 16 channels.
    tiles = pairs.astype(np.int64).reshape(*pairs.shape[:3], 16, 16, 4)
    if two:
        tiles = (256 * tiles[:, :, 0] + tiles[:, :, 1])[:, :, None]
    found = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, pairs.shape[1] * 64)
    assert (found[:37, :100] == codes).all()
    assert not found[37:].any()
    assert not found[:, 100:].any()


def test_without_tiles_products_are_those_of_onednn(monkeypatch):
    product, _ = made(SHAPES[0])
    monkeypatch.setattr(products.amx, "available", lambda: False)
    assert isinstance(multiply(product, "int16", (64, 9, 7)), _Whole)
    assert isinstance(multiply(product, "int8", (64, 2, 2)), _Whole | _Unfolded)
