"""The order of the eligible: one figure for each target, and the lowest is first.

A figure depends on its own target alone, never on who else is there. So one more candidate changes nothing
between the others, and a candidate that is worse in every term is never before one that is better: normalising
between the least and the most of the present candidates (min-max) would not hold that.
"""

from __future__ import annotations

import numpy as np

from routing.core.facts import RequestFacts
from routing.core.filters import Predicted
from routing.core.hashing import draws, hash64
from routing.core.live import LOAD, READY, Floats
from routing.core.route import Policy
from routing.core.slate import Slate

# Where a term of ``balanced`` is at one half: what a usual request costs and takes.
HALF_COST_USD = 0.001
HALF_LATENCY_S = 5.0
# Put on the load of a target that must be loaded first: after every one that is ready.
COLD = 1e6


def figures(
    slate: Slate, live: Floats, predicted: Predicted, quality: Floats, request: RequestFacts
) -> Floats:
    """The policy's figure of each target.

    ``weighted``: -ln(u) / weight, with u drawn by the version's hash keyed by the route and the request; the least
    of these is each version with its share's chance, and the rest follow as if drawn without putting back
    (Efraimidis and Spirakis 2006).

    ``balanced``: 1 minus the weighted sum of quality q, H/(H + cost), L/(L + latency), 1/(1 + load), where
    latency is TTFT + TPOT × output tokens, and H and L are the constants above.
    """
    policy = slate.policy
    if policy is Policy.LEAST_LOADED:
        return busy(live)
    if policy is Policy.BALANCED:
        weights = slate.weights
        good = weights.quality * quality
        good += weights.latency * HALF_LATENCY_S / (HALF_LATENCY_S + latency_s(predicted, request))
        good += weights.load / (1.0 + live[LOAD])
        if weights.cost:
            good += weights.cost * HALF_COST_USD / (HALF_COST_USD + predicted.cost_usd)
        return 1.0 - good
    if policy is Policy.WEIGHTED:
        lots = draws(hash64(request.decision_id, slate.id), slate.hashes)
        found: Floats = -np.log(lots) * slate.inverse_weight
        return found
    if policy is Policy.LEAST_COST:
        return predicted.cost_usd
    if policy is Policy.LOWEST_LATENCY:
        return latency_s(predicted, request)
    return slate.order


def busy(live: Floats) -> Floats:
    """The load, with what must be loaded first after all that is ready."""
    found: Floats = live[LOAD] + COLD * (live[READY] == 0)
    return found


def latency_s(predicted: Predicted, request: RequestFacts) -> Floats:
    """Until the whole answer is there."""
    return predicted.ttft_s + predicted.tpot_s * request.output_tokens_about


def ties_by_load(policy: Policy) -> bool:
    """Whether the targets of one version have the same figure, so that their load has to order them."""
    return policy in (Policy.WEIGHTED, Policy.LEAST_COST, Policy.PRIORITY)
