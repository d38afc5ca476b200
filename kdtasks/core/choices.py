"""A few of many, chosen by their places alone."""


def evenly_spaced(number: int, count: int) -> list[int]:
    """Places of at most ``count`` of ``number`` things: the middles of ``count`` equal shares, in
    order; all of them where there are no more.
    """
    count = min(count, number)
    return [(2 * k + 1) * number // (2 * count) for k in range(count)]
