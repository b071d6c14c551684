// Token scores of one document and what follows from them. Offsets are in UTF-16; log-probabilities in nats.

"use strict";

function decode(base64, ArrayType) {
  const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  return new ArrayType(bytes.buffer);
}

// The tokens of one run: {start, end, long, short, lsd}, arrays with an entry a token; short and lsd may be null.
function readTokens(stored) {
  if (stored === null) return null;
  const start = decode(stored.start, Int32Array);
  const end = decode(stored.end, Int32Array);
  const long = decode(stored.long, Float32Array);
  const short = stored.short === null ? null : decode(stored.short, Float32Array);
  // A Float32Array rounds as NumPy does when it subtracts float32 from float32, so that LSD is the very same number.
  const lsd = short === null ? null : Float32Array.from(long, (value, i) => value - short[i]);
  return { start, end, long, short, lsd };
}

// Eq. 4: which tokens are key. beta is null without the second criterion. NaN compares false: no score, never key.
function hardInfluence(tokens, alpha, beta) {
  return Uint8Array.from(tokens.long, (lcl, i) => Number(tokens.lsd[i] > alpha && (beta === null || lcl > beta)));
}

// Runs of characters that the chosen tokens cover: [start, end, start, end, ...]; those that touch or overlap merge.
function mergeRuns(tokens, chosen) {
  const order = [];
  for (let i = 0; i < chosen.length; i++) if (chosen[i] && tokens.end[i] > tokens.start[i]) order.push(i);
  order.sort((a, b) => tokens.start[a] - tokens.start[b]);
  const runs = [];
  for (const i of order) {
    if (runs.length && tokens.start[i] <= runs[runs.length - 1]) {
      runs[runs.length - 1] = Math.max(runs[runs.length - 1], tokens.end[i]);
    } else {
      runs.push(tokens.start[i], tokens.end[i]);
    }
  }
  return runs;
}

// The last run that begins at or before an offset, as its place in the list; -1 where there is none.
function runAt(runs, offset) {
  let low = 0;
  let high = runs.length / 2;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (runs[2 * middle] <= offset) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

// Eq. 9: which tokens lie inside one run.
function tokensInRuns(tokens, runs) {
  return Uint8Array.from(tokens.start, (start, i) => {
    const run = runAt(runs, start);
    return Number(run >= 0 && tokens.end[i] > start && tokens.end[i] <= runs[2 * run + 1]);
  });
}

// Perplexity of the chosen tokens that have a score: {value, tokens}; value is null where it does not exist.
function perplexity(tokens, chosen) {
  let sum = 0;
  let count = 0;
  for (let i = 0; i < chosen.length; i++) {
    if (chosen[i] && !Number.isNaN(tokens.long[i])) {
      sum += tokens.long[i];
      count += 1;
    }
  }
  return perplexityOf(sum, count);
}

function perplexityOf(sum, count) {
  const value = Math.exp(-sum / count);
  return { value: count && Number.isFinite(value) ? value : null, tokens: count };
}

// Values of another run's tokens on these tokens (eq. 10): the mean over a token's characters of the mean over the tokens
// that a character is part of; NaN where none has a value. The second half of a pair of surrogates is no character.
function carry(source, values, target, text) {
  const sums = new Float64Array(text.length);
  const counts = new Int32Array(text.length);
  for (let i = 0; i < values.length; i++) {
    if (Number.isNaN(values[i])) continue;
    for (let at = source.start[i]; at < source.end[i]; at++) {
      if ((text.charCodeAt(at) & 0xfc00) === 0xdc00) continue;
      sums[at] += values[i];
      counts[at] += 1;
    }
  }
  return Float64Array.from(target.start, (start, i) => {
    let sum = 0;
    let count = 0;
    for (let at = start; at < target.end[i]; at++) {
      if (counts[at] === 0) continue;
      sum += sums[at] / counts[at];
      count += 1;
    }
    return count ? sum / count : NaN;
  });
}
