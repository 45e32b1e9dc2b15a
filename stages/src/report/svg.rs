//! Line charts, bars and the DAG as inline SVG, coloured by the page's style sheet so that they follow its theme.
//!
//! Written by hand: what a charting crate would add is fonts and fixed colours, which an inline picture in a themed
//! page does not want.

use std::fmt::Write as _;

use super::text::{escape, short};

/// A line of a chart.
pub struct Series {
    /// In the legend.
    pub name: String,
    /// Points by rising x.
    pub points: Vec<(f64, f64)>,
}

/// A line chart.
pub struct LineChart {
    /// Above it.
    pub title: String,
    /// Below it.
    pub x_label: String,
    /// Lines.
    pub series: Vec<Series>,
    /// Vertical marks `(x, label)`.
    pub marks: Vec<(f64, String)>,
    /// Whether y starts at 0.
    pub from_zero: bool,
}

const W: f64 = 640.0;
const H: f64 = 260.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 46.0;

impl LineChart {
    /// The picture; nothing where no line has two points.
    pub fn draw(&self) -> String {
        let lines: Vec<(&str, Vec<(f64, f64)>)> =
            self.series.iter().map(|s| (s.name.as_str(), thin(&s.points))).filter(|s| s.1.len() > 1).collect();
        let all = || lines.iter().flat_map(|l| l.1.iter());
        if lines.is_empty() {
            return String::new();
        }
        let bound = |f: fn(f64, f64) -> f64, pick: fn(&(f64, f64)) -> f64| all().map(pick).reduce(f).unwrap_or(0.0);
        let (x0, x1) = (bound(f64::min, |p| p.0), bound(f64::max, |p| p.0));
        let (mut y0, mut y1) = (bound(f64::min, |p| p.1), bound(f64::max, |p| p.1));
        if self.from_zero {
            y0 = y0.min(0.0);
        }
        if y1 - y0 < 1e-12 {
            y1 = y0 + y0.abs().max(1e-9);
        }
        let step = nice((y1 - y0) / 4.0);
        y0 = (y0 / step).floor() * step;
        y1 = (y1 / step).ceil() * step;
        let width = (x1 - x0).max(1e-12);
        let x = |v: f64| LEFT + (v - x0) / width * (W - LEFT - RIGHT);
        let y = |v: f64| TOP + (y1 - v) / (y1 - y0) * (H - TOP - BOTTOM);
        let mut out = format!("<figure><figcaption>{}</figcaption><svg viewBox=\"0 0 {W} {H}\" role=\"img\">", escape(&self.title));
        let mut tick = y0;
        while tick <= y1 + step * 0.5 {
            let at = y(tick);
            let _ = write!(out, "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>", W - RIGHT);
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>", LEFT - 6.0, at + 4.0, short(tick));
            tick += step;
        }
        let along = nice(width / 6.0);
        let mut v = (x0 / along).ceil() * along;
        while v <= x1 + width * 1e-9 {
            let anchor = if x(v) > W - RIGHT - 20.0 { "end" } else { "middle" };
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{}</text>", x(v), H - BOTTOM + 18.0, short(v));
            v += along;
        }
        let _ =
            write!(out, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>", (LEFT + W) / 2.0, H - 6.0, escape(&self.x_label));
        for (at, label) in self.marks.iter().filter(|m| m.0 >= x0 && m.0 <= x1) {
            let at = x(*at);
            let _ = write!(out, "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{:.1}\"/>", H - BOTTOM);
            let _ = write!(
                out,
                "<text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                at - 4.0,
                TOP + 12.0,
                escape(label)
            );
        }
        for (i, (name, points)) in lines.iter().enumerate() {
            let path: Vec<String> = points.iter().map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            let _ = write!(out, "<polyline class=\"s{i}\" points=\"{}\"><title>{}</title></polyline>", path.join(" "), escape(name));
        }
        out.push_str("</svg>");
        if lines.len() > 1 {
            out.push_str("<div class=\"legend\">");
            for (i, (name, _)) in lines.iter().enumerate() {
                let _ = write!(out, "<span><i class=\"b{i}\"></i>{}</span>", escape(name));
            }
            out.push_str("</div>");
        }
        out.push_str("</figure>");
        out
    }
}

/// Horizontal bars `(label, value, written value, class)`; the longest fills the width.
pub fn bars(title: &str, rows: &[(String, f64, String, &str)]) -> String {
    let most = rows.iter().map(|r| r.1).fold(0.0, f64::max);
    if rows.is_empty() || most <= 0.0 {
        return String::new();
    }
    let mut out = format!("<figure><figcaption>{}</figcaption><div class=\"bars\">", escape(title));
    for (label, value, written, class) in rows {
        let width = (value / most * 100.0).clamp(0.0, 100.0);
        let _ = write!(
            out,
            "<span>{}</span><div><b class=\"{class}\" style=\"width:{width:.1}%\"></b></div><span class=\"num\">{}</span>",
            escape(label),
            escape(written)
        );
    }
    out.push_str("</div></figure>");
    out
}

/// A box of the DAG.
pub struct Node {
    /// Stage.
    pub name: String,
    /// Two lines below it, divided by a comma.
    pub detail: String,
    /// Boxes that it comes after, by index.
    pub after: Vec<usize>,
    /// Whether it was reused.
    pub reused: bool,
}

/// Boxes in columns by their longest path from a source.
pub fn dag(nodes: &[Node]) -> String {
    if nodes.is_empty() {
        return String::new();
    }
    let mut depth = vec![0usize; nodes.len()];
    for (i, n) in nodes.iter().enumerate() {
        depth[i] = n.after.iter().filter(|a| **a < i).map(|a| depth[*a] + 1).max().unwrap_or(0);
    }
    let columns = depth.iter().max().map_or(1, |d| d + 1);
    let mut filled = vec![0usize; columns];
    let (bw, bh, gx, gy) = (126.0, 56.0, 24.0, 14.0);
    let place: Vec<(f64, f64)> = depth
        .iter()
        .map(|d| {
            let at = (8.0 + *d as f64 * (bw + gx), 8.0 + filled[*d] as f64 * (bh + gy));
            filled[*d] += 1;
            at
        })
        .collect();
    let width = 16.0 + columns as f64 * (bw + gx) - gx;
    let height = 16.0 + filled.iter().max().copied().unwrap_or(1) as f64 * (bh + gy) - gy;
    let mut out = format!(
        "<div class=\"scroll\"><svg class=\"dag\" viewBox=\"0 0 {width} {height}\" style=\"min-width:{:.0}px;max-width:{width:.0}px\" role=\"img\">",
        width * 0.8
    );
    for (i, n) in nodes.iter().enumerate() {
        for a in n.after.iter().filter(|a| **a < i) {
            let (x1, y1) = (place[*a].0 + bw, place[*a].1 + bh / 2.0);
            let (x2, y2) = (place[i].0, place[i].1 + bh / 2.0);
            let bend = ((x2 - x1) / 2.0).max(12.0);
            let _ = write!(
                out,
                "<path class=\"edge\" d=\"M{x1:.0},{y1:.0} C{:.0},{y1:.0} {:.0},{y2:.0} {x2:.0},{y2:.0}\"/>",
                x1 + bend,
                x2 - bend
            );
        }
    }
    for (n, (x, y)) in nodes.iter().zip(&place) {
        let class = if n.reused { "box reused" } else { "box" };
        let _ = write!(
            out,
            "<g><title>{} {}</title><rect class=\"{class}\" x=\"{x}\" y=\"{y}\" width=\"{bw}\" height=\"{bh}\" rx=\"6\"/>",
            escape(&n.name),
            escape(&n.detail)
        );
        let _ = write!(out, "<text class=\"name\" x=\"{}\" y=\"{}\">{}</text>", x + 8.0, y + 17.0, escape(&clip(&n.name, 16)));
        for (line, down) in n.detail.split(", ").zip([32.0, 47.0]) {
            let _ = write!(out, "<text x=\"{}\" y=\"{}\">{}</text>", x + 8.0, y + down, escape(&clip(line, 19)));
        }
        out.push_str("</g>");
    }
    out.push_str("</svg></div>");
    out
}

fn clip(text: &str, n: usize) -> String {
    if text.chars().count() <= n { text.to_owned() } else { text.chars().take(n - 1).chain(['…']).collect() }
}

/// At most 400 points: means over runs of equal length, the last point kept.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let points: Vec<(f64, f64)> = points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect();
    if points.len() <= 400 {
        return points;
    }
    let run = points.len().div_ceil(400);
    let mean =
        |c: &[(f64, f64)]| (c.iter().map(|p| p.0).sum::<f64>() / c.len() as f64, c.iter().map(|p| p.1).sum::<f64>() / c.len() as f64);
    let mut out: Vec<(f64, f64)> = points.chunks(run).map(mean).collect();
    out.extend(points.last());
    out
}

/// 1, 2 or 5 times a power of ten, at least `step`.
fn nice(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= step * 0.999).unwrap_or(power * 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn charts_hold_every_line_and_mark_and_survive_bad_numbers() {
        let chart = LineChart {
            title: "loss <1>".into(),
            x_label: "tokens".into(),
            series: vec![
                Series { name: "a".into(), points: (0..5000).map(|i| (f64::from(i), 1.0 / f64::from(i + 1))).collect() },
                Series { name: "b".into(), points: vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, 2.0)] },
            ],
            marks: vec![(2500.0, "A4".into())],
            from_zero: false,
        };
        let svg = chart.draw();
        assert!(svg.contains("loss &lt;1&gt;") && svg.matches("<polyline").count() == 2 && svg.contains(">A4<"));
        assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.len() < 20_000);
        let flat = LineChart { series: vec![Series { name: "f".into(), points: vec![(0.0, 0.0), (1.0, 0.0)] }], ..chart };
        assert!(!flat.draw().contains("NaN"));
        assert_eq!(nice(0.03), 0.05);
    }
}
