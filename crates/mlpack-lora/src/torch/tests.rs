//! Archives made here byte by byte: what `torch.save` writes is read, everything else is refused without being run.

use super::*;

/// A zip archive of stored members, with the alignment that PyTorch gives them left out.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let local = bytes.len() as u32;
        let sizes = [data.len() as u32; 2].map(u32::to_le_bytes).concat();
        let lens = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        bytes.extend([&b"PK\x03\x04"[..], &[0; 14], &sizes, &lens, name.as_bytes(), data].concat());
        directory.extend([&b"PK\x01\x02"[..], &[0; 16], &sizes, &lens, &[0; 10]].concat());
        directory.extend([&local.to_le_bytes()[..], name.as_bytes()].concat());
    }
    let (start, count) = (bytes.len() as u32, members.len() as u16);
    bytes.extend(&directory);
    bytes.extend([&b"PK\x05\x06"[..], &[0; 4], &[count; 2].map(u16::to_le_bytes).concat()].concat());
    bytes.extend([&(directory.len() as u32).to_le_bytes()[..], &start.to_le_bytes(), &[0; 2]].concat());
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

/// `{name: tensor}` of two rows and three columns, the second dimension with stride `stride`.
fn pickle(name: &str, strides: [u8; 2], function: &str) -> Vec<u8> {
    let (module, function) = function.rsplit_once('.').unwrap();
    [
        &b"\x80\x02}q\x00"[..],
        &text(name),
        format!("c{module}\n{function}\n((").as_bytes(),
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        b"K\x06tQK\x00K\x02K\x03\x86",
        &[b'K', strides[0], b'K', strides[1], 0x86],
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}

fn read_bytes(bytes: &[u8]) -> Result<Vec<AdapterTensor>, TorchProblem> {
    tensors(Path::new("f"), bytes)
}

fn file(strides: [u8; 2], function: &str) -> Vec<u8> {
    let data: Vec<u8> = (0..6u8).flat_map(|i| f32::from(i).to_le_bytes()).collect();
    archive(&[("a/data.pkl", &pickle("x", strides, function)), ("a/data/0", &data)])
}

#[test]
fn a_tensor_is_a_range_of_the_file() {
    let bytes = file([3, 1], REBUILD);
    let [tensor] = &read_bytes(&bytes).unwrap()[..] else { panic!("one tensor") };
    assert_eq!((tensor.name.as_str(), tensor.shape.dims(), tensor.strides.as_slice()), ("x", &[2, 3][..], &[3, 1][..]));
    let data = &bytes[tensor.range.start as usize..tensor.range.end as usize];
    assert_eq!(data.len(), 24);
    assert_eq!(data[20..], 5f32.to_le_bytes());
}

const REBUILD: &str = "torch._utils._rebuild_tensor_v2";

#[test]
fn a_transposed_tensor_keeps_its_strides() {
    let [tensor] = &read_bytes(&file([1, 2], REBUILD)).unwrap()[..] else { panic!("one tensor") };
    assert_eq!(tensor.strides, [1, 2]);
    assert!(!tensor.is_row_major());
}

#[test]
fn other_functions_are_named_and_not_run() {
    for function in ["os.system", "builtins.eval", "torch.load"] {
        let expected = TorchProblem::Call(function.to_owned());
        assert_eq!(read_bytes(&file([3, 1], function)).unwrap_err(), expected);
    }
    // The function by protocol 4's instruction, and an object made instead of a call.
    let stack_global = [&b"\x80\x04"[..], &text("posix"), &text("system"), b"\x93", &text("id"), b"\x85R."].concat();
    let bytes = archive(&[("a/data.pkl", &stack_global)]);
    assert_eq!(read_bytes(&bytes).unwrap_err(), TorchProblem::Call("posix.system".to_owned()));
    let object = archive(&[("a/data.pkl", b"\x80\x02csubprocess\nPopen\n)\x81.")]);
    assert_eq!(read_bytes(&object).unwrap_err(), TorchProblem::Call("subprocess.Popen".to_owned()));
}

#[test]
fn a_tensor_may_not_reach_outside_its_storage() {
    let outside = read_bytes(&file([255, 255], REBUILD)).unwrap_err();
    assert_eq!(outside, TorchProblem::Unexpected("tensor `x` lies outside its storage".into()));
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = file([3, 1], REBUILD);
    for len in 0..bytes.len() {
        assert!(read_bytes(&bytes[..len]).is_err(), "{len}");
    }
}

#[test]
fn damage_of_any_byte_is_a_value_or_an_error() {
    for name in ["adapter_model.bin", "adapter_model.pt", "evil.bin"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/lora/torch").join(name);
        let whole = mlpack_fs::read_bounded(&path, 1 << 20).unwrap();
        let found = read_bytes(&whole);
        assert_eq!(found.is_ok(), name != "evil.bin", "{found:?}");
        for at in 0..whole.len() {
            for change in [0x01, 0x80, 0xff] {
                let mut bytes = whole.clone();
                bytes[at] ^= change;
                // What is read lies within the file, whatever the file says.
                for tensor in read_bytes(&bytes).unwrap_or_default() {
                    assert!(tensor.range.start <= tensor.range.end && tensor.range.end <= bytes.len() as u64, "{at}");
                }
            }
        }
    }
}

#[test]
fn values_that_refer_to_each_other_without_end_are_refused() {
    // ((((…)))): each tuple holds the one before.
    let nested = [&b"\x80\x02)"[..], &b"\x85".repeat(1000), b"."].concat();
    let bytes = archive(&[("a/data.pkl", &nested)]);
    assert_eq!(read_bytes(&bytes).unwrap_err(), TorchProblem::Unexpected("values too deep in each other".into()));
}
