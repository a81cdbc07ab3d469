// The page: takes an event a second, says honestly when none comes, and shows the limit that was chosen.
"use strict";

(() => {
  const QUIET_S = 4; // Events come every second or so; past this the numbers are old.
  const { LEVELS } = samples;
  const found = new Map([...document.querySelectorAll("[data-is]")].map((element) => [element.dataset.is, element]));
  const is = (name, text) => { found.get(name).textContent = text; };
  const host = document.getElementById("charts");
  const seconds = (value) => (value < 10 ? value.toFixed(1) + " s" : value < 120 ? value.toFixed(0) + " s" : (value / 60).toFixed(0) + " min");
  let limit = null; // The chosen limit's name; null is all of them.
  let heard = null; // When the last event came, in seconds on the page's own clock.
  let states = [];
  let source;

  const levels = LEVELS.map((level) => ({ label: level, colour: level }));
  const drawn = {
    through: charts.add(host, { title: "Throughput by outcome", kind: "stack", unit: "/min", least: 10, series: [
      { label: "forwarded", colour: "forwarded" }, { label: "rate limited", colour: "rate_limited" },
      { label: "queue full", colour: "queue_full" }, { label: "failed", colour: "failed" }, { label: "client left", colour: "left" },
    ] }),
    queue: charts.add(host, { title: "Queue by priority", kind: "stack", unit: "", least: 4, step: true, series: levels }),
    wait: charts.add(host, { title: "Time in the queue", kind: "line", unit: "s", least: 1, series: levels }),
    rate: charts.add(host, { title: "Rate", kind: "line", unit: "rpm", least: 10, step: true, shaded: () => states, series: [
      { label: "effective", colour: "accent" }, { label: "configured", colour: "soft", dash: [5, 5] },
    ] }),
    tokens: charts.add(host, { title: "Tokens", kind: "line", unit: "", least: 4, step: true, series: [{ label: "available", colour: "accent" }] }),
    share: charts.add(host, { title: "Upstream 429s", kind: "line", unit: "%", least: 10, shaded: () => states, series: [{ label: "share", colour: "bad" }] }),
  };

  const choose = (status) => {
    const named = status.limits.filter((one) => one.configured || one.requests.total > 0);
    if (named.length === 1) limit = named[0].name;
    else if (limit !== null && !named.some((one) => one.name === limit)) limit = null;
    const nav = document.getElementById("limits");
    const wanted = named.length > 1 ? [null, ...named.map((one) => one.name)] : [];
    if (nav.dataset.of !== JSON.stringify(wanted)) {
      nav.dataset.of = JSON.stringify(wanted);
      nav.replaceChildren(...wanted.map((name) => {
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = name ?? "All limits";
        button.addEventListener("click", () => {
          limit = name;
          show();
        });
        return button;
      }));
    }
    [...nav.children].forEach((button, at) => {
      button.setAttribute("aria-pressed", String(wanted[at] === limit));
      const one = named.find((known) => known.name === wanted[at]);
      button.classList.toggle("unused", one !== undefined && !one.configured);
      button.classList.toggle("in-shadow", one?.rules?.in_force.mode === "shadow");
    });
  };

  const fill = (name, share) => { found.get(name).style.width = `${Math.min(100, Math.max(0, share * 100))}%`; };

  const tiles = (now, through) => {
    is("rate", charts.short(now.rate));
    const believed = now.estimate ? `, real limit about ${charts.short(now.estimate.rpm)}` : "";
    const slowed = now.slowed.length > 0 ? `; slower: ${now.slowed.map((model) => `${model.name} ${charts.short(model.effective_rpm)}`).join(", ")}` : "";
    is("rate-note", (now.closed > 0 ? `no token for ${seconds(now.closed)}` : `of ${charts.short(now.base)} configured`) + believed + slowed);
    fill("rate-bar", now.base > 0 ? now.rate / now.base : 0);
    is("state", now.state);
    found.get("state").dataset.state = now.state;

    is("tokens", String(now.tokens));
    is("capacity", `of ${now.capacity}`);
    is("tokens-note", now.tokens > 0 ? "a request goes at once" : Number.isFinite(now.next) ? `next in ${seconds(now.next)}` : "");
    const pips = found.get("pips"), wanted = Math.min(now.capacity, 24);
    while (pips.children.length > wanted) pips.lastChild.remove();
    while (pips.children.length < wanted) pips.append(document.createElement("i"));
    [...pips.children].forEach((pip, at) => pip.classList.toggle("there", at < Math.round((now.tokens / now.capacity) * wanted)));

    const queued = now.queue.reduce((total, count) => total + count, 0);
    is("queue", String(queued));
    is("queue-max", `of ${now.queueMax}`);
    const outside = now.outside > 0 ? `, ${now.outside} outside` : "";
    is("queue-note", queued > 0 ? LEVELS.map((level, at) => (now.queue[at] ? `${now.queue[at]} ${level}` : "")).filter(Boolean).join(", ") + outside : "nobody waits" + outside);
    const bar = found.get("queue-bar");
    if (!bar.children.length) bar.append(...LEVELS.map(() => document.createElement("i")));
    [...bar.children].forEach((part, at) => {
      part.style.background = `var(--${LEVELS[at]})`;
      part.style.flexGrow = String(now.queue[at]);
    });

    is("wait", seconds(now.expected));
    is("wait-note", now.oldest >= 0 ? `longest now ${seconds(now.oldest)}` : "nobody waits");
    const totals = now.outcomes.reduce((total, count) => total + count, 0);
    is("through", through === null ? "–" : charts.short(Math.round(through)));
    is("through-note", `${totals.toLocaleString("en")} in all, ${now.outcomes[1].toLocaleString("en")} rate limited`);
    is("share", `${(now.share * 100).toFixed(now.share > 0 && now.share < 0.1 ? 1 : 0)} %`);
    fill("share-bar", now.share);
    const answered = now.limits.reduce((total, one) => total + (one.answers["429"] ?? 0), 0);
    is("share-note", `last minute; ${answered.toLocaleString("en")} in all`);
  };

  // What shadow mode would have done, where it is on; the other tiles then show what would be, and say so.
  const shadow = (now) => {
    const note = document.getElementById("shadow"), on = now.shadows.length > 0;
    note.hidden = !on;
    document.getElementById("would").hidden = !on;
    if (!on) return;
    const all = now.shadows.length === now.limits.length;
    note.textContent = `Shadow mode${all ? "" : ` (${now.shadows.join(", ")})`}: every request goes at once. Tokens, queue and waiting times show what would be.`;
    const [forwarded, late, full] = now.would, refused = late + full, total = forwarded + refused;
    is("would", refused.toLocaleString("en"));
    is("would-of", `of ${total.toLocaleString("en")}`);
    fill("would-bar", total > 0 ? refused / total : 0);
    is("would-note", `${late.toLocaleString("en")} rate limited, ${full.toLocaleString("en")} queue full`);
  };

  const history = (now) => {
    const entries = now.limits.flatMap((one) => one.history.map((entry) => ({ ...entry, limit: one.name })));
    // The latest first, also among those of one second: sorting leaves these as they are.
    entries.reverse().sort((a, b) => b.at - a.at);
    const list = document.getElementById("history");
    const made = entries.slice(0, 40).map((entry) => {
      const item = document.createElement("li"), time = document.createElement("time");
      const what = document.createElement("span"), why = document.createElement("small"), rate = document.createElement("em");
      const at = new Date(entry.at * 1000);
      time.textContent = charts.clock(entry.at, true);
      time.dateTime = at.toISOString();
      time.title = at.toLocaleString();
      const whose = entry.model ? `${entry.model}: ` : "";
      const change = whose + (entry.what === "rules" ? `Rules: epoch ${entry.to}` : entry.from === entry.to ? `${entry.to}, cut again` : `${entry.from} → ${entry.to}`);
      what.textContent = now.limits.length > 1 ? `${entry.limit}: ${change}` : change;
      why.textContent = entry.reason;
      rate.textContent = `${charts.short(entry.effective_rpm)} rpm`;
      item.append(time, what, rate, why);
      return item;
    });
    if (made.length === 0) {
      made.push(document.createElement("li"));
      made[0].className = "nothing";
      made[0].textContent = "Nothing yet. States of the retreat and new rules are listed here.";
    }
    list.replaceChildren(...made);
  };

  const show = () => {
    const latest = samples.latest();
    if (!latest) return;
    choose(latest.status);
    const now = samples.view(latest.status, limit), rows = samples.rows(limit);
    states = rows.states;
    for (const key in drawn) drawn[key].set(rows[key]);
    const rates = rows.through.slice(1).map((row) => row.at(-1));
    tiles(now, rates.includes(null) ? null : rates.reduce((total, rate) => total + rate, 0));
    shadow(now);
    history(now);
    const card = document.getElementById("rules");
    card.hidden = limit === null || now.limits.length === 0;
    if (!card.hidden) rules.show(now.limits[0], latest.status.can_change);
    const { uptime_seconds: up, version, requests } = latest.status;
    const age = up < 120 ? `${up.toFixed(0)} s` : up < 7200 ? `${(up / 60).toFixed(0)} min` : `${(up / 3600).toFixed(0)} h`;
    document.getElementById("about").textContent =
      `nimgate ${version}, running for ${age}. ${requests.total.toLocaleString("en")} requests, ${requests.passthrough.toLocaleString("en")} of them passed through. All numbers are the whole process's.`;
  };

  const live = () => {
    const quiet = heard === null ? null : performance.now() / 1000 - heard;
    const state = quiet === null ? "wait" : quiet < QUIET_S ? "yes" : "no";
    const gone = document.getElementById("gone");
    document.body.dataset.live = state;
    document.getElementById("live").textContent = { wait: "connecting", yes: "live", no: "no data" }[state];
    gone.hidden = state !== "no";
    if (state === "no") {
      for (const value of document.querySelectorAll(".value b")) value.textContent = "–";
      gone.textContent = `No data for ${Math.round(quiet)} s: nimgate does not answer. The charts end where the data do. It goes on by itself as soon as nimgate is back.`;
    }
  };

  const listen = () => {
    source = new EventSource("/events");
    source.addEventListener("status", (event) => {
      samples.take(JSON.parse(event.data), Date.now() / 1000);
      heard = performance.now() / 1000;
      show();
      live();
    });
    // The browser comes again by itself after each event, but gives up where it is refused.
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
    });
  };

  setInterval(live, 500);
  listen();
})();
