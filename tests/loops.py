"""Parts of slow references: formulas over lists of numbers."""

import math


def softmax(row, temperature=1.0):
    """Of one row."""
    top = max(row)
    powers = [math.exp((z - top) / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def divergence(p, q):
    """KL(p || q) of two rows of probabilities."""
    return sum(a * math.log(a / b) for a, b in zip(p, q) if a > 0)
