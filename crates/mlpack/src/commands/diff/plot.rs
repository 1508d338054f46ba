//! A plot for each kind of tensor, by layer.
//!
//! All plots of a measure have the same axes, so that heights compare across kinds. A type is told by its shape and its
//! colour (the colours after Okabe and Ito, told apart by people who do not see all of them); what exceeds a limit has a
//! red ring, and its number is written above the plot.

use super::html::{INFALLIBLE, text};
use super::report::{Kind, Report, cosine, figure, percent};
use mlpack_convert::{Exceeded, TensorDiff, TensorError};
use std::fmt::Write as _;

/// Shapes and colours that there are; a ninth type has the first shape in the second colour.
const STYLES: usize = 8;

/// The types of B in the order of their bits, which is the order of their marks.
pub struct Marks {
    types: Vec<&'static str>,
}

impl Marks {
    /// The marks of a report's types.
    pub fn of(report: &Report) -> Marks {
        let mut types: Vec<(u64, &'static str)> = Vec::new();
        for tensor in report.diff.tensors.iter().filter(|t| t.error.squared_error != 0.0) {
            // Thousandths of a bit: small tensors have the bits of large ones, whole blocks being whole.
            let entry = ((tensor.bits_per_weight() * 1000.0) as u64, tensor.b.name());
            if !types.iter().any(|(_, name)| *name == entry.1) {
                types.push(entry);
            }
        }
        types.sort_unstable();
        Marks { types: types.into_iter().map(|(_, name)| name).collect() }
    }

    /// One mark, centred.
    fn draw(&self, svg: &mut String, name: &str, x: f64, y: f64, r: f64) {
        let index = self.types.iter().position(|t| *t == name).unwrap_or_default();
        let colour = (index + index / STYLES) % STYLES;
        let path = match index % STYLES {
            0 => {
                write!(svg, "<circle class=\"t{colour}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"/>")
                    .expect(INFALLIBLE);
                return;
            }
            1 => polygon(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)], x, y, r),
            2 => polygon(&[(0.0, -1.2), (1.1, 0.85), (-1.1, 0.85)], x, y, r),
            3 => polygon(&[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)], x, y, r),
            4 => polygon(&[(0.0, 1.2), (1.1, -0.85), (-1.1, -0.85)], x, y, r),
            5 => polygon(&plus(), x, y, r),
            6 => polygon(&plus().map(|(x, y)| ((x - y) * 0.75, (x + y) * 0.75)), x, y, r),
            _ => polygon(&[(-0.6, -1.1), (0.6, -1.1), (1.2, 0.0), (0.6, 1.1), (-0.6, 1.1), (-1.2, 0.0)], x, y, r),
        };
        write!(svg, "<path class=\"t{colour}\" d=\"{path}\"/>").expect(INFALLIBLE);
    }

    fn legend(&self, html: &mut String) {
        html.push_str("<ul class=\"legend\">\n");
        for name in &self.types {
            html.push_str("<li><svg viewBox=\"0 0 14 14\" aria-hidden=\"true\">");
            self.draw(html, name, 7.0, 7.0, 4.5);
            writeln!(html, "</svg>{name}</li>").expect(INFALLIBLE);
        }
        html.push_str("</ul>\n");
    }
}

fn plus() -> [(f64, f64); 12] {
    const A: f64 = 0.42;
    const B: f64 = 1.2;
    [(-A, -B), (A, -B), (A, -A), (B, -A), (B, A), (A, A), (A, B), (-A, B), (-A, A), (-B, A), (-B, -A), (-A, -A)]
}

fn polygon(points: &[(f64, f64)], x: f64, y: f64, r: f64) -> String {
    let mut path = String::new();
    for (i, (dx, dy)) in points.iter().enumerate() {
        let letter = if i == 0 { 'M' } else { 'L' };
        write!(path, "{letter}{:.1} {:.1}", x + dx * r, y + dy * r).expect(INFALLIBLE);
    }
    path.push('Z');
    path
}

/// A figure that is plotted.
#[derive(Clone, Copy, PartialEq)]
enum Measure {
    Relative,
    Rmse,
    CosineLoss,
}

impl Measure {
    fn of(self, error: &TensorError) -> f64 {
        match self {
            Measure::Relative => error.relative_rmse(),
            Measure::Rmse => error.rmse(),
            Measure::CosineLoss => 1.0 - error.cosine(),
        }
    }

    fn limit(self, report: &Report) -> Option<f64> {
        match self {
            Measure::Relative => None,
            Measure::Rmse => report.limits.max_rmse,
            Measure::CosineLoss => report.limits.min_cosine.map(|min| 1.0 - min),
        }
    }

    /// Whether a tensor exceeds the limit of the measure; the relative error stands for all limits.
    fn exceeded(self, report: &Report, tensor: &TensorDiff) -> bool {
        report.exceeded(tensor).iter().any(|e| match self {
            Measure::Relative => true,
            Measure::Rmse => matches!(e, Exceeded::Rmse { .. }),
            Measure::CosineLoss => matches!(e, Exceeded::Cosine { .. }),
        })
    }

    fn title(self) -> &'static str {
        match self {
            Measure::Relative => "RMSE relative to A",
            Measure::Rmse => "RMSE",
            Measure::CosineLoss => "1 − cosine",
        }
    }

    fn tick(self, value: f64) -> String {
        match self {
            Measure::Relative => percent_tick(value),
            Measure::Rmse | Measure::CosineLoss => plain_tick(value),
        }
    }
}

fn percent_tick(ratio: f64) -> String {
    format!("{} %", plain_tick(ratio * 100.0))
}

/// A round number without the digits that a tick does not need.
fn plain_tick(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        return format!("{value:.0e}");
    }
    // Ticks are multiples of 1, 2 or 5 times a power of ten: the rest of the digits is rounding.
    let rounded = format!("{value:.7}");
    rounded.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The plots: relative RMSE always, and each limit's own measure where there is one.
pub fn plots(html: &mut String, report: &Report, kinds: &[&Kind<'_>], marks: &Marks) {
    html.push_str(
        "<p class=\"muted\">Each mark is a tensor; its shape and colour say its type in B. All plots of a measure share \
         their axes.</p>\n",
    );
    marks.legend(html);
    let measures = [Measure::Relative, Measure::Rmse, Measure::CosineLoss];
    for measure in measures.into_iter().filter(|m| *m == Measure::Relative || m.limit(report).is_some()) {
        if report.limits.any() {
            writeln!(html, "<h3>{}</h3>", measure.title()).expect(INFALLIBLE);
        }
        let axes = Axes::of(report, kinds, measure);
        html.push_str("<div class=\"plots\">\n");
        for kind in kinds {
            plot(html, report, kind, &axes, marks);
        }
        html.push_str("</div>\n");
    }
}

/// The room of a plot, in its own units.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 10.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 32.0;

/// What all plots of a measure share.
struct Axes {
    measure: Measure,
    first_layer: u64,
    last_layer: u64,
    layer_step: u64,
    step: f64,
    top: f64,
    limit: Option<f64>,
    radius: f64,
}

impl Axes {
    fn of(report: &Report, kinds: &[&Kind<'_>], measure: Measure) -> Axes {
        let tensors = || kinds.iter().flat_map(|k| &k.tensors);
        let layers = || tensors().filter_map(|(layer, _)| *layer);
        let (first_layer, last_layer) = (layers().min().unwrap_or(0), layers().max().unwrap_or(0));
        let largest = tensors().map(|(_, t)| measure.of(&t.error)).filter(|v| v.is_finite()).fold(0.0, f64::max);
        // A limit far above everything would leave no room for the marks.
        let limit = measure.limit(report).filter(|limit| *limit >= 0.0 && *limit <= largest * 2.0);
        let (step, top) = nice_steps(largest.max(limit.unwrap_or(0.0)) * 1.04);
        let spacing = (WIDTH - LEFT - RIGHT) / (last_layer - first_layer).max(1) as f64;
        let layer_step = nice_layer_step(last_layer - first_layer);
        let radius = (spacing * 0.45).clamp(2.2, 4.2);
        Axes { measure, first_layer, last_layer, layer_step, step, top, limit, radius }
    }

    fn x(&self, layer: u64) -> f64 {
        let room = WIDTH - LEFT - RIGHT - 12.0;
        match self.last_layer - self.first_layer {
            0 => LEFT + 6.0 + room / 2.0,
            span => LEFT + 6.0 + room * (layer - self.first_layer) as f64 / span as f64,
        }
    }

    /// The height of a value; what is not finite is at the top.
    fn y(&self, value: f64) -> f64 {
        let part = if value.is_finite() { (value / self.top).clamp(0.0, 1.0) } else { 1.0 };
        HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * part
    }
}

/// The distance of ticks, and the last of them: at most five above zero, at 1, 2 or 5 times a power of ten.
fn nice_steps(largest: f64) -> (f64, f64) {
    if !(largest > 0.0 && largest.is_finite()) {
        return (1.0, 1.0);
    }
    let rough = largest / 4.0;
    let power = 10f64.powi(rough.log10().floor() as i32);
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|step| *step >= rough).unwrap_or(rough);
    (step, step * (largest / step).ceil())
}

/// The distance of layer numbers that have room.
pub fn nice_layer_step(span: u64) -> u64 {
    const NUMBERS: u64 = 8;
    let mut power = 1;
    loop {
        if let Some(step) = [1, 2, 5].into_iter().map(|m| m * power).find(|step| span / step <= NUMBERS) {
            return step;
        }
        power = power.saturating_mul(10);
    }
}

fn plot(html: &mut String, report: &Report, kind: &Kind<'_>, axes: &Axes, marks: &Marks) {
    let over = kind.tensors.iter().filter(|(_, t)| axes.measure.exceeded(report, t)).count();
    let note = match over {
        0 => {
            let types = kind.types();
            types.iter().map(|(name, n)| format!("{n} {name}")).collect::<Vec<_>>().join(", ")
        }
        n => format!("<span class=\"bad\">{n} of {} over the limit</span>", kind.tensors.len()),
    };
    write!(
        html,
        "<figure>\n<figcaption><h3>{}</h3><span class=\"muted\">{note}</span></figcaption>\n\
         <svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} of {} by layer\">\n",
        text(&kind.name),
        axes.measure.title(),
        text(&kind.name)
    )
    .expect(INFALLIBLE);
    grid(html, axes);
    line(html, kind, axes);
    for (layer, tensor) in &kind.tensors {
        mark(html, report, layer.unwrap_or(0), tensor, axes, marks);
    }
    limit(html, axes);
    html.push_str("</svg>\n</figure>\n");
}

fn grid(html: &mut String, axes: &Axes) {
    let right = WIDTH - RIGHT;
    let ticks = (axes.top / axes.step).round() as u32;
    for i in 0..=ticks {
        let value = f64::from(i) * axes.step;
        let y = axes.y(value);
        writeln!(
            html,
            "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 5.0,
            y + 3.5,
            axes.measure.tick(value)
        )
        .expect(INFALLIBLE);
    }
    let base = HEIGHT - BOTTOM;
    let mut layer = axes.first_layer.next_multiple_of(axes.layer_step);
    while layer <= axes.last_layer {
        writeln!(
            html,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{layer}</text>",
            axes.x(layer),
            base + 14.0
        )
        .expect(INFALLIBLE);
        layer += axes.layer_step;
    }
    let middle = f64::midpoint(LEFT, right);
    writeln!(html, "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">layer</text>", base + 27.0)
        .expect(INFALLIBLE);
}

/// A faint line from layer to layer, broken where a layer has no such tensor.
fn line(html: &mut String, kind: &Kind<'_>, axes: &Axes) {
    let mut path = String::new();
    let mut last = None;
    for (layer, tensor) in &kind.tensors {
        let layer = layer.unwrap_or(0);
        let letter = if last.is_some_and(|last| layer == last + 1) { 'L' } else { 'M' };
        let (x, y) = (axes.x(layer), axes.y(axes.measure.of(&tensor.error)));
        write!(path, "{letter}{x:.1} {y:.1}").expect(INFALLIBLE);
        last = Some(layer);
    }
    writeln!(html, "<path class=\"path\" d=\"{path}\"/>").expect(INFALLIBLE);
}

/// The limit, over the marks so that its figure can be read.
fn limit(html: &mut String, axes: &Axes) {
    let Some(limit) = axes.limit else { return };
    let (y, right) = (axes.y(limit), WIDTH - RIGHT);
    // Above the line where there is room, else below.
    let label = if y > TOP + 14.0 { y - 4.0 } else { y + 12.0 };
    writeln!(
        html,
        "<line class=\"limit\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text class=\"limit-text\" x=\"{right}\" y=\"{label:.1}\" text-anchor=\"end\">limit {}</text>",
        plain_tick(limit)
    )
    .expect(INFALLIBLE);
}

fn mark(html: &mut String, report: &Report, layer: u64, tensor: &TensorDiff, axes: &Axes, marks: &Marks) {
    let value = axes.measure.of(&tensor.error);
    let (x, y, r) = (axes.x(layer), axes.y(value), axes.radius);
    write!(html, "<g><title>{}</title>", tooltip(report, tensor)).expect(INFALLIBLE);
    if value.is_finite() {
        marks.draw(html, tensor.b.name(), x, y, r);
    } else {
        let (l, t, right, b) = (x - 4.0, y - 4.0, x + 4.0, y + 4.0);
        write!(html, "<path class=\"nan\" d=\"M{l:.1} {t:.1}L{right:.1} {b:.1}M{right:.1} {t:.1}L{l:.1} {b:.1}\"/>")
            .expect(INFALLIBLE);
    }
    if axes.measure.exceeded(report, tensor) {
        write!(html, "<circle class=\"ring\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\"/>", r + 2.6).expect(INFALLIBLE);
    }
    html.push_str("</g>\n");
}

/// What is shown over a mark.
pub fn tooltip(report: &Report, tensor: &TensorDiff) -> String {
    let e = &tensor.error;
    let mut tip = format!(
        "{}: {}, {} relative, RMSE {}, cosine {}",
        text(&tensor.name),
        tensor.b.name(),
        percent(e.relative_rmse()),
        figure(e.rmse()),
        cosine(e.cosine())
    );
    let exceeded = report.exceeded(tensor);
    if !exceeded.is_empty() {
        tip.push_str("; ");
        tip.push_str(&super::html::over(&exceeded));
    }
    tip
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_largest() {
        assert_eq!(nice_steps(0.083), (0.05, 0.1));
        assert_eq!(nice_steps(0.0), (1.0, 1.0));
        assert_eq!(nice_steps(f64::NAN), (1.0, 1.0));
        for largest in [1e-9, 0.3, 1.0, 7.9, 1e5] {
            let (step, top) = nice_steps(largest);
            assert!(top >= largest && top / step <= 5.01, "{largest}: {step} {top}");
        }
        assert_eq!([0.05, 0.1, 0.15].map(percent_tick), ["5 %", "10 %", "15 %"]);
        assert_eq!([0.0, 0.002, 2e-5].map(plain_tick), ["0", "0.002", "2e-5"]);
    }

    #[test]
    fn layer_numbers_have_room() {
        assert_eq!([0, 5, 11, 31, 125, 100_000].map(nice_layer_step), [1, 1, 2, 5, 20, 20_000]);
    }
}
