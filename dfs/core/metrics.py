"""One measured value of a server, as `/metrics` shows it; free of any metrics library."""

from collections.abc import Mapping, Sequence

import msgspec


class Sample(msgspec.Struct, frozen=True):
    value: float
    labels: Mapping[str, str] = {}


class Metric(msgspec.Struct, frozen=True):
    """A gauge: names end with their unit, all samples have the same labels."""

    name: str
    help: str
    samples: Sequence[Sample]


def gauge(name: str, help: str, value: float) -> Metric:
    """A metric of one value."""
    return Metric(name, help, (Sample(value),))
