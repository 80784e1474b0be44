"""Bytes that are nearly valid: mutations of valid ones, the same for the same seed."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

_EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, (1 << 31) - 1, 1 << 31)
_EXTREMES += ((1 << 32) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_WIDTHS = "BHIQ"
# Most of what decides is in the first bytes.
_HEAD = 200


def mutated(data: bytes, dice: random.Random, others: Sequence[bytes] = ()) -> bytes:
    """`data` with one to six changes; `others` may be spliced in."""
    content = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 3, 6))):
        dice.choice(_MUTATIONS)(content, dice)
    if others and dice.random() < 0.05:
        other = dice.choice(others)
        content[_place(content, dice) :] = other[dice.randrange(len(other) + 1) :]
    return bytes(content)


def noise(dice: random.Random, most: int = 400) -> bytes:
    return dice.randbytes(dice.randrange(most))


def _place(content: bytearray, dice: random.Random) -> int:
    most = len(content) + 1
    return dice.randrange(min(most, _HEAD) if dice.random() < 0.5 else most)


def _flip(content: bytearray, dice: random.Random) -> None:
    if content:
        content[_place(content, dice) % len(content)] ^= 1 << dice.randrange(8)


def _byte(content: bytearray, dice: random.Random) -> None:
    if content:
        content[_place(content, dice) % len(content)] = dice.randrange(256)


def _number(content: bytearray, dice: random.Random) -> None:
    """A number of 1 to 8 bytes, little or big, becomes an extreme one, or a little more or less than it was."""
    kind = dice.choice("<>") + dice.choice(_WIDTHS)
    size = struct.calcsize(kind)
    if len(content) < size:
        return
    at = min(_place(content, dice), len(content) - size)
    (old,) = struct.unpack_from(kind, content, at)
    new = dice.choice(_EXTREMES) if dice.random() < 0.7 else old + dice.randrange(-4, 5)
    struct.pack_into(kind, content, at, new % (1 << 8 * size))


def _cut(content: bytearray, dice: random.Random) -> None:
    del content[dice.randrange(len(content) + 1) :]


def _remove(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    del content[at : at + dice.randrange(1, 64)]


def _repeat(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    part = content[at : at + dice.randrange(1, 64)]
    content[at:at] = part * dice.choice((1, 1, 2, 50))


def _insert(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    content[at:at] = dice.randbytes(dice.randrange(1, 32))


def _blank(content: bytearray, dice: random.Random) -> None:
    at = _place(content, dice)
    size = min(dice.randrange(1, 64), len(content) - at)
    content[at : at + size] = bytes([dice.choice((0, 0xFF))]) * size


_MUTATIONS: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip, _flip, _byte, _byte, _number, _number, _number, _cut, _remove, _repeat, _insert, _blank,
)  # fmt: skip

_ODD: tuple[object, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 2**70, 1e308, -0.5, "", "a", "\x00", "x" * 5000, [], {}, [[]],
    [0], [-1], {"a": 1}, ["a"] * 100, float("nan"), float("inf"),
)  # fmt: skip


def odd_json(value: object, dice: random.Random) -> object:
    """The same with one to three of its parts, at any depth, replaced, left out or added."""
    for _ in range(dice.choice((1, 1, 2, 3))):
        value = _odd(value, dice)
    return value


def _odd(value: object, dice: random.Random) -> object:
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        if dice.random() < 0.1:
            return value | {str(dice.choice(_ODD))[:20]: dice.choice(_ODD)}
        return value | {key: _odd(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        if dice.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], _odd(value[at], dice), *value[at + 1 :]]
    if isinstance(value, int | float) and not isinstance(value, bool) and dice.random() < 0.4:
        return dice.choice((value + 1, value - 1, -value, value * 1000, value / 3))
    return dice.choice(_ODD)
