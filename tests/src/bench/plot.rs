//! SVG plots of a run: absolute values as bars, ratios as points with their intervals and the goal as a line.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use plotters::{coord::Shift, prelude::*};

use super::{
    goals::Verdict,
    results::{Results, Row, number},
    stats::{Bound, Outcome},
};

const WIDTH: u32 = 960;
const ROW_HEIGHT: u32 = 26;
const LABELS: u32 = 400;
const INK: RGBColor = RGBColor(40, 44, 52);
const GRID: RGBColor = RGBColor(225, 228, 232);
const PODNET: RGBColor = RGBColor(38, 110, 180);
const PEER: RGBColor = RGBColor(150, 156, 166);
const GOOD: RGBColor = RGBColor(45, 140, 85);
const BAD: RGBColor = RGBColor(200, 60, 50);
const UNSURE: RGBColor = RGBColor(200, 145, 30);

/// A horizontal line of a chart.
struct Line {
    label: String,
    value: f64,
    low: f64,
    high: f64,
    color: RGBColor,
    /// Text beside it.
    text: String,
}

/// Draws a chart for each measured group of rows, and one for the goals about ratios.
pub fn draw_all(results: &Results, verdicts: &[Verdict], directory: &Path) -> Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let rows = results.rows();
    for (file, prefix, title) in GROUPS {
        let mut lines: Vec<Line> = Vec::new();
        // `@podnet-1` is another name of the same measurement.
        for row in rows.iter().filter(|r| r.name.starts_with(prefix) && !r.name.ends_with("@podnet-1")) {
            let label = row.name[prefix.len()..].trim_start_matches('/').to_owned();
            let label = if label.is_empty() { row.name.clone() } else { label };
            if !lines.iter().any(|l| l.label == label) {
                lines.push(bar(row, label));
            }
        }
        if let Some(unit) = rows.iter().find(|r| r.name.starts_with(prefix)).map(|r| r.unit) {
            let path = directory.join(file);
            chart(&path, &format!("{title} ({unit})"), &lines, Style::Bars)?;
            written.push(path);
        }
    }
    let ratios: Vec<Line> = verdicts.iter().filter(|v| v.goal.contains(" over ")).map(point).collect();
    if !ratios.is_empty() {
        let path = directory.join("goals.svg");
        let title = "Ratios with 95 % intervals, drawn relative to their goals: right of the line is better";
        chart(&path, title, &ratios, Style::Points)?;
        written.push(path);
    }
    Ok(written)
}

const GROUPS: [(&str, &str, &str); 14] = [
    ("tcp_stream_same_node.svg", "tcp_stream/same_node", "One TCP stream, same node"),
    ("tcp_stream_cross_node.svg", "tcp_stream/cross_node", "One TCP stream, across nodes"),
    ("tcp_stream_outside.svg", "tcp_stream/outside", "One TCP stream, with a client outside"),
    ("tcp_rr_same_node.svg", "tcp_rr/same_node", "Requests on one connection, same node"),
    ("tcp_rr_cross_node.svg", "tcp_rr/cross_node", "Requests on one connection, across nodes"),
    ("tcp_rr_outside.svg", "tcp_rr/outside", "Requests on one connection, with a client outside"),
    ("tcp_crr_same_node.svg", "tcp_crr/same_node", "Connect, request, close, same node"),
    ("tcp_crr_cross_node.svg", "tcp_crr/cross_node", "Connect, request, close, across nodes"),
    ("tcp_crr_outside.svg", "tcp_crr/outside", "Connect, request, close, with a client outside"),
    ("ns_per_packet.svg", "ns_per_packet", "Time in the programs for each packet"),
    ("udp_flows.svg", "udp_flows", "UDP packets through the whole path, by active flows"),
    ("cni.svg", "cni_", "CNI operations"),
    ("scale_change.svg", "scale/change_ms", "A changed pod in a large cluster, until it is in the tables"),
    ("scale_rolling.svg", "scale/rolling_ms", "1,000 services changed at once, until each is in the tables"),
];

fn bar(row: &Row, label: String) -> Line {
    let color = if row.name.contains("@iptables")
        || row.name.contains("@nftables")
        || row.name.contains("@ptp")
        || row.name.contains("@routed")
        || row.name.ends_with("yardstick")
    {
        PEER
    } else {
        PODNET
    };
    Line { label, value: row.value, low: row.min, high: row.max, color, text: number(row.value) }
}

/// Maximum distance from its goal at which a ratio is drawn.
const FAR: f64 = 2.0;

/// Ratio of a goal, relative to the goal.
fn point(v: &Verdict) -> Line {
    let color = match v.outcome {
        Outcome::Reached => GOOD,
        Outcome::Missed => BAD,
        Outcome::Inconclusive => UNSURE,
    };
    let relative = |ratio: f64| match v.bound {
        Bound::AtLeast(goal) => (ratio / goal).min(FAR),
        Bound::AtMost(goal) => (goal / ratio).min(FAR),
    };
    let e = &v.estimate;
    let (a, b) = (relative(e.low), relative(e.high));
    let (label, _) = v.goal.split_once(": ").unwrap_or((&v.goal, ""));
    // "a/b/x over a/b/y" repeats the prefix; name the baseline by the rest.
    let label = match label.split_once(" over ") {
        Some((name, base)) => format!("{name} / {}", base.rsplit('/').next().unwrap_or(base)),
        None => label.to_owned(),
    };
    Line { label, value: relative(e.median), low: a.min(b), high: a.max(b), color, text: number(e.median) }
}

#[derive(Clone, Copy, PartialEq)]
enum Style {
    Bars,
    Points,
}

fn chart(path: &Path, title: &str, lines: &[Line], style: Style) -> Result<()> {
    let height = ROW_HEIGHT * lines.len() as u32 + 80;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    paint(&root, title, lines, style)
        .and_then(|()| root.present().map_err(|e| e.to_string()))
        .map_err(|e| anyhow::anyhow!("{e}"))
        .with_context(|| format!("cannot draw {}", path.display()))
}

fn paint(root: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, lines: &[Line], style: Style) -> Result<(), String> {
    let text = |e: DrawingAreaErrorKind<_>| e.to_string();
    root.fill(&WHITE).map_err(text)?;
    let label_style = ("sans-serif", 13).into_font().color(&INK);
    root.draw(&Text::new(title.to_owned(), (12, 12), ("sans-serif", 17).into_font().color(&INK))).map_err(text)?;

    let top = lines.iter().map(|l| l.high.max(l.value)).fold(0.0, f64::max) * 1.12;
    let left = LABELS as f64;
    let width = (WIDTH - LABELS - 90) as f64;
    let x = |v: f64| (left + width * v / top) as i32;
    let bottom = (44 + ROW_HEIGHT * lines.len() as u32) as i32;
    let step = tick(top);
    let mut at = 0.0;
    while at <= top {
        root.draw(&PathElement::new(vec![(x(at), 40), (x(at), bottom)], GRID)).map_err(text)?;
        root.draw(&Text::new(number(at), (x(at) - 10, bottom + 8), label_style.clone())).map_err(text)?;
        at += step;
    }
    if style == Style::Points {
        root.draw(&PathElement::new(vec![(x(1.0), 40), (x(1.0), bottom)], BAD.stroke_width(2))).map_err(text)?;
    }
    for (i, line) in lines.iter().enumerate() {
        let y = 44 + (ROW_HEIGHT as i32) * i as i32;
        let middle = y + ROW_HEIGHT as i32 / 2;
        root.draw(&Text::new(line.label.clone(), (12, middle - 7), label_style.clone())).map_err(text)?;
        if style == Style::Bars {
            let bar =
                Rectangle::new([(x(0.0), y + 5), (x(line.value), y + ROW_HEIGHT as i32 - 5)], line.color.filled());
            root.draw(&bar).map_err(text)?;
        }
        root.draw(&PathElement::new(vec![(x(line.low), middle), (x(line.high), middle)], INK.stroke_width(1)))
            .map_err(text)?;
        if style == Style::Points {
            root.draw(&Circle::new((x(line.value), middle), 5, line.color.filled())).map_err(text)?;
        }
        root.draw(&Text::new(line.text.clone(), (x(line.high) + 8, middle - 7), label_style.clone())).map_err(text)?;
    }
    Ok(())
}

/// A round distance between grid lines, for about six of them.
fn tick(top: f64) -> f64 {
    let rough = top / 6.0;
    let magnitude = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|t| *t >= rough).unwrap_or(10.0 * magnitude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grid_lines_are_round_numbers() {
        for (top, step) in [(1.2, 0.2), (6.0, 1.0), (34.0, 10.0), (100_000.0, 20_000.0)] {
            assert!((tick(top) - step).abs() < 1e-9 * step, "{top}: {}", tick(top));
        }
    }
}
