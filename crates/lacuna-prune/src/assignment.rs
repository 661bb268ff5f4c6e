//! The linear sum assignment problem: give every row a column of its own so that the benefits add up to the most.
//!
//! Shortest augmenting paths with dual variables (Crouse, "On implementing 2D rectangular assignment algorithms", IEEE
//! Transactions on Aerospace and Electronic Systems 52, 2016): rows join one by one; a new row takes the cheapest path of
//! exchanges to a free column, which Dijkstra's algorithm finds in costs that the duals keep from being negative.

/// The assignment with the largest sum of `benefit[rows, cols]`, row-major: the column of each row. Exact up to the
/// rounding of f64, and deterministic: of equally good ones always the same.
///
/// # Panics
/// If there are more rows than columns, or `benefit` has another length than they say.
pub fn assign(benefit: &[f32], rows: usize, cols: usize) -> Vec<usize> {
    const FREE: usize = usize::MAX;
    assert!(rows <= cols, "{rows} rows cannot have a column each of {cols}");
    assert_eq!(benefit.len(), rows * cols, "a benefit a row and column");
    let (mut row_dual, mut column_dual) = (vec![0.0_f64; rows], vec![0.0_f64; cols]);
    let (mut column_of, mut row_of) = (vec![FREE; rows], vec![FREE; cols]);
    // Of the search for one row: the length of the shortest path to each column, the row before it there; the
    // columns that are reached for good, and the others.
    let (mut shortest, mut before) = (vec![0.0_f64; cols], vec![FREE; cols]);
    let (mut closed, mut open) = (Vec::with_capacity(cols), Vec::with_capacity(cols));
    for new in 0..rows {
        shortest.fill(f64::INFINITY);
        closed.clear();
        open.clear();
        open.extend(0..cols);
        let (mut row, mut reached) = (new, 0.0);
        let sink = loop {
            let benefits = &benefit[row * cols..(row + 1) * cols];
            let offset = reached - row_dual[row];
            let (mut nearest, mut at) = (f64::INFINITY, 0);
            for (i, &col) in open.iter().enumerate() {
                let length = offset - f64::from(benefits[col]) - column_dual[col];
                if length < shortest[col] {
                    shortest[col] = length;
                    before[col] = row;
                }
                // A free column ends the search, so of equally near ones it comes first.
                if shortest[col] < nearest || shortest[col] <= nearest && row_of[col] == FREE {
                    (nearest, at) = (shortest[col], i);
                }
            }
            reached = nearest;
            let col: usize = open.swap_remove(at);
            if row_of[col] == FREE {
                break col;
            }
            closed.push(col);
            row = row_of[col];
        };
        // What lies on shorter paths is made dearer by as much as they are shorter.
        row_dual[new] += reached;
        for &col in &closed {
            let slack = reached - shortest[col];
            row_dual[row_of[col]] += slack;
            column_dual[col] -= slack;
        }
        let mut col = sink;
        loop {
            let row = before[col];
            row_of[col] = row;
            std::mem::swap(&mut column_of[row], &mut col);
            if row == new {
                break;
            }
        }
    }
    column_of
}
