"""What an operator does with routes, experiments and budgets; admin, REST and commands all call these."""
