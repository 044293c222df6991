"""Numbers of reports that must not move when the models are built another way: of a planted model and of a trained one."""

from __future__ import annotations

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.testing import planted_llama

pytestmark = pytest.mark.optimised


def test_a_planted_model():
    plant = planted_llama(seed=0)
    report = so.lifecycle(plant.lm, plant.tokens(2, 96), cause=False)
    h, x_down, weights = report.stats.h, report.stats.x_down, report.stats.weights
    wanted = [31.588735, 3510.969260, 3510.370308, 3509.308048, 30.467876, 30.443046]
    np.testing.assert_allclose(h.ratio, wanted, rtol=2e-6)
    wanted = [18.365373, 3921.975384, 13.196222, 12.563790, 4545.867542, 14.873217]
    np.testing.assert_allclose(x_down.ratio, wanted, rtol=2e-6)
    wanted = [7.808503, 6.849983, 4.762849, 4.962811, 41.564308, 39.451691, 119.961578]
    np.testing.assert_allclose(weights.column_ratio[1], wanted, rtol=2e-6)
    (event,) = report.birth.events
    assert (event.layer, event.dims, [c.index for c in event.channels]) == (1, (108,), [122])
    assert event.values == pytest.approx((633.744080,), rel=2e-6)
    heads = [(head.layer, head.head, head.mass, head.drain) for head in report.spread.heads]
    wanted = [
        (2, 1, 0.9999606, 0.0900229),
        (3, 3, 0.999958, 0.061759),
        (4, 0, 0.9999588, 0.0999171),
    ]
    np.testing.assert_allclose(heads, wanted, rtol=1e-5)
    assert report.death.layer == 4


def test_a_trained_model(shared_data):
    directory = shared_data / "aidreams-260k"
    if not directory.is_dir():
        pytest.skip(f"{directory} is not there")
    tokens = np.atleast_2d(np.load(directory / "reference_logits.npz")["tokens"]).astype(np.int32)
    report = so.lifecycle(so.load(directory), tokens, 5.0, cause=False)
    h, x_down, weights = report.stats.h, report.stats.x_down, report.stats.weights
    np.testing.assert_allclose(h.ratio, [4.128895, 4.662171, 5.557969, 5.041857], rtol=2e-6)
    wanted = [30.504746, 18.190006, 41.958022, 29.194600]
    np.testing.assert_allclose(x_down.ratio, wanted, rtol=2e-6)
    wanted = [4.043280, 4.654426, 4.716184, 4.806042, 6.748512, 6.022240, 5.411168]
    np.testing.assert_allclose(weights.column_ratio[2], wanted, rtol=2e-6)
    first, second = report.birth.events
    assert (first.layer, first.dims, second.layer, second.dims) == (2, (55,), 3, (17,))
    assert [c.index for c in first.channels][:5] == [165, 130, 15, 108, 25]
    assert (first.explained, second.explained) == pytest.approx((0.5530400, 0.7642734), rel=1e-5)
