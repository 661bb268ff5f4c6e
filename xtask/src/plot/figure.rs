//! A record as a figure: of one square weight, the ratio to the fastest dense product over tokens, a panel a type of
//! values and a line a pattern.

use std::fmt::Write;

use super::record::{Record, Row};

const SIDE: usize = 4096;
const COLUMNS: usize = 2;
/// Of a panel's axes.
const WIDTH: f64 = 380.0;
const HEIGHT: f64 = 250.0;
/// Around the axes of a panel.
const LEFT: f64 = 52.0;
const ABOVE: f64 = 34.0;
const BELOW: f64 = 44.0;
const RIGHT: f64 = 18.0;
const TITLE: f64 = 62.0;
const LEGEND: f64 = 64.0;

/// Those of Okabe and Ito, without the yellow, which white swallows: told apart by colour-blind eyes too.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000"];
const LOSS: &str = "#c00000";

pub(super) fn draw(record: &Record) -> String {
    let rows: Vec<&Row> = record.rows.iter().filter(|row| row.rows == SIDE && row.cols == SIDE).collect();
    let value_types = record.all(|row| row.value_type.clone());
    let patterns = record.all(|row| row.pattern.clone());
    let mut tokens = record.all(|row| row.tokens);
    tokens.sort_unstable();

    let (panel_width, panel_height) = (LEFT + WIDTH + RIGHT, ABOVE + HEIGHT + BELOW);
    let width = panel_width * COLUMNS as f64;
    let height = TITLE + panel_height * value_types.len().div_ceil(COLUMNS) as f64 + LEGEND;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
         height=\"{height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" fill=\"#222222\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#ffffff\"/>\n"
    );
    let title = format!("{SIDE} × {SIDE}: speed of our sparse products by that of the fastest dense one");
    text(&mut svg, [LEFT, 28.0], "font-size=\"17\" font-weight=\"bold\"", &title);
    // The model alone: the features are in the tables.
    let cpu: Vec<&str> =
        record.cpu.split(' ').take_while(|word| !word.starts_with("avx") && *word != "asimd").collect();
    let below = format!("{}, {} threads, {}", cpu.join(" "), record.threads, record.date);
    text(&mut svg, [LEFT, 48.0], "fill=\"#555555\"", &below);
    for (i, value_type) in value_types.iter().enumerate() {
        let x = (i % COLUMNS) as f64 * panel_width + LEFT;
        let y = TITLE + (i / COLUMNS) as f64 * panel_height + ABOVE;
        let panel = Panel { x, y, tokens: &tokens, range: range(&rows) };
        let rows: Vec<&Row> = rows.iter().copied().filter(|row| row.value_type == *value_type).collect();
        panel.draw(&mut svg, value_type, &rows, &patterns);
    }
    legend(&mut svg, &patterns, height - LEGEND + 14.0);
    svg + "</svg>\n"
}

/// Powers of two around all ratios and limits, one half and two among them.
fn range(rows: &[&Row]) -> [f64; 2] {
    let values = rows.iter().flat_map(|row| [row.ratio.log2(), row.limit.log2()]);
    let [low, high] = values.fold([-1.0_f64, 1.0], |[low, high], v| [low.min(v), high.max(v)]);
    [low.floor(), high.ceil()]
}

/// Axes at a place.
struct Panel<'a> {
    x: f64,
    y: f64,
    tokens: &'a [usize],
    /// log₂ of the least and the largest ratio
    range: [f64; 2],
}

impl Panel<'_> {
    fn place(&self, tokens: usize, ratio: f64) -> [f64; 2] {
        let i = self.tokens.iter().position(|&t| t == tokens).unwrap_or(0) as f64;
        let [low, high] = self.range;
        let x = self.x + WIDTH * (i + 0.5) / self.tokens.len() as f64;
        [x, self.y + HEIGHT * (high - ratio.log2()) / (high - low)]
    }

    fn draw(&self, svg: &mut String, value_type: &str, rows: &[&Row], patterns: &[String]) {
        let (x, y) = (self.x, self.y);
        let [low, high] = self.range;
        text(svg, [x, y - 12.0], "font-size=\"15\" font-weight=\"bold\"", value_type);
        let mut exponent = low;
        while exponent <= high {
            let [_, at] = self.place(self.tokens[0], exponent.exp2());
            let (colour, thick) = if exponent == 0.0 { ("#222222", 1.5) } else { ("#dddddd", 1.0) };
            line(svg, [[x, at], [x + WIDTH, at]], &format!("stroke=\"{colour}\" stroke-width=\"{thick}\""));
            text(svg, [x - 8.0, at + 4.5], "text-anchor=\"end\"", &format!("{}×", exponent.exp2()));
            exponent += 1.0;
        }
        for &tokens in self.tokens {
            let [at, _] = self.place(tokens, 1.0);
            text(svg, [at, y + HEIGHT + 18.0], "text-anchor=\"middle\"", &tokens.to_string());
        }
        let middle = [x + WIDTH / 2.0, y + HEIGHT + 36.0];
        text(svg, middle, "text-anchor=\"middle\" fill=\"#555555\"", "tokens");
        if rows.is_empty() {
            text(svg, [x + WIDTH / 2.0, y + HEIGHT / 4.0], "text-anchor=\"middle\"", "not measured");
        }
        for (pattern, colour) in patterns.iter().zip(COLOURS.iter().cycle()) {
            let mut rows: Vec<&Row> = rows.iter().copied().filter(|row| row.pattern == *pattern).collect();
            rows.sort_by_key(|row| row.tokens);
            let limit = rows.iter().map(|row| self.place(row.tokens, row.limit)).collect::<Vec<_>>();
            let dashed = format!("stroke=\"{colour}\" stroke-width=\"1\" stroke-dasharray=\"4 4\" opacity=\"0.75\"");
            line(svg, limit, &dashed);
            let ratio = rows.iter().map(|row| self.place(row.tokens, row.ratio)).collect::<Vec<_>>();
            line(svg, ratio, &format!("stroke=\"{colour}\" stroke-width=\"2\""));
            for row in rows {
                point(svg, self.place(row.tokens, row.ratio), colour, row.ratio < 1.0);
            }
        }
    }
}

fn legend(svg: &mut String, patterns: &[String], y: f64) {
    for (i, (pattern, colour)) in patterns.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let x = LEFT + 110.0 * i as f64;
        line(svg, [[x, y], [x + 26.0, y]], &format!("stroke=\"{colour}\" stroke-width=\"2\""));
        point(svg, [x + 13.0, y], colour, false);
        text(svg, [x + 33.0, y + 4.5], "", pattern);
    }
    let y = y + 28.0;
    line(svg, [[LEFT, y], [LEFT + 26.0, y]], "stroke=\"#555555\" stroke-width=\"1\" stroke-dasharray=\"4 4\"");
    text(svg, [LEFT + 33.0, y + 4.5], "", "limit by bytes read or multiply-adds");
    line(svg, [[LEFT + 310.0, y], [LEFT + 336.0, y]], "stroke=\"#222222\" stroke-width=\"1.5\"");
    text(svg, [LEFT + 343.0, y + 4.5], "", "1×: as fast as the fastest dense product");
    point(svg, [LEFT + 653.0, y], "#555555", true);
    text(svg, [LEFT + 666.0, y + 4.5], "", "slower than it");
}

fn text(svg: &mut String, [x, y]: [f64; 2], style: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" {style}>{text}</text>");
}

fn line(svg: &mut String, points: impl AsRef<[[f64; 2]]>, style: &str) {
    let points: Vec<String> = points.as_ref().iter().map(|[x, y]| format!("{x:.1},{y:.1}")).collect();
    let _ = writeln!(svg, "<polyline points=\"{}\" fill=\"none\" {style}/>", points.join(" "));
}

/// A dot; where the case is lost, one in a ring.
fn point(svg: &mut String, [x, y]: [f64; 2], colour: &str, lost: bool) {
    if !lost {
        let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
        return;
    }
    let ring = format!("fill=\"#ffffff\" stroke=\"{LOSS}\" stroke-width=\"2\"");
    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\" {ring}/>");
    let _ = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2\" fill=\"{colour}\"/>");
}
