//! Random rows through `ggml_quantize_chunk`: every type, with and without importance values, on every implementation here.

use crate::peers::Peers;
use crate::process::output;
use crate::workspace;
use anyhow::{Context as _, Result};
use mlpack_fs::MappedFile;
use mlpack_quant::{Backend, can_encode, encode_on};
use mlpack_tensor::GgmlType;

/// Compares all, and returns how many rows differ.
pub fn run(seed: u64, peers: &Peers) -> Result<usize> {
    let file = workspace::root().join("target/parity/rows.bin");
    std::fs::create_dir_all(workspace::root().join("target/parity")).context("cannot create target/parity")?;
    let types = GgmlType::ALL.iter().filter(|ty| can_encode(**ty)).map(|ty| ty.id().to_string());
    let mut rows = peers.script("ggml_rows.py");
    rows.arg(peers.llama_bin().join("libggml-base.so")).arg(&file).arg(seed.to_string());
    output(rows.args(types))?;
    println!("random rows, seed {seed}");
    let mut differing = 0;
    {
        let mapped = MappedFile::open(&file)?;
        let mut rest = mapped.bytes();
        while !rest.is_empty() {
            let record = Record::take(&mut rest).context("`ggml_rows.py` wrote a file that ends too early")?;
            let found = record.differing()?;
            let with = if record.importance.is_some() { " with importance" } else { "" };
            let (count, len) = (record.values.len() / record.row_len, record.row_len);
            match found.as_slice() {
                [] => println!("  {}{with}: {count} rows of {len}: identical", record.ty),
                [first, ..] => {
                    println!("  {}{with}: {} of {count} rows of {len} differ: {first}", record.ty, found.len())
                }
            }
            differing += found.len();
        }
    }
    std::fs::remove_file(&file).with_context(|| format!("cannot remove `{}`", file.display()))?;
    Ok(differing)
}

/// One record of the file that `xtask/scripts/ggml_rows.py` describes.
struct Record<'a> {
    ty: GgmlType,
    row_len: usize,
    values: Vec<f32>,
    importance: Option<Vec<f32>>,
    blocks: &'a [u8],
}

impl<'a> Record<'a> {
    /// The next record; `None` when the bytes end inside it.
    fn take(rest: &mut &'a [u8]) -> Option<Record<'a>> {
        let (head, after) = rest.split_at_checked(16)?;
        *rest = after;
        let number = |i: usize| u32::from_le_bytes(head[4 * i..4 * i + 4].try_into().expect("four bytes"));
        let ty = GgmlType::from_id(number(0))?;
        let (rows, row_len) = (number(2) as usize, number(3) as usize);
        let values = floats(rest, rows * row_len)?;
        let importance = if number(1) == 1 { Some(floats(rest, row_len)?) } else { None };
        let byte_len = rows * usize::try_from(ty.row_byte_len(row_len as u64)?).ok()?;
        let (blocks, after) = rest.split_at_checked(byte_len)?;
        *rest = after;
        Some(Record { ty, row_len, values, importance, blocks })
    }

    /// A description of every row that some implementation encodes to other bytes.
    fn differing(&self) -> Result<Vec<String>> {
        let mut ours = vec![0; self.blocks.len()];
        let mut lines = Vec::new();
        let row_bytes = self.blocks.len() / (self.values.len() / self.row_len);
        for backend in Backend::available() {
            ours.fill(0xa5);
            let importance = self.importance.as_deref();
            encode_on(backend, self.ty, &self.values, self.row_len, importance, &mut ours)?;
            for (row, (a, b)) in ours.chunks(row_bytes).zip(self.blocks.chunks(row_bytes)).enumerate() {
                if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
                    let block = at / self.ty.block_byte_len() as usize;
                    lines.push(format!("{backend:?}, row {row}, block {block}, byte {at} of the row"));
                }
            }
        }
        Ok(lines)
    }
}

fn floats(rest: &mut &[u8], count: usize) -> Option<Vec<f32>> {
    let (bytes, after) = rest.split_at_checked(count.checked_mul(4)?)?;
    *rest = after;
    Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().expect("four bytes"))).collect())
}
