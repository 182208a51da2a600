"""Quantiles out of merged counts are within the error that is promised."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from routing.core.histogram import RELATIVE_ERROR, SMALLEST_S, Buckets, count, merge, quantile

seconds = st.floats(min_value=SMALLEST_S, max_value=3600)
NEARLY = 1 + 1e-9


@settings(deadline=None)
@given(st.lists(seconds, min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.95, 0.99, 1.0]))
def test_a_quantile_is_within_the_error_of_the_true_one(values, share):
    buckets: Buckets = {}
    for value in values:
        count(buckets, value)
    true = sorted(values)[int(share * (len(values) - 1))]
    found = quantile(buckets, share)
    assert abs(found - true) <= true * RELATIVE_ERROR * NEARLY


@settings(deadline=None)
@given(st.lists(st.lists(seconds, max_size=30), max_size=6))
def test_parts_merged_are_the_whole_counted_at_once_also_through_json(parts):
    whole: Buckets = {}
    merged: Buckets = {}
    for part in parts:
        mine: Buckets = {}
        for value in part:
            count(whole, value)
            count(mine, value)
        merge(merged, json.loads(json.dumps(mine)))
    assert merged == whole


def test_of_nothing_there_is_no_quantile():
    assert quantile({}, 0.5) is None
