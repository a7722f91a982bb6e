// Prepare an image as the page does: node prepare.mjs RGBA WIDTH HEIGHT INPUT.json, bytes to stdout
import { readFileSync } from "node:fs";
import { prepare } from "../../hub/web/page/prepare.js";

const [file, width, height, input] = process.argv.slice(2);
const image = { data: readFileSync(file), width: Number(width), height: Number(height) };
process.stdout.write(prepare(image, JSON.parse(input)).bytes);
