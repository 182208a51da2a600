"""`manage.py route_explain ID`"""

from __future__ import annotations

from typing import Any

from django.core.management.base import CommandParser

from mmserve.command import DataCommand
from routing.core.decision import RequestFacts, decide
from routing.core.route import Wishes
from routing.core.scorer import traits_of
from routing.situation import situation


class Command(DataCommand):
    help = (
        "Say who would serve a request now, and why the others would not; nothing is run. "
        "Exit codes: 0 done, 3 nothing has this id."
    )
    columns = ("id", "model", "eligible", "place", "score", "ttft_s", "cost_usd", "reasons")

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("id", help="a route, auto, name, name@version or name@alias")
        parser.add_argument(
            "--prompt", default="", help="its length counts, and its traits where a scorer judges"
        )
        parser.add_argument("--max-tokens", type=int, default=None)
        parser.add_argument("--chat", action="store_true")
        parser.add_argument(
            "--require", action="append", default=[], help="a capability or tag; may be repeated"
        )
        parser.add_argument("--max-cost-usd", type=float)
        parser.add_argument("--max-ttft-ms", type=float)
        parser.add_argument(
            "--request-id", default="explain", help="what the lot of a weighted route is drawn by"
        )

    def run(self, *, id: str, prompt: str, require: list[str], **asked: Any) -> list[dict[str, Any]]:
        now = situation()
        facts = RequestFacts(
            decision_id=asked["request_id"],
            model=id,
            chat=asked["chat"],
            prompt_tokens_bound=len(prompt.encode()) if prompt else None,
            prompt_tokens_estimate=len(prompt) // 4,
            max_tokens=asked["max_tokens"],
            wishes=Wishes(
                require=tuple(require),
                max_cost_usd=asked["max_cost_usd"],
                max_ttft_s=None if asked["max_ttft_ms"] is None else asked["max_ttft_ms"] / 1000,
            ),
            traits=traits_of(prompt),
        )
        found = decide(now.table, now.live, facts)
        places = {link.id: place for place, link in enumerate(found.chain, start=1)}
        rows = [
            {
                "id": one.id,
                "model": one.served_id,
                "eligible": one.eligible,
                "place": places.get(one.id),
                "reasons": list(one.reasons),
                **one.scores,
            }
            for one in found.candidates
        ]
        return sorted(rows, key=lambda row: (row["place"] or len(rows) + 1, row["id"]))
