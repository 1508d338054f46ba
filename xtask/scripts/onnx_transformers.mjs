// Generates greedily in transformers.js, offline, and compares with what is known.
// usage: node onnx_transformers.mjs NODE_MODULES MODEL_DIR DTYPE KNOWN.json      DTYPE: fp32, q4, …, or auto for the config's
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [modules, dir, dtype, file] = process.argv.slice(2);
const entry = path.join(path.resolve(modules), "@huggingface/transformers/dist/transformers.node.mjs");
const { AutoModelForCausalLM, AutoTokenizer, Tensor, env } = await import(pathToFileURL(entry));
const known = JSON.parse(fs.readFileSync(file, "utf8"));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(dir)) + "/";
const name = path.basename(path.resolve(dir));

const fail = (text) => {
  console.error(text);
  process.exit(1);
};
const tokenizer = await AutoTokenizer.from_pretrained(name);
const prompt = tokenizer.encode(known.prompt);
if (String(prompt) !== String(known.prompt_ids)) fail(`the tokenizer gives ${prompt}, expected ${known.prompt_ids}`);
const model = await AutoModelForCausalLM.from_pretrained(name, dtype === "auto" ? {} : { dtype });
const count = known.greedy_ids.length - prompt.length;
const ids = new Tensor("int64", BigInt64Array.from(prompt, BigInt), [1, prompt.length]);
const attention_mask = new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), [1, prompt.length]);
const generated = await model.generate({
  input_ids: ids,
  attention_mask,
  do_sample: false,
  min_new_tokens: count,
  max_new_tokens: count,
});
const found = Array.from(generated.data, Number);
const at = known.greedy_ids.findIndex((token, i) => token !== found[i]);
if (at !== -1 || found.length !== known.greedy_ids.length)
  fail(`${found.length} tokens for ${known.greedy_ids.length}; token ${at} is the first that differs`);
console.log(`${count} tokens equal`);
