import os

import pytest

from spikeserve.engine.threads import usable_processors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50000 100000", 1),
        ("150000 100000", 2),
        ("99900000 100000", 64),
        ("max 100000", 64),
        ("", 64),
        ("0 0", 64),
        ("1 2 3", 64),
    ],
)
def test_the_quota_of_a_container_counts(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert usable_processors(quota) == expected


def test_without_a_quota_it_is_the_affinity(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 5, 6}, raising=False)
    assert usable_processors(tmp_path / "missing") == 3
