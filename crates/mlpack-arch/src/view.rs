//! Where the values of a tensor come from: the one mechanism for every change of order, for parts and for stacks.
//!
//! ```text
//!   source   pieces 0 1 2 3 4 5 6 7      a piece is a row, or a part of one; several sources follow one another
//!   view     pieces 0 2 1 3 4 6 5 7      here [2 heads, stride 4] [2 pairs, stride 1] [2 halves, stride 2]
//! ```

/// The pieces of a tensor in terms of the pieces of its sources. A piece is a run of elements that stay together.
///
/// ```
/// use mlpack_arch::View;
/// let view = View::rope_permute(8, 4, 2);
/// let pieces: Vec<u64> = (0..8).map(|piece| view.source_piece(piece)).collect();
/// assert_eq!(pieces, [0, 2, 1, 3, 4, 6, 5, 7]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    piece_len: u64,
    /// One after another.
    segments: Vec<Segment>,
}

/// A strided array of pieces: the piece at (i, j, …) is `start + i * stride_i + j * stride_j + …` of the sources.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Segment {
    start: u64,
    /// Counts and strides, outermost first; no count is zero.
    dims: Vec<(u64, u64)>,
}

impl Segment {
    fn len(&self) -> u64 {
        self.dims.iter().map(|(count, _)| count).product()
    }

    fn source_piece(&self, mut piece: u64) -> u64 {
        let mut source = self.start;
        for (count, stride) in self.dims.iter().rev() {
            source += piece % count * stride;
            piece /= count;
        }
        source
    }
}

impl View {
    fn new(piece_len: u64, segments: impl IntoIterator<Item = (u64, Vec<(u64, u64)>)>) -> View {
        let segments = segments.into_iter().map(|(start, dims)| Segment { start, dims });
        View { piece_len, segments: segments.filter(|s| s.len() > 0).collect() }
    }

    /// Everything stays where it is: `rows` rows of `row_len` elements.
    pub fn copy(rows: u64, row_len: u64) -> View {
        View::new(row_len, [(0, vec![(rows, 1)])])
    }

    /// The rows of each head, stored as a first and a second half, become pairs: 0, n, 1, n + 1, …
    ///
    /// # Panics
    /// When `rows` is not a multiple of twice the heads.
    pub fn rope_permute(rows: u64, row_len: u64, heads: u64) -> View {
        let half = rows / heads / 2;
        assert!(half * heads * 2 == rows, "{rows} rows in {heads} heads");
        View::new(row_len, [(0, vec![(heads, half * 2), (half, 1), (2, half)])])
    }

    /// Rows `start..start + count` of every one of `matrices` matrices of `rows` rows.
    pub fn row_range(matrices: u64, rows: u64, row_len: u64, start: u64, count: u64) -> View {
        View::new(row_len, [(start, vec![(matrices, rows), (count, 1)])])
    }

    /// Rows stored as (head, parts, row) become (part, head, row).
    pub fn parts_of_heads(rows: u64, row_len: u64, heads: u64, parts: u64) -> View {
        let head = rows / heads / parts;
        View::new(row_len, [(0, vec![(parts, head), (heads, parts * head), (head, 1)])])
    }

    /// Rows stored as groups of so many query heads, a key head and a value head become all queries, all keys, all
    /// values.
    pub fn heads_of_groups(row_len: u64, groups: u64, queries: u64, head_rows: u64) -> View {
        let group = (queries + 2) * head_rows;
        let single = |index: u64| (index * head_rows, vec![(groups, group), (head_rows, 1)]);
        let segments = [(0, vec![(groups, group), (queries * head_rows, 1)]), single(queries), single(queries + 1)];
        View::new(row_len, segments)
    }

    /// Rows `start..start + count` of each of `matrices` matrices of `rows` x `columns`, transposed.
    pub fn transposed_rows(matrices: u64, rows: u64, columns: u64, start: u64, count: u64) -> View {
        View::new(1, [(start * columns, vec![(matrices, rows * columns), (columns, 1), (count, columns)])])
    }

    /// Rows `start..start + rows` of heads, each stored as a first and a second half, become pairs; `groups` of heads lie
    /// `stride` rows apart.
    ///
    /// # Panics
    /// When the rows of a group are not a multiple of twice its heads.
    pub fn permuted_groups(row_len: u64, start: u64, (groups, stride): (u64, u64), rows: u64, heads: u64) -> View {
        let half = rows / heads / 2;
        assert!(half * heads * 2 == rows, "{rows} rows in {heads} heads");
        View::new(row_len, [(start, vec![(groups, stride), (heads, half * 2), (half, 1), (2, half)])])
    }

    /// Every other row from `start` on.
    pub fn alternate_rows(rows: u64, row_len: u64, start: u64) -> View {
        View::new(row_len, [(start, vec![(rows / 2, 2)])])
    }

    /// Every other column from `start` on of each of `matrices` matrices of `rows` x `columns`, transposed.
    pub fn alternate_transposed(matrices: u64, rows: u64, columns: u64, start: u64) -> View {
        View::new(1, [(start, vec![(matrices, rows * columns), (columns / 2, 2), (rows, columns)])])
    }

    /// The same order of pieces of another length.
    pub fn with_piece_len(self, piece_len: u64) -> View {
        View { piece_len, ..self }
    }

    /// Where the view is one whole matrix transposed: the first element of the matrix, its rows and its columns.
    pub fn as_transposed(&self) -> Option<(u64, u64, u64)> {
        let [Segment { start, dims }] = &self.segments[..] else { return None };
        let [(1, _), (columns, 1), (rows, stride)] = dims[..] else { return None };
        (self.piece_len == 1 && stride == columns).then_some((*start, rows, columns))
    }

    /// Elements of a piece.
    pub fn piece_len(&self) -> u64 {
        self.piece_len
    }

    /// The number of pieces.
    pub fn pieces(&self) -> u64 {
        self.segments.iter().map(Segment::len).sum()
    }

    /// The piece of the sources that becomes piece `piece`.
    ///
    /// # Panics
    /// When there are not so many pieces.
    pub fn source_piece(&self, piece: u64) -> u64 {
        let mut within = piece;
        for segment in &self.segments {
            if within < segment.len() {
                return segment.source_piece(within);
            }
            within -= segment.len();
        }
        panic!("piece {piece} of {}", self.pieces())
    }

    /// Pieces that stay together: pieces `k * group..(k + 1) * group` are made of as many pieces that lie together in the
    /// sources, and in the same order as the groups.
    pub fn group(&self) -> u64 {
        let [segment] = &self.segments[..] else { return self.pieces().max(1) };
        let mut group = segment.len();
        for (count, stride) in &segment.dims {
            let inner = group / count;
            if *count > 1 && *stride != inner {
                break;
            }
            group = inner;
        }
        group.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(view: &View) -> Vec<u64> {
        (0..view.pieces()).map(|piece| view.source_piece(piece)).collect()
    }

    #[test]
    fn a_copy_keeps_every_row_and_has_no_group() {
        let view = View::copy(5, 3);
        assert_eq!(pieces(&view), [0, 1, 2, 3, 4]);
        assert_eq!((view.group(), view.piece_len()), (1, 3));
        assert_eq!(View::copy(0, 3).pieces(), 0);
    }

    #[test]
    fn permuted_rows_stay_within_their_head() {
        let view = View::rope_permute(12, 1, 2);
        assert_eq!(pieces(&view), [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]);
        assert_eq!(view.group(), 6);
    }

    #[test]
    fn row_ranges_are_taken_of_every_matrix() {
        assert_eq!(pieces(&View::row_range(2, 4, 8, 2, 2)), [2, 3, 6, 7]);
        assert_eq!(View::row_range(1, 4, 8, 2, 2).group(), 1);
    }

    #[test]
    fn fused_projections_are_put_in_order() {
        // Two heads, each with a query, a key and a value of two rows.
        assert_eq!(pieces(&View::parts_of_heads(12, 1, 2, 3)), [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]);
        // Two groups of two queries, a key and a value, of one row.
        assert_eq!(pieces(&View::heads_of_groups(1, 2, 2, 1)), [0, 1, 4, 5, 2, 6, 3, 7]);
    }

    #[test]
    fn groups_of_heads_are_permuted_head_by_head() {
        // Two groups of one query head of four rows, a key head and a value head.
        assert_eq!(pieces(&View::permuted_groups(1, 0, (2, 12), 4, 1)), [0, 2, 1, 3, 12, 14, 13, 15]);
        assert_eq!(pieces(&View::permuted_groups(1, 4, (2, 12), 4, 2)), [4, 5, 6, 7, 16, 17, 18, 19]);
    }

    #[test]
    fn what_alternates_is_taken_apart() {
        assert_eq!(pieces(&View::alternate_rows(6, 5, 1)), [1, 3, 5]);
        // Two rows of four columns: the columns 1 and 3.
        assert_eq!(pieces(&View::alternate_transposed(1, 2, 4, 1)), [1, 5, 3, 7]);
    }

    #[test]
    fn a_transpose_goes_by_elements() {
        // Two rows of three columns.
        assert_eq!(pieces(&View::transposed_rows(1, 2, 3, 0, 2)), [0, 3, 1, 4, 2, 5]);
        assert_eq!(pieces(&View::transposed_rows(2, 2, 2, 1, 1)), [2, 3, 6, 7]);
        assert_eq!(View::transposed_rows(1, 2, 3, 0, 2).as_transposed(), Some((0, 2, 3)));
        assert_eq!(View::transposed_rows(2, 2, 2, 1, 1).as_transposed(), None);
    }
}
