"""What the corpus holds, in figures for the owner."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from node.clock import Clock, SystemClock
from node.consent import ConsentManager

from .corpus import TrainingCorpus


class CorpusStats:
    """Counts records; the closing records of sessions are not counted. Each call reads once."""

    def __init__(
        self,
        corpus: TrainingCorpus,
        consent_manager: ConsentManager,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._corpus = corpus
        self._consent = consent_manager
        self._clock = clock or SystemClock()

    def summary(self) -> dict[str, Any]:
        """Return {"total_records", "storage_size_mb", "opted_in_users", "domains"}."""
        domains = self._domains()
        return {
            "total_records": domains.total(),
            "storage_size_mb": round(self._corpus.size_bytes() / 2**20, 2),
            "opted_in_users": self._consent.get_opted_in_count(),
            "domains": dict(domains.most_common()),
        }

    def daily_growth(self, days: int = 7) -> list[dict[str, Any]]:
        """Return {"date", "records"} of the last `days` UTC days, today last."""
        today = datetime.fromtimestamp(self._clock.now_s(), UTC).date()
        counts = Counter(
            datetime.fromtimestamp(record.timestamp, UTC).date()
            for record in self._corpus.records()
            if not record.closes
        )
        dates = [today - timedelta(days=back) for back in reversed(range(days))]
        return [{"date": date.isoformat(), "records": counts[date]} for date in dates]

    def domain_breakdown(self) -> dict[str, Any]:
        """Return {"count", "percentage"} by domain, the largest first."""
        domains = self._domains()
        total = domains.total()
        return {
            domain: {"count": count, "percentage": round(100 * count / total, 1)}
            for domain, count in domains.most_common()
        }

    def print_report(self) -> None:
        """Print the figures."""
        summary = self.summary()
        print(f"records        {summary['total_records']:,}")
        print(f"storage        {summary['storage_size_mb']:.2f} MB")
        print(f"opted-in users {summary['opted_in_users']}")
        for domain, share in self.domain_breakdown().items():
            print(f"  {domain:<12} {share['count']:>8,}  {share['percentage']:5.1f} %")
        for day in self.daily_growth():
            print(f"  {day['date']}   {day['records']:>8,}")

    def _domains(self) -> Counter[str]:
        return Counter(record.domain for record in self._corpus.records() if not record.closes)
