"""The order in which requests reach the upstream, and what may excuse another one.

A worker that does not take the token due to it within a grace is passed over, so that nobody waits
for a stalled one. A busy machine may so disturb the order among workers, and that shows: who goes
before a better request comes a grace after the token. Whoever comes earlier was let go in a wrong
order by design, and that no machine excuses.
"""

from .client import Answer
from .fake import Received

# `GRACE` in filter/core/src/limit/ledger.rs.
GRACE_S = 0.030


def is_order(
    arrived: list[Received],
    expected: list[str],
    answers: dict[str, Answer],
    seconds_per_token: float,
) -> bool:
    """Whether requests that waited together for one token after the other came to the upstream in
    the `expected` order of models; fails if not and some worker was not given its grace."""
    order = [record.model or "" for record in arrived]
    assert sorted(order) == sorted(expected)
    for at in range(1, len(order)):
        if order[at] == min(order[at:], key=expected.index):
            continue
        # The bucket holds one token, so the next comes so long after the one before was taken; and
        # that one may have come to the upstream so much later than it was granted.
        gap_s = (arrived[at].at_us - arrived[at - 1].at_us) / 1e6
        late_s = answers[order[at - 1]].outside_queue_s
        assert gap_s > seconds_per_token + GRACE_S - late_s, (
            f"{order} instead of {expected}: {order[at]} came {gap_s:.3f} s after the one before,"
            f" which was at most {late_s:.3f} s late, and one token takes {seconds_per_token} s"
        )
    return order == expected
