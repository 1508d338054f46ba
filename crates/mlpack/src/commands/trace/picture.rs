//! The lineage as a picture: the artifact on top, below it the step that made it, below that what the step read.

use super::html::mark;
use crate::html::{INFALLIBLE, text};
use mlpack_provenance::{Graph, GraphNode, NodeKind, Trace};
use std::fmt::Write as _;

const WIDTH: f64 = 176.0;
const HEIGHT: f64 = 54.0;
const GAP: f64 = 18.0;
const ROW: f64 = 92.0;
/// Nodes in a row before it goes on in the next.
const IN_A_ROW: usize = 6;
/// Characters of a name that fit into a box.
const FIT: usize = 23;
/// Rounds of putting nodes below what they lead to.
const ROUNDS: usize = 4;

/// The picture as SVG.
pub fn picture(html: &mut String, trace: &Trace) {
    let graph = trace.graph();
    let rows = rows(&graph);
    let places = places(&graph, &rows);
    let width = places.iter().map(|(x, _)| x + WIDTH).fold(0.0, f64::max) + 2.0;
    let height = rows.len() as f64 * ROW - (ROW - HEIGHT) + 4.0;
    writeln!(
        html,
        "<div class=\"scroll\"><svg class=\"lineage\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"What was made from what\">"
    )
    .expect(INFALLIBLE);
    for (from, to) in &graph.arrows {
        let ((x1, y1), (x2, y2)) = (places[*from], places[*to]);
        let (x1, x2) = (x1 + WIDTH / 2.0, x2 + WIDTH / 2.0);
        let (y1, y2) = (y1, y2 + HEIGHT);
        let bend = (y1 - y2).abs().max(40.0) / 2.0;
        writeln!(
            html,
            "<path class=\"arrow\" d=\"M{x1:.1} {y1:.1}C{x1:.1} {:.1} {x2:.1} {:.1} {x2:.1} {:.1}\"/>\
             <path class=\"head\" d=\"M{x2:.1} {y2:.1}l-4.5 8h9Z\"/>",
            y1 - bend,
            y2 + bend,
            y2 + 6.0
        )
        .expect(INFALLIBLE);
    }
    for (node, (x, y)) in graph.nodes.iter().zip(&places) {
        draw(html, node, *x, *y);
    }
    html.push_str("</svg></div>\n");
}

fn draw(html: &mut String, node: &GraphNode<'_>, x: f64, y: f64) {
    let state = node.state();
    let (word, name) = node.label();
    let full = node.nodes.iter().map(|n| n.name.as_str()).collect::<Vec<_>>().join(", ");
    let round = if node.nodes[0].kind == NodeKind::Step { HEIGHT / 2.0 } else { 6.0 };
    let shown = if name.chars().count() > FIT {
        let start: String = name.chars().take(FIT / 2).collect();
        let end: Vec<char> = name.chars().rev().take(FIT / 2 - 1).collect();
        format!("{start}…{}", end.into_iter().rev().collect::<String>())
    } else {
        name
    };
    writeln!(
        html,
        "<g class=\"{}\"><title>{} {} ({})</title>\
         <rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" rx=\"{round:.0}\"/>\
         <text class=\"word\" x=\"{:.1}\" y=\"{:.1}\">{}</text><text x=\"{:.1}\" y=\"{:.1}\">{}</text>\
         <text class=\"state\" x=\"{:.1}\" y=\"{:.1}\">{} {}</text></g>",
        state.name(),
        text(&word),
        text(&full),
        state.name(),
        x + WIDTH / 2.0,
        y + 14.0,
        text(&word),
        x + WIDTH / 2.0,
        y + 30.0,
        text(&shown),
        x + WIDTH / 2.0,
        y + 46.0,
        mark(state),
        state.name()
    )
    .expect(INFALLIBLE);
}

/// Indices of nodes by row, top to bottom.
fn rows(graph: &Graph<'_>) -> Vec<Vec<usize>> {
    let deepest = graph.nodes.iter().map(|node| node.depth).max().unwrap_or(0);
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); deepest + 1];
    for (i, node) in graph.nodes.iter().enumerate() {
        rows[node.depth].push(i);
    }
    rows.into_iter().flat_map(|row| row.chunks(IN_A_ROW).map(<[usize]>::to_vec).collect::<Vec<_>>()).collect()
}

/// The upper left corner of each node: below what it leads to, as far as its row has room.
fn places(graph: &Graph<'_>, rows: &[Vec<usize>]) -> Vec<(f64, f64)> {
    let widest = rows.iter().map(Vec::len).max().unwrap_or(1);
    let room = widest as f64 * (WIDTH + GAP) - GAP;
    let mut places = vec![(0.0, 0.0); graph.nodes.len()];
    for (r, row) in rows.iter().enumerate() {
        let left = (room - (row.len() as f64 * (WIDTH + GAP) - GAP)) / 2.0;
        for (i, node) in row.iter().enumerate() {
            places[*node] = (left + i as f64 * (WIDTH + GAP), r as f64 * ROW + 2.0);
        }
    }
    for _ in 0..ROUNDS {
        for row in rows.iter().skip(1) {
            let wanted = |node: usize| {
                let above: Vec<f64> =
                    graph.arrows.iter().filter(|(from, _)| *from == node).map(|(_, to)| places[*to].0).collect();
                if above.is_empty() { places[node].0 } else { above.iter().sum::<f64>() / above.len() as f64 }
            };
            let mut order: Vec<(f64, usize)> = row.iter().map(|node| (wanted(*node), *node)).collect();
            order.sort_by(|a, b| a.partial_cmp(b).expect("places are finite"));
            // As near as they may be to where they are wanted: first not over the left neighbour, then not out of the room.
            let mut xs: Vec<f64> = Vec::with_capacity(order.len());
            for (wanted, _) in &order {
                let least = xs.last().map_or(0.0, |last| last + WIDTH + GAP);
                xs.push(wanted.max(least));
            }
            let mut most = room - WIDTH;
            for x in xs.iter_mut().rev() {
                *x = x.min(most);
                most = *x - WIDTH - GAP;
            }
            for ((_, node), x) in order.iter().zip(xs) {
                places[*node].0 = x + 1.0;
            }
        }
    }
    places
}
