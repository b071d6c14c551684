// Where a token may have been predicted from: the earlier mentions of its word, and how P rises with the context.

function readWhere(stored) {
  if (stored === null || stored === undefined) return null;
  const token = decode(stored.token, Int32Array);
  return {
    run: stored.run,
    contexts: stored.contexts,
    places: new Map(Array.from(token, (each, j) => [each, j])),
    first: decode(stored.first, Int32Array),
    mention: decode(stored.mention, Int32Array),
    logprob: decode(stored.logprob, Float32Array),
  };
}

// The traced token of the judge that a token of any run begins in; -1 where it is not traced.
function tracedToken(state, pane, token) {
  const { where, tokens } = state;
  if (where === null) return -1;
  if (pane.run === where.run) return where.places.has(token) ? token : -1;
  const judge = tokens[where.run];
  for (const [each] of where.places) {
    if (judge.start[each] < pane.tokens.end[token] && judge.end[each] > pane.tokens.start[token]) return each;
  }
  return -1;
}

// The smallest K from which on the token is no longer key by its LSD; null where even the largest is too short.
function contextNeeded(contexts, logprobs, long, alpha) {
  let needed = null;
  for (let k = contexts.length - 1; k >= 0; k--) {
    if (Number.isNaN(logprobs[k])) continue;
    if (long - logprobs[k] > alpha) break;
    needed = contexts[k];
  }
  return needed;
}

function showWhere(state, panes, pane, token, alpha) {
  for (const each of panes) each.light([]);
  const place = byId("where");
  const traced = tracedToken(state, pane, token);
  if (traced < 0) {
    place.replaceChildren();
    return;
  }
  const { where } = state;
  const judge = state.tokens[where.run];
  const j = where.places.get(traced);
  const mentions = [];
  for (let at = where.first[j]; at < where.first[j + 1]; at++) mentions.push([where.mention[2 * at], where.mention[2 * at + 1]]);
  for (const each of panes) each.light(mentions);
  const parts = [];
  if (mentions.length) {
    const [start, end] = mentions[0];
    const word = state.document.text.slice(start, end);
    const links = mentions.map(([from]) => {
      const distance = pane.tokens.start.length ? token - pane.tokenAt(from) : 0;
      return opener(distance.toLocaleString("en"), () => pane.go(pane.tokenAt(from)));
    });
    const listed = links.flatMap((link, i) => (i ? [", ", link] : [link]));
    parts.push(element("p", {}, "Where from: ", element("bdi", { textContent: quoted(word) }), " was mentioned ", ...listed, " tokens before (lit up in the text)."));
  } else {
    parts.push(element("p", { textContent: "Where from: this word was not mentioned before." }));
  }
  const count = where.contexts.length;
  if (count > 1) {
    const logprobs = Array.from(where.logprob.subarray(j * count, (j + 1) * count));
    const rising = where.contexts.map((context, k) => `K = ${context.toLocaleString("en")}: ${percent(logprobs[k])}`);
    const needed = contextNeeded(where.contexts, logprobs, judge.long[traced], alpha);
    const most = where.contexts[count - 1].toLocaleString("en");
    const says = needed === null ? `It needs more than ${most} tokens of context.` : `It needs ${needed.toLocaleString("en")} tokens of context or fewer.`;
    parts.push(element("p", { textContent: `${says} P at ${rising.join(", ")}; whole context: ${percent(judge.long[traced])}.` }));
  }
  place.replaceChildren(...parts);
}
