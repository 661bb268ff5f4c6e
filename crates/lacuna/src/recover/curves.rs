//! The curves of a training as SVG: loss and flipped masks by step.

use super::progress::Log;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 220.0;
const MARGIN: f64 = 48.0;

/// A picture of a training.
pub(super) fn draw(log: &Log, training: usize) -> String {
    let panels =
        [("loss", log.series(training, "total"), "#1f5fa8"), ("flipped", log.series(training, "flipped"), "#b4541a")];
    let panels: Vec<_> = panels.into_iter().filter(|(_, points, _)| !points.is_empty()).collect();
    let height = HEIGHT * panels.len() as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"white\"/>\n"
    );
    for (i, (name, points, colour)) in panels.iter().enumerate() {
        svg += &panel(name, points, colour, HEIGHT * i as f64);
    }
    svg + "</svg>\n"
}

fn panel(name: &str, points: &[(f64, f64)], colour: &str, top: f64) -> String {
    let bounds = |values: &mut dyn Iterator<Item = f64>| {
        values.fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)])
    };
    let [first, last] = bounds(&mut points.iter().map(|p| p.0));
    let [low, high] = bounds(&mut points.iter().map(|p| p.1));
    let share = |v: f64, [from, to]: [f64; 2]| (v - from) / (to - from).max(f64::MIN_POSITIVE);
    let x = |step: f64| MARGIN + (WIDTH - 2.0 * MARGIN) * share(step, [first, last]);
    let y = |v: f64| top + HEIGHT - MARGIN / 2.0 - (HEIGHT - MARGIN) * share(v, [low, high]);
    let path: Vec<String> = points.iter().map(|&(step, v)| format!("{:.1},{:.1}", x(step), y(v))).collect();
    let label = |v: f64| if v.abs() >= 0.01 || v == 0.0 { format!("{v:.3}") } else { format!("{v:.1e}") };
    format!(
        "<polyline fill=\"none\" stroke=\"{colour}\" points=\"{}\"/>\n\
         <text x=\"{MARGIN}\" y=\"{:.0}\" fill=\"{colour}\">{name}</text>\n\
         <text x=\"4\" y=\"{:.0}\">{}</text>\n<text x=\"4\" y=\"{:.0}\">{}</text>\n\
         <text x=\"{:.0}\" y=\"{:.0}\" text-anchor=\"end\">step {last}</text>\n",
        path.join(" "),
        top + 16.0,
        y(high) + 4.0,
        label(high),
        y(low) + 4.0,
        label(low),
        WIDTH - MARGIN,
        top + HEIGHT - 6.0,
    )
}
