// The view of what policies cost: all of them, by document, and the key tokens that lost most.

const share = (value) => (value === null ? "–" : `${plain(Number((100 * value).toPrecision(3)))} %`);
const between = ([above, upTo]) => (upTo === null ? `> ${above.toLocaleString("en")}` : `${(above + 1).toLocaleString("en")} to ${upTo.toLocaleString("en")}`);

function costTable(host, cost) {
  const column = (name, value, cell) => ({ name, value, cell: (row) => cell(value(row)) });
  dataTable(host, {
    name: "cost",
    caption: "Every policy against the full cache; by the tokens of context that a key token needs",
    filterLabel: "Table of policies",
    sort: { column: 1, down: true },
    rows: cost.rows,
    columns: [
      { name: "policy", words: true, value: (row) => row.name, cell: (row) => element("bdi", { textContent: visible(row.name) }) },
      column("retained gain", (row) => row.retained_gain, share),
      column("95 % low", (row) => row.interval?.[0] ?? null, share),
      column("95 % high", (row) => row.interval?.[1] ?? null, share),
      ...cost.edges.map((edge, i) => column(`at ${between(edge)}`, (row) => row.distances[i], share)),
      column("bytes a token", (row) => row.bytes_per_token, number(0)),
      column("PPL", (row) => row.ppl, number(3)),
      column("LongPPL", (row) => row.longppl, number(3)),
      column("KL, nats", (row) => row.kl, number(4)),
      column("same top token, keys", (row) => row.key_top1_agreement, share),
    ],
  });
}

function costDocuments(host, cost, open) {
  const shown = new Set(page.documents);
  dataTable(host, {
    name: "cost-documents",
    caption: "Retained gain of each document; a name opens the text below",
    filterLabel: "Table of documents and what they lost",
    sort: { column: 2, down: false },
    rows: cost.documents,
    columns: [
      { name: "document", words: true, value: (row) => row.id, cell: (row) => (shown.has(row.id) ? opener(row.id, () => open(row.id)) : element("bdi", { textContent: visible(row.id) })) },
      { name: "key tokens", value: (row) => row.keys, cell: (row) => number(0)(row.keys) },
      ...cost.rows.map((policy, i) => ({ name: policy.name, value: (row) => row.retained[i], cell: (row) => share(row.retained[i]) })),
    ],
  });
}

// Key tokens by the largest loss under a policy, in their words.
function costTokens(host, cost, open) {
  const lost = (row, i) => row.full - row.policies[i];
  const most = (row) => Math.max(...row.policies.map((_, i) => lost(row, i)));
  dataTable(host, {
    name: "cost-tokens",
    caption: `The ${cost.tokens.length.toLocaleString("en")} key tokens that lost most; a token opens its place in the text`,
    filterLabel: "Table of key tokens and what they lost",
    sort: { column: 1, down: true },
    rows: cost.tokens,
    columns: [
      { name: "token", words: true, value: (row) => row.before + row.text + row.after, cell: (row) => inWords(row, () => open(row.document, row.index, 0)) },
      { name: "largest loss, nats", value: most, cell: (row) => number(2)(most(row)) },
      { name: "P short", value: (row) => row.short, cell: (row) => percent(row.short) },
      { name: "P full", value: (row) => row.full, cell: (row) => percent(row.full) },
      ...cost.rows.map((policy, i) => ({ name: `P, ${policy.name}`, value: (row) => row.policies[i], cell: (row) => percent(row.policies[i]) })),
      { name: "context needed", value: (row) => row.above, cell: (row) => (row.above === null ? "–" : between([row.above, row.up_to])) },
      { name: "document", words: true, value: (row) => row.document, cell: (row) => element("bdi", { textContent: visible(row.document) }) },
    ],
  });
}
