//! Counting parameters, and the label made from the count (llama.cpp b11434, `gguf_writer.py`
//! `get_total_parameter_count` and `utility.py` `size_label`).

use mlpack_tensor::Shape;

/// How many parameters a model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ParameterCount {
    /// All elements of all tensors.
    pub total: u64,
    /// Elements that every token uses.
    pub shared: u64,
    /// Elements of one expert.
    pub expert: u64,
    /// The number of experts; 0 when there are none.
    pub expert_count: u64,
}

/// Counts the parameters of the tensors of a GGUF file, from their GGUF names and row-major shapes. A count that does
/// not fit in 64 bits stays at the largest number.
///
/// ```
/// use mlpack_arch::parameter_count;
/// use mlpack_tensor::Shape;
/// let shapes = [("output.weight", Shape::new(vec![10, 4])), ("blk.0.ffn_up_exps.weight", Shape::new(vec![8, 6, 4]))];
/// let count = parameter_count(shapes.iter().map(|(name, shape)| (*name, shape)));
/// assert_eq!((count.total, count.shared, count.expert, count.expert_count), (232, 40, 24, 8));
/// ```
pub fn parameter_count<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a Shape)>) -> ParameterCount {
    let mut count = ParameterCount::default();
    let (mut expert_sum, mut expert_tensors) = (0u64, 0u64);
    for (name, shape) in tensors {
        let size = shape.element_count().unwrap_or(u64::MAX);
        let dims = shape.dims();
        if name.contains("_exps.") && dims.len() >= 3 {
            let experts = dims[dims.len() - if name.contains(".bias") { 2 } else { 3 }];
            count.expert = count.expert.saturating_add(size.checked_div(experts).unwrap_or(0));
            expert_sum = expert_sum.saturating_add(experts);
            expert_tensors += 1;
        } else {
            count.shared = count.shared.saturating_add(size);
        }
        count.total = count.total.saturating_add(size);
    }
    count.expert_count = expert_sum.checked_div(expert_tensors).unwrap_or(0);
    count
}

/// "2.3M", "8x7B".
pub(super) fn label(count: &ParameterCount) -> String {
    match count.expert_count {
        0 => rounded(count.total),
        experts => format!("{experts}x{}", rounded(count.shared.saturating_add(count.expert))),
    }
}

/// At least two digits, with the largest unit that the count exceeds.
fn rounded(count: u64) -> String {
    const UNITS: [(u64, f64, char); 3] =
        [(1_000_000_000_000, 1e-12, 'T'), (1_000_000_000, 1e-9, 'B'), (1_000_000, 1e-6, 'M')];
    let unit = UNITS.into_iter().find(|(limit, ..)| count > *limit);
    let (scale, suffix) = unit.map_or((1e-3, 'K'), |(_, scale, suffix)| (scale, suffix));
    let scaled = count as f64 * scale;
    let whole = scaled.round_ties_even();
    let digits = if whole == 0.0 { 0 } else { format!("{whole:.0}").len() };
    format!("{scaled:.*}{suffix}", 2usize.saturating_sub(digits))
}
