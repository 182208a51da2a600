"""What an operator does with routes, experiments and budgets; admin, REST and commands all call these."""

from routing.actions.budgets import (
    create_budget,
    create_team,
    delete_budget,
    delete_team,
    update_budget,
    update_team,
)

__all__ = ["create_budget", "create_team", "delete_budget", "delete_team", "update_budget", "update_team"]
