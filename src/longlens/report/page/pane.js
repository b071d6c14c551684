// One view of the text: its tokens as elements, colored, with the key tokens marked, and a place in it.

const LSD_EDGES = [-2, -0.5, 0.5, 2, 4, 8];
const LCL_EDGES = [-8, -4, -2, -1, -0.5];
const TOKENS_PER_BLOCK = 256;

// Characters that would not be seen, or would turn the text around them; a zero-width joiner belongs to an emoji.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

function visible(text) {
  return text.replace(UNSEEN, (character) => {
    const code = character.charCodeAt(0);
    return code < 32 ? String.fromCharCode(0x2400 + code) : "\u25cc";
  });
}

// The text of a token for people: in quotes, with what is not seen as an escape.
function quoted(text) {
  return JSON.stringify(text).replace(UNSEEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function classOf(value, edges) {
  let index = 0;
  while (index < edges.length && value >= edges[index]) index += 1;
  return index;
}

// A pane: its own run and its own current token. `state` is what all panes share, see main.js.
class Pane {
  constructor(state, number, onMove) {
    this.state = state;
    this.onMove = onMove;
    this.current = 0;
    this.led = 0;
    this.pattern = null;
    this.select = element("select");
    this.select.addEventListener("change", () => this.show(Number(this.select.value)));
    this.body = element("div", { className: "text", tabIndex: -1 });
    this.body.setAttribute("role", "group");
    this.body.setAttribute("aria-label", `Text, view ${number}`);
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("focusin", (event) => this.focused(event.target));
    this.body.addEventListener("click", (event) => event.target.token !== undefined && this.go(event.target.token));
    // Blocks that are seen are always drawn, so that a picture of the whole page shows them too.
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) entry.target.classList.toggle("near", entry.isIntersecting);
    }, { root: this.body });
    this.lit = [];
    this.root = element("div", { className: "pane" }, element("label", {}, "Tokens of ", this.select), this.body);
  }

  // Offers the runs that have this document, and shows one of them.
  offer(run) {
    const { page, tokens } = this.state;
    const options = page.runs.map((each, index) => {
      const suffix = index === page.evaluator ? " (evaluator)" : "";
      return element("option", { value: index, textContent: each.name + suffix, disabled: tokens[index] === null });
    });
    this.select.replaceChildren(...options);
    this.show(tokens[run] === null ? tokens.findIndex((each) => each !== null) : run);
  }

  show(run) {
    const at = this.tokens ? this.tokens.start[this.current] : 0;
    const sameDocument = this.document === this.state.document;
    this.run = run;
    this.document = this.state.document;
    this.select.value = String(run);
    this.tokens = this.state.tokens[run];
    this.elements = [];
    const blocks = [];
    let block = element("div", { className: "block" });
    let cursor = 0;
    const { text } = this.state.document;
    for (let i = 0; i < this.tokens.start.length; i++) {
      if (this.tokens.start[i] > cursor) block.append(visible(text.slice(cursor, this.tokens.start[i])));
      // The pieces of one character, or tokens that overlap, show it once; the later ones are a thin mark.
      const own = text.slice(Math.max(cursor, this.tokens.start[i]), this.tokens.end[i]);
      const span = element("span", { className: "t", textContent: visible(own) });
      span.token = i;
      this.elements.push(span);
      block.append(span);
      cursor = Math.max(cursor, this.tokens.end[i]);
      // A block ends with a line, so that it breaks no line.
      if (block.childNodes.length >= TOKENS_PER_BLOCK && own.endsWith("\n")) {
        blocks.push(block);
        block = element("div", { className: "block" });
      }
    }
    block.append(visible(text.slice(cursor)));
    blocks.push(block);
    this.body.replaceChildren(...blocks);
    this.seen.disconnect();
    blocks.forEach((each, i) => {
      each.classList.toggle("near", i < 2);
      this.seen.observe(each);
    });
    this.lit = [];
    this.hits = [];
    this.current = sameDocument ? this.tokenAt(at) : 0;
    this.color();
    this.mark();
    this.place(this.current);
    this.find(this.pattern);
    if (sameDocument && at > 0) this.reveal("center");
  }

  // Colors every token by what is chosen, and says of what the colors are.
  color() {
    const own = this.state.color === "lcl" ? this.tokens.long : this.state.lsdOf(this.run);
    const edges = this.state.color === "lcl" ? LCL_EDGES : LSD_EDGES;
    const prefix = this.state.color === "lcl" ? "p" : "c";
    this.classes = this.elements.map((span, i) => {
      if (own === null || Number.isNaN(own[i])) return "t none";
      return `t ${prefix}${classOf(own[i], edges)}`;
    });
    this.elements.forEach((span, i) => (span.className = this.classes[i]));
    this.marked = new Uint8Array(this.elements.length);
    for (const i of this.hits) this.elements[i].classList.add("hit");
    for (const i of this.lit) this.elements[i].classList.add("mention");
    if (this.elements.length) this.elements[this.current].classList.add("current");
  }

  // Marks the key tokens; touches only those that changed.
  mark() {
    const keys = this.state.keys === null ? null : this.state.keys[this.run];
    for (let i = 0; i < this.elements.length; i++) {
      const key = keys === null ? 0 : keys[i];
      if (key !== this.marked[i]) this.elements[i].classList.toggle("key", Boolean(key));
      this.marked[i] = key;
    }
  }

  // Lights up the tokens of these characters: [[start, end], ...].
  light(spans) {
    for (const i of this.lit) this.elements[i].classList.remove("mention");
    this.lit = [];
    for (const [start, end] of spans) {
      for (let i = this.tokenAt(start); i < this.elements.length && this.tokens.start[i] < end; i++) this.lit.push(i);
    }
    for (const i of this.lit) this.elements[i].classList.add("mention");
  }

  tokenAt(offset) {
    let low = 0;
    let high = this.tokens.start.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.tokens.end[middle] <= offset) low = middle + 1;
      else high = middle;
    }
    return Math.max(0, low);
  }

  // Makes a token the current one, without moving the focus.
  place(token) {
    if (!this.elements.length) return;
    const before = this.elements[Math.min(this.current, this.elements.length - 1)];
    before.classList.remove("current");
    before.removeAttribute("tabindex");
    this.current = token;
    this.elements[token].classList.add("current");
    this.elements[token].tabIndex = 0;
  }

  go(token, { focus = true } = {}) {
    if (token < 0 || token >= this.elements.length) return;
    this.place(token);
    this.body.scrollIntoView({ block: "nearest" });
    this.reveal("nearest");
    if (focus) this.elements[token].focus({ preventScroll: true });
    this.onMove(this);
  }

  // Scrolls to the current token; twice, since blocks take their true height only when they are near.
  reveal(block) {
    const scroll = () => {
      const pane = this.body.getBoundingClientRect();
      const token = this.elements[this.current].getBoundingClientRect();
      const inside = token.top >= pane.top + 8 && token.bottom <= pane.bottom - 8;
      if (block === "nearest" && inside) return;
      this.body.scrollTop += token.top - pane.top - pane.height / 3;
    };
    scroll();
    scroll();
    requestAnimationFrame(scroll);
  }

  // The next token that `wanted` holds for, from the current one on or back, around the end; -1 where there is none.
  next(wanted, step) {
    const count = this.elements.length;
    for (let distance = 1; distance <= count; distance++) {
      const i = (((this.current + step * distance) % count) + count) % count;
      if (wanted(i)) return i;
    }
    return -1;
  }

  nextKey(step) {
    const keys = this.state.keys === null ? null : this.state.keys[this.run];
    const found = keys === null ? -1 : this.next((i) => keys[i], step);
    if (found < 0) this.state.notice("No token is key here at these thresholds.");
    else this.go(found);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const moves = {
      ArrowRight: () => this.go(this.current + 1),
      ArrowLeft: () => this.go(this.current - 1),
      Home: () => this.go(0),
      End: () => this.go(this.elements.length - 1),
      n: () => this.nextKey(1),
      p: () => this.nextKey(-1),
    };
    if (moves[event.key] === undefined) return;
    event.preventDefault();
    moves[event.key]();
  }

  focused(target) {
    if (target.token === undefined) return;
    if (target.token !== this.current) this.place(target.token);
    this.state.trace(this, target.token);
    this.state.tip.show(this, target.token, target);
  }

  // Where a search string is: the tokens that share a character with a match.
  find(pattern) {
    for (const i of this.hits) this.elements[i].classList.remove("hit");
    this.pattern = pattern;
    this.fresh = true;
    this.hits = [];
    this.matches = [];
    if (pattern === null) return;
    for (const match of this.state.document.text.matchAll(pattern)) {
      let i = this.tokenAt(match.index);
      this.matches.push(i);
      for (; i < this.elements.length && this.tokens.start[i] < match.index + match[0].length; i++) this.hits.push(i);
    }
    for (const i of this.hits) this.elements[i].classList.add("hit");
  }

  // The first token that is seen.
  firstVisible() {
    const top = this.body.getBoundingClientRect().top;
    const blocks = [...this.body.children];
    const block = blocks.find((each) => each.getBoundingClientRect().bottom > top + 1) ?? blocks[0];
    const spans = [...block.children];
    const span = spans.find((each) => each.getBoundingClientRect().bottom > top + 1);
    return span === undefined ? 0 : span.token;
  }
}
