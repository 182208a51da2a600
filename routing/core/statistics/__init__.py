"""What an experiment's numbers mean, however often somebody looks at them. Pure: numpy, no rows, no clock.

totals      what is kept of each arm: sums by cluster of units, latencies by bin; they add up
units       a bounded sample of the distinct units, and how many there are
sequences   the boundary that a difference crosses by chance with probability alpha, ever
means       means, proportions and ratios, clustered by unit, and paired
compare     one arm's metric against the control's
quantiles   medians and tails of latencies
mismatch    whether the arms have the units that their shares promise
planning    how many units an effect needs
metrics     what is measured
"""
