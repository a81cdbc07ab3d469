// What has been seen while the page was open, one sample for each event, and what the charts show of it.
"use strict";

const samples = (() => {
  const KEPT_S = 900; // As long as the charts are.
  const GAP_S = 6; // Without a sample for so long nothing is known of the time between.
  const RATE_S = 15; // Rates are taken over so long: at 40 a minute one request comes every 1.5 s.
  const LEVELS = ["urgent", "high", "normal", "low"];
  const OUTCOMES = ["forwarded", "rate_limited", "queue_full", "failed", "left"];
  let kept = [];

  // The limits in `status` that `name` means: one, or all that are configured (null).
  const chosen = (status, name) => status.limits.filter((limit) => limit.queue && (name === null ? limit.configured : limit.name === name));
  const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

  // One limit, or several together, in the few numbers that are shown.
  const view = (status, name) => {
    const limits = chosen(status, name);
    const outcome = (key) => sum(limits, (limit) => limit.requests.outcomes[key] ?? 0);
    const states = limits.map((limit) => limit.retreat.state);
    return {
      limits,
      state: ["RETREAT", "RECOVER"].find((state) => states.includes(state)) ?? "NORMAL",
      rate: sum(limits, (limit) => limit.retreat.effective_rpm),
      base: sum(limits, (limit) => limit.retreat.base_rpm),
      share: Math.max(0, ...limits.map((limit) => limit.retreat.upstream_429_rate)),
      estimate: limits.length === 1 ? limits[0].retreat.estimated_limit : null,
      slowed: limits.flatMap((limit) => limit.slowed_models),
      closed: Math.max(0, ...limits.map((limit) => limit.retreat.closed_seconds)),
      tokens: sum(limits, (limit) => limit.token_bucket.tokens),
      capacity: sum(limits, (limit) => limit.token_bucket.capacity),
      next: Math.min(...limits.map((limit) => limit.token_bucket.next_token_seconds)),
      queue: LEVELS.map((level) => sum(limits, (limit) => limit.queue.by_priority[level])),
      queueMax: sum(limits, (limit) => limit.queue.max_size),
      outside: sum(limits, (limit) => limit.queue.fallback),
      expected: Math.max(0, ...limits.map((limit) => limit.waits.normal.expected_seconds)),
      oldest: Math.max(...limits.flatMap((limit) => LEVELS.map((level) => limit.waits[level].oldest_seconds ?? -1))),
      granted: LEVELS.map((level) => sum(limits, (limit) => limit.waits[level].granted)),
      waited: LEVELS.map((level) => sum(limits, (limit) => limit.waits[level].granted_wait_seconds)),
      outcomes: [
        outcome("forwarded"), outcome("rate_limited"), outcome("queue_full"),
        outcome("upstream_timeout") + outcome("upstream_unreachable") + outcome("payload_too_large") + outcome("unreadable"),
        outcome("client_left"),
      ],
      shadows: limits.filter((limit) => limit.rules.in_force.mode === "shadow").map((limit) => limit.name),
      would: ["forwarded", "rate_limited", "queue_full"].map((key) => sum(limits, (limit) => limit.shadow[key])),
    };
  };

  // Takes a status. A process that is younger than the last one seen is another one: its counters start from zero.
  const take = (status, now) => {
    const last = kept.at(-1);
    const restarted = last && status.uptime_seconds < last.status.uptime_seconds;
    kept.push({ at: now, status, age: restarted ? 0 : (last?.age ?? 0) + 1, process: (last?.process ?? 0) + (restarted ? 1 : 0) });
    kept = kept.filter((sample) => sample.at >= now - KEPT_S);
    return restarted;
  };

  // Rows for the charts. Where there was no sample a row of nulls parts what came before from what came after.
  const rows = (name) => {
    const seen = kept.map((sample) => ({ ...sample, view: view(sample.status, name) }));
    const times = [], states = [], out = { through: [], queue: [], wait: [], rate: [], tokens: [], share: [] };
    const put = (at, state, values) => {
      times.push(at);
      states.push(state);
      for (const key in out) out[key].push(values?.[key] ?? null);
    };
    let oldest = 0;
    seen.forEach((sample, at) => {
      const before = seen[at - 1];
      if (before && sample.at - before.at > GAP_S) put((sample.at + before.at) / 2, null, null);
      while (oldest < at && (sample.at - seen[oldest].at > RATE_S || seen[oldest].process !== sample.process)) oldest += 1;
      const from = seen[Math.min(oldest, at)], span = sample.at - from.at;
      const grown = (of) => of(sample.view).map((value, row) => Math.max(0, value - of(from.view)[row]));
      const granted = grown((one) => one.granted), waited = grown((one) => one.waited);
      put(sample.at, sample.view.state, {
        through: span > 0 ? grown((one) => one.outcomes).map((count) => (count * 60) / span) : OUTCOMES.map(() => null),
        queue: sample.view.queue,
        wait: granted.map((count, row) => (count > 0 ? waited[row] / count : null)),
        rate: [sample.view.rate, sample.view.base],
        tokens: [sample.view.tokens],
        share: [sample.view.share * 100],
      });
    });
    const turned = (key, width) => [times, ...Array.from({ length: width }, (_, row) => out[key].map((values) => values?.[row] ?? null))];
    return {
      states,
      through: turned("through", OUTCOMES.length),
      queue: turned("queue", LEVELS.length),
      wait: turned("wait", LEVELS.length),
      rate: turned("rate", 2),
      tokens: turned("tokens", 1),
      share: turned("share", 1),
    };
  };

  return { take, rows, view, LEVELS, OUTCOMES, latest: () => kept.at(-1) };
})();
