//! The transforms of descriptions, as views of a tensor of a given shape.

use super::{Found, StackPlace};
use crate::family::{Expression, NoValue, Number, TransformEntry};
use crate::{Error, Model, View, json};
use mlpack_tensor::Shape;
use serde_json::Value;

impl Model {
    /// The shape and the view of each output of a tensor.
    pub(super) fn views(&self, found: &Found<'_>, entry: &TransformEntry) -> Result<Vec<(Shape, View)>, Error> {
        let shape = found.shape;
        let matrices = Matrices::of(shape);
        let Matrices { count, rows, row_len } = matrices;
        // The elements of a vector whose order changes are rows of one.
        let (lines, line_len) = if shape.rank() <= 1 { (row_len, 1) } else { (count * rows, row_len) };
        let same = |view| Ok(vec![(shape.clone(), view)]);
        match entry {
            TransformEntry::Copy | TransformEntry::Stack { .. } => same(View::copy(count * rows, row_len)),
            TransformEntry::RopePermute { heads } => {
                let heads = self.divisor(found, heads, 2, lines)?;
                same(View::rope_permute(lines, line_len, heads))
            }
            TransformEntry::PartsOfHeads { heads } => {
                let heads = self.divisor(found, heads, 3, lines)?;
                same(View::parts_of_heads(lines, line_len, heads, 3))
            }
            TransformEntry::HeadsOfGroups { heads, groups } => {
                let heads = self.count(heads)?;
                let groups = self.count_or(groups, 1)?;
                let queries = heads / groups;
                let group_heads = queries + 2;
                if queries * groups != heads || !lines.is_multiple_of(groups * group_heads) {
                    let expected = format!("{groups} groups of {queries} query heads, a key head and a value head");
                    return Err(self.wrong_shape(found, expected));
                }
                same(View::heads_of_groups(line_len, groups, queries, lines / groups / group_heads))
            }
            TransformEntry::Split { sizes } => self.split(found, sizes, &matrices),
            // The bias of such a tensor.
            TransformEntry::Transpose | TransformEntry::Squeeze { .. } if shape.rank() <= 1 => {
                same(View::copy(count * rows, row_len))
            }
            TransformEntry::Transpose => {
                let dims = shape.dims();
                let [outer @ .., rows, columns] = dims else {
                    return Err(self.wrong_shape(found, "a matrix".to_owned()));
                };
                let transposed = Shape::new(outer.iter().chain([columns, rows]).copied().collect());
                Ok(vec![(transposed, View::transposed_rows(count, *rows, *columns, 0, *rows))])
            }
            TransformEntry::PermutedParts { heads } => {
                let heads = self.count(heads)?;
                let part = lines / 3;
                if part * 3 != lines || !part.is_multiple_of(heads * 2) {
                    return Err(self.wrong_shape(found, format!("three times the rows of {heads} heads")));
                }
                let permuted = |i| View::permuted_groups(line_len, i * part, (1, part), part, heads);
                let shape = with_rows(shape, part);
                let values = View::row_range(1, lines, line_len, 2 * part, part);
                Ok(vec![(shape.clone(), permuted(0)), (shape.clone(), permuted(1)), (shape, values)])
            }
            TransformEntry::PermutedGroups { heads, groups } => {
                let heads = self.count(heads)?;
                let groups = self.count_or(groups, heads)?;
                let queries = heads / groups;
                let head = lines / groups / (queries + 2);
                if queries * groups != heads || head * (queries + 2) * groups != lines || !head.is_multiple_of(2) {
                    let expected = format!("{groups} groups of {queries} query heads, a key head and a value head");
                    return Err(self.wrong_shape(found, expected));
                }
                let stride = (queries + 2) * head;
                let query = View::permuted_groups(line_len, 0, (groups, stride), queries * head, queries);
                let key = View::permuted_groups(line_len, queries * head, (groups, stride), head, 1);
                let value = View::row_range(groups, stride, line_len, (queries + 1) * head, head);
                let keys = with_rows(shape, groups * head);
                Ok(vec![(with_rows(shape, heads * head), query), (keys.clone(), key), (keys, value)])
            }
            TransformEntry::Mxfp4 { interleaved } => {
                let [outer @ .., blocks, 16] = shape.dims() else {
                    return Err(self.wrong_shape(found, "blocks of 16 bytes".to_owned()));
                };
                let (all, row_len) = (outer.iter().product(), blocks.saturating_mul(32));
                let unpacked = Shape::new(outer.iter().chain([&row_len]).copied().collect());
                if !interleaved {
                    return Ok(vec![(unpacked, View::copy(all, row_len))]);
                }
                let Some(rows) = outer.last().filter(|rows| rows.is_multiple_of(2)) else {
                    return Err(self.wrong_shape(found, "an even number of rows".to_owned()));
                };
                let half = with_rows(&unpacked, rows / 2);
                Ok((0..2).map(|start| (half.clone(), View::alternate_rows(all, row_len, start))).collect())
            }
            TransformEntry::Interleaved { transposed } => {
                if !row_len.is_multiple_of(2) {
                    return Err(self.wrong_shape(found, "rows of an even number of elements".to_owned()));
                }
                let mut dims = shape.dims().to_vec();
                if let Some(last) = dims.last_mut() {
                    *last /= 2;
                }
                if !transposed {
                    let view = |start| View::alternate_rows(count * rows * row_len, 1, start);
                    return Ok((0..2).map(|start| (Shape::new(dims.clone()), view(start))).collect());
                }
                let last = dims.len().saturating_sub(1);
                if last == 0 {
                    return Err(self.wrong_shape(found, "a matrix".to_owned()));
                }
                dims.swap(last - 1, last);
                let view = |start| View::alternate_transposed(count, rows, row_len, start);
                Ok((0..2).map(|start| (Shape::new(dims.clone()), view(start))).collect())
            }
            TransformEntry::SkipRows { count } => {
                let skipped = match self.size(count) {
                    Err(Error::MissingField { .. }) => 0,
                    size => size?,
                };
                if shape.rank() != 2 || skipped > rows {
                    return Err(self.wrong_shape(found, format!("at least {skipped} rows")));
                }
                let kept = rows - skipped;
                Ok(vec![(Shape::new(vec![kept, row_len]), View::row_range(1, rows, row_len, skipped, kept))])
            }
            TransformEntry::LatentHeads { heads, keys, values } => {
                let (heads, keys, values) = (self.count(heads)?, self.size(keys)?, self.size(values)?);
                let head = keys.saturating_add(values);
                if shape.rank() != 2 || heads.checked_mul(head) != Some(rows) {
                    return Err(self.wrong_shape(found, format!("{heads} heads of {keys} + {values} rows")));
                }
                let keys_shape = Shape::new(vec![heads, row_len, keys]);
                let values_shape = Shape::new(vec![heads, values, row_len]);
                Ok(vec![
                    (keys_shape, View::transposed_rows(heads, head, row_len, 0, keys)),
                    (values_shape, View::row_range(heads, head, row_len, keys, values)),
                ])
            }
            TransformEntry::VocabularyRows => {
                let kept = self.vocabulary_rows()?.min(rows);
                if shape.rank() != 2 {
                    return Err(self.wrong_shape(found, "a matrix".to_owned()));
                }
                Ok(vec![(Shape::new(vec![kept, row_len]), View::row_range(1, rows, row_len, 0, kept))])
            }
            TransformEntry::Squeeze { dim } => {
                let mut dims = shape.dims().to_vec();
                if dims.get(*dim) != Some(&1) {
                    return Err(self.wrong_shape(found, format!("one element in dimension {dim}")));
                }
                dims.remove(*dim);
                let shape = Shape::new(dims);
                let view = View::copy(shape.row_count().unwrap_or(0), shape.row_len());
                Ok(vec![(shape, view)])
            }
        }
    }

    /// Rows of an embedding that llama.cpp's Gemma 3 converter keeps: the configured vocabulary with a tokenizer.model,
    /// else the entries and added tokens of tokenizer.json.
    fn vocabulary_rows(&self) -> Result<u64, Error> {
        /// Bytes of the largest tokenizer.json that is read.
        const LIMIT: u64 = 256 << 20;
        if self.dir().join("tokenizer.model").is_file() {
            return self.count(&["vocab_size".to_owned()]);
        }
        let path = self.dir().join("tokenizer.json");
        let tokenizer = json::read_bounded(&path, LIMIT)?;
        let vocabulary = tokenizer.pointer("/model/vocab").and_then(Value::as_object).map(|v| v.len() as u64);
        let added = tokenizer.get("added_tokens").and_then(Value::as_array).map(|v| v.len() as u64);
        let missing =
            || Error::MissingField { path, fields: vec!["model.vocab".to_owned(), "added_tokens".to_owned()] };
        vocabulary.zip(added).map(|(vocabulary, added)| vocabulary + added).ok_or_else(missing)
    }

    fn split(&self, found: &Found<'_>, sizes: &[Expression], matrices: &Matrices) -> Result<Vec<(Shape, View)>, Error> {
        // The elements of a vector are its rows.
        let vector = found.shape.rank() <= 1;
        let &Matrices { count, rows, row_len } = matrices;
        let (rows, row_len) = if vector { (row_len, 1) } else { (rows, row_len) };
        let sizes: Vec<u64> = match sizes {
            [] if rows.is_multiple_of(2) => vec![rows / 2; 2],
            [] => return Err(self.wrong_shape(found, "an even number of rows".to_owned())),
            sizes => sizes.iter().map(|size| self.size(size)).collect::<Result<_, _>>()?,
        };
        if sizes.iter().try_fold(0u64, |sum, size| sum.checked_add(*size)) != Some(rows) {
            let sizes: Vec<String> = sizes.iter().map(u64::to_string).collect();
            return Err(self.wrong_shape(found, format!("{} rows", sizes.join(" + "))));
        }
        let mut start = 0;
        let part = |size: u64| {
            let view = View::row_range(count, rows, row_len, start, size);
            start += size;
            (with_rows(found.shape, size), view)
        };
        Ok(sizes.into_iter().map(part).collect())
    }

    /// The place of a tensor in a stack, where its entry makes one.
    pub(super) fn stack_place(&self, found: &Found<'_>, entry: &TransformEntry) -> Result<Option<StackPlace>, Error> {
        let (TransformEntry::Stack { count, group }, Some(index)) = (entry, found.numbers.member) else {
            return Ok(None);
        };
        let count = self.count(count)?;
        if index >= count {
            return Err(Error::Stack {
                dir: self.dir().to_owned(),
                tensor: found.name.to_owned(),
                expected: format!("a number below {count} (config.json)"),
                found: index.to_string(),
            });
        }
        Ok(Some(StackPlace { index, count, group: (group.clone(), found.numbers.layer.unwrap_or(0)) }))
    }

    /// The number of heads, when the rows divide into heads of so many parts.
    fn divisor(&self, found: &Found<'_>, fields: &[String], parts: u64, rows: u64) -> Result<u64, Error> {
        let heads = self.count(fields)?;
        if rows.is_multiple_of(heads * parts) {
            return Ok(heads);
        }
        if parts != 2 {
            return Err(self.wrong_shape(found, format!("{heads} heads of {parts} parts")));
        }
        let (dir, tensor) = (self.dir().to_owned(), found.name.to_owned());
        Err(Error::HeadsDoNotDivide { dir, tensor, heads, shape: found.shape.clone() })
    }

    /// The first of these fields that is there and not null; above zero.
    fn count(&self, fields: &[String]) -> Result<u64, Error> {
        let config = self.config();
        let given = fields.iter().find_map(|f| Some((f.as_str(), config.field(f).filter(|v| !v.is_null())?)));
        let Some((field, value)) = given else {
            return Err(config.missing(&fields.iter().map(String::as_str).collect::<Vec<_>>()));
        };
        match config.u32(field, value)? {
            0 => Err(config.wrong(field, "a number above zero", &Value::from(0))),
            count => Ok(count.into()),
        }
    }

    fn count_or(&self, fields: &[String], default: u64) -> Result<u64, Error> {
        let given = |f: &String| self.config().field(f).is_some_and(|v| !v.is_null());
        if fields.iter().any(given) { self.count(fields) } else { Ok(default) }
    }

    fn size(&self, size: &Expression) -> Result<u64, Error> {
        let config = self.config();
        match size.value(&|name| json::number(config.field(name)?)) {
            Ok(Number::Integer(n)) if n >= 0 => Ok(n as u64),
            Err(NoValue::Field(name)) => Err(config.missing(&[&name])),
            _ => Err(config.missing(&["a size that is an integer"])),
        }
    }

    fn wrong_shape(&self, found: &Found<'_>, expected: String) -> Error {
        let (dir, tensor) = (self.dir().to_owned(), found.name.to_owned());
        Error::TensorShape { dir, tensor, expected, shape: found.shape.clone() }
    }
}

/// A shape with another number of rows; the elements of a vector are its rows.
fn with_rows(shape: &Shape, rows: u64) -> Shape {
    let mut dims = shape.dims().to_vec();
    let place = dims.len().saturating_sub(2);
    if let Some(dim) = dims.get_mut(place) {
        *dim = rows;
    }
    Shape::new(dims)
}

/// A tensor as matrices in its two innermost dimensions; a vector is a matrix of one row.
struct Matrices {
    count: u64,
    rows: u64,
    row_len: u64,
}

impl Matrices {
    fn of(shape: &Shape) -> Matrices {
        let rows = match shape.dims() {
            [.., rows, _] => *rows,
            _ => 1,
        };
        let all = shape.row_count().unwrap_or(0);
        Matrices { count: all.checked_div(rows).unwrap_or(0), rows, row_len: shape.row_len() }
    }
}
