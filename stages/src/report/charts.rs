//! Where the lines, bars and boxes of the page's pictures lie; `chart.html`, `parts.html` and `dag.html` draw them, as inline
//! SVG coloured by the page's style sheet, so that they follow its theme.
//!
//! Laid out here: what a charting crate would add is fonts and fixed colours, which an inline picture in a themed page does
//! not want.

use serde::Serialize;

use super::text::short;

/// A line of a chart.
#[derive(Serialize)]
pub struct Series {
    /// In the legend.
    pub name: &'static str,
    /// Points by rising x; in a `Chart`, as places in the picture.
    pub points: Vec<(f64, f64)>,
}

/// A line chart to lay out.
pub struct LineChart<'a> {
    /// Above it.
    pub title: &'static str,
    /// Below it.
    pub x_label: &'static str,
    /// Lines.
    pub series: Vec<Series>,
    /// Vertical marks `(x, label)`.
    pub marks: &'a [(f64, String)],
    /// Whether y starts at 0.
    pub from_zero: bool,
}

/// A line chart, laid out.
#[derive(Serialize)]
pub struct Chart {
    title: &'static str,
    x_label: &'static str,
    frame: Frame,
    /// Labels along x.
    x_ticks: Vec<Tick>,
    /// Labels along y, each with a line of the grid.
    y_ticks: Vec<Tick>,
    marks: Vec<Tick>,
    lines: Vec<Series>,
}

/// A label and its place along an axis.
#[derive(Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// Size of a chart's picture and the edges of the plot in it.
#[derive(Clone, Copy, Serialize)]
struct Frame {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

const FRAME: Frame = Frame { width: 640.0, height: 260.0, left: 56.0, right: 626.0, top: 16.0, bottom: 214.0 };

/// From figures to places along an axis: the figure `from` lies at `start`, and `span` more of it lie `length` further.
struct Scale {
    from: f64,
    span: f64,
    start: f64,
    length: f64,
}

impl Scale {
    fn at(&self, v: f64) -> f64 {
        self.start + (v - self.from) / self.span * self.length
    }
    /// Labels from `first` to `last`. A step that is lost in the rounding of a large figure ends them.
    fn ticks(&self, first: f64, last: f64, step: f64) -> Vec<Tick> {
        std::iter::successors(Some(first), |v| Some(v + step).filter(|next| next > v))
            .take_while(|v| *v <= last)
            .map(|v| Tick { at: self.at(v), label: short(v) })
            .collect()
    }
}

impl LineChart<'_> {
    /// The chart; nothing where no line has two points.
    pub fn layout(self) -> Option<Chart> {
        let mut lines: Vec<Series> = self.series.into_iter().map(|s| Series { points: thin(&s.points), ..s }).collect();
        lines.retain(|l| l.points.len() > 1);
        let bound = |f: fn(f64, f64) -> f64, pick: fn(&(f64, f64)) -> f64| lines.iter().flat_map(|l| &l.points).map(pick).reduce(f);
        let (x0, x1) = (bound(f64::min, |p| p.0)?, bound(f64::max, |p| p.0)?);
        let (mut y0, mut y1) = (bound(f64::min, |p| p.1)?, bound(f64::max, |p| p.1)?);
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
        let along = nice(width / 6.0);
        let x = Scale { from: x0, span: width, start: FRAME.left, length: FRAME.right - FRAME.left };
        let y = Scale { from: y1, span: y0 - y1, start: FRAME.top, length: FRAME.bottom - FRAME.top };
        for (px, py) in lines.iter_mut().flat_map(|l| &mut l.points) {
            (*px, *py) = (x.at(*px), y.at(*py));
        }
        Some(Chart {
            title: self.title,
            x_label: self.x_label,
            frame: FRAME,
            x_ticks: x.ticks((x0 / along).ceil() * along, x1 + width * 1e-9, along),
            y_ticks: y.ticks(y0, y1 + step * 0.5, step),
            marks: self
                .marks
                .iter()
                .filter(|m| m.0 >= x0 && m.0 <= x1)
                .map(|(at, label)| Tick { at: x.at(*at), label: label.clone() })
                .collect(),
            lines,
        })
    }
}

/// Horizontal bars.
#[derive(Serialize)]
pub struct Bars {
    title: &'static str,
    bars: Vec<Bar>,
}

/// A bar.
#[derive(Serialize)]
pub struct Bar {
    /// Before it.
    pub label: String,
    /// Its value; in `Bars`, its length in percent of the longest.
    pub length: f64,
    /// Behind it.
    pub written: String,
    /// Its colour, as the style sheet names it.
    pub colour: &'static str,
}

impl Bars {
    /// The longest bar fills the width; nothing where none has a length.
    pub fn layout(title: &'static str, mut bars: Vec<Bar>) -> Option<Self> {
        let most = bars.iter().map(|b| b.length).reduce(f64::max).filter(|most| *most > 0.0)?;
        for bar in &mut bars {
            bar.length = (bar.length / most * 100.0).clamp(0.0, 100.0);
        }
        Some(Self { title, bars })
    }
}

/// A box of the DAG to lay out.
pub struct Node<'a> {
    /// In its first line.
    pub name: &'a str,
    /// In its second line.
    pub kind: &'a str,
    /// In its third line.
    pub time: String,
    /// Boxes that it comes after, by index.
    pub after: Vec<usize>,
    /// Whether it was reused.
    pub reused: bool,
}

/// The DAG, laid out.
#[derive(Serialize)]
pub struct Dag {
    width: f64,
    height: f64,
    box_width: f64,
    box_height: f64,
    edges: Vec<Edge>,
    boxes: Vec<Place>,
}

/// A curve from the right side of a box to the left side of another; `bend` is how far it leaves and arrives level.
#[derive(Serialize)]
struct Edge {
    x1: f64,
    y1: f64,
    x2: f64,
    y2: f64,
    bend: f64,
}

/// A box, by its upper left corner.
#[derive(Serialize)]
struct Place {
    x: f64,
    y: f64,
    /// All of its text, which the lines may cut short.
    title: String,
    name: String,
    lines: [String; 2],
    reused: bool,
}

/// Size of a box, the gaps between boxes and the margin around them.
const BOX: (f64, f64) = (126.0, 56.0);
const GAP: (f64, f64) = (24.0, 14.0);
const MARGIN: f64 = 8.0;

impl Dag {
    /// Boxes in columns by their longest path from a source.
    pub fn layout(nodes: &[Node]) -> Self {
        let mut depth = vec![0usize; nodes.len()];
        for (i, n) in nodes.iter().enumerate() {
            depth[i] = n.after.iter().filter(|a| **a < i).map(|a| depth[*a] + 1).max().unwrap_or(0);
        }
        let mut filled = vec![0usize; depth.iter().max().map_or(1, |d| d + 1)];
        let place = |(n, d): (&Node, &usize)| {
            let (x, y) = (MARGIN + *d as f64 * (BOX.0 + GAP.0), MARGIN + filled[*d] as f64 * (BOX.1 + GAP.1));
            filled[*d] += 1;
            let lines = [clip(n.kind, 19), clip(&n.time, 19)];
            Place { x, y, title: format!("{} {}, {}", n.name, n.kind, n.time), name: clip(n.name, 16), lines, reused: n.reused }
        };
        let boxes: Vec<Place> = nodes.iter().zip(&depth).map(place).collect();
        let edge = |from: &Place, to: &Place| {
            let (x1, y1, x2, y2) = (from.x + BOX.0, from.y + BOX.1 / 2.0, to.x, to.y + BOX.1 / 2.0);
            Edge { x1, y1, x2, y2, bend: ((x2 - x1) / 2.0).max(12.0) }
        };
        let before = |i: usize| nodes[i].after.iter().filter(move |a| **a < i).map(move |a| (*a, i));
        let edges = (0..nodes.len()).flat_map(before).map(|(a, i)| edge(&boxes[a], &boxes[i])).collect();
        let extent = |n: usize, size: f64, gap: f64| 2.0 * MARGIN + n as f64 * (size + gap) - gap;
        let width = extent(filled.len(), BOX.0, GAP.0);
        let height = extent(filled.iter().max().copied().unwrap_or(1), BOX.1, GAP.1);
        Self { width, height, box_width: BOX.0, box_height: BOX.1, edges, boxes }
    }
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

    fn chart(series: Vec<Series>, marks: &[(f64, String)]) -> Option<Chart> {
        LineChart { title: "loss", x_label: "tokens", series, marks, from_zero: false }.layout()
    }

    fn in_frame(c: &Chart) -> bool {
        let within = |p: &(f64, f64)| (FRAME.left..=FRAME.right).contains(&p.0) && (FRAME.top..=FRAME.bottom).contains(&p.1);
        c.lines.iter().flat_map(|l| &l.points).all(within)
    }

    #[test]
    fn charts_hold_every_line_and_mark_and_survive_bad_numbers() {
        let series = vec![
            Series { name: "a", points: (0..5000).map(|i| (f64::from(i), 1.0 / f64::from(i + 1))).collect() },
            Series { name: "b", points: vec![(0.0, f64::NAN), (1.0, 2.0), (2.0, 2.0)] },
            Series { name: "one point", points: vec![(0.0, 1.0)] },
        ];
        let c = chart(series, &[(2500.0, "A4".into()), (9000.0, "outside".into())]).expect("two lines");
        assert_eq!(c.lines.iter().map(|l| (l.name, l.points.len())).collect::<Vec<_>>(), [("a", 386), ("b", 2)]);
        assert_eq!(c.marks.iter().map(|m| m.label.as_str()).collect::<Vec<_>>(), ["A4"]);
        assert!(in_frame(&c) && c.x_ticks.len() > 3 && c.y_ticks.len() > 3);
        let flat = chart(vec![Series { name: "f", points: vec![(0.0, 0.0), (1.0, 0.0)] }], &[]).expect("a line");
        assert!(in_frame(&flat));
        assert_eq!(nice(0.03), 0.05);
    }

    #[test]
    fn a_line_without_width_has_an_end_of_labels() {
        let c = chart(vec![Series { name: "u", points: vec![(5e6, 8.0), (5e6, 7.0)] }], &[]).expect("a line");
        assert!(c.x_ticks.len() < 20 && c.y_ticks.len() < 20 && in_frame(&c));
    }
}
