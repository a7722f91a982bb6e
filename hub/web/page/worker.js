// Runs the networks with onnxruntime-web, apart from the page so that it stays responsive.
// Questions and answers: {id, kind: "classify" | "measure", file, ...} -> {id, ...} or {id, error}.

import * as ort from "./runtime/ort.mjs";
import { prepare } from "./prepare.js";

// One thread: more need headers that static hosts do not send, and times compare better.
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmPaths = {
  wasm: new URL("runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href,
};
ort.env.logLevel = "error";

const MAX_PIXELS = 2 ** 24; // larger images are reduced by the canvas first
const RUNS = { warmUp: 3, least: 5, most: 30, milliseconds: 1500 };

const current = { file: null, session: null }; // one network in memory at a time
let last = Promise.resolve();

onmessage = ({ data: question }) => {
  last = last.then(() => answer(question));
};

async function answer(question) {
  try {
    await open(question.file);
    const result = await { classify, measure }[question.kind](question);
    postMessage({ id: question.id, ...result });
  } catch (error) {
    postMessage({ id: question.id, error: String(error?.message ?? error) });
  }
}

async function open(file) {
  if (current.file === file) return;
  await current.session?.release();
  Object.assign(current, { file: null, session: null });
  const response = await fetch(file).catch(() => null);
  if (!response?.ok) {
    throw new Error(`${file} is not stored in this browser yet; go online once and choose it again`);
  }
  current.session = await ort.InferenceSession.create(await response.arrayBuffer());
  current.file = file;
}

async function classify({ image, input, softmax }) {
  const { bytes, values } = prepare(pixels(image), input);
  const tensor = new ort.Tensor("float32", values, [1, 3, ...input.size]);
  return { probabilities: await run(tensor, softmax), bytes };
}

async function measure({ input }) {
  const tensor = new ort.Tensor("float32", new Float32Array(3 * input.size[0] * input.size[1]), [
    1,
    3,
    ...input.size,
  ]);
  for (let i = 0; i < RUNS.warmUp; i++) await run(tensor, true);
  const times = [];
  const begin = performance.now();
  while (
    times.length < RUNS.least ||
    (times.length < RUNS.most && performance.now() - begin < RUNS.milliseconds)
  ) {
    const before = performance.now();
    await run(tensor, true);
    times.push(performance.now() - before);
  }
  times.sort((a, b) => a - b);
  return { milliseconds: times[times.length >> 1], runs: times.length };
}

async function run(tensor, softmax) {
  const { session } = current;
  const outputs = await session.run({ [session.inputNames[0]]: tensor });
  const { data } = outputs[session.outputNames[0]];
  if (softmax) return data; // the file's own
  const most = Math.max(...data);
  const powers = data.map((logit) => Math.exp(logit - most));
  const total = powers.reduce((sum, each) => sum + each, 0);
  return powers.map((each) => each / total);
}

/** RGBA of an ImageBitmap, on white where it is transparent. */
function pixels(image) {
  const shrink = Math.min(1, Math.sqrt(MAX_PIXELS / (image.width * image.height)));
  const [width, height] = [image.width, image.height].map((side) =>
    Math.max(1, Math.round(side * shrink)),
  );
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, 0, 0, width, height);
  image.close();
  return context.getImageData(0, 0, width, height);
}
