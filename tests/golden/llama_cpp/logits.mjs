// Prints llama.cpp's raw logits for prompts of token ids.
//
// usage: node logits.mjs MODEL.gguf PROMPTS.json OUTPUT.json
//
// PROMPTS is a list of lists of ids; OUTPUT a list of lists of rows [V], one
// row per id. Weights, KV and sums are f32, without flash attention.
import fs from "node:fs";
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [modelPath, promptsPath, outputPath] = process.argv.slice(2);
const prompts = JSON.parse(fs.readFileSync(promptsPath, "utf8"));

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, maxThreads: 2,
    logLevel: LlamaLogLevel.warn
});
const model = await llama.loadModel({modelPath, gpuLayers: 0});
const context = await model.createContext({
    contextSize: 512, sequences: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"
});

const sequence = context.getSequence();
const output = [];
for (const prompt of prompts) {
    await sequence.clearHistory();
    const results = await sequence.controlledEvaluate(
        prompt.map((id) => [id, {generateNext: {logits: true}}])
    );
    output.push(results.map(({next}) => {
        const row = new Array(next.logits.size);
        for (const [id, logit] of next.logits)
            row[id] = logit;
        return row;
    }));
}
fs.writeFileSync(outputPath, JSON.stringify(output));
await llama.dispose();
