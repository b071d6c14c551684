// What a reader takes along: tables as CSV and JSON, charts as PNG.

// A cell of text that a spreadsheet would run as a formula is quoted as text; numbers stay numbers.
function csvCell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

function csv(names, rows) {
  return [names, ...rows].map((row) => row.map(csvCell).join(",") + "\r\n").join("");
}

function save(name, type, content) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

function saveButton(label, of, action) {
  const button = element("button", { type: "button", className: "save", textContent: label });
  button.setAttribute("aria-label", `${of} as ${label}`);
  button.addEventListener("click", action);
  return button;
}

// Buttons for a table: `read` gives {names, rows}, plain values, as they are when a button is pressed.
function tableButtons(name, of, read) {
  return [
    saveButton("CSV", of, () => {
      const { names, rows } = read();
      save(`${name}.csv`, "text/csv;charset=utf-8", csv(names, rows));
    }),
    saveButton("JSON", of, () => {
      const { names, rows } = read();
      const objects = rows.map((row) => Object.fromEntries(row.map((value, i) => [names[i], value])));
      save(`${name}.json`, "application/json", JSON.stringify(objects, null, 1));
    }),
  ];
}
