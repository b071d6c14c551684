// Puts the page together: reads its data, and wires the controls to the panes, the values and the charts.

const byId = (id) => document.getElementById(id);
const page = JSON.parse(byId("page-data").textContent);
const stored = document.querySelectorAll("script.document-data");

const state = {
  page,
  document: null,
  tokens: [],
  keys: null,
  color: "lsd",
  carried: new Map(),
  where: null,
  trace: (pane, token) => showWhere(state, panes, pane, token, thresholds === null ? (page.settings?.alpha ?? 2) : rule().alpha),
  say: (text) => (byId("said").textContent = text),
  notice: (text) => (byId("notice").value = text),
  tip: null,

  // LSD of a run's tokens: its own, or the evaluator's over the same characters where it has no short scores.
  lsdOf(run) {
    const { lsd } = this.tokens[run];
    const evaluator = page.evaluator === null ? null : this.tokens[page.evaluator];
    if (lsd !== null || evaluator === null || evaluator.lsd === null) return lsd;
    if (!this.carried.has(run)) {
      this.carried.set(run, carry(evaluator, evaluator.lsd, this.tokens[run], this.document.text));
    }
    return this.carried.get(run);
  },
};

const thresholds = (() => {
  if (page.alphas === null) return null;
  const tables = page.runs.map((run) => {
    if (run.thresholds === null) return null;
    return { logprob: decode(run.thresholds.logprob, Float64Array), tokens: decode(run.thresholds.tokens, Int32Array) };
  });
  const slider = (id, values, value) => {
    const input = byId(id);
    Object.assign(input, { min: values[0], max: values[values.length - 1], step: 0.1, value });
    return () => values[Math.round((Number(input.value) - values[0]) * 10)];
  };
  return {
    alpha: slider("alpha", page.alphas, page.settings.alpha),
    beta: slider("beta", page.betas, page.settings.beta),
    // The corpus values stand in a table with a row an alpha; its first column is without beta.
    corpus(run, alpha, beta) {
      const table = tables[run];
      const column = beta === null ? 0 : 1 + page.betas.indexOf(beta);
      const at = page.alphas.indexOf(alpha) * (page.betas.length + 1) + column;
      return perplexityOf(table.logprob[at], table.tokens[at]);
    },
  };
})();

const rule = () => ({ alpha: thresholds.alpha(), beta: byId("use-lcl").checked ? thresholds.beta() : null });
const shown = (value) => (value === null ? "–" : value.toLocaleString("en", { minimumFractionDigits: 3, maximumFractionDigits: 3 }));

// Selects the key tokens of the document anew and computes every value that depends on the thresholds.
function select() {
  let runs = state.document.keys === null ? null : decode(state.document.keys, Int32Array);
  const evaluator = page.evaluator === null ? null : state.tokens[page.evaluator];
  const chosen = thresholds === null ? null : rule();
  if (thresholds !== null) {
    const named = { alpha: plain(chosen.alpha), beta: chosen.beta === null ? "(not used)" : plain(chosen.beta) };
    for (const [id, name] of Object.entries(named)) {
      byId(`${id}-value`).value = name;
      byId(id).setAttribute("aria-valuetext", name === "(not used)" ? "not used" : `${name} nats`);
    }
    byId("beta").disabled = chosen.beta === null;
    if (evaluator !== null && evaluator.lsd !== null) {
      runs = mergeRuns(evaluator, hardInfluence(evaluator, chosen.alpha, chosen.beta));
    }
  }
  // Every run's values are of its tokens in the key text (eq. 9); the evaluator's marks are of those that it selects.
  const counted = runs === null ? null : state.tokens.map((tokens) => tokens && tokensInRuns(tokens, runs));
  state.keys = counted && [...counted];
  if (evaluator !== null && evaluator.lsd !== null) {
    state.keys[page.evaluator] = hardInfluence(evaluator, chosen.alpha, chosen.beta);
  }
  const rows = page.runs.map((run, index) => {
    if (!run.compared) return "";
    const corpus = run.thresholds === null ? run.result : thresholds.corpus(index, chosen.alpha, chosen.beta);
    const own = counted === null || state.tokens[index] === null ? { value: null, tokens: null } : perplexity(state.tokens[index], counted[index]);
    const cells = [corpus, own].flatMap(({ value, tokens }) => [
      element("td", { className: "longppl", textContent: shown(value) }),
      element("td", { textContent: tokens === null ? "–" : tokens.toLocaleString("en") }),
    ]);
    [corpus, own].forEach(({ value }, i) => (cells[2 * i].dataset.value = String(value)));
    return element("tr", {}, element("th", { scope: "row" }, element("bdi", { textContent: run.name })), ...cells);
  });
  byId("values").tBodies[0].replaceChildren(...rows);
  for (const pane of panes) pane.mark();
  state.notice("");
}

// The scores of a token beside it, on hover and on focus.
state.tip = {
  target: null,
  show(pane, token, target) {
    this.target = target;
    const { start, end, long, short } = pane.tokens;
    const lsd = state.lsdOf(pane.run);
    const percent = (logprob) => (Number.isNaN(logprob) ? "–" : `${(100 * Math.exp(logprob)).toPrecision(3)} %`);
    const nats = (value) => (Number.isNaN(value) ? "–" : `${value.toFixed(3)} nats`);
    const carried = pane.tokens.lsd === null ? ` (of ${page.runs[page.evaluator]?.name}, same characters)` : "";
    const key = state.keys !== null && state.keys[pane.run][token];
    const lines = [
      ["token", `${quoted(state.document.text.slice(start[token], end[token]))}, number ${token.toLocaleString("en")}`],
      ["LSD", lsd === null ? "no short-context scores" : nats(lsd[token]) + (Number.isNaN(lsd[token]) ? ": fewer than K tokens before it" : carried)],
      ["LCL", nats(long[token])],
      ["P long", percent(long[token])],
      ["P short", short === null ? "–" : percent(short[token])],
      ["key token", state.keys === null ? "–" : key ? "yes" : "no"],
    ];
    const list = element("dl", {}, ...lines.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
    const tip = byId("tip");
    tip.replaceChildren(list);
    tip.hidden = false;
    this.place();
    if (document.activeElement === target) state.say(lines.map(([name, value]) => `${name} ${value}`).join(", "));
  },
  place() {
    const tip = byId("tip");
    const box = this.target.getBoundingClientRect();
    const width = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(4, Math.min(box.left, width - tip.offsetWidth - 4)) + scrollX}px`;
    const below = box.bottom + 6 + tip.offsetHeight < innerHeight;
    tip.style.top = `${(below ? box.bottom + 6 : Math.max(4, box.top - tip.offsetHeight - 6)) + scrollY}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
  // The tip of a focused token goes with it; one that the pointer brought goes away.
  scrolled() {
    if (byId("tip").hidden) return;
    if (document.activeElement === this.target) this.place();
    else this.hide();
  },
};

const panes = [];

function addPane(run) {
  const pane = new Pane(state, panes.length + 1, moved);
  panes.push(pane);
  byId("panes").append(pane.root);
  pane.body.addEventListener("pointerover", (event) => {
    if (event.target.token !== undefined) state.tip.show(pane, event.target.token, event.target);
  });
  pane.body.addEventListener("pointerleave", () => state.tip.hide());
  pane.body.addEventListener("focusout", () => state.tip.hide());
  pane.body.addEventListener("scroll", () => follow(pane), { passive: true });
  pane.offer(run);
}

// The pane that was used last leads: jumps go through it, and the others follow it.
let leading = null;

function moved(pane) {
  leading = pane;
  for (const each of panes) each.led = performance.now();
  for (const other of panes) {
    if (other === pane) continue;
    other.place(other.tokenAt(pane.tokens.start[pane.current]));
    other.reveal("nearest");
  }
}

function follow(pane) {
  state.tip.scrolled();
  if (panes.length < 2 || performance.now() - pane.led < 150) return;
  const offset = pane.tokens.start[pane.firstVisible()];
  for (const other of panes) {
    if (other === pane) continue;
    other.led = performance.now();
    const top = other.body.getBoundingClientRect().top;
    other.body.scrollTop += other.elements[other.tokenAt(offset)].getBoundingClientRect().top - top;
  }
}

function openDocument(index) {
  state.document = JSON.parse(stored[index].textContent);
  state.carried.clear();
  state.tokens = state.document.runs.map(readTokens);
  state.where = readWhere(state.document.where);
  byId("where").replaceChildren();
  byId("document").value = String(index);
  state.keys = null;
  const bare = state.document.text === null;
  for (const id of ["panes", "reading", "legend"]) byId(id).hidden = bare;
  byId("no-text").hidden = !bare;
  if (bare) {
    select();
    return;
  }
  const wanted = panes.map((pane) => pane.run);
  if (panes.length === 0) addPane(page.evaluator ?? 0);
  else panes.forEach((pane, i) => pane.offer(wanted[i]));
  select();
  search();
}

function search() {
  const text = byId("search").value;
  const pattern = text === "" ? null : new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"), "giu");
  for (const pane of panes) pane.find(pattern);
  const count = panes.length ? panes[0].matches.length : 0;
  byId("search-count").value = text === "" ? "" : `${count.toLocaleString("en")} ${count === 1 ? "match" : "matches"}`;
}

function nextMatch(step) {
  const pane = leading ?? panes[0];
  const matches = new Set(pane.matches);
  const here = pane.fresh && matches.has(pane.current);
  const found = here ? pane.current : pane.next((i) => matches.has(i), step);
  pane.fresh = false;
  if (found >= 0) pane.go(found, { focus: false });
}

function legend() {
  const lcl = state.color === "lcl";
  const edges = (lcl ? LCL_EDGES : LSD_EDGES).map((edge) => String(edge).replace("-", "−"));
  const names = [`< ${edges[0]}`, ...edges.slice(1).map((edge, i) => `${edges[i]} to ${edge}`), `≥ ${edges[edges.length - 1]}`];
  const swatches = names.map((name, i) => element("span", { className: `t ${lcl ? "p" : "c"}${i}`, textContent: name }));
  const title = lcl ? "Log-probability, nats: " : "LSD, nats: ";
  byId("legend").replaceChildren(title, ...swatches, element("span", { className: "t none key", textContent: "key token" }));
}

// Opens a document by its id, at a token of the run whose key tokens are listed.
function openAt(id, token = null, run = page.judge) {
  const index = page.documents.indexOf(id);
  if (index < 0) return;
  if (state.document.id !== id) openDocument(index);
  byId("text").scrollIntoView();
  if (token === null || !panes.length || state.tokens[run] === null || state.tokens[run] === undefined) return;
  if (panes[0].run !== run) panes[0].show(run);
  panes[0].go(token);
}

function currentView() {
  const pane = leading ?? panes[0];
  const chosen = thresholds === null ? { alpha: null, beta: null } : rule();
  return {
    doc: state.document.id,
    token: pane === undefined ? null : pane.current,
    run: pane === undefined ? null : page.runs[pane.run].name,
    alpha: chosen.alpha,
    beta: thresholds !== null && chosen.beta === null ? "none" : chosen.beta,
  };
}

function openView(view) {
  if (thresholds !== null) {
    for (const id of ["alpha", "beta"]) if (view[id] !== undefined && Number.isFinite(Number(view[id]))) byId(id).value = view[id];
    if (view.beta !== undefined) byId("use-lcl").checked = view.beta !== "none";
    select();
  }
  const run = page.runs.findIndex((each) => each.name === view.run);
  const token = /^[0-9]{1,9}$/.test(view.token ?? "") ? Number(view.token) : null;
  openAt(view.doc, token, run < 0 ? page.judge : run);
}

async function copyLink() {
  const hash = viewHash(currentView());
  history.replaceState(null, "", hash);
  state.notice((await copyText(location.href)) ? "Link copied." : "The link is in the address bar.");
}

function chartPlace(chart) {
  if (page.cost !== null) return chart.name.startsWith("cost-") ? (chart.name === "cost-bytes" ? "answer-chart" : "cost-figures") : "figures";
  return chart.name === "ppl-longppl" ? "answer-chart" : "figures";
}

function start() {
  documentTable(byId("document-table"), page, openAt);
  if (byId("token-table")) tokenTable(byId("token-table"), page, openAt);
  if (page.cost !== null) {
    costTable(byId("cost-table"), page.cost);
    costDocuments(byId("cost-documents"), page.cost, openAt);
    costTokens(byId("cost-tokens"), page.cost, openAt);
  }
  for (const chart of page.charts) chart.open = (series, i) => series.places && openAt(...series.places[i]);
  for (const chart of page.charts) byId(chartPlace(chart)).append(chartFigure(chart));
  if (!stored.length) return;
  byId("reader").hidden = false;
  byId("thresholds").hidden = thresholds === null;
  const options = page.documents.map((id, index) => element("option", { value: index, textContent: visible(id) }));
  byId("document").replaceChildren(...options);
  if (thresholds !== null) byId("use-lcl").checked = page.settings.lcl;
  legend();
  openDocument(page.first);
  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("document").addEventListener("change", (event) => openDocument(Number(event.target.value)));
  for (const id of ["alpha", "beta"]) byId(id).addEventListener("input", select);
  byId("use-lcl").addEventListener("change", select);
  byId("reset").addEventListener("click", () => {
    byId("alpha").value = page.settings.alpha;
    byId("beta").value = page.settings.beta;
    byId("use-lcl").checked = page.settings.lcl;
    select();
  });
  byId("color").addEventListener("change", (event) => {
    state.color = event.target.value;
    legend();
    for (const pane of panes) {
      pane.color();
      pane.mark();
    }
  });
  byId("beside").addEventListener("change", (event) => {
    if (event.target.checked) addPane((panes[0].run + 1) % page.runs.length);
    else panes.pop().root.remove();
    byId("panes").classList.toggle("two", event.target.checked);
    leading = panes[0];
    search();
  });
  byId("search").addEventListener("input", search);
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextMatch(event.shiftKey ? -1 : 1);
  });
  byId("search-next").addEventListener("click", () => nextMatch(1));
  byId("search-previous").addEventListener("click", () => nextMatch(-1));
  byId("key-next").addEventListener("click", () => (leading ?? panes[0]).nextKey(1));
  byId("key-previous").addEventListener("click", () => (leading ?? panes[0]).nextKey(-1));
  byId("copy").addEventListener("click", copyLink);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") state.tip.hide();
  });
  const openHash = () => {
    const view = hashView();
    if (view !== null) openView(view);
  };
  addEventListener("hashchange", openHash);
  openHash();
}

start();
