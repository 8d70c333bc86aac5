"""How far drawing from a table may run ahead of, or behind, inserting into it. Knows counts; no arrays, no clock.

With p / q = samples_per_insert in lowest terms and f = ⌊q · error_buffer⌋, everything is a condition on one integer,

    y = p · (inserts - min_size) - q · samples,

which an insert of n raises by p·n and a draw of n lowers by q·n. An insert is allowed while inserts < min_size, or if
it leaves y ≤ f; a draw is allowed once inserts ≥ min_size, if it leaves y ≥ -f.

With inserts of 1 to L steps and draws of 1 to M items the smallest error buffer that never deadlocks is
⌊(pL + qM)/2⌋ / q; docs/adr/0005-when-a-limiter-deadlocks.md proves it.
"""

from __future__ import annotations

import math
from fractions import Fraction

from common.errors import ConfigError


class RateLimiter:
    """Counts steps inserted and items drawn, and holds their ratio near `samples_per_insert` (0: no coupling).

    `largest_insert` and `largest_sample` bound one request. Raises ConfigError for an error buffer that would deadlock.
    """

    def __init__(
        self,
        table: str,
        min_size: int,
        samples_per_insert: float,
        error_buffer: float,
        *,
        largest_insert: int,
        largest_sample: int,
    ) -> None:
        self.inserts = 0
        self.samples = 0
        self._min_size = min_size
        self._key = f"replay.tables.{table}"
        self._largest_insert = largest_insert
        self._largest_sample = largest_sample
        # Through their decimal form: 0.1 means a tenth here, and sums of tenths are exact.
        ratio = Fraction(_finite(f"{self._key}.samples_per_insert", samples_per_insert))
        self._p, self._q = ratio.numerator, ratio.denominator
        self._f = math.floor(self._q * Fraction(_finite(f"{self._key}.error_buffer", error_buffer)))
        if self.coupled:
            self._refuse_deadlock(error_buffer)

    @property
    def coupled(self) -> bool:
        """Whether inserts and draws wait for each other, beyond min_size."""
        return self._p > 0

    @property
    def ahead(self) -> float:
        """-y / q: how many items draws have run ahead, within ± error_buffer; behind below 0; 0 without coupling."""
        return -self._y() / self._q if self.coupled else 0.0

    def may_insert(self, n: int) -> bool:
        return not self.coupled or self.inserts < self._min_size or self._y() + self._p * n <= self._f

    def may_sample(self, n: int) -> bool:
        enough = self.inserts >= self._min_size
        return enough and (not self.coupled or self._y() - self._q * n >= -self._f)

    def inserted(self, n: int) -> None:
        """Counts a granted insert of `n` steps."""
        self.inserts += n

    def sampled(self, n: int) -> None:
        """Counts a granted draw of `n` items."""
        self.samples += n

    def check_insert(self, n: int) -> None:
        """Raises ConfigError for an insert larger than the error buffer was checked for."""
        if self.coupled and n > self._largest_insert:
            raise ConfigError(
                f"an unroll of {n} steps comes to a table whose {self._key}.error_buffer was checked for at most "
                f"{self._largest_insert}: it could deadlock",
                "give replay-server the same rollout.unroll and env.envs as every env-server",
            )

    def check_sample(self, n: int) -> None:
        """Raises ConfigError for a draw larger than the error buffer was checked for."""
        if self.coupled and n > self._largest_sample:
            raise ConfigError(
                f"{n} items are asked of a table whose {self._key}.error_buffer was checked for at most "
                f"{self._largest_sample}: it could deadlock",
                "give replay-server the same learner.batch and per_request as the learner",
            )

    def why_insert_waits(self) -> str:
        return f"{self._counts()} is as far as draws may fall behind"

    def why_sample_waits(self) -> str:
        if self.inserts < self._min_size:
            return f"{self.inserts} of min_size={self._min_size} steps"
        return f"{self._counts()} is as far as draws may run ahead"

    def _counts(self) -> str:
        ratio, buffer = self._p / self._q, self._f / self._q
        return (
            f"{self.samples} items drawn of {self.inserts} steps "
            f"(samples_per_insert={ratio:g}, error_buffer={buffer:g}, min_size={self._min_size})"
        )

    def _y(self) -> int:
        return self._p * (self.inserts - self._min_size) - self._q * self.samples

    def _refuse_deadlock(self, error_buffer: float) -> None:
        smallest = Fraction((self._p * self._largest_insert + self._q * self._largest_sample) // 2, self._q)
        if Fraction(self._f, self._q) >= smallest:
            return
        # The nearest float can lie below the fraction, and what the message names must work.
        works = float(smallest)
        while Fraction(repr(works)) < smallest:
            works = math.nextafter(works, math.inf)
        raise ConfigError(
            f"{self._key}.error_buffer={error_buffer:g} would deadlock as soon as an insert of {self._largest_insert} "
            f"steps and a draw of {self._largest_sample} each have to wait for the other",
            f"set it to at least {works!r}, or {self._key}.samples_per_insert to 0 for no limit",
        )


def _finite(key: str, value: float) -> str:
    if not math.isfinite(value):
        raise ConfigError(f"{key}={value} is not a finite number", "samples_per_insert 0 means no limit")
    return repr(float(value))
