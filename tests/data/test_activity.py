"""How active recordings are, and which are unlike others."""

import pytest

from sj_ottt.data.activity import Totals, activity_of, unlike


def test_quantiles_of_rates_and_polarity():
    samples = [Totals(1000 * (i + 1), 100 * (i + 1) * (i % 2 + 1), 100_000) for i in range(101)]
    found = activity_of([*samples, Totals(0, 0, 5), Totals(7, 7, 0)], (10, 20))
    assert found.rates == pytest.approx((6 * 50, 51 * 50, 96 * 50))
    assert found.on_shares == pytest.approx((0.1, 0.1, 0.2))
    assert activity_of([Totals(7, 7, 0)], (10, 20)) is None


def test_only_what_is_unlike_is_said():
    usual = activity_of([Totals(n, n // 2, 1_000_000) for n in (1000, 1500, 2000)], (10, 10))
    like = Totals(1200, 660, 1_000_000)
    assert unlike(usual, like, (10, 10)) is None
    assert unlike(usual, like, (10, 10), always=True) == (
        "12 events per second and pixel, 55% of them ON, where training had 15 (10.5 to 19.5) and "
        "50% (50% to 50%)"
    )
    # A larger sensor, more events, and hardly any of them ON.
    assert unlike(usual, like, (100, 100)).startswith("0.12 events per second and pixel")
    assert "100 events per second" in unlike(usual, Totals(10_000, 5_000, 1_000_000), (10, 10))
    assert "10% of them ON" in unlike(usual, Totals(1200, 120, 1_000_000), (10, 10))
    assert unlike(usual, Totals(0, 0, 0), (10, 10), always=True) is None
