//! The type of every tensor as a map: a row for each kind of tensor, a column for each layer.

use crate::html::{INFALLIBLE, text};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Colours that there are.
const COLOURS: usize = 10;
const CELL: f64 = 16.0;
/// Room for the name of a kind.
const LEFT: f64 = 176.0;

/// The map of `tensor name -> type`.
pub fn type_map(html: &mut String, types: &Map<String, Value>) {
    let types: Vec<(&str, &str)> = types.iter().filter_map(|(name, ty)| Some((name.as_str(), ty.as_str()?))).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, ty) in &types {
        *counts.entry(ty).or_default() += 1;
    }
    // The most frequent first, so that neighbours in the legend differ most.
    let mut legend: Vec<(&str, usize)> = counts.into_iter().collect();
    legend.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let colour = |ty: &str| legend.iter().position(|(name, _)| *name == ty).unwrap_or_default() % COLOURS;
    let mut kinds: Vec<(String, Vec<(u64, &str)>)> = Vec::new();
    let mut outside = Vec::new();
    for (name, ty) in &types {
        match layered(name) {
            Some((layer, kind)) => match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, layers)) => layers.push((layer, ty)),
                None => kinds.push((kind, vec![(layer, ty)])),
            },
            None => outside.push((*name, *ty)),
        }
    }
    writeln!(
        html,
        "<section>\n<h2>Type of every tensor</h2>\n<p class=\"muted\">{} tensors, as the step that made the file stated \
         them.</p>\n<ul class=\"legend\">",
        types.len()
    )
    .expect(INFALLIBLE);
    for (ty, count) in &legend {
        writeln!(
            html,
            "<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"c{}\" width=\"14\" height=\"14\" rx=\"2\"/>\
             </svg>{} <span class=\"muted\">{count}</span></li>",
            colour(ty),
            text(ty)
        )
        .expect(INFALLIBLE);
    }
    html.push_str("</ul>\n");
    if !outside.is_empty() {
        html.push_str("<ul class=\"outside\">\n");
        for (name, ty) in outside {
            writeln!(
                html,
                "<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\"><rect class=\"c{}\" width=\"14\" height=\"14\" \
                 rx=\"2\"/></svg><code>{}</code> {}</li>",
                colour(ty),
                text(name),
                text(ty)
            )
            .expect(INFALLIBLE);
        }
        html.push_str("</ul>\n");
    }
    let layers = kinds.iter().flat_map(|(_, layers)| layers.iter().map(|(layer, _)| layer + 1)).max().unwrap_or(0);
    if layers > 0 {
        grid(html, &kinds, layers, &colour);
    }
    html.push_str("</section>\n");
}

fn grid(html: &mut String, kinds: &[(String, Vec<(u64, &str)>)], layers: u64, colour: &dyn Fn(&str) -> usize) {
    let (width, height) = (LEFT + layers as f64 * CELL + 4.0, kinds.len() as f64 * CELL + 18.0);
    writeln!(
        html,
        "<div class=\"scroll\"><svg class=\"types\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"Type by kind of tensor and layer\">"
    )
    .expect(INFALLIBLE);
    for layer in (0..layers).filter(|layer| layers <= 12 || layer % 4 == 0) {
        let x = LEFT + layer as f64 * CELL + CELL / 2.0;
        writeln!(html, "<text x=\"{x:.1}\" y=\"10\" text-anchor=\"middle\">{layer}</text>").expect(INFALLIBLE);
    }
    for (row, (kind, cells)) in kinds.iter().enumerate() {
        let y = 15.0 + row as f64 * CELL;
        writeln!(html, "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, y + 11.0, text(kind))
            .expect(INFALLIBLE);
        for (layer, ty) in cells {
            writeln!(
                html,
                "<rect class=\"c{}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"2\">\
                 <title>layer {layer}, {}: {}</title></rect>",
                colour(ty),
                LEFT + *layer as f64 * CELL + 1.0,
                CELL - 2.0,
                CELL - 2.0,
                text(kind),
                text(ty)
            )
            .expect(INFALLIBLE);
        }
    }
    html.push_str("</svg></div>\n");
}

/// Layer and kind of `blk.3.attn_q.weight` or `model.layers.3.self_attn.q_proj.weight`. Layers beyond 1024 are no layers
/// of a picture.
fn layered(name: &str) -> Option<(u64, String)> {
    let parts: Vec<&str> = name.split('.').collect();
    let at = parts.iter().position(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))?;
    let layer = parts[at].parse().ok().filter(|layer| *layer < 1024)?;
    let kind = parts[at + 1..].join(".");
    (at > 0 && !kind.is_empty()).then(|| (layer, kind.strip_suffix(".weight").unwrap_or(&kind).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tensors_of_layers_and_others_are_told_apart() {
        assert_eq!(layered("blk.3.attn_q.weight"), Some((3, "attn_q".to_owned())));
        assert_eq!(layered("model.layers.12.mlp.experts.0.w1.weight"), Some((12, "mlp.experts.0.w1".to_owned())));
        for other in ["output.weight", "blk.x.attn_q", "3.weight", "blk.9999999.a", "", "a.5"] {
            assert_eq!(layered(other), None, "{other}");
        }
    }

    #[test]
    fn every_tensor_is_in_the_map() {
        let types =
            json!({"output.weight": "Q6_K", "blk.0.a.weight": "Q4_K", "blk.1.a.weight": "Q<K", "blk.1.b.bias": "F32"});
        let mut html = String::new();
        type_map(&mut html, types.as_object().unwrap());
        assert_eq!(html.matches("<title>layer").count(), 3);
        assert!(html.contains("<code>output.weight</code> Q6_K") && html.contains("layer 1, a: Q&lt;K"), "{html}");
    }
}
