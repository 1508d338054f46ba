//! A diff as one HTML page that needs nothing else: no script, no font, no file beside it.
//!
//! Names are untrusted: every text goes through [`text`]. The page's own policy forbids whatever might slip through
//! to load or run anything. The bytes depend on the report alone.

use super::heat::heat_map;
use super::plot::{Marks, plots};
use super::report::{Report, cosine, count, figure, percent};
pub use crate::html::{INFALLIBLE, text};
use mlpack_convert::{Exceeded, TensorDiff};
use std::fmt::Write as _;

/// Tensors in the list of the worst.
const WORST: usize = 10;

/// Names in a sentence before it is cut with a count.
const NAMED: usize = 30;

/// The page.
pub fn page(report: &Report) -> String {
    let mut html = String::new();
    let marks = Marks::of(report);
    let title = format!("{} compared with {}", text(&report.b), text(&report.a));
    write!(
        html,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n<style>\n{}</style>\n</head>\n<body>\n",
        include_str!("style.css")
    )
    .expect(INFALLIBLE);
    header(&mut html, report);
    summary(&mut html, report);
    worst(&mut html, report);
    outside(&mut html, report);
    layers(&mut html, report, &marks);
    every(&mut html, report);
    unpaired(&mut html, report);
    html.push_str(
        "<p class=\"muted\">RMSE: root of the mean squared difference. Relative: RMSE as a part of the root of A's mean \
         square. Bits: bits of B for each weight, scales included. Largest: the largest difference, with its row and \
         column in B, counted from 0.</p>\n</body>\n</html>\n",
    );
    html
}

/// A tensor's name, which a narrow page may break after its dots.
fn tensor_name(untrusted: &str) -> String {
    text(untrusted).replace('.', ".<wbr>")
}

fn header(html: &mut String, report: &Report) {
    write!(
        html,
        "<header>\n<h1>How far is <code>{}</code> from its source?</h1>\n<dl class=\"files\">\n\
         <dt>A, the source</dt><dd><code>{}</code></dd>\n<dt>B, made from it</dt><dd><code>{}</code></dd>\n</dl>\n",
        text(file_name(&report.b)),
        text(&report.a),
        text(&report.b)
    )
    .expect(INFALLIBLE);
    let (exceeding, not_compared) = (report.exceeding(), report.not_compared());
    let not_finite = report.diff.tensors.iter().filter(|t| !t.error.is_finite()).count();
    let mut bad = Vec::new();
    if exceeding > 0 {
        bad.push(format!("{exceeding} of {} tensors over the limits", report.diff.tensors.len()));
    }
    if not_finite > 0 {
        bad.push(plural(
            not_finite,
            "tensor with values that are not finite",
            "tensors with values that are not finite",
        ));
    }
    if not_compared > 0 {
        bad.push(plural(not_compared, "tensor not compared", "tensors not compared"));
    }
    let limits = report.limits_text();
    if !bad.is_empty() {
        let limits = if limits.is_empty() { String::new() } else { format!(" Limits: {limits}.") };
        writeln!(html, "<p class=\"verdict bad\">{}.{limits}</p>", bad.join("; ")).expect(INFALLIBLE);
    } else if !limits.is_empty() {
        writeln!(html, "<p class=\"verdict\">Every tensor keeps the limits: {limits}.</p>").expect(INFALLIBLE);
    }
    html.push_str("</header>\n");
}

fn summary(html: &mut String, report: &Report) {
    let total = report.total();
    let tile = |name: &str, value: String| format!("<div><dt>{name}</dt><dd>{value}</dd></div>\n");
    html.push_str("<dl class=\"tiles\">\n");
    html.push_str(&tile("tensors compared", report.diff.tensors.len().to_string()));
    html.push_str(&tile("weights", count(total.elements)));
    html.push_str(&tile("bits per weight", figure(report.bits_per_weight())));
    html.push_str(&tile("RMSE, overall", figure(total.rmse())));
    html.push_str(&tile("relative to A", percent(total.relative_rmse())));
    html.push_str(&tile("cosine", cosine(total.cosine())));
    html.push_str("</dl>\n");
}

fn worst(html: &mut String, report: &Report) {
    let worst: Vec<&TensorDiff> =
        report.worst_first().into_iter().filter(|t| t.error.squared_error != 0.0).take(WORST).collect();
    if worst.is_empty() {
        html.push_str("<p>Every compared tensor of B holds the values of A, without any error.</p>\n");
        return;
    }
    html.push_str("<section>\n<h2>Furthest from the source</h2>\n");
    table(html, report, &worst);
    html.push_str("</section>\n");
}

/// The tensors outside the layers: embeddings, the output matrix, the last norm.
fn outside(html: &mut String, report: &Report) {
    let kinds = report.kinds();
    let outside: Vec<&TensorDiff> =
        kinds.iter().filter(|k| !k.is_layered()).flat_map(|k| k.tensors.iter().map(|(_, t)| *t)).collect();
    if outside.is_empty() || outside.len() == report.diff.tensors.len() {
        return;
    }
    html.push_str("<section>\n<h2>Outside the layers</h2>\n");
    table(html, report, &outside);
    html.push_str("</section>\n");
}

fn layers(html: &mut String, report: &Report, marks: &Marks) {
    let kinds = report.kinds();
    let (exact, inexact): (Vec<_>, Vec<_>) = kinds.iter().filter(|k| k.is_layered()).partition(|k| k.is_exact());
    if !inexact.is_empty() {
        html.push_str("<section>\n<h2>By layer</h2>\n");
        plots(html, report, &inexact, marks);
        html.push_str("</section>\n<section>\n<h2>All layers at a glance</h2>\n");
        heat_map(html, report, &inexact);
        html.push_str("</section>\n");
    }
    if !exact.is_empty() {
        let mut names: Vec<String> =
            exact.iter().take(NAMED).map(|k| format!("<code>{}</code>", text(&k.name))).collect();
        if exact.len() > NAMED {
            names.push(format!("{} more", exact.len() - NAMED));
        }
        let tensors: usize = exact.iter().map(|k| k.tensors.len()).sum();
        writeln!(
            html,
            "<p class=\"muted\">Without any error in every layer: {} ({}).</p>",
            names.join(", "),
            plural(tensors, "tensor", "tensors")
        )
        .expect(INFALLIBLE);
    }
}

fn every(html: &mut String, report: &Report) {
    html.push_str("<section>\n<h2>Every tensor</h2>\n");
    let all: Vec<&TensorDiff> = report.diff.tensors.iter().collect();
    table(html, report, &all);
    html.push_str("</section>\n");
}

/// What a person looks for first stands first: on a phone the rest is to the right.
fn table(html: &mut String, report: &Report, tensors: &[&TensorDiff]) {
    let limits = if report.limits.any() { "<th class=\"l\">limits</th>" } else { "" };
    writeln!(
        html,
        "<div class=\"scroll\"><table>\n<thead><tr><th class=\"l\">tensor</th><th>relative</th>{limits}\
         <th class=\"l\">type</th><th>bits</th><th>RMSE</th><th>cosine</th><th>largest</th><th class=\"l\">at</th>\
         <th class=\"l\">shape</th></tr></thead>\n<tbody>"
    )
    .expect(INFALLIBLE);
    for t in tensors {
        let exceeded = report.exceeded(t);
        let e = &t.error;
        let limits = match exceeded.as_slice() {
            _ if !report.limits.any() => String::new(),
            [] => "<td class=\"l\">kept</td>".to_owned(),
            exceeded => format!("<td class=\"l bad\">{}</td>", over(exceeded)),
        };
        let name = if exceeded.is_empty() && e.is_finite() { "l" } else { "l bad" };
        let at = if e.max.error == 0.0 { String::new() } else { format!("{}, {}", e.max.row, e.max.column) };
        writeln!(
            html,
            "<tr><td class=\"{name}\"><code>{}</code></td><td>{}</td>{limits}<td class=\"l\">{} → {}</td><td>{}</td>\
             <td>{}</td><td>{}</td><td>{}</td><td class=\"l\">{at}</td><td class=\"l\">{}</td></tr>",
            tensor_name(&t.name),
            percent(e.relative_rmse()),
            t.a.name(),
            t.b.name(),
            figure(t.bits_per_weight()),
            figure(e.rmse()),
            cosine(e.cosine()),
            figure(e.max.error),
            dims(t),
        )
        .expect(INFALLIBLE);
    }
    html.push_str("</tbody>\n</table></div>\n");
}

/// Which limits are not kept, in words.
pub fn over(exceeded: &[Exceeded]) -> String {
    let word = |e: &Exceeded| match e {
        Exceeded::Rmse { .. } => "RMSE over",
        Exceeded::Cosine { .. } => "cosine under",
    };
    exceeded.iter().map(word).collect::<Vec<_>>().join(", ")
}

fn unpaired(html: &mut String, report: &Report) {
    let diff = &report.diff;
    if report.not_compared() == 0 {
        return;
    }
    html.push_str(
        "<section>\n<h2>Not compared</h2>\n<div class=\"scroll\"><table>\n<thead><tr><th class=\"l\">tensor</th>\
         <th class=\"l\">why</th></tr></thead>\n<tbody>\n",
    );
    let mut row = |name: &str, why: String| {
        writeln!(
            html,
            "<tr><td class=\"l bad\"><code>{}</code></td><td class=\"l\">{why}</td></tr>",
            tensor_name(name)
        )
        .expect(INFALLIBLE);
    };
    for r in &diff.reshaped {
        row(&r.name, format!("shape {} in A, {} in B", r.a, r.b));
    }
    for u in &diff.only_in_a {
        row(&u.name, format!("only in A ({} {})", u.stored.name(), u.shape));
    }
    for u in &diff.only_in_b {
        row(&u.name, format!("only in B ({} {})", u.stored.name(), u.shape));
    }
    html.push_str("</tbody>\n</table></div>\n</section>\n");
}

fn dims(tensor: &TensorDiff) -> String {
    tensor.shape.dims().iter().map(ToString::to_string).collect::<Vec<_>>().join(" × ")
}

fn plural(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// The last part of a path, which may be from another system.
fn file_name(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().filter(|name| !name.is_empty()).unwrap_or(path)
}

#[cfg(test)]
mod tests;
