//! The metrics of a training run over its steps, a small plot each.

use crate::html::{INFALLIBLE, text};
use mlpack_provenance::RunRecord;
use std::fmt::Write as _;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 130.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 20.0;
/// Metrics that people look for first.
const FIRST: [&str; 4] = ["loss", "eval_loss", "learning_rate", "grad_norm"];
/// Most plots.
const MOST: usize = 16;

/// The plots; nothing where there is no curve.
pub fn curves(html: &mut String, record: &RunRecord) {
    let mut names: Vec<&String> = record.curves.keys().collect();
    names.sort_by_key(|name| (FIRST.iter().position(|first| first == name).unwrap_or(FIRST.len()), name.as_str()));
    if names.is_empty() {
        return;
    }
    html.push_str("<h3>Metrics</h3>\n<div class=\"plots\">\n");
    for name in names.iter().take(MOST) {
        let points: Vec<(f64, f64)> = record.curves[*name]
            .iter()
            .filter_map(|(step, value)| Some((step.parse().ok()?, value.parse().ok()?)))
            .filter(|(step, value): &(f64, f64)| step.is_finite() && value.is_finite())
            .collect();
        plot(html, name, &points);
    }
    html.push_str("</div>\n");
    if names.len() > MOST {
        writeln!(html, "<p class=\"muted\">and {} more metrics</p>", names.len() - MOST).expect(INFALLIBLE);
    }
}

fn plot(html: &mut String, name: &str, points: &[(f64, f64)]) {
    let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (from, to) = bounds(&mut points.iter().map(|(step, _)| *step));
    let (low, high) = bounds(&mut points.iter().map(|(_, value)| *value));
    let x = |step: f64| LEFT + (WIDTH - LEFT - 8.0) * if to > from { (step - from) / (to - from) } else { 0.5 };
    let y = |value: f64| {
        let part = if high > low { (value - low) / (high - low) } else { 0.5 };
        TOP + (HEIGHT - TOP - BOTTOM) * (1.0 - part)
    };
    let path: Vec<String> = points.iter().map(|(step, value)| format!("{:.1} {:.1}", x(*step), y(*value))).collect();
    writeln!(
        html,
        "<figure><figcaption><h4>{}</h4><span class=\"muted\">{} → {}</span></figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over {} steps\">",
        text(name),
        figure(first.1),
        figure(last.1),
        text(name),
        figure(to)
    )
    .expect(INFALLIBLE);
    for value in if high > low { vec![low, high] } else { vec![low] } {
        writeln!(
            html,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - 8.0,
            y(value),
            y(value),
            LEFT - 5.0,
            y(value) + 4.0,
            figure(value)
        )
        .expect(INFALLIBLE);
    }
    writeln!(
        html,
        "<text x=\"{LEFT}\" y=\"{}\">step {}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>\
         <path class=\"curve\" d=\"M{}\"/><circle class=\"end\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/></svg></figure>",
        HEIGHT - 5.0,
        figure(from),
        WIDTH - 8.0,
        HEIGHT - 5.0,
        figure(to),
        path.join("L"),
        x(last.0),
        y(last.1)
    )
    .expect(INFALLIBLE);
}

/// A number with three or four digits.
fn figure(value: f64) -> String {
    let magnitude = value.abs();
    if value == 0.0 {
        "0".to_owned()
    } else if !(1e-3..1e6).contains(&magnitude) {
        format!("{value:.2e}")
    } else if magnitude >= 100.0 || value.fract() == 0.0 {
        format!("{value:.0}")
    } else if magnitude >= 1.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.4}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let shown = [0.0, 5.7e-8, 0.003, 0.125, 2.2692888, 360.0, 12345.6, 7.1e12].map(figure);
        assert_eq!(shown, ["0", "5.70e-8", "0.0030", "0.1250", "2.27", "360", "12346", "7.10e12"]);
    }

    #[test]
    fn a_curve_of_one_value_is_a_point_in_the_middle() {
        let mut html = String::new();
        plot(&mut html, "a<b", &[(1.0, 2.0)]);
        assert!(
            html.contains("cx=\"169.0\" cy=\"59.0\"") && html.contains("a&lt;b") && !html.contains("NaN"),
            "{html}"
        );
    }
}
