// The charts: settings for uPlot, legends with the value under the cursor, and the shading of a retreat.
"use strict";

const charts = (() => {
  const sync = uPlot.sync("time");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

  const clock = (at, withSeconds) => new Date(at * 1000).toLocaleTimeString([], {
    hourCycle: "h23", hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined,
  });

  // Steps of an axis that counts what has no parts.
  const WHOLE = [1, 10, 100, 1000, 10000, 100000].flatMap((one) => [one, 2 * one, 5 * one]);

  // A chart in `host`. `series`: [{label, colour, dash}]; `kind`: "stack" lays the series on one another, "line" beside.
  class Chart {
    constructor(host, about) {
      this.about = about;
      this.values = [];
      this.figure = document.createElement("figure");
      const caption = document.createElement("figcaption");
      const title = document.createElement("b");
      title.textContent = about.title;
      caption.append(title);
      this.legend = about.series.map((series) => {
        const entry = document.createElement("span");
        const mark = document.createElement("i");
        const text = document.createTextNode(series.label);
        mark.style.background = `var(--${series.colour})`;
        entry.append(mark, text);
        caption.append(entry);
        return text;
      });
      this.plot = document.createElement("div");
      this.plot.className = "plot";
      this.figure.append(caption, this.plot);
      host.append(this.figure);
      this.make();
      new ResizeObserver(() => this.chart.setSize(this.size())).observe(this.plot);
    }

    size() {
      return { width: Math.max(120, this.plot.clientWidth), height: this.plot.clientHeight };
    }

    make() {
      this.chart?.destroy();
      const { series, kind, unit, least, step } = this.about;
      const soft = colour("soft"), line = colour("line");
      const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
      const drawn = this.order().map((at) => series[at]).map((one) => ({
        stroke: kind === "stack" ? undefined : colour(one.colour), width: kind === "stack" ? 0 : 2, dash: one.dash, points: { show: false },
        fill: kind === "stack" ? colour(one.colour) : undefined, spanGaps: false,
        paths: step ? uPlot.paths.stepped({ align: 1 }) : undefined,
      }));
      this.chart = new uPlot({
        ...this.size(),
        legend: { show: false },
        cursor: { sync: { key: sync.key }, drag: { x: false, y: false }, points: { show: kind !== "stack", size: 6 } },
        padding: [8, 26, 0, 0],
        scales: {
          x: { time: true, range: (_, from, to) => [Math.min(from, to - 60), to] },
          y: { range: (_, from, to) => [0, Math.max(least, to === null ? 0 : to * 1.08)] },
        },
        axes: [
          { ...axis, grid: { show: false }, size: 24, gap: 6, space: 76, values: (u, ticks) => ticks.map((t) => clock(t, u.scales.x.max - u.scales.x.min < 300)) },
          { ...axis, size: 42, gap: 6, space: 34, incrs: step ? WHOLE : undefined, values: (_, ticks) => ticks.map((v) => short(v) + (unit === "%" ? "%" : "")) },
        ],
        series: [{}, ...drawn],
        hooks: {
          drawClear: [(u) => this.shade(u)],
          setCursor: [(u) => this.tell(u.cursor.idx)],
        },
      }, this.data(), this.plot);
    }

    // Stacked series are drawn from the top one down, each over what the one before has painted below itself.
    order() {
      const places = this.about.series.map((_, at) => at);
      return this.about.kind === "stack" ? places.reverse() : places;
    }

    data() {
      const [times = [], ...rows] = this.values;
      const upTo = (at) => times.map((_, t) => (rows[at][t] == null ? null : rows.slice(0, at + 1).reduce((sum, row) => sum + (row[t] ?? 0), 0)));
      return [times, ...this.order().map((at) => (this.about.kind === "stack" ? upTo(at) : rows[at] ?? []))];
    }

    // The time in which the rate was cut, drawn below everything.
    shade(u) {
      if (!this.about.shaded) return;
      const times = this.values[0] ?? [], states = this.about.shaded();
      const dark = (at) => states[at] != null && states[at] !== "NORMAL";
      u.ctx.save();
      u.ctx.fillStyle = colour("shade");
      for (let at = 0; at < times.length; at += 1) {
        if (!dark(at)) continue;
        const from = at;
        while (dark(at + 1)) at += 1;
        const left = u.valToPos(times[from], "x", true), right = u.valToPos(times[at + 1] ?? times[at], "x", true);
        u.ctx.fillRect(left, u.bbox.top, Math.max(2, right - left), u.bbox.height);
      }
      u.ctx.restore();
    }

    tell(at) {
      const last = (this.values[0] ?? []).length - 1;
      this.about.series.forEach((series, row) => {
        const value = this.values[row + 1]?.[at ?? last];
        const unit = this.about.unit ? (this.about.unit === "%" ? "" : " ") + this.about.unit : "";
        this.legend[row].data = value == null ? series.label : `${series.label} ${short(value)}${unit}`;
      });
    }

    // Takes the values: times, and a row for each series; null where nothing is known.
    set(values) {
      this.values = values;
      this.chart.setData(this.data());
      this.tell(this.chart.cursor.idx);
    }
  }

  const short = (value) => {
    if (value >= 10000) return (value / 1000).toFixed(value >= 100000 ? 0 : 1) + "k";
    return String(Number(value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)));
  };

  const all = [];
  const add = (host, about) => {
    all.push(new Chart(host, about));
    return all.at(-1);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => all.forEach((chart) => chart.make()));
  return { add, short, clock };
})();
