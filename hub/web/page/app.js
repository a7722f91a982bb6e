// The page: images in, answers and times out. The networks run in worker.js.

import { drawPlot } from "./plot.js";
import { resizedSize } from "./prepare.js";

const MAX_SHOWN = 1200; // pixels of the preview's longer side
const PAUSE = 150; // milliseconds between images of the webcam

const $ = (id) => document.getElementById(id);
const { networks, labels } = await (await fetch("models.json")).json();
const choices = [...document.querySelectorAll('input[name="file"]')];
const worker = new Worker("worker.js", { type: "module" });
const waiting = new Map(); // answers that the worker owes, by the question's number
const measured = new Map(); // milliseconds by file
const state = { file: "", image: null, name: "", stream: null, asked: 0, isMeasuring: false };

worker.onmessage = ({ data: { id, error, ...answer } }) => {
  const { resolve, reject } = waiting.get(id);
  waiting.delete(id);
  if (error) reject(new Error(error));
  else resolve(answer);
};
worker.onerror = (event) => {
  const reason = event.message || "the worker could not be loaded";
  for (const { reject } of waiting.values()) reject(new Error(reason));
  waiting.clear();
  say(`The networks cannot run in this browser: ${reason}.`, true);
};

function ask(kind, file, more = {}, transfer = []) {
  const id = ++state.asked;
  const { input, softmax } = networkOf(file);
  worker.postMessage({ id, kind, file, input, softmax, ...more }, transfer);
  return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }));
}

const networkOf = (file) => networks.find(({ files }) => files.some(({ path }) => path === file));

function say(text, isError = false) {
  $("status").textContent = text;
  $("status").classList.toggle("is-error", isError);
}

// Images

async function readFile(file) {
  if (!file) return; // text was dropped or pasted, or the dialogue was closed
  stopCamera();
  const name = file.name || "The pasted image";
  try {
    // As Python reads it: upright, colour profile ignored.
    const image = await createImageBitmap(file, {
      imageOrientation: "from-image",
      colorSpaceConversion: "none",
    });
    await take(image, name);
  } catch {
    say(`${name} cannot be read as an image. Choose a JPEG, PNG, WebP, AVIF or GIF file.`, true);
  }
}

/** Show an image and classify it. */
async function take(image, name) {
  state.image?.close();
  Object.assign(state, { image, name });
  show();
  await classify();
}

function show() {
  const { image, name, file } = state;
  const { input } = networkOf(file);
  const shrink = Math.min(1, MAX_SHOWN / Math.max(image.width, image.height));
  const canvas = $("view");
  canvas.width = Math.max(1, Math.round(image.width * shrink));
  canvas.height = Math.max(1, Math.round(image.height * shrink));
  canvas.setAttribute("aria-label", name);
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  // Darken what the crop leaves out.
  const resized = resizedSize([image.height, image.width], input);
  const [height, width] = input.size.map(
    (side, i) => (side / resized[i]) * [canvas.height, canvas.width][i],
  );
  const [left, top] = [(canvas.width - width) / 2, (canvas.height - height) / 2];
  context.fillStyle = "rgb(0 0 0 / 50%)";
  const outside = new Path2D();
  outside.rect(0, 0, canvas.width, canvas.height);
  outside.rect(left, top, width, height);
  context.fill(outside, "evenodd");
  $("hint").hidden = true;
  $("drop").classList.add("has-image");
}

function showSeen(bytes, [height, width]) {
  const canvas = $("seen");
  Object.assign(canvas, { width, height });
  const rgba = new Uint8ClampedArray(width * height * 4).fill(255);
  for (let i = 0; i < width * height; i++) rgba.set(bytes.subarray(3 * i, 3 * i + 3), 4 * i);
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  $("seen-caption").textContent = `seen: ${width} × ${height}`;
  $("seen-figure").hidden = false;
}

// Answers

async function classify() {
  const { file, image, name } = state;
  if (!image) return;
  if (!state.stream) say("Classifying…");
  try {
    const copy = await createImageBitmap(image);
    const { probabilities, bytes } = await ask("classify", file, { image: copy }, [copy]);
    if (image !== state.image || file !== state.file) return; // another was chosen meanwhile
    showSeen(bytes, networkOf(file).input.size);
    const best = showAnswers(probabilities, labels[networkOf(file).labels]);
    if (!state.stream) say(`${name}: ${best}.`);
    if (!measured.has(file) && !state.isMeasuring) await measure(file);
  } catch (error) {
    if (image === state.image && file === state.file) say(`${error.message}.`, true);
  }
}

/** Fill in the list, and return its first line. */
function showAnswers(probabilities, names) {
  const order = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  const lines = [...$("answers").children].map((item, place) => {
    const index = order[place];
    const percent = index === undefined ? "" : `${(100 * probabilities[index]).toFixed(1)} %`;
    item.querySelector(".label").textContent = names[index] ?? " ";
    item.querySelector(".label").title = names[index] ?? "";
    item.querySelector(".percent").textContent = percent;
    item.querySelector(".bar").style.setProperty("--share", probabilities[index] ?? 0);
    return `${names[index]}, ${percent}`;
  });
  return lines[0];
}

async function measure(file) {
  const { milliseconds, runs } = await ask("measure", file);
  measured.set(file, milliseconds);
  const cell = choices.find(({ value }) => value === file).nextElementSibling;
  cell.textContent = shortTime(milliseconds);
  cell.title = `median of ${runs} runs`;
  showTimes();
}

async function measureAll() {
  state.isMeasuring = true;
  $("measure").disabled = true;
  const files = choices.map(({ value }) => value).filter((file) => !measured.has(file));
  try {
    for (const [i, file] of files.entries()) {
      say(`Measuring ${i + 1} of ${files.length}: ${describe(file)}…`);
      await measure(file);
    }
    say("All networks are measured.");
  } catch (error) {
    say(`${error.message}.`, true);
  }
  state.isMeasuring = false;
  $("measure").disabled = measured.size === choices.length;
}

function showTimes() {
  const ms = measured.get(state.file);
  $("timing").textContent = ms
    ? `${shortTime(ms)} ms an image in this browser, on one thread (${describe(state.file)})`
    : `not measured yet (${describe(state.file)})`;
  drawPlot($("plot"), networks, measured, state.file);
}

function describe(file) {
  const { name, files } = networkOf(file);
  return `${name}, ${files.find(({ path }) => path === file).precision}`;
}

const shortTime = (ms) => (ms < 100 ? ms.toFixed(1) : ms.toFixed(0));

// Webcam

async function startCamera() {
  try {
    state.stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    const reason = error?.name === "NotAllowedError" ? "access was not allowed" : "none was found";
    say(`The webcam cannot be used: ${reason}.`, true);
    return;
  }
  const { stream } = state;
  const video = Object.assign(document.createElement("video"), {
    srcObject: stream,
    muted: true,
    playsInline: true,
  });
  await video.play();
  $("camera").textContent = "Stop the webcam";
  $("camera").setAttribute("aria-pressed", "true");
  say("The webcam is on: images are classified one after the other.");
  while (state.stream === stream) {
    await take(await createImageBitmap(video), "Webcam");
    await new Promise((resolve) => setTimeout(resolve, PAUSE));
  }
  for (const track of stream.getTracks()) track.stop();
}

/** The loop in startCamera notices, and turns it off. */
function stopCamera() {
  if (!state.stream) return;
  state.stream = null;
  $("camera").textContent = "Use the webcam";
  $("camera").setAttribute("aria-pressed", "false");
  say("The webcam is off. The last image is kept.");
}

// Controls

function choose(file) {
  state.file = file;
  showTimes();
  if (!state.image) return;
  show();
  classify();
}

$("file").onchange = ({ target }) => {
  readFile(target.files[0]);
  target.value = ""; // the same file may be chosen again
};
$("camera").onclick = () => (state.stream ? stopCamera() : startCamera());
$("sample").onclick = async () => {
  const response = await fetch("sample.jpg");
  readFile(new File([await response.blob()], "Sample image"));
};
$("measure").onclick = measureAll;
for (const choice of choices) choice.onchange = () => choose(choice.value);
addEventListener("paste", ({ clipboardData }) => readFile(clipboardData.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("is-target", kind === "dragover");
    if (kind === "drop") readFile(event.dataTransfer.files[0]);
  });
}

choose((choices.find(({ checked }) => checked) ?? choices[0]).value);
if (!navigator.mediaDevices) $("camera").disabled = true;
say("Ready: drop an image, choose one, or use the webcam.");
navigator.serviceWorker?.register("sw.js").catch(() => {});
