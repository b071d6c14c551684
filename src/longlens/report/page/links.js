// A view as a link: #doc=…&token=…&run=…&alpha=…&beta=….

function viewHash(view) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(view)) if (value !== null) parameters.set(name, String(value));
  return `#${parameters}`;
}

// What a link says, or null where it is none of a view. It is text, and checked where it is used.
function hashView() {
  const parameters = new URLSearchParams(location.hash.slice(1));
  return parameters.has("doc") ? Object.fromEntries(parameters) : null;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // the clipboard is refused, or there is none: the address bar has the link
  }
}
