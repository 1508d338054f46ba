//! All layers at a glance: a table of colours, layers by kinds.

use super::html::{INFALLIBLE, text};
use super::plot::{nice_layer_step, tooltip};
use super::report::{Kind, Report, percent};
use std::fmt::Write as _;

/// Steps of the ramp of colours.
const RAMP: usize = 9;

/// Layers by kinds, darker (lighter on a dark page) where the relative error is larger.
pub fn heat_map(html: &mut String, report: &Report, kinds: &[&Kind<'_>]) {
    const ROW: f64 = 20.0;
    const CHARACTER: f64 = 6.4;
    let tensors = || kinds.iter().flat_map(|k| &k.tensors);
    let layers = || tensors().filter_map(|(layer, _)| *layer);
    let (first, last) = (layers().min().unwrap_or(0), layers().max().unwrap_or(0));
    let columns = (last - first + 1) as f64;
    let cell = (880.0 / columns).clamp(9.0, 30.0);
    let longest = kinds.iter().map(|k| k.name.chars().count()).max().unwrap_or(0).min(40);
    let left = longest as f64 * CHARACTER + 14.0;
    let largest = tensors().map(|(_, t)| t.error.relative_rmse()).filter(|v| v.is_finite()).fold(0.0, f64::max);
    let (width, height) = ((left + columns * cell + 8.0).max(260.0), kinds.len() as f64 * ROW + 36.0);
    write!(html, "<p class=\"muted\">RMSE relative to A, from none to {}: ", percent(largest)).expect(INFALLIBLE);
    html.push_str("<svg viewBox=\"0 0 126 12\" width=\"126\" height=\"12\" aria-hidden=\"true\">");
    for i in 0..RAMP {
        write!(html, "<rect class=\"h{i}\" x=\"{}\" y=\"0\" width=\"14\" height=\"12\"/>", i * 14).expect(INFALLIBLE);
    }
    html.push_str("</svg>");
    if report.exceeding() > 0 {
        html.push_str(" <span class=\"bad\">red frame: over the limits</span>");
    }
    write!(
        html,
        "</p>\n<div class=\"scroll\"><svg viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"relative RMSE by layer and kind\">\n"
    )
    .expect(INFALLIBLE);
    for (i, kind) in kinds.iter().enumerate() {
        let y = i as f64 * ROW;
        let name: String = kind.name.chars().take(40).collect();
        writeln!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 8.0,
            y + 14.0,
            text(&name)
        )
        .expect(INFALLIBLE);
        for (layer, tensor) in &kind.tensors {
            let x = left + (layer.unwrap_or(first) - first) as f64 * cell;
            let over = !report.exceeded(tensor).is_empty() || !tensor.error.is_finite();
            // The frame lies within the cell, so that a neighbour does not cover it.
            let inset = if over { 1.0 } else { 0.0 };
            writeln!(
                html,
                "<rect class=\"h{}{}\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                shade(tensor.error.relative_rmse(), largest),
                if over { " over" } else { "" },
                x + inset,
                y + inset,
                cell - 1.0 - 2.0 * inset,
                ROW - 1.0 - 2.0 * inset,
                tooltip(report, tensor)
            )
            .expect(INFALLIBLE);
        }
    }
    let y = kinds.len() as f64 * ROW + 14.0;
    let step = nice_layer_step(last - first).max((26.0 / cell).ceil() as u64);
    let mut layer = first.next_multiple_of(step);
    while layer <= last {
        let x = left + (layer - first) as f64 * cell + (cell - 1.0) / 2.0;
        writeln!(html, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{layer}</text>").expect(INFALLIBLE);
        layer += step;
    }
    let x = left + columns * cell / 2.0;
    writeln!(html, "<text x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">layer</text>\n</svg></div>", y + 14.0)
        .expect(INFALLIBLE);
}

/// The step of the ramp for a value; what is not a number has the last.
fn shade(value: f64, largest: f64) -> usize {
    if value.is_nan() {
        return RAMP - 1;
    }
    if value <= 0.0 || largest <= 0.0 {
        return 0;
    }
    ((value / largest * (RAMP - 1) as f64).ceil() as usize).min(RAMP - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_error_is_told_from_none() {
        assert_eq!([0.0, 1e-9, 0.5, 1.0, 2.0, f64::NAN].map(|v| shade(v, 1.0)), [0, 1, 4, 8, 8, 8]);
        assert_eq!(shade(0.0, 0.0), 0);
    }
}
