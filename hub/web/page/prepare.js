// timm's evaluation transform with Pillow's arithmetic: RGBA pixels to a network's input, bit by
// bit as in Python. Only the pixels that the crop keeps are computed.
// Source: autoformer_zoo/onnx/classifier.py (resized_size, prepare); Pillow's 8-bit resampling.

const ONE = 2 ** 22; // Pillow's weights are whole numbers of this unit
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => Math.max(0, 1 - x) },
  bicubic: {
    reach: 2,
    weight: (x) =>
      x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((2.5 - 0.5 * x) * x - 4) * x + 2 : 0,
  },
};

/**
 * Resize, crop the centre and normalise.
 * @param {{data: Uint8ClampedArray, width: number, height: number}} image RGBA, opaque.
 * @param {object} input of the network: size [height, width], crop_pct, crop_mode, interpolation,
 *     mean and std.
 * @returns {{bytes: Uint8ClampedArray, values: Float32Array}} RGB of each pixel that the network
 *     sees, row by row; and its input (3, height, width).
 */
export function prepare(image, input) {
  const [height, width] = input.size;
  const [rows, columns] = resizedSize([image.height, image.width], input);
  const filter = FILTERS[input.interpolation];
  const down = windows(image.height, rows, halfEven((rows - height) / 2), height, filter);
  const across = windows(image.width, columns, halfEven((columns - width) / 2), width, filter);
  const bytes = resample(image, down, across);
  const plane = height * width;
  const values = new Float32Array(3 * plane);
  for (let i = 0; i < plane; i++) {
    for (let c = 0; c < 3; c++) {
      values[c * plane + i] = (bytes[3 * i + c] / 255 - input.mean[c]) / input.std[c];
    }
  }
  return { bytes, values };
}

/** Return [rows, columns] of the resized image, of which the centre is kept. */
export function resizedSize([height, width], { size, crop_pct, crop_mode }) {
  const scaled = size.map((side) => Math.floor(side / crop_pct));
  if (crop_mode === "squash") return scaled;
  if (scaled[0] !== scaled[1]) {
    const ratio = Math.min(height / scaled[0], width / scaled[1]);
    return [halfEven(height / ratio), halfEven(width / ratio)];
  }
  const longer = Math.trunc((scaled[0] * Math.max(height, width)) / Math.min(height, width));
  return height > width ? [longer, scaled[0]] : [scaled[0], longer];
}

/** For each kept pixel of a side, the first pixel of the image that it is made of, and weights. */
function windows(given, resized, first, kept, { reach, weight }) {
  const scale = given / resized;
  const coarse = Math.max(scale, 1); // antialiasing: distances in pixels of the coarser side
  return Array.from({ length: kept }, (_, i) => {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - reach * coarse + 0.5));
    const end = Math.min(given, Math.trunc(centre + reach * coarse + 0.5));
    const raw = Array.from({ length: end - start }, (_, j) =>
      weight(Math.abs((start + j - centre + 0.5) / coarse)),
    );
    const total = raw.reduce((sum, each) => sum + each, 0);
    return { start, weights: raw.map((each) => Math.round((each / total) * ONE)) };
  });
}

/** Columns first, then rows, rounded to bytes after each; Uint8ClampedArray clips. */
function resample({ data, width }, down, across) {
  const top = Math.min(...down.map(({ start }) => start));
  const bottom = Math.max(...down.map(({ start, weights }) => start + weights.length));
  const narrow = new Uint8ClampedArray((bottom - top) * across.length * 3);
  let place = 0;
  for (let y = top; y < bottom; y++) {
    for (const { start, weights } of across) {
      const from = (y * width + start) * 4;
      for (let c = 0; c < 3; c++) narrow[place++] = weighted(data, from + c, 4, weights);
    }
  }
  const bytes = new Uint8ClampedArray(down.length * across.length * 3);
  const row = across.length * 3;
  down.forEach(({ start, weights }, y) => {
    for (let x = 0; x < row; x++) {
      bytes[y * row + x] = weighted(narrow, (start - top) * row + x, row, weights);
    }
  });
  return bytes;
}

function weighted(data, from, step, weights) {
  let sum = ONE / 2;
  for (let i = 0; i < weights.length; i++) sum += data[from + i * step] * weights[i];
  return Math.floor(sum / ONE);
}

/** Round as Python does: halves to the even neighbour. */
function halfEven(value) {
  return value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}
