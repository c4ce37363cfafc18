"""(k, m): any k of k + m fragments give the data back.

Replication of n copies is (1, n - 1): every fragment is the whole, so one code path serves
both. Written `rep:n` and `ec:k+m`.
"""

import re
from typing import Final

import msgspec

REPLICAS_MAX: Final = 9
DATA_MIN, DATA_MAX = 2, 16
PARITY_MIN, PARITY_MAX = 1, 6

_REP = re.compile(r"rep:(\d{1,3})", re.ASCII)
_EC = re.compile(r"ec:(\d{1,3})\+(\d{1,3})", re.ASCII)


class Redundancy(msgspec.Struct, array_like=True, frozen=True, order=True):
    """k data fragments and m parity fragments (or, with k = 1, further copies)."""

    k: int
    m: int

    @classmethod
    def parse(cls, text: str) -> "Redundancy":
        """`rep:3` or `ec:4+2`.

        Raises:
            ValueError: with a sentence that says what is allowed.
        """
        if match := _REP.fullmatch(text):
            copies = int(match[1])
            if not 1 <= copies <= REPLICAS_MAX:
                raise ValueError(f"{text!r}: copies must be 1 to {REPLICAS_MAX}")
            return cls(1, copies - 1)
        if match := _EC.fullmatch(text):
            k, m = int(match[1]), int(match[2])
            if not (DATA_MIN <= k <= DATA_MAX and PARITY_MIN <= m <= PARITY_MAX):
                raise ValueError(
                    f"{text!r}: data fragments must be {DATA_MIN} to {DATA_MAX}, "
                    f"parity fragments {PARITY_MIN} to {PARITY_MAX}"
                )
            return cls(k, m)
        raise ValueError(
            f"{text!r} is no redundancy: write rep:N (1 to {REPLICAS_MAX} copies) or ec:K+M, "
            "such as rep:3 or ec:4+2"
        )

    def __str__(self) -> str:
        return f"rep:{self.width}" if self.k == 1 else f"ec:{self.k}+{self.m}"

    @property
    def width(self) -> int:
        """Fragments a healthy chunk has, each on a disk of its own."""
        return self.k + self.m

    @property
    def write_minimum(self) -> int:
        """Fragments that must be written before a write may be acknowledged.

        Half the spare fragments, rounded down, beyond the k that give the data: rep:2 writes
        on with one disk left, rep:3 with two, ec:4+2 with five (the rule of Ceph's min_size).
        """
        return self.k + self.m // 2

    @property
    def expansion(self) -> float:
        """Bytes on disk per byte stored, before compression."""
        return self.width / self.k

    def fitted(self, servers: int) -> "Redundancy":
        """This, or fewer copies where there are fewer servers. Only replication shrinks."""
        if self.k != 1:
            return self
        return Redundancy(1, max(1, min(self.width, servers)) - 1)
