// By hand: what the page of an ONNX export reads of a WAV file (16 kHz, mono, 16 bits), by onnxruntime-web in node.
//
//   npm install onnxruntime-web
//   node tests/onnx_page.mjs FOLDER speech.wav [SETTING] [PATH/TO/onnxruntime-web]
//
// Runs the page's own scripts that compute and decode; reading a file by WebAudio is the browser's.

import fs from "node:fs";
import path from "node:path";

const [folder, file, setting, where] = process.argv.slice(2);
const page = fs.readFileSync(path.join(folder, "transcribe.html"), "utf-8");
const part = (id) => page.match(new RegExp(`<script id="${id}"[^>]*>(.*?)</script>`, "s"))[1];
const model = JSON.parse(part("model"));
const { decode, compute } = new Function(`${part("decoder")}; return { decode, compute };`)();
const ort = await import(where ? path.resolve(where, "dist/ort.node.min.mjs") : "onnxruntime-web");

const bytes = fs.readFileSync(file);
const at = bytes.indexOf("data") + 8;
const count = (bytes.length - at) >> 1;
const samples = new Int16Array(bytes.buffer.slice(bytes.byteOffset + at, bytes.byteOffset + at + 2 * count));
const wave = Float32Array.from(samples, (x) => x / 2 ** 15);
const graph = fs.readFileSync(path.join(folder, `${setting ?? model.settings[0]}.onnx`));
const session = await ort.InferenceSession.create(graph, {
  externalData: [{ path: "weights.bin", data: fs.readFileSync(path.join(folder, "weights.bin")) }],
});
const [logProbs, frames] = await compute(ort, session, wave);
console.log(decode(logProbs, frames, model));
