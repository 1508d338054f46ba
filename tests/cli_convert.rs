//! `mlpack convert` and `check` against the goldens of llama.cpp b11434.

use crate::support::{TestDir, fixture, golden, mlpack, sha256};

/// Every variant of the goldens that is made without an importance matrix, with the golden's name.
const GOLDENS: &[(&str, &str)] = &[
    ("F32", "hf-f32"),
    ("F16", "hf-f16"),
    ("BF16", "hf-bf16"),
    ("Q8_0", "hf-q8_0"),
    ("Q4_0", "q-Q4_0"),
    ("Q4_1", "q-Q4_1"),
    ("Q5_0", "q-Q5_0"),
    ("Q5_1", "q-Q5_1"),
    ("Q4_K_S", "q-Q4_K_S"),
    ("Q4_K_M", "q-Q4_K_M"),
    ("Q5_K_S", "q-Q5_K_S"),
    ("Q5_K_M", "q-Q5_K_M"),
    ("Q6_K", "q-Q6_K"),
    ("Q2_K", "q-Q2_K"),
    ("Q3_K_S", "q-Q3_K_S"),
    ("Q3_K_M", "q-Q3_K_M"),
    ("Q3_K_L", "q-Q3_K_L"),
    ("IQ3_S", "q-IQ3_S"),
    ("IQ3_M", "q-IQ3_M"),
    ("IQ4_NL", "q-IQ4_NL"),
    ("IQ4_XS", "q-IQ4_XS"),
    ("TQ1_0", "q-TQ1_0"),
    ("TQ2_0", "q-TQ2_0"),
    ("MXFP4_MOE", "q-MXFP4_MOE"),
];

#[test]
fn every_variant_equals_llama_cpp_to_the_byte_from_one_read() {
    let dir = TestDir::new();
    let quants: Vec<&str> = GOLDENS.iter().map(|(quant, _)| *quant).collect();
    let base = fixture("legal-qa/kjv-llama");
    let done = mlpack(&dir)
        .args(["convert", base.to_str().unwrap(), "--to", "gguf", "--quant", &quants.join(","), "-o", "out"])
        .json();
    for ((quant, name), output) in GOLDENS.iter().zip(done["outputs"].as_array().unwrap()) {
        let path = dir.path(&format!("out/kjv-llama-{quant}.gguf"));
        assert_eq!(sha256(&path), golden(name)["file_sha256"], "{quant}");
        assert_eq!(output["sha256"], golden(name)["file_sha256"], "{quant}: what was reported");
        assert_eq!(output["quant"], *quant);
    }
}

#[test]
fn check_tells_names_types_and_offsets_of_every_tensor_before_anything_is_written() {
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    let plan = mlpack(&dir).args(["check", base.to_str().unwrap(), "--quant", "Q4_K_M,F16"]).json();
    for (output, name) in plan["outputs"].as_array().unwrap().iter().zip(["q-Q4_K_M", "hf-f16"]) {
        let golden = golden(name);
        let (ours, theirs) = (output["tensors"].as_array().unwrap(), golden["tensors"].as_array().unwrap());
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            for key in ["name", "type", "offset"] {
                assert_eq!(ours[key], theirs[key], "{name}: {}", theirs["name"]);
            }
        }
    }
    assert_eq!(dir.listing(), [""; 0]);
}

#[test]
fn check_shows_people_what_would_be_written() {
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    let adapter = fixture("legal-qa/legal-qa-lora");
    let args = ["check", base.to_str().unwrap(), "-a", adapter.to_str().unwrap(), "--quant", "Q8_0,Q4_K_M"];
    let (text, _) = mlpack(&dir).args(args).expect(0);
    let text: Vec<&str> = text.lines().filter(|line| !line.contains("free")).collect();
    insta::assert_snapshot!(text.join("\n"));
}

#[test]
fn the_name_decides_file_names_and_the_models_name() {
    let dir = TestDir::new();
    let base = fixture("legal-qa/kjv-llama");
    mlpack(&dir)
        .args(["convert", base.to_str().unwrap(), "--quant", "q8_0", "--name", "Bible-2M-chat", "-o", "."])
        .succeed();
    let gguf = mlpack_gguf::GgufFile::open(&dir.path("Bible-2M-chat-Q8_0.gguf")).unwrap();
    let text = |key: &str| format!("{:?}", gguf.metadata().find(key));
    assert_eq!(text("general.basename"), r#"Some(String("Bible"))"#);
    assert_eq!(text("general.finetune"), r#"Some(String("chat"))"#);
}
