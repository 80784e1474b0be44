"""Settings `executor` and `precision`, from the repository to an answer."""

from __future__ import annotations

import pytest
import torch

from spikeserve.metrics import Metrics
from spikeserve.repository import Repository
from spikeserve.settings import SettingsError


@pytest.mark.parametrize(
    ("executor", "precision"), [("cpu", "float32"), ("cpu", "int16"), ("auto", "auto")]
)
def test_a_repository_answers_with_the_executor_of_its_settings(make_settings, executor, precision):
    pytest.importorskip("numba")
    torch.manual_seed(3)
    pictures = torch.rand(5, 1, 28, 28)
    logits = answers(make_settings(executor=executor, precision=precision), pictures)
    expected = answers(make_settings(), pictures)
    # Not to the last bit: a potential that is as near to the threshold may fall on its other side.
    assert (logits - expected).abs().mean() < 0.02 * expected.abs().mean()


def answers(settings, pictures):
    """Logits [T, N, classes] that the repository's engine gives."""
    repository = Repository(settings, Metrics())
    try:
        repository.load_all()
        engine = repository.get("pictures").engine
        futures = [engine.submit(picture, 4) for picture in pictures]
        return torch.stack([torch.from_numpy(f.result(60).logits) for f in futures], 1)
    finally:
        repository.close()


def test_settings_that_name_no_executor_are_refused(make_settings):
    with pytest.raises(SettingsError, match="executor"):
        make_settings(executor="abacus")
    with pytest.raises(SettingsError, match="precision"):
        make_settings(precision="int4")
