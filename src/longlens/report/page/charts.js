// Draws what longlens.report.charts says with uPlot, with a legend, values on hover, and its numbers as a table.

const HEIGHT = 300;
const FONT = "12px system-ui, sans-serif";

const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));
const plain = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(4)))).replace("-", "−");

// Shapes of points, as paths around 0: a second way to tell models apart.
const MARKERS = [
  "M4.5 0A4.5 4.5 0 1 1 -4.5 0A4.5 4.5 0 1 1 4.5 0Z",
  "M-4 -4H4V4H-4Z",
  "M0 -5L5 4H-5Z",
  "M0 -6L5 0L0 6L-5 0Z",
];
const DASH = [6, 4];

const markerOf = (series) => MARKERS[series.color % MARKERS.length];
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const inkOf = (color) => ink(`--s${color % 8}`);

function drawn(name, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

const placeName = (chart, x) => (chart.x.categories === null ? plain(x) : visible(chart.x.categories[x]));

// Every series on the x of all: null is a gap, undefined a place that this series does not have.
function aligned(chart) {
  const scatter = chart.series.every((series) => series.style === "points" && series.labels);
  if (scatter) {
    // Each point has a place of its own, as two may stand at one x.
    const points = chart.series.flatMap((series, k) => series.x.map((x, i) => ({ x, k, i })));
    points.sort((a, b) => a.x - b.x);
    const columns = chart.series.map((series, k) => points.map((p) => (p.k === k ? series.y[p.i] : undefined)));
    return { xs: points.map((p) => p.x), columns, points, scatter };
  }
  const xs = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const columns = chart.series.map((series) => {
    const places = new Map(series.x.map((x, i) => [x, series.y[i]]));
    return xs.map((x) => places.get(x));
  });
  return { xs, columns, points: null, scatter };
}

// The range of an axis, with a little room.
function room(low, high, { log = false, zero = false, equal = null } = {}) {
  if (equal !== null) [low, high] = equal;
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  if (log) return [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
  const more = 0.05 * (high - low);
  return [zero && low === 0 ? 0 : low - more, high + more];
}

// Where each bar of a category begins and ends.
function barEdges(bar, bars) {
  const width = 0.8 / bars;
  return [-0.4 + bar * width, -0.4 + (bar + 1) * width - 0.08 * width];
}

function barPaths(bar, bars) {
  const [from, to] = barEdges(bar, bars);
  return (u, index, first, last) => {
    const path = new Path2D();
    for (let i = first; i <= last; i++) {
      const value = u.data[index][i];
      if (value === null || value === undefined) continue;
      const [left, right] = [from, to].map((edge) => u.valToPos(u.data[0][i] + edge, "x", true));
      const [top, bottom] = [value, 0].map((y) => u.valToPos(y, "y", true));
      path.rect(left, Math.min(top, bottom), Math.max(1, right - left), Math.abs(bottom - top));
    }
    return { stroke: null, fill: path, clip: null, band: null, gaps: null, flags: 1 };
  };
}

// Bands and bars of intervals, points, names and marks, which uPlot leaves to us; on its canvas.
function extras(chart, u) {
  const { ctx } = u;
  const ratio = devicePixelRatio;
  const bars = chart.series.filter((series) => series.style === "bars");
  const x = (value) => u.valToPos(value, "x", true);
  const y = (value) => u.valToPos(value, "y", true);
  ctx.save();
  ctx.beginPath();
  ctx.rect(u.bbox.left, 0, u.bbox.width, u.bbox.top + u.bbox.height);
  ctx.clip();
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  chart.guides?.forEach(([[x0, y0], [x1, y1]]) => {
    ctx.strokeStyle = ink("--soft");
    ctx.lineWidth = ratio;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    ctx.stroke(new Path2D(`M${x(x0)} ${y(y0)}L${x(x1)} ${y(y1)}`));
  });
  ctx.setLineDash([]);
  const named = [];
  for (const series of chart.series) {
    const color = inkOf(series.color);
    const has = series.x.map((_, i) => i).filter((i) => series.low !== null && series.high !== null && series.low[i] !== null && series.high[i] !== null);
    if (series.style !== "bars" && !series.labels && has.length > 1) {
      ctx.fillStyle = color;
      ctx.globalAlpha = 0.15;
      ctx.beginPath();
      for (const i of has) ctx.lineTo(x(series.x[i]), y(series.low[i]));
      for (const i of has.reverse()) ctx.lineTo(x(series.x[i]), y(series.high[i]));
      ctx.fill();
      ctx.globalAlpha = 1;
    }
    const [from, to] = series.style === "bars" ? barEdges(bars.indexOf(series), bars.length) : [0, 0];
    ctx.strokeStyle = series.style === "bars" ? ink("--ink") : color;
    ctx.lineWidth = 1.5 * ratio;
    for (const i of has) {
      const at = x(series.x[i] + (from + to) / 2);
      ctx.stroke(new Path2D(`M${at} ${y(series.low[i])}V${y(series.high[i])}`));
    }
    if (series.style !== "points") continue;
    const shape = new Path2D(markerOf(series));
    const small = series.x.length > 60;
    ctx.fillStyle = color;
    ctx.globalAlpha = small ? 0.55 : 1;
    series.x.forEach((place, i) => {
      if (series.y[i] === null) return;
      const [size, dx, dy] = [(small ? 0.6 : 1) * ratio, x(place), y(series.y[i])];
      const moved = new Path2D();
      moved.addPath(shape, new DOMMatrix([size, 0, 0, size, dx, dy]));
      ctx.fill(moved);
    });
    ctx.globalAlpha = 1;
    if (!series.labels || series.places || small) continue;
    ctx.fillStyle = ink("--ink");
    series.x.forEach((place, i) => {
      if (series.y[i] === null) return;
      const name = visible(series.labels[i]);
      const wide = ctx.measureText(name).width;
      const right = x(place) + 8 * ratio + wide > u.bbox.left + u.bbox.width;
      const [left, base] = [x(place) + (right ? -8 * ratio - wide : 8 * ratio), y(series.y[i]) - 6 * ratio];
      // A name that would lie on another one is left out: the pointer and the table have it.
      if (named.some(([from, to, at]) => left < to && from < left + wide && Math.abs(at - base) < 12 * ratio)) return;
      named.push([left, left + wide, base]);
      ctx.textAlign = "left";
      ctx.fillText(name, left, base);
    });
  }
  chart.marks.forEach((mark, i) => {
    ctx.strokeStyle = inkOf(mark.color);
    ctx.lineWidth = 1.5 * ratio;
    ctx.setLineDash([2 * ratio, 3 * ratio]);
    ctx.stroke(new Path2D(`M${x(mark.x)} ${u.bbox.top}V${u.bbox.top + u.bbox.height}`));
    ctx.setLineDash([]);
    ctx.fillStyle = ink("--ink");
    const name = visible(mark.label);
    const right = x(mark.x) + ctx.measureText(name).width + 4 * ratio > u.bbox.left + u.bbox.width;
    ctx.textAlign = right ? "right" : "left";
    ctx.fillText(name, x(mark.x) + (right ? -4 : 4) * ratio, u.bbox.top + u.bbox.height - (8 + 14 * i) * ratio);
  });
  ctx.restore();
}

// What stands beside the pointer: the place, and the value of every series there.
function chartTip(chart, data, tip, u) {
  const at = u.cursor.idx;
  tip.hidden = at === null || at === undefined || u.cursor.left < 0;
  if (tip.hidden) return;
  const { xs, columns, points } = data;
  const lines = [];
  if (points !== null) {
    const { k, i } = points[at];
    const series = chart.series[k];
    lines.push([series.labels[i], ""], [chart.x.label, plain(series.x[i])], [chart.y.label, inWordsOf(series, i)]);
  } else {
    lines.push([chart.x.label, placeName(chart, xs[at])]);
    chart.series.forEach((series, k) => {
      const value = columns[k][at];
      if (value !== null && value !== undefined) lines.push([series.name, valueInWords(series, xs[at], value)]);
    });
  }
  tip.replaceChildren(...lines.flatMap(([name, value]) => [element("dt", { textContent: visible(name) }), element("dd", { textContent: value })]));
  const right = u.cursor.left > u.over.clientWidth / 2;
  tip.style.left = right ? "" : `${u.over.offsetLeft + u.cursor.left + 12}px`;
  tip.style.right = right ? `${u.root.clientWidth - u.over.offsetLeft - u.cursor.left + 12}px` : "";
}

function valueInWords(series, place, value) {
  const i = series.x.indexOf(place);
  return inWordsOf(series, i, value);
}

function inWordsOf(series, i, value = series.y[i]) {
  if (value === null) return "–";
  const has = series.low !== null && series.high !== null && series.low[i] !== null && series.high[i] !== null;
  return plain(value) + (has ? ` (${plain(series.low[i])} to ${plain(series.high[i])})` : "");
}

// The point that is nearest to the pointer, where several may stand at one x.
function nearest(u, columns) {
  let best = null;
  let least = 900;
  u.data[0].forEach((place, i) => {
    const dx = u.valToPos(place, "x") - u.cursor.left;
    if (dx * dx > least) return;
    const value = columns.map((column) => column[i]).find((each) => each !== undefined && each !== null);
    if (value === undefined) return;
    const distance = dx * dx + (u.valToPos(value, "y") - u.cursor.top) ** 2;
    if (distance < least) [best, least] = [i, distance];
  });
  return best;
}

function plot(chart, width, place, tip) {
  const data = aligned(chart);
  const { xs, columns, scatter } = data;
  const bars = chart.series.filter((series) => series.style === "bars");
  const heights = finite(chart.series.flatMap((series) => [...series.y, ...(series.low ?? []), ...(series.high ?? [])]));
  const [low, high] = heights.length ? [Math.min(...heights), Math.max(...heights)] : [0, 1];
  const categories = chart.x.categories;
  // Names of categories are in up to three rows, and shortened where they would run into each other or over an edge.
  const slot = categories === null ? width : (width - 76) / categories.length;
  const rows = categories === null ? 1 : Math.min(3, Math.ceil(Math.max(...categories.map((name) => 7 * name.length)) / slot));
  const fits = Math.max(4, Math.floor(Math.min(rows * slot - 6, slot + 80) / 7));
  const shortened = (name) => (name.length > fits ? `${name.slice(0, fits - 1)}…` : name);
  const [left, right] = xs.length ? [xs[0], xs[xs.length - 1]] : [0, 1];
  const both = [Math.min(left, low), Math.max(right, high)];
  const xRange = categories !== null ? [-0.5, categories.length - 0.5] : room(left, right, { log: chart.x.log, equal: chart.guides ? both : null });
  const yRange = room(low, high, { zero: bars.length > 0, equal: chart.guides ? both : null });
  const lines = { stroke: ink("--ink"), font: FONT, labelFont: FONT, ticks: { stroke: ink("--soft"), width: 1, size: 4 } };
  const u = new uPlot(
    {
      width,
      height: HEIGHT,
      legend: { show: false },
      cursor: {
        drag: { x: false, y: false },
        points: { show: false },
        y: scatter,
        dataIdx: scatter ? (self) => nearest(self, columns) : undefined,
      },
      scales: {
        x: { time: false, range: () => xRange, ...(chart.x.log ? { distr: 3, log: 2 } : {}) },
        y: { range: () => yRange },
      },
      axes: [
        {
          ...lines,
          label: chart.x.label,
          labelSize: 22,
          size: 8 + 18 * rows,
          grid: { show: categories === null, stroke: ink("--line"), width: 1 },
          ...(categories === null ? {} : { splits: () => categories.map((_, i) => i) }),
          ...(chart.x.log ? { splits: () => xs, filter: (_, splits) => splits } : {}),
          space: 44,
          values: (_, splits) => splits.map((at) => (categories === null ? plain(at) : "\n".repeat(at % rows) + shortened(placeName(chart, at)))),
        },
        { ...lines, label: chart.y.label, labelSize: 20, size: 46, grid: { stroke: ink("--line"), width: 1 }, values: (_, splits) => splits.map(plain) },
      ],
      series: [
        {},
        ...chart.series.map((series) => ({
          stroke: series.style === "points" ? null : inkOf(series.color),
          fill: series.style === "bars" ? inkOf(series.color) + (bars.indexOf(series) % 2 ? "99" : "") : undefined,
          width: series.style === "bars" ? 0 : 2,
          dash: series.style === "dashed" ? DASH : undefined,
          points: { show: false },
          paths: series.style === "bars" ? barPaths(bars.indexOf(series), bars.length) : series.style === "points" ? () => null : uPlot.paths.linear(),
        })),
      ],
      hooks: { draw: [(self) => extras(chart, self)], setCursor: [(self) => chartTip(chart, data, tip, self)] },
    },
    [xs, ...columns],
    place,
  );
  if (scatter && chart.open) {
    u.over.addEventListener("click", () => {
      const at = u.cursor.idx;
      if (at !== null && at !== undefined) chart.open(chart.series[data.points[at].k], data.points[at].i);
    });
  }
  return u;
}

function chartLegend(chart) {
  const bars = chart.series.filter((series) => series.style === "bars");
  const items = chart.series.map((series) => {
    const color = `s${series.color % 8}`;
    const swatch = drawn("svg", { width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" });
    if (series.style === "points") swatch.append(drawn("path", { class: `point ${color}`, d: markerOf(series), transform: "translate(13 6)" }));
    else if (series.style === "bars") swatch.append(drawn("rect", { class: `bar ${color}${bars.indexOf(series) % 2 ? " faint" : ""}`, x: 3, y: 1, width: 20, height: 10 }));
    else swatch.append(drawn("path", { class: `line ${color}${series.style === "dashed" ? " dashed" : ""}`, d: "M0 6H26" }));
    return element("li", {}, swatch, element("bdi", { textContent: visible(series.name) }));
  });
  return element("ul", { className: "keys-of-chart" }, ...items);
}

// The numbers of a chart: names of columns, and a row a place, or a row a point where each has a name.
function chartNumbers(chart) {
  if (chart.series.every((series) => series.labels)) {
    const has = chart.series.some((series) => series.low !== null);
    const ends = (series, i) => (has ? [series.low?.[i] ?? null, series.high?.[i] ?? null] : []);
    const rows = chart.series.flatMap((series) => series.x.map((x, i) => [series.name, series.labels[i], x, series.y[i], ...ends(series, i)]));
    return { names: ["series", "name", chart.x.label, chart.y.label, ...(has ? ["95 % low", "95 % high"] : [])], rows };
  }
  const { xs, columns } = aligned(chart);
  const names = [chart.x.label];
  for (const series of chart.series) names.push(series.name, ...(series.low === null ? [] : [`${series.name}, low`, `${series.name}, high`]));
  const rows = xs.map((x, at) => {
    const row = [chart.x.categories === null ? x : chart.x.categories[x]];
    chart.series.forEach((series, k) => {
      const i = series.x.indexOf(x);
      row.push(columns[k][at] ?? null, ...(series.low === null ? [] : [series.low[i] ?? null, series.high[i] ?? null]));
    });
    return row;
  });
  return { names, rows };
}

function chartTable(chart) {
  if (chart.series.some((series) => series.x.length > 200)) return ""; // of so many points, the file has them
  if (chart.series.every((series) => series.labels)) {
    const points = chart.series.flatMap((series) => series.x.map((x, i) => [series.labels[i], plain(x), inWordsOf(series, i)]));
    return numbersTable(chart, ["name", chart.x.label, chart.y.label], points);
  }
  const xs = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const header = [chart.x.label, ...chart.series.map((series) => visible(series.name))];
  const rows = xs.map((at) => {
    const cells = chart.series.map((series) => {
      const i = series.x.indexOf(at);
      return i < 0 ? "–" : inWordsOf(series, i);
    });
    return [placeName(chart, at), ...cells];
  });
  return numbersTable(chart, header, rows);
}

function numbersTable(chart, header, rows) {
  const head = element("thead", {}, element("tr", {}, ...header.map((name) => element("th", { scope: "col", textContent: name }))));
  const lines = rows.map(([name, ...cells]) =>
    element("tr", {}, element("th", { scope: "row", textContent: visible(name) }), ...cells.map((cell) => element("td", { textContent: cell }))),
  );
  const table = element("table", {}, element("caption", { textContent: chart.y.label }), head, element("tbody", {}, ...lines));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", `Numbers of ${chart.title}`);
  return element("details", {}, element("summary", { textContent: "Numbers" }), scroll);
}

// The chart with its title and its legend on one picture.
function saveChart(chart, u) {
  const ratio = devicePixelRatio;
  const canvas = element("canvas", { width: u.ctx.canvas.width, height: u.ctx.canvas.height + (34 + 18 * chart.series.length) * ratio });
  const ctx = canvas.getContext("2d");
  ctx.fillStyle = ink("--paper");
  ctx.fillRect(0, 0, canvas.width, canvas.height);
  ctx.font = `600 ${14 * ratio}px system-ui, sans-serif`;
  ctx.fillStyle = ink("--ink");
  ctx.fillText(visible(chart.title), 8 * ratio, 20 * ratio, canvas.width - 16 * ratio);
  ctx.font = `${12 * ratio}px system-ui, sans-serif`;
  chart.series.forEach((series, k) => {
    const top = (28 + 18 * k) * ratio;
    ctx.fillStyle = inkOf(series.color);
    ctx.fillRect(8 * ratio, top, 20 * ratio, series.style === "line" || series.style === "dashed" ? 3 * ratio : 10 * ratio);
    ctx.fillStyle = ink("--ink");
    ctx.fillText(visible(series.name), 34 * ratio, top + 10 * ratio, canvas.width - 40 * ratio);
  });
  ctx.drawImage(u.ctx.canvas, 0, (34 + 18 * chart.series.length) * ratio);
  canvas.toBlob((blob) => save(`${chart.name}.png`, "image/png", blob), "image/png");
}

// The whole figure; it is drawn anew when its width or the colors change.
function chartFigure(chart, title = "h3") {
  const place = element("div");
  const tip = element("dl", { className: "chart-tip", hidden: true });
  const canvas = element("div", { className: "chart" }, place, tip);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${chart.title}. ${chart.caption}`);
  let u = null;
  let width = 0;
  const draw = (now) => {
    width = now;
    u?.destroy();
    place.replaceChildren();
    tip.hidden = true;
    u = plot(chart, width, place, tip);
  };
  new ResizeObserver(() => {
    const now = Math.min(760, Math.max(280, Math.floor(canvas.clientWidth)));
    if (now !== width) draw(now);
  }).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => width && draw(width));
  canvas.addEventListener("pointerleave", () => (tip.hidden = true));
  const buttons = [saveButton("PNG", chart.title, () => saveChart(chart, u)), ...tableButtons(chart.name, chart.title, () => chartNumbers(chart))];
  return element(
    "figure",
    { id: `chart-${chart.name}` },
    element(title, { textContent: visible(chart.title) }),
    chartLegend(chart),
    canvas,
    element("figcaption", { textContent: visible(chart.caption) }),
    element("div", { className: "saves" }, ...buttons),
    chartTable(chart),
  );
}
