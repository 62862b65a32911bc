"use strict";
// A recording's frames and its event rate. Times are µs from the recording's first event; a frame's
// index counts from the start of what the page shows.

const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
const [height, width] = data.sensor_size;
const rows = Math.ceil(height / data.factor);
const columns = Math.ceil(width / data.factor);
const step = data.step_us;
const SPEEDS = [0.001, 0.003, 0.01, 0.03, 0.1, 0.25, 0.5, 1, 2, 5, 10, 30, 100];

// The counts above 0 of frame i are those from offsets[i] to offsets[i + 1].
let offsets, cells, counts;
let summed; // ON and OFF events before each frame
let at = 0; // first index of the frame shown
let exposure = 1; // how many indices it takes together
let playing = null; // the time of the last picture, and the place in the recording

// ---- numbers ----

async function inflate(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function varints(bytes) {
  let i = 0;
  return () => {
    let value = 0, unit = 1, byte;
    do {
      byte = bytes[i++];
      value += (byte & 127) * unit;
      unit *= 128;
    } while (byte > 127);
    return value;
  };
}

async function unpack(packed) {
  const names = ["lengths", "gaps", "counts", "totals"];
  const streams = await Promise.all(names.map((name) => inflate(packed[name])));
  const [nextLength, nextGap, nextNumber, nextTotal] = streams.map(varints);
  offsets = new Uint32Array(data.frames + 1);
  for (let i = 0; i < data.frames; i++) offsets[i + 1] = offsets[i] + nextLength();
  cells = new Uint32Array(offsets[data.frames]);
  counts = new Uint32Array(offsets[data.frames]);
  summed = [0, 1].map(() => new Float64Array(data.frames + 1));
  for (let i = 0; i < data.frames; i++) {
    let cell = -1;
    for (let j = offsets[i]; j < offsets[i + 1]; j++) {
      cell += nextGap() + 1;
      cells[j] = cell;
      counts[j] = nextNumber() + 1;
    }
    for (const p of [0, 1]) summed[p][i + 1] = summed[p][i] + nextTotal();
  }
}

/** Events of n frames from the first on, [rows, columns, 2], `pool` rows and columns as one. */
function frameCounts(first, n, pool = 1) {
  const wide = Math.ceil(columns / pool);
  const sums = new Uint32Array(2 * wide * Math.ceil(rows / pool));
  for (let j = offsets[first]; j < offsets[Math.min(first + n, data.frames)]; j++) {
    const pixel = cells[j] >> 1;
    const y = Math.floor(pixel / columns / pool), x = Math.floor((pixel % columns) / pool);
    sums[(y * wide + x) * 2 + (cells[j] & 1)] += counts[j];
  }
  return sums;
}

/** All events of frames, those too that are not shown. */
function eventsIn(first, behind) {
  behind = Math.min(behind, data.frames);
  return [0, 1].reduce((sum, p) => sum + summed[p][behind] - summed[p][first], 0);
}

const startOf = (index) => data.start + index * step;
const endOf = (index) => Math.min(data.start + index * step, data.end);
const indexOf = (time) => Math.floor((time - data.start) / step);
const lastIndex = () => Math.max(0, data.frames - exposure);

/** Seconds in as few digits as tell every µs. */
const seconds = (us) => (us / 1e6).toFixed(6).replace(/\.?0+$/, "");
const clock = (us) => (us / 1e6).toFixed(step % 1000 ? 6 : 3);

function duration(us) {
  const [unit, size] = us < 1e3 ? ["µs", 1] : us < 1e6 ? ["ms", 1e3] : ["s", 1e6];
  return `${Number((us / size).toPrecision(4))} ${unit}`;
}

function quantity(value) {
  const [unit, size] = value < 1e4 ? ["", 1] : value < 1e6 ? [" k", 1e3] : [" M", 1e6];
  return `${Number((value / size).toPrecision(3))}${unit}`;
}

// ---- pictures ----

function colour(name) {
  const text = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  return [1, 3, 5].map((i) => parseInt(text.slice(i, i + 2), 16));
}

const small = document.createElement("canvas");

function drawFrame() {
  const canvas = $("frame"), context = canvas.getContext("2d");
  // A pixel of the screen shows whole cells: none may fall between two of them.
  const pool = Math.max(1, Math.ceil(columns / canvas.width));
  small.width = Math.ceil(columns / pool);
  small.height = Math.ceil(rows / pool);
  const sums = frameCounts(at, exposure, pool);
  let filled = 0, total = 0;
  for (const n of sums) {
    total += n;
    if (n) filled++;
  }
  const full = 2 * total / Math.max(1, filled); // so many events are shown in full colour
  const [paper, on, off] = ["--picture", "--on", "--off"].map(colour);
  const image = small.getContext("2d").createImageData(small.width, small.height);
  for (let i = 0; i < small.width * small.height; i++) {
    const nOff = sums[2 * i], n = nOff + sums[2 * i + 1];
    const share = n ? nOff / n : 0;
    const strength = n ? Math.min(1, 0.45 + 0.55 * n / full) : 0;
    for (let c = 0; c < 3; c++) {
      const ink = on[c] + share * (off[c] - on[c]);
      image.data[4 * i + c] = paper[c] + strength * (ink - paper[c]);
    }
    image.data[4 * i + 3] = 255;
  }
  small.getContext("2d").putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  const scale = canvas.width / width * data.factor * pool;
  context.fillStyle = `rgb(${paper})`;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, small.width * scale, small.height * scale);
  if ($("hot").checked) drawHot(context, canvas.width / width);
  $("time").textContent =
    `${clock(startOf(at))} to ${clock(endOf(at + exposure))} s · ` +
    `${eventsIn(at, at + exposure).toLocaleString("en")} events`;
}

function drawHot(context, scale) {
  context.strokeStyle = `rgb(${colour("--hot")})`;
  context.lineWidth = 1.25 * devicePixelRatio;
  for (const [y, x] of data.hot) {
    context.beginPath();
    const radius = Math.max(3.5 * devicePixelRatio, scale);
    context.arc((x + 0.5) * scale, (y + 0.5) * scale, radius, 0, 7);
    context.stroke();
  }
}

const BELOW = 18, ABOVE = 16; // CSS pixels of text below and above the curve

function drawRate() {
  const canvas = $("rate"), context = canvas.getContext("2d");
  context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
  const wide = canvas.width / devicePixelRatio;
  const high = canvas.height / devicePixelRatio - BELOW;
  const style = (name) => `rgb(${colour(name)})`;
  const place = (us) => (us - data.start) / (data.frames * step) * wide;
  context.fillStyle = style("--sheet");
  context.fillRect(0, 0, wide, high + BELOW);

  context.font = "11px system-ui, sans-serif";
  for (const { start, end, label } of stretches) {
    const left = place(start), right = place(end ?? data.end);
    context.globalAlpha = 0.16;
    context.fillStyle = style("--ink");
    context.fillRect(left, 0, Math.max(2, right - left), high);
    context.globalAlpha = 1;
    context.save();
    context.beginPath();
    context.rect(left, 0, right - left, high);
    context.clip();
    context.fillText(label, Math.max(left, 0) + 3, high - 4);
    context.restore();
  }

  const n = Math.max(1, Math.floor(wide)), heights = [[], []];
  let most = 0;
  for (let i = 0; i < n; i++) {
    const first = Math.floor(i * data.frames / n);
    const last = Math.max(first + 1, Math.floor((i + 1) * data.frames / n));
    for (const p of [0, 1]) {
      const rate = (summed[p][last] - summed[p][first]) / ((last - first) * step) * 1e6;
      heights[p].push(rate);
      most = Math.max(most, rate);
    }
  }
  const middle = (ABOVE + high) / 2, unit = (high - middle - 2) / (most || 1);
  for (const p of [0, 1]) {
    context.fillStyle = style(p ? "--on" : "--off");
    context.beginPath();
    context.moveTo(0, middle);
    heights[p].forEach((rate, i) => {
      const y = middle + (p ? -1 : 1) * rate * unit;
      context.lineTo(i * wide / n, y);
      context.lineTo((i + 1) * wide / n, y);
    });
    context.lineTo(wide, middle);
    context.fill();
  }
  context.fillStyle = context.strokeStyle = style("--quiet");
  context.fillText(`${quantity(most)} events/s`, 4, 12);
  drawTimes(context, wide, high, place);

  context.fillStyle = context.strokeStyle = style("--ink");
  const left = place(startOf(at)), right = place(startOf(at + exposure));
  context.globalAlpha = 0.2;
  context.fillRect(left, 0, right - left, high);
  context.globalAlpha = 1;
  context.fillRect(left - 0.75, 0, 1.5, high);
  if (marked !== null) {
    context.fillStyle = style("--accent");
    context.fillRect(place(marked) - 1, 0, 2, high);
  }
}

function drawTimes(context, wide, high, place) {
  const whole = data.frames * step, rough = whole / Math.max(2, wide / 110);
  const power = 10 ** Math.floor(Math.log10(rough));
  const gap = [1, 2, 5, 10].map((n) => n * power).find((us) => us >= rough);
  for (let us = Math.ceil(data.start / gap) * gap; us < data.start + whole; us += gap) {
    const text = `${seconds(us)} s`, x = place(us);
    if (x + context.measureText(text).width + 4 > wide) break;
    context.fillRect(x, high, 1, 4);
    context.fillText(text, x + 4, high + 13);
  }
}

function fit() {
  const room = $("frame").parentElement.clientWidth;
  const tall = Math.max(220, innerHeight * 0.62);
  const scale = Math.min(room / width, tall / height);
  for (const [canvas, w, h] of [
    [$("frame"), width * scale, height * scale],
    [$("rate"), $("rate").clientWidth, $("rate").clientHeight],
  ]) {
    canvas.width = Math.max(1, Math.round(w * devicePixelRatio));
    canvas.height = Math.max(1, Math.round(h * devicePixelRatio));
  }
  $("frame").style.width = `${width * scale}px`;
  $("frame").style.height = `${height * scale}px`;
  draw();
}

function draw() {
  drawFrame();
  drawRate();
}
