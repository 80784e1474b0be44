"""CSV and EVT 2.1 with compiled loops give what they give with NumPy alone, errors too."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spiketrain.events import EventFormatError, Events, native, read_recording

pytestmark = pytest.mark.skipif(native.loops() is None, reason="numba is not installed")

NUMBERS = st.one_of(
    st.integers(-3, 70_000),
    st.integers(-(2**64), 2**64),
    st.sampled_from(["", " 7", "7 ", "+1", "-", "1.0", "1e3", "x", "0x1", "--1", "0007"]),
)
LINES = st.one_of(
    st.tuples(st.integers(0, 10**17), *(st.integers(0, 65_535),) * 2, st.integers(0, 1)),
    st.lists(NUMBERS, min_size=3, max_size=5),
    st.sampled_from([[], [" "], ["#"]]),
)


def outcome(content: bytes, format: str) -> tuple[str, Events]:
    try:
        return "", read_recording(content, format)
    except EventFormatError as error:
        return str(error), error.events


def same_both_ways(content: bytes, format: str) -> None:
    compiled = outcome(content, format)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPIKETRAIN_KERNELS", "plain")
        plain = outcome(content, format)
    assert compiled[0] == plain[0]
    assert compiled[1].equals(plain[1])


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_lines_of_text(lines, newline, ended):
    rows = [",".join(str(each) for each in line) for line in lines]
    text = newline.join(["t,x,y,p", *rows]) + (newline if ended else "")
    same_both_ways(text.encode(), "csv")


@settings(max_examples=50, deadline=None)
@given(st.permutations(["t", "x", "y", "p", "frame"]), st.integers(0, 2**32))
def test_columns_in_any_order_with_others_between(names, seed):
    random = np.random.default_rng(seed)
    columns = {name: random.integers(0, 2 if name == "p" else 500, 20) for name in names}
    text = ",".join(names) + "\n"
    text += "".join(",".join(str(columns[name][i]) for name in names) + "\n" for i in range(20))
    same_both_ways(text.encode(), "csv")
    events = read_recording(text.encode(), "csv")
    assert events.t.tolist() == columns["t"].tolist()
    assert events.p.tolist() == columns["p"].tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 200), st.sampled_from(["little", "legacy"]))
def test_vectors_of_pixels(seed, count, order):
    random = np.random.default_rng(seed)
    kinds = random.choice([0, 1, 8, 10], count, p=[0.4, 0.3, 0.2, 0.1]).astype(np.uint32)
    words = random.integers(0, 1 << 28, count).astype(np.uint32) | (kinds << 28)
    valid = random.integers(0, 1 << 32, count).astype(np.uint32)
    pair = [valid, words] if order == "little" else [words, valid]
    header = f"% format EVT21;endianness={order};height=720;width=1280\n% end\n".encode()
    same_both_ways(header + np.stack(pair, axis=1).astype("<u4").tobytes(), "evt21")
