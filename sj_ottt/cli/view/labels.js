// The labels of stretches, and the table of them that `sj-ottt data slice --labels` takes.

let stretches = []; // { start, end or null, label, more }; more: cells of columns not known here
let others = []; // rows of other recordings, which a downloaded table keeps
let edited = null; // the stretch that the form changes
let marked = null; // a start without an end
let unsaved = false;

const COLUMNS = ["file", "start", "end", "label", "session"];
const UNITS = { "": 1, us: 1, "µs": 1, "μs": 1, ms: 1e3, s: 1e6, min: 6e7 };

/** A time in µs as the table writes it; NaN for none. */
function parseTime(text, unit = "") {
  const match = /^(\d+(?:\.\d*)?|\.\d+)\s*([a-zµμ]*)$/.exec(text.trim());
  return match ? Math.round(Number(match[1]) * (UNITS[match[2] || unit] ?? NaN)) : NaN;
}

function wrongLabel(label) {
  return !label || /^\.|[\/\\\u0000-\u001f\u007f-\u009f\u2028\u2029]/.test(label);
}

function say(text, wrong = false) {
  $("said").textContent = text;
  $("said").classList.toggle("wrong", wrong);
}

const last = (stretch) => stretch.end ?? Infinity;

function overlapped(stretch, among) {
  return among.find((other) => other !== edited && other.label !== stretch.label &&
    stretch.start < last(other) && other.start < last(stretch));
}

function markStart() {
  // Where the frame shown holds the end of a stretch, the next one begins there.
  const [from, to] = [startOf(at), endOf(at + exposure)];
  const before = stretches.map(last).filter((end) => end > from && end < to);
  marked = Math.max(from, ...before);
  $("start").value = seconds(marked);
  say("Now mark the end.");
  drawRate();
}

function markEnd() {
  $("end").value = seconds(endOf(at + exposure));
  say("Name the class, then press Enter.");
  $("label").focus();
  $("label").select();
}

function submit() {
  const start = parseTime($("start").value, "s");
  const text = $("end").value.trim();
  const end = text ? parseTime(text, "s") : null;
  const label = $("label").value.trim();
  if (Number.isNaN(start)) return say("Mark the start first, or type it in seconds.", true);
  if (Number.isNaN(end)) return say("Mark the end, or type it in seconds.", true);
  if (end !== null && end <= start) return say("The end is not behind the start.", true);
  if (wrongLabel(label)) {
    return say("Name the class. It becomes a folder: no / or \\, and no dot at its beginning.", true);
  }
  const stretch = { start, end, label, more: edited ? edited.more : {} };
  const other = overlapped(stretch, stretches);
  if (other) {
    return say(`Overlaps “${other.label}” from ${seconds(other.start)} s to ` +
      `${other.end === null ? "the end" : seconds(other.end) + " s"}: change start or end.`, true);
  }
  stretches = [...stretches.filter((one) => one !== edited), stretch];
  say(edited ? "Changed." : `Added “${label}”.`);
  changed();
  clearForm();
}

function clearForm() {
  for (const id of ["start", "end", "label"]) $(id).value = "";
  edited = marked = null;
  $("add").firstChild.textContent = "Add ";
  document.activeElement?.blur();
  list();
  drawRate();
}

function edit(stretch) {
  edited = stretch;
  marked = null;
  $("start").value = seconds(stretch.start);
  $("end").value = stretch.end === null ? "" : seconds(stretch.end);
  $("label").value = stretch.label;
  $("add").firstChild.textContent = "Change ";
  seek(indexOf(stretch.start));
  say("Change it, then press Enter. Escape leaves it as it was.");
  list();
}

function remove(stretch) {
  stretches = stretches.filter((one) => one !== stretch);
  say(`Deleted “${stretch.label}”.`);
  changed();
  if (edited === stretch) clearForm();
}

function changed() {
  unsaved = true;
  list();
  drawRate();
}

function list() {
  stretches.sort((a, b) => a.start - b.start || last(a) - last(b));
  const body = $("stretches");
  body.replaceChildren();
  for (const stretch of stretches) {
    const row = body.insertRow();
    row.classList.toggle("edited", stretch === edited);
    const at = `${stretch.label}, ${seconds(stretch.start)} s`;
    const button = (text, name, act) => {
      const made = document.createElement("button");
      made.type = "button";
      made.textContent = text;
      made.setAttribute("aria-label", `${name}: ${at}`);
      made.title = name;
      made.addEventListener("click", act);
      return made;
    };
    row.insertCell().append(
      button(stretch.label, "Go to its start", () => seek(indexOf(stretch.start))));
    row.insertCell().textContent = seconds(stretch.start);
    row.insertCell().textContent = stretch.end === null ? "end" : seconds(stretch.end);
    row.insertCell().append(
      button("Edit", "Edit", () => edit(stretch)), button("✕", "Delete", () => remove(stretch)));
  }
  if (!stretches.length) {
    const cell = body.insertRow().insertCell();
    cell.colSpan = 4;
    cell.className = "empty";
    cell.textContent = "None yet. Mark a start and an end, and name the class.";
  }
  const names = new Set([...stretches, ...others].map((row) => row.label));
  $("classes").replaceChildren(...[...names].sort().map((name) => new Option(name, name)));
}

// ---- the table ----

function csv(values) {
  return values.map((value) =>
    /[",;\s]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value).join(",");
}

function table() {
  const session = $("session").value.trim();
  const own = stretches.map(({ start, end, label, more }) =>
    ({ ...more, file: data.file, start: `${start}`, end: `${end ?? ""}`, label, session }));
  const all = [...others, ...own];
  const names = [...new Set([...COLUMNS, ...all.flatMap(Object.keys)])];
  const lines = all.map((row) => csv(names.map((name) => row[name] ?? "")));
  return [csv(names), ...lines].join("\n") + "\n";
}

function download() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([table()], { type: "text/csv" }));
  link.download = `${data.stem}_labels.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  unsaved = false;
  const rest = others.length ? `, and ${others.length} of other recordings` : "";
  say(`Downloaded ${stretches.length} labels${rest}.`);
}

function cellsOf(line, separator) {
  const found = [];
  let i = 0;
  for (;;) {
    while (line[i] === " ") i++;
    let text = "";
    if (line[i] === '"') {
      for (i++; i < line.length && (line[i] !== '"' || line[i + 1] === '"'); i++) {
        if (line[i] === '"') i++;
        text += line[i];
      }
      i++;
    }
    while (i < line.length && line[i] !== separator) text += line[i++];
    found.push(text.trim());
    if (i++ >= line.length) return found;
  }
}

/** Whether a table's name means this recording: one of the two paths ends in the other. */
function isThis(file) {
  const [ours, theirs] = [data.file, file].map((path) => path.split("/").filter((p) => p && p !== "."));
  const n = Math.min(ours.length, theirs.length);
  return n > 0 && ours.slice(-n).join("/") === theirs.slice(-n).join("/");
}

function load(text) {
  const lines = text.replace(/^\ufeff/, "").split(/\r\n|\r|\n/);
  const first = lines.findIndex((line) => line.trim());
  const head = lines[first] ?? "";
  const separator = head.includes(";") && !head.includes(",") ? ";" : ",";
  const names = cellsOf(head, separator).map((name) => name.toLowerCase());
  const missing = COLUMNS.slice(0, 4).find((name) => !names.includes(name));
  if (missing) throw new Error(`Its first line lacks the column “${missing}”.`);
  const own = [], rest = [], sessions = new Set();
  lines.forEach((line, i) => {
    if (i <= first || !line.trim()) return;
    const where = `Line ${i + 1}: `, values = cellsOf(line, separator);
    if (values.length !== names.length) throw new Error(`${where}has ${values.length} cells, not ${names.length}.`);
    const row = Object.fromEntries(names.map((name, k) => [name, values[k]]));
    if (!isThis(row.file)) return rest.push(row);
    const start = row.start ? parseTime(row.start) : 0;
    const end = row.end ? parseTime(row.end) : null;
    if (Number.isNaN(start) || Number.isNaN(end)) throw new Error(`${where}its times are none.`);
    if (end !== null && end <= start) throw new Error(`${where}its end is not behind its start.`);
    if (wrongLabel(row.label)) throw new Error(`${where}its class cannot name a folder.`);
    const more = Object.fromEntries(Object.entries(row).filter(([name]) => !COLUMNS.includes(name)));
    const stretch = { start, end, label: row.label, more };
    if (overlapped(stretch, own)) throw new Error(`${where}overlaps another class.`);
    own.push(stretch);
    sessions.add(row.session ?? "");
  });
  if (sessions.size > 1) throw new Error("It gives this recording several sessions.");
  stretches = own;
  others = rest;
  if (own.length) $("session").value = [...sessions][0];
  clearForm();
  unsaved = false;
  say(`Loaded ${own.length} labels of this recording, and ${rest.length} of others.`);
}

async function loadFile() {
  const file = $("load").files[0];
  if (!file) return;
  if (unsaved && !confirm("Replace the labels that are not downloaded yet?")) return;
  try {
    load(await file.text());
  } catch (error) {
    say(`Not loaded. ${error.message}`, true);
  }
  $("load").value = "";
}
