// Draws a chart of longlens.report.charts as SVG, with its legend and its numbers as a table.

const SVG = "http://www.w3.org/2000/svg";
const HEIGHT = 300;
const EDGE = { left: 62, right: 14, top: 22, bottom: 58 };

function drawn(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function words(x, y, text, attributes = {}) {
  return drawn("text", { x, y, ...attributes }, text);
}

const finite = (values) => values.filter((value) => value !== null && Number.isFinite(value));
const plain = (value) => (Math.abs(value) >= 1000 ? value.toLocaleString("en") : String(Number(value.toPrecision(4)))).replace("-", "−");

// Round numbers from low to high, five or so.
function roundTicks(low, high) {
  const rough = (high - low) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) ticks.push(Number((k * step).toPrecision(12)));
  return ticks;
}

// Where values of an axis go: {at, ticks}.
function scale(axis, values, from, to, { zero }) {
  if (axis.categories !== null) {
    const width = (to - from) / axis.categories.length;
    return { at: (i) => from + width * (i + 0.5), ticks: axis.categories.map((_, i) => i), width };
  }
  const f = axis.log ? Math.log : (value) => value;
  let low = values.length ? Math.min(...values) : 0;
  let high = values.length ? Math.max(...values) : 1;
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  if (low === high) [low, high] = axis.log ? [low / 2, high * 2] : [low - 0.5, high + 0.5];
  const room = 0.04 * (f(high) - f(low));
  const [bottom, top] = [zero && low === 0 ? 0 : f(low) - room, f(high) + room];
  const at = (value) => from + ((f(value) - bottom) / (top - bottom)) * (to - from);
  const ticks = axis.log ? [...new Set(values)].sort((a, b) => a - b) : roundTicks(bottom, top);
  return { at, ticks };
}

const MARKERS = [
  (x, y) => drawn("circle", { cx: x, cy: y, r: 4.5 }),
  (x, y) => drawn("rect", { x: x - 4, y: y - 4, width: 8, height: 8 }),
  (x, y) => drawn("path", { d: `M${x} ${y - 5}L${x + 5} ${y + 4}H${x - 5}Z` }),
  (x, y) => drawn("path", { d: `M${x} ${y - 6}L${x + 5} ${y}L${x} ${y + 6}L${x - 5} ${y}Z` }),
];

function marker(series, x, y) {
  const made = MARKERS[series.color % MARKERS.length](x, y);
  made.setAttribute("class", `point s${series.color % 8}`);
  return made;
}

// An SVG of this width in pixels.
function chartSvg(chart, width) {
  const bars = chart.series.some((series) => series.style === "bars");
  const plot = { left: EDGE.left, right: width - EDGE.right, top: EDGE.top, bottom: HEIGHT - EDGE.bottom };
  const x = scale(chart.x, finite([...chart.series.flatMap((s) => s.x)]), plot.left, plot.right, { zero: false });
  const heights = chart.series.flatMap((s) => [...s.y, ...(s.low ?? []), ...(s.high ?? [])]);
  const y = scale(chart.y, finite(heights), plot.bottom, plot.top, { zero: bars });
  const svg = drawn("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": `${chart.title}. ${chart.caption}` });
  for (const tick of y.ticks) {
    svg.append(drawn("line", { class: "grid", x1: plot.left, x2: plot.right, y1: y.at(tick), y2: y.at(tick) }));
    svg.append(words(plot.left - 6, y.at(tick) + 4, plain(tick), { "text-anchor": "end" }));
  }
  // Names that are wider than their place stand in two rows.
  const crowded = chart.x.categories !== null && Math.max(...chart.x.categories.map((name) => 7 * name.length)) > x.width;
  let last = -Infinity;
  for (const tick of x.ticks) {
    const name = chart.x.categories === null ? plain(tick) : chart.x.categories[tick];
    if (x.at(tick) - last < 7 * name.length && chart.x.categories === null) continue;
    last = x.at(tick);
    svg.append(words(last, plot.bottom + (crowded && tick % 2 ? 30 : 16), name, { "text-anchor": "middle" }));
    if (chart.x.categories === null) svg.append(drawn("line", { class: "axis", x1: last, x2: last, y1: plot.bottom, y2: plot.bottom + 4 }));
  }
  svg.append(drawn("line", { class: "axis", x1: plot.left, x2: plot.right, y1: plot.bottom, y2: plot.bottom }));
  svg.append(words((plot.left + plot.right) / 2, HEIGHT - 8, chart.x.label, { "text-anchor": "middle" }));
  svg.append(words(4, 12, chart.y.label));
  chart.marks.forEach((mark, i) => {
    const at = x.at(mark.x);
    svg.append(drawn("line", { class: `mark s${mark.color % 8}`, x1: at, x2: at, y1: plot.top, y2: plot.bottom }));
    svg.append(words(at + 4, plot.bottom - 8 - 14 * i, mark.label));
  });
  const barred = chart.series.filter((series) => series.style === "bars");
  for (const series of chart.series) svg.append(...seriesMarks(series, x, y, barred.indexOf(series), barred.length));
  return svg;
}

function seriesMarks(series, x, y, bar, bars) {
  const color = `s${series.color % 8}`;
  const points = series.x.map((value, i) => [value, series.y[i], i]).filter(([, value]) => value !== null);
  const title = (value, i) => drawn("title", {}, `${series.labels?.[i] ?? series.name}: ${plain(value)}`);
  if (series.style === "bars") {
    const width = (0.8 * x.width) / bars;
    return points.map(([place, value, i]) => {
      const left = x.at(place) - 0.4 * x.width + bar * width;
      const box = { x: left, y: y.at(value), width: Math.max(1, width - 1), height: Math.max(0, y.at(0) - y.at(value)) };
      return drawn("rect", { class: `bar ${color}${bar % 2 ? " striped" : ""}`, ...box }, title(value, i));
    });
  }
  const made = [];
  if (series.style === "points") {
    for (const [place, value, i] of points) {
      const low = series.low?.[i] ?? null;
      const high = series.high?.[i] ?? null;
      if (low !== null && high !== null) made.push(drawn("line", { class: `error ${color}`, x1: x.at(place), x2: x.at(place), y1: y.at(low), y2: y.at(high) }));
      const point = marker(series, x.at(place), y.at(value));
      point.append(title(value, i));
      made.push(point);
      if (series.labels) made.push(words(x.at(place) + 8, y.at(value) - 6, visible(series.labels[i])));
    }
    return made;
  }
  // A gap ends a line; what stands alone between two gaps is a point.
  let path = "";
  series.x.forEach((place, i) => {
    if (series.y[i] === null) return;
    path += `${i > 0 && series.y[i - 1] !== null ? "L" : "M"}${x.at(place).toFixed(1)} ${y.at(series.y[i]).toFixed(1)}`;
  });
  if (path) made.push(drawn("path", { class: `line ${color}${series.style === "dashed" ? " dashed" : ""}`, d: path }, drawn("title", {}, series.name)));
  return made;
}

function chartLegend(chart) {
  const items = chart.series.map((series, i) => {
    const swatch = drawn("svg", { width: 26, height: 12, "aria-hidden": "true" });
    if (series.style === "points") swatch.append(marker(series, 13, 6));
    else if (series.style === "bars") swatch.append(drawn("rect", { class: `bar s${series.color % 8}${i % 2 ? " striped" : ""}`, x: 3, y: 1, width: 20, height: 10 }));
    else swatch.append(drawn("path", { class: `line s${series.color % 8}${series.style === "dashed" ? " dashed" : ""}`, d: "M0 6H26" }));
    return element("li", {}, swatch, element("bdi", { textContent: visible(series.name) }));
  });
  return element("ul", { className: "keys-of-chart" }, ...items);
}

function chartTable(chart) {
  const xs = [...new Set(chart.series.flatMap((series) => series.x))].sort((a, b) => a - b);
  const header = [chart.x.label, ...chart.series.map((series) => visible(series.name))];
  const rows = xs.map((at) => {
    const cells = chart.series.map((series) => {
      const i = series.x.indexOf(at);
      const value = i < 0 ? null : series.y[i];
      const interval = value === null || !series.low || series.low[i] === null ? "" : ` (${plain(series.low[i])} to ${plain(series.high[i])})`;
      return element("td", { textContent: value === null ? "–" : plain(value) + interval });
    });
    const name = chart.x.categories === null ? plain(at) : chart.x.categories[at];
    return element("tr", {}, element("th", { scope: "row", textContent: name }), ...cells);
  });
  const head = element("thead", {}, element("tr", {}, ...header.map((name) => element("th", { scope: "col", textContent: name }))));
  const table = element("table", {}, element("caption", { textContent: chart.y.label }), head, element("tbody", {}, ...rows));
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", `Numbers of ${chart.title}`);
  return element("details", {}, element("summary", { textContent: "Numbers" }), scroll);
}

// The whole figure; it is drawn anew when its width changes, so that its text keeps its size.
function chartFigure(chart) {
  const place = element("div");
  const figure = element(
    "figure",
    { id: `chart-${chart.name}` },
    element("h3", { textContent: visible(chart.title) }),
    chartLegend(chart),
    place,
    element("figcaption", { textContent: visible(chart.caption) }),
    chartTable(chart),
  );
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.min(760, Math.max(280, Math.floor(place.clientWidth)));
    if (now === width) return;
    width = now;
    place.replaceChildren(chartSvg(chart, width));
  }).observe(place);
  return figure;
}
