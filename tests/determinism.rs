//! The same bytes whatever the threads, the memory and the number of outputs.

use crate::support::{TestDir, fixture, mlpack, sha256};

#[test]
fn threads_memory_and_company_do_not_change_a_byte() {
    let dir = TestDir::new();
    let (base, adapter) = (fixture("legal-qa/kjv-llama"), fixture("legal-qa/legal-qa-lora"));
    let convert = |out: &str, quants: &str, resources: &[&str]| {
        let args = ["convert", base.to_str().unwrap(), "-a", adapter.to_str().unwrap(), "--quant", quants, "-o", out];
        mlpack(&dir).args(args).args(resources).succeed();
        let file = |name: &str| sha256(&dir.path(&format!("{out}/legal-qa-lora-Q4_K_M.gguf{name}")));
        (file(""), file(".claims.jsonl"))
    };
    let first = convert("a", "Q4_K_M", &[]);
    for (out, quants, resources) in [
        ("b", "Q4_K_M", ["--threads", "1", "--memory", "256MiB"]),
        ("c", "Q4_K_M", ["--threads", "7", "--memory", "4MiB"]),
        ("d", "F16,Q4_K_M,Q8_0", ["--threads", "3", "--memory", "2MiB"]),
    ] {
        assert_eq!(convert(out, quants, &resources), first, "{resources:?}");
    }
    // Signatures of the same statements are the same.
    mlpack(&dir).args(["keygen", "--out", "key"]).succeed();
    let signed = |out: &str| {
        let file = format!("{out}/legal-qa-lora-Q4_K_M.gguf");
        mlpack(&dir).args(["sign", &file, "--key", "key.pem"]).succeed();
        [".claims.jsonl", ".sigstore.json"].map(|ending| sha256(&dir.path(&format!("{file}{ending}"))))
    };
    let first = signed("a");
    for out in ["b", "c", "d"] {
        assert_eq!(signed(out), first, "{out}");
    }
}
