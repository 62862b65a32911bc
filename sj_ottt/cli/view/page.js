// The time shown, and what the page is made of.

function go(index) {
  at = Math.max(0, Math.min(lastIndex(), index));
  $("slider").value = at;
  draw();
}

function seek(index) {
  if (playing) playing.index = Math.max(0, Math.min(lastIndex(), index));
  go(index);
}

function setExposure(n) {
  exposure = n;
  $("slider").max = lastIndex();
  seek(at);
}

function play(on) {
  if (on && at >= lastIndex()) go(0);
  playing = on ? { index: at, time: null } : null;
  $("play").textContent = on ? "Pause" : "Play";
  if (on) requestAnimationFrame(tick);
}

function tick(now) {
  if (!playing) return;
  const passed = playing.time === null ? 0 : now - playing.time;
  playing.time = now;
  playing.index += passed * 1e3 * Number($("speed").value) / step;
  if (Math.floor(playing.index) !== at) go(Math.floor(playing.index));
  if (at >= lastIndex()) play(false);
  else requestAnimationFrame(tick);
}

function facts() {
  const shown = data.end - data.start;
  const rate = shown > 1 ? data.events / shown * 1e6 : 0;
  for (const [name, value] of [
    ["Sensor (height × width)", `${height} × ${width}`],
    ["Events", data.events.toLocaleString("en")],
    ["Duration", duration(shown - 1)],
    ["Rate", `${quantity(rate)} events/s`],
    ["ON", `${(100 * data.on_events / data.events).toFixed(1)}%`],
  ]) {
    const entry = document.createElement("div");
    for (const [tag, text] of [["dt", name], ["dd", value]]) {
      const part = document.createElement(tag);
      part.textContent = text;
      entry.append(part);
    }
    $("facts").append(entry);
  }
  const notes = [];
  if (!data.whole) {
    notes.push(`This page shows ${seconds(data.start)} s to ${seconds(data.end)} s of the ` +
      "recording; the facts are those of this part.");
  }
  const means = [];
  if (step > data.finest_us) means.push(`frames last ${duration(step)} at least`);
  if (data.factor > 1) means.push(`${data.factor} × ${data.factor} pixels are shown as one`);
  if (data.share > 1) means.push(`only one in ${data.share} events is drawn (the rates are of all)`);
  notes.push(means.length
    ? `So that this page stays small, ${means.join(", and ")}. For more, make a page of a part: ` +
      "sj-ottt data view FILE --start 10s --length 5s."
    : `Every event is shown; the shortest frame lasts ${duration(step)}.`);
  $("note").textContent = notes.join(" ");
  $("hot-label").lastElementChild.textContent = data.n_hot > data.hot.length
    ? `Hot pixels (the worst ${data.hot.length})` : `Hot pixels (${data.n_hot})`;
  $("hot").checked = data.n_hot <= 100; // more would hide the picture
  $("hot-label").hidden = !data.n_hot;
}

function choices() {
  const whole = data.frames * step;
  const speed = SPEEDS.findLast((s) => s <= 1 && whole / s >= 5e6) ?? SPEEDS[0];
  for (const s of SPEEDS) $("speed").add(new Option(`${s}×`, s, s === speed, s === speed));
  let chosen = 1;
  for (let n = 1; n === 1 || n <= data.frames; n *= 2) {
    if (n * step <= Math.min(32_000, whole / 10)) chosen = n;
    $("exposure").add(new Option(duration(n * step), n));
  }
  $("exposure").value = chosen;
  exposure = chosen;
  $("slider").max = lastIndex();
}

function onKey(event) {
  if (event.key === "Escape") return clearForm();
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input:not([type=range]):not([type=checkbox]), select")) return;
  const moves = { ArrowLeft: -exposure, ArrowRight: exposure };
  if (event.key in moves) seek(at + moves[event.key] * (event.shiftKey ? 10 : 1));
  else if (event.key === " " && !event.target.matches("button, [type=checkbox]")) play(!playing);
  else if (event.key === "i") markStart();
  else if (event.key === "o") markEnd();
  else return;
  event.preventDefault();
}

function listen() {
  $("slider").addEventListener("input", () => seek(Number($("slider").value)));
  $("play").addEventListener("click", () => play(!playing));
  $("exposure").addEventListener("change", () => setExposure(Number($("exposure").value)));
  $("hot").addEventListener("change", draw);
  const point = (event) => {
    const box = $("rate").getBoundingClientRect();
    seek(Math.floor((event.clientX - box.left) / box.width * data.frames));
  };
  $("rate").addEventListener("pointerdown", (event) => {
    $("rate").setPointerCapture(event.pointerId);
    point(event);
  });
  $("rate").addEventListener("pointermove", (event) => event.buttons && point(event));
  $("mark-start").addEventListener("click", markStart);
  $("mark-end").addEventListener("click", markEnd);
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("download").addEventListener("click", download);
  $("load").addEventListener("change", loadFile);
  $("session").addEventListener("input", () => (unsaved = stretches.length > 0));
  document.addEventListener("keydown", onKey);
  addEventListener("resize", fit);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeunload", (event) => unsaved && event.preventDefault());
}

async function open() {
  document.title = $("name").textContent = data.name;
  if (!("DecompressionStream" in window)) {
    $("problem").textContent = "This browser is too old for this page; take a newer one.";
    return;
  }
  $("problem").textContent = "Unpacking …";
  await unpack(data.packed);
  $("problem").hidden = true;
  $("page").hidden = false;
  facts();
  choices();
  list();
  listen();
  fit();
  document.documentElement.dataset.ready = "yes";
}

const opened = open();
