// Classify an image with transformers.js: node classify.mjs MODELS NAME DTYPE IMAGE
import { env, pipeline } from "@huggingface/transformers";

const [models, name, dtype, image] = process.argv.slice(2);
env.localModelPath = models;
env.allowRemoteModels = false;
const classify = await pipeline("image-classification", name, { dtype });
console.log(JSON.stringify(await classify(image, { top_k: 10 })));
