// A table that sorts, filters and shows some rows at first.

const ROWS_AT_FIRST = 10;
const ROWS_MORE = 50;

// columns: [{name, value(row), cell(row)}]; value is what is sorted, filtered and saved, cell makes what is seen.
function dataTable(host, { name, caption, filterLabel, columns, rows, sort }) {
  let order = { column: sort.column, down: sort.down };
  let limit = ROWS_AT_FIRST;
  const filter = element("input", { type: "search", autocomplete: "off", spellcheck: false });
  filter.setAttribute("aria-label", `Filter: ${filterLabel}`);
  const count = element("output");
  const more = element("button", { type: "button" });
  const body = element("tbody");
  const heads = columns.map((column, i) => {
    const button = element("button", { type: "button", className: "sort", textContent: visible(column.name) });
    button.addEventListener("click", () => {
      order = { column: i, down: order.column === i ? !order.down : typeof rows[0]?.values[i] === "number" };
      draw();
    });
    return element("th", { scope: "col" }, button);
  });
  rows = rows.map((row) => ({ row, values: columns.map((column) => column.value(row)) }));
  const found = () => {
    const wanted = filter.value.toLowerCase();
    const kept = rows.filter(({ values }) => values.some((value) => typeof value === "string" && value.toLowerCase().includes(wanted)));
    const sign = order.down ? -1 : 1;
    return kept.sort((a, b) => {
      const [x, y] = [a.values[order.column], b.values[order.column]];
      if (x === null || y === null) return (x === null) - (y === null); // what has no value is last
      return sign * (typeof x === "string" ? x.localeCompare(y) : x - y);
    });
  };
  const draw = () => {
    const kept = found();
    body.replaceChildren(
      ...kept.slice(0, limit).map(({ row }) =>
        element("tr", {}, ...columns.map((column) => element("td", { className: column.words ? "words" : "" }, column.cell(row)))),
      ),
    );
    heads.forEach((head, i) => {
      if (i === order.column) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    count.value = `${kept.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    more.hidden = kept.length <= limit;
    more.textContent = `Show ${Math.min(ROWS_MORE, kept.length - limit)} more`;
  };
  filter.addEventListener("input", () => {
    limit = ROWS_AT_FIRST;
    draw();
  });
  more.addEventListener("click", () => {
    limit += ROWS_MORE;
    draw();
  });
  const table = element("table", {}, element("caption", { textContent: caption }), element("thead", {}, element("tr", {}, ...heads)), body);
  const scroll = element("div", { className: "scroll", tabIndex: 0 }, table);
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-label", filterLabel);
  const read = () => ({ names: columns.map((column) => column.name), rows: found().map(({ values }) => values) });
  const row = element("div", { className: "row" }, element("label", {}, "Filter ", filter), count, ...tableButtons(name, filterLabel, read));
  host.replaceChildren(row, scroll, more);
  draw();
}

const number = (digits) => (value) => (value === null ? "–" : value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits }));
const percent = (logprob) => (logprob === null || Number.isNaN(logprob) ? "–" : `${Number((100 * Math.exp(logprob)).toPrecision(3))} %`);
const tokensAgo = (since) => (since === null ? "–" : since === 0 ? "new word" : since.toLocaleString("en"));

function opener(label, action) {
  const button = element("button", { type: "button", className: "link" }, element("bdi", { textContent: visible(label) }));
  button.addEventListener("click", action);
  return button;
}

// Every document: its LongPPL and PPL under each model, its gain, its key tokens.
function documentTable(host, page, open) {
  const shown = new Set(page.documents);
  const names = page.runs.filter((run) => run.compared).map((run) => run.name);
  const column = (name, value, digits) => ({ name, value, cell: (row) => number(digits)(value(row)) });
  dataTable(host, {
    name: "documents",
    caption: page.rows.length < page.num_documents ? `The ${page.rows.length.toLocaleString("en")} documents with most key tokens, of ${page.num_documents.toLocaleString("en")}` : "A name opens the text below",
    filterLabel: "Table of documents",
    sort: { column: 1, down: true },
    rows: page.rows,
    columns: [
      { name: "document", words: true, value: (row) => row.id, cell: (row) => (shown.has(row.id) ? opener(row.id, () => open(row.id)) : element("bdi", { textContent: visible(row.id) })) },
      column("key tokens", (row) => row.keys, 0),
      column("tokens", (row) => row.tokens, 0),
      ...names.map((name, i) => column(`LongPPL, ${name}`, (row) => row.longppl[i], 3)),
      ...names.map((name, i) => column(`PPL, ${name}`, (row) => row.ppl[i], 3)),
      ...page.gains.map((name, i) => column(`gain of ${name}, nats`, (row) => row.gains[i], 3)),
    ],
  });
}

// A token in its words; a button where its document is shown.
function inWords(row, action) {
  const oneLine = (text) => visible(text.replace(/\s+/g, " "));
  const own = page.documents.includes(row.document) ? opener(oneLine(row.text).trim() ? oneLine(row.text) : "␣", action) : element("b", { textContent: oneLine(row.text) });
  return element("span", { className: "in-words" }, element("bdi", { textContent: oneLine(row.before) }), own, element("bdi", { textContent: oneLine(row.after) }));
}

// The key tokens with the largest LSD, in their words.
function tokenTable(host, page, open) {
  const others = page.runs.map((run, i) => i).filter((i) => i !== page.judge && page.runs[i].compared);
  dataTable(host, {
    name: "key-tokens",
    caption: `Key tokens of ${visible(page.runs[page.judge].name)} with the largest LSD, ${page.key_tokens.length.toLocaleString("en")} of ${page.num_key_tokens.toLocaleString("en")}; a token opens its place in the text`,
    filterLabel: "Table of key tokens",
    sort: { column: 1, down: true },
    rows: page.key_tokens,
    columns: [
      { name: "token", words: true, value: (row) => row.before + row.text + row.after, cell: (row) => inWords(row, () => open(row.document, row.index)) },
      { name: "LSD, nats", value: (row) => row.lsd, cell: (row) => number(2)(row.lsd) },
      { name: "P short", value: (row) => row.short, cell: (row) => percent(row.short) },
      { name: "P long", value: (row) => row.long[page.judge], cell: (row) => `→ ${percent(row.long[page.judge])}` },
      ...others.map((i) => ({ name: `P long, ${page.runs[i].name}`, value: (row) => row.long[i], cell: (row) => percent(row.long[i]) })),
      { name: "tokens since the word", value: (row) => row.since, cell: (row) => tokensAgo(row.since) },
      { name: "document", words: true, value: (row) => row.document, cell: (row) => element("bdi", { textContent: visible(row.document) }) },
    ],
  });
}
