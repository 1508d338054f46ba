// Verifies a sigstore bundle with a public key, offline: node sigstore_verify.js NODE_MODULES KEY.pub BUNDLE.json
const [modules, key, file] = process.argv.slice(2);
const fs = require("fs");
const path = require("path");
const crypto = require("crypto");
const load = (name) => require(path.join(path.resolve(modules), name));
const { bundleFromJSON } = load("@sigstore/bundle");
const { toSignedEntity, toTrustMaterial, Verifier } = load("@sigstore/verify");

const nobody = { certificateAuthorities: [], timestampAuthorities: [], tlogs: [], ctlogs: [] };
const publicKey = crypto.createPublicKey(fs.readFileSync(key));
const trust = toTrustMaterial(nobody, () => ({ publicKey, validFor: () => true }));
try {
  const bundle = bundleFromJSON(JSON.parse(fs.readFileSync(file)));
  const thresholds = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0, tsaThreshold: 0 };
  new Verifier(trust, thresholds).verify(toSignedEntity(bundle));
} catch (error) {
  console.error(error.code, error.message);
  process.exit(1);
}
