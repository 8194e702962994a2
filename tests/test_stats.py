"""Intervals and tests: known values, what must never be claimed, and coverage by simulation."""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.stats import (
    Interval,
    _square_and_add,
    holm,
    mcnemar,
    paired_difference,
    ratio_bootstrap,
    share_interval,
    wilson,
)

NORMAL = NormalDist()


def ones(n: int) -> np.ndarray:
    return np.ones(n)


def holds(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def test_wilson_known_values():
    # Newcombe, Statist. Med. 17 (1998) 857, table I, method 3.
    for successes, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        found = wilson(successes, n)
        assert found.low == pytest.approx(low, abs=6e-5)
        assert found.high == pytest.approx(high, abs=6e-5)
        assert found.estimate == successes / n and found.n == n


def test_wilson_level_and_limits():
    assert wilson(5, 5).high == 1.0 and wilson(0, 5).low == 0.0
    narrow, wide = wilson(5, 20, level=0.8), wilson(5, 20, level=0.99)
    assert wide.low < narrow.low < 0.25 < narrow.high < wide.high


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 4), (5, 4), (math.nan, 4)])
def test_wilson_refuses_what_is_no_share(successes, n):
    with pytest.raises(ValueError, match="is no share"):
        wilson(successes, n)


@given(st.lists(st.booleans(), min_size=1, max_size=60))
def test_one_trial_per_item_is_wilson(outcomes):
    found = share_interval(np.array(outcomes, dtype=float), ones(len(outcomes)))
    expected = wilson(sum(outcomes), len(outcomes))
    assert found.n == len(outcomes)
    for name in ("estimate", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)


def test_share_of_equal_outcomes_keeps_a_width():
    """All right, all wrong, all a third: a bootstrap would claim to know it exactly."""
    for value in (0.0, 1.0, 1 / 3):
        found = share_interval(np.full(30, value), ones(30), repeats=3)
        assert found.high - found.low > 0.1
    three = share_interval(np.full(30, 3.0), np.full(30, 3.0))
    assert three.low == pytest.approx(wilson(30, 30).low)  # 30 prompts, not 90 instructions


def test_instructions_of_one_prompt_are_a_cluster():
    """Two instructions per prompt that always share their fate are one trial."""
    rng = np.random.default_rng(0)
    right = (rng.random(200) < 0.4).astype(float)
    together = share_interval(2 * right, 2 * ones(200))
    alone = share_interval(right, ones(200))
    assert together.low == pytest.approx(alone.low) and together.high == pytest.approx(alone.high)
    mixed = share_interval(right + (rng.random(200) < 0.4), 2 * ones(200))
    assert mixed.high - mixed.low < 0.8 * (alone.high - alone.low)


def test_seeds_never_count_as_more_than_their_trials():
    """Averages that happen to vary little claim at most items x seeds trials."""
    rng = np.random.default_rng(1)
    values = np.clip(rng.normal(0.5, 0.01, 40), 0, 1)
    found = share_interval(values, ones(40), repeats=3)
    assert found.low == pytest.approx(wilson(120 * found.estimate, 120).low)


def test_share_interval_refuses_other_ratios():
    with pytest.raises(ValueError, match="no shares"):
        share_interval([2.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="must be an item"):
        share_interval([], [])
    with pytest.raises(ValueError, match="above zero"):
        ratio_bootstrap([1.0], [0.0])
    with pytest.raises(ValueError, match="shapes"):
        ratio_bootstrap([1.0, 2.0], [1.0])


def test_ratio_is_of_sums_not_a_mean_of_ratios():
    found = ratio_bootstrap([1.0, 300.0, 2.0], [1.0, 100.0, 4.0])
    assert found.estimate == pytest.approx(303 / 105)


def test_ratio_bootstrap_is_reproducible_and_scales():
    rng = np.random.default_rng(2)
    den = rng.lognormal(7, 0.5, 40)
    num = den * rng.normal(1, 0.1, 40)
    first, again, other = (ratio_bootstrap(num, den, seed=s) for s in (0, 0, 1))
    assert first == again and first != other
    scaled = ratio_bootstrap(3 * num, den)
    assert scaled.low == pytest.approx(3 * first.low)
    assert first.low < first.estimate < first.high


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ratio_bootstrap_of_a_few_items_has_no_interval(n):
    """Two items have one resample that is not an item twice: its width would be zero."""
    found = ratio_bootstrap(np.arange(n) + 1.0, ones(n))
    assert found.estimate == (n + 1) / 2 and math.isnan(found.low) and math.isnan(found.high)
    assert not math.isnan(ratio_bootstrap([1.0, 2.0, 3.0, 4.0, 5.0], ones(5)).low)


def test_ratio_bootstrap_draws_clusters_together():
    rng = np.random.default_rng(3)
    of_cluster = np.repeat(rng.normal(1, 0.2, 30), 10)
    num, den = of_cluster + rng.normal(0, 0.01, 300), ones(300)
    names = [f"document {i // 10}" for i in range(300)]
    apart, together = ratio_bootstrap(num, den), ratio_bootstrap(num, den, clusters=names)
    assert together.n == 30 and together.estimate == pytest.approx(apart.estimate)
    assert together.high - together.low > 2.5 * (apart.high - apart.low)
    with pytest.raises(ValueError, match="clusters"):
        ratio_bootstrap(num, den, clusters=["a"])


def test_mcnemar_known_values():
    assert mcnemar(0, 0) == 1.0 and mcnemar(3, 3) == 1.0
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(700, 700) == 1.0 and 0 < mcnemar(0, 1000) < 1e-300
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 2)


def test_holm_known_values():
    # Holm (1979): 0.01 x 4, 0.02 x 3, 0.03 x 2 raised to the one before, 0.04 likewise.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([]) == [] and holm([0.2]) == [0.2] and holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="no p-values"):
        holm([0.1, math.nan])


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_order_and_never_helps(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert all(a <= b for a, b in pairwise(ranked))


def square_and_add(a: int, b: int, c: int, d: int) -> tuple[float, float]:
    """Newcombe's method 10 from the fourfold table: both, only first, only second, neither."""
    n = a + b + c + d
    first, second = wilson(a + b, n), wilson(a + c, n)
    cross = a * d - b * c
    if cross > 0:
        cross = max(cross - n / 2, 0)
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    phi = cross / math.sqrt(margins) if margins else 0.0
    down = (first.estimate - first.low, second.high - second.estimate)
    up = (first.high - first.estimate, second.estimate - second.low)
    low, high = (math.sqrt(u * u - 2 * phi * u * v + v * v) for u, v in (down, up))
    return (b - c) / n - low, (b - c) / n + high


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 20)] * 4).filter(any))
def test_right_or_wrong_is_newcombe_and_mcnemar(table):
    a, b, c, d = table
    n = sum(table)
    first = np.array([1.0] * (a + b) + [0.0] * (c + d))
    second = np.array([1.0] * a + [0.0] * b + [1.0] * c + [0.0] * d)
    found = paired_difference(first, ones(n), second, ones(n), shares=True)
    low, high = square_and_add(a, b, c, d)
    assert found.estimate == pytest.approx((b - c) / n)
    assert found.low == pytest.approx(max(low, -1), abs=1e-9)
    assert found.high == pytest.approx(min(high, 1), abs=1e-9)
    assert found.p_value == mcnemar(b, c)


def test_pairs_that_agree_keep_a_width():
    for values in (ones(30), np.zeros(30), np.repeat([0.0, 1.0], 15)):
        found = paired_difference(values, ones(30), values, ones(30), shares=True)
        assert found.estimate == 0 and found.low < -0.02 and found.high > 0.02
        assert found.p_value == 1.0


def test_difference_turns_its_sign_with_its_sides():
    rng = np.random.default_rng(4)
    a, b = (rng.random((2, 50)) < [[0.3], [0.6]]).astype(float)
    one = paired_difference(a, ones(50), b, ones(50), shares=True)
    two = paired_difference(b, ones(50), a, ones(50), shares=True)
    assert (one.estimate, one.low, one.high) == pytest.approx((-two.estimate, -two.high, -two.low))
    assert one.p_value == two.p_value


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(5)
    den = rng.lognormal(7, 0.5, 40)
    hard = rng.normal(1, 0.2, 40)
    a, b = den * (hard - 0.02 + rng.normal(0, 0.01, 40)), den * hard
    paired = paired_difference(a, den, b, den)
    alone = ratio_bootstrap(a, den)
    assert paired.high - paired.low < 0.2 * (alone.high - alone.low)
    assert paired.high < 0 and paired.p_value < 0.01
    shuffled = paired_difference(a, den, b[::-1], den[::-1])
    assert shuffled.low < 0 < shuffled.high and shuffled.p_value > 0.05


def test_identical_texts_differ_by_exactly_nothing():
    den = np.arange(1.0, 21.0)
    found = paired_difference(2 * den, den, 2 * den, den)
    assert (found.estimate, found.low, found.high, found.p_value) == (0, 0, 0, 1)


def test_pairs_must_be_pairs():
    with pytest.raises(ValueError, match="no pairs"):
        paired_difference([1.0], [1.0], [1.0, 2.0], [1.0, 1.0])


def test_few_items_cannot_be_significant():
    found = paired_difference([1.0, 1.1, 1.2], ones(3), [0.5, 0.5, 0.5], ones(3))
    assert found.p_value > 0.2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**31), st.integers(1, 3), st.floats(0, 1))
def test_limits_hold_the_estimate(n, seed, repeats, share):
    rng = np.random.default_rng(seed)
    a, b = (rng.binomial(repeats, share, (2, n)) / repeats).astype(float)
    found = paired_difference(a, ones(n), b, ones(n), shares=True, repeats=repeats)
    assert -1 <= found.low <= found.estimate + 1e-12
    assert found.estimate - 1e-12 <= found.high <= 1
    assert 0 < found.p_value <= 1
    single = share_interval(a, ones(n), repeats=repeats)
    assert 0 <= single.low <= single.estimate + 1e-12 <= single.high + 2e-12 <= 1 + 2e-12


# Coverage: how often an interval of 95 % holds the truth. 1000 draws have a standard error of
# 0.7 points at 95 %; the bounds leave three of them below what each method is known for.


@pytest.mark.parametrize("share", [0.03, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("n", [20, 60])
def test_wilson_coverage(n, share):
    """Exact: over every outcome with its probability."""
    covered = sum(
        math.comb(n, k) * share**k * (1 - share) ** (n - k)
        for k in range(n + 1)
        if holds(wilson(k, n), share)
    )
    assert 0.92 < covered < 0.99


def correlated(rng, n, *, shares, common, seeds=1):
    """(items, seeds) and (items,) outcomes of two arms that find the same items hard."""
    item = rng.standard_normal((n, 1)) * math.sqrt(common)
    own = math.sqrt((1 - common) / 2)
    first = item + own * (rng.standard_normal((n, 1)) + rng.standard_normal((n, seeds)))
    second = item[:, 0] + math.sqrt(1 - common) * rng.standard_normal(n)
    a = (first < NORMAL.inv_cdf(shares[0])).mean(axis=1)
    return a, (second < NORMAL.inv_cdf(shares[1])).astype(float)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.8), (0.3, 0.6)])
def test_coverage_of_paired_shares(shares, seeds):
    rng = np.random.default_rng([7, seeds])
    covered = single = 0
    for _ in range(1000):
        a, b = correlated(rng, 60, shares=shares, common=0.6, seeds=seeds)
        low, high = interval_alone(a, b, seeds)
        covered += low <= shares[0] - shares[1] <= high
        single += holds(share_interval(a, ones(60), repeats=seeds), shares[0])
    assert 930 <= covered <= 995
    assert 920 <= single <= 985


def interval_alone(a, b, seeds):
    """The interval alone: the p-value's 9999 flips would take most of the time."""
    return _square_and_add((a, ones(60), 1.0), (b, ones(60), -1.0), repeats=seeds, level=0.95)


def documents(rng, n):
    """(nll in bits, bytes) of texts of very unequal lengths; short ones are harder per byte."""
    size = rng.lognormal(7, 1, n)
    rate = 0.9 * rng.lognormal(0, 0.3, n) * (size / 1100) ** -0.1
    return rate * size, size


@pytest.mark.parametrize(("n", "least"), [(15, 890), (60, 905), (200, 915)])
def test_coverage_of_the_ratio_bootstrap(n, least):
    rng = np.random.default_rng(n)
    num, den = documents(rng, 2_000_000)
    truth = num.sum() / den.sum()
    covered = sum(
        holds(ratio_bootstrap(*documents(rng, n), resamples=500, seed=i), truth)
        for i in range(1000)
    )
    assert least <= covered <= 975


def test_coverage_of_paired_texts_and_their_p_value():
    """Bits per byte of two arms: the difference is covered; without one, 5 % are significant."""
    rng = np.random.default_rng(9)

    def difference(n, gap):
        num, den = documents(rng, n)
        other = num + den * (gap + 0.1 * rng.standard_normal(n))
        return paired_difference(other, den, num, den, seed=int(rng.integers(2**31)))

    covered = significant = 0
    for _ in range(200):
        found = difference(40, 0.0)
        covered += found.low <= 0 <= found.high
        significant += found.p_value < 0.05
    assert 176 <= covered <= 199
    assert 1 <= significant <= 22
