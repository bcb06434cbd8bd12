//! Plots of marks on two axes, as SVG text for an HTML page.
//!
//! `plotters` draws; its colours are stand-ins that become CSS variables, so that the page's light and dark themes
//! apply. Every mark that has a text gets an invisible target with a `<title>` over it: the value on hover, and for
//! screen readers. Coordinates are doubled, because `plotters` draws to whole pixels.

use std::{
    f64::consts::FRAC_PI_8,
    fmt::Write as _,
    ops::{Range, RangeInclusive},
};

use plotters::{
    coord::{
        Shift,
        ranged1d::{DefaultFormatting, KeyPointHint, Ranged},
    },
    element::DashedPathElement,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::RenderError;
use crate::text::steers;

/// Colours of series that the style sheet defines.
pub const SERIES: usize = 8;
const SHAPES: usize = 4;
/// Width of every plot in CSS pixels; its letters stay readable when a phone shows it at 360 pixels.
pub(super) const WIDTH: u32 = 420;
/// Size of letters in doubled pixels; the library makes them a fifth smaller than it says.
const LETTERS: u32 = 29;
/// Least distance between the centres of words beside points, in doubled pixels.
const LINE: i32 = 26;

/// Colours of the series in a page without its style.
const UNSTYLED: [&str; SERIES] =
    ["#2080c0", "#d06020", "#209070", "#b85090", "currentColor", "#3a9bd4", "#8a60d0", "#9a7d10"];

/// A colour of the page's theme.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ink {
    /// Text.
    Text,
    /// Secondary text and reference lines.
    Muted,
    /// Grid.
    Grid,
    /// The colour of a series.
    Series(usize),
    /// A fixed colour, the same in all themes; text on it is dark.
    Fixed(u8, u8, u8),
    /// Dark in all themes.
    Dark,
}

impl Ink {
    /// The stand-in: blue values that no other colour of a chart has.
    fn color(self) -> RGBColor {
        match self {
            Ink::Text => RGBColor(1, 2, 1),
            Ink::Muted => RGBColor(1, 2, 2),
            Ink::Grid => RGBColor(1, 2, 3),
            Ink::Series(i) => RGBColor(1, 2, 16 + (i % SERIES) as u8),
            Ink::Fixed(r, g, b) => RGBColor(r, g, b),
            Ink::Dark => RGBColor(0x11, 0x11, 0x11),
        }
    }

    /// The CSS colour: the theme's or, where a server's policy forbids the page its style, one that can be seen on white and
    /// on black.
    pub fn css(self) -> String {
        match self {
            Ink::Text => "var(--text,currentColor)".into(),
            Ink::Muted => "var(--muted,currentColor)".into(),
            Ink::Grid => "var(--grid,#888888)".into(),
            Ink::Series(i) => format!("var(--s{0},{1})", i % SERIES, UNSTYLED[i % SERIES]),
            Ink::Fixed(r, g, b) => format!("#{r:02X}{g:02X}{b:02X}"),
            Ink::Dark => "#111111".into(),
        }
    }
}

/// A position on an axis with its label; an empty label is a grid line only.
pub type Tick = (f64, String);

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// Quantity and unit.
    pub title: String,
    /// Ends.
    pub range: (f64, f64),
    /// Grid lines.
    pub ticks: Vec<Tick>,
    /// Logarithmic.
    pub log: bool,
}

impl Axis {
    fn at(&self, value: f64) -> f64 {
        if self.log { value.max(f64::MIN_POSITIVE).log10() } else { value }
    }

    /// A linear axis with round ticks over the values given, and a little room.
    pub fn linear(title: &str, values: impl IntoIterator<Item = f64>, label: impl Fn(f64) -> String) -> Self {
        let (low, high) = span(values);
        let room = if high > low { (high - low) * 0.04 } else { high.abs().max(1.0) * 0.1 };
        let (low, high) = (low - room, high + room);
        let step = round_step((high - low) / 5.0);
        let ticks = (0..50).map(|i| ((low / step).ceil() + f64::from(i)) * step).take_while(|t| *t <= high);
        let ticks = ticks.map(|t| (t, label(if t.abs() < step * 1e-9 { 0.0 } else { t }))).collect();
        Self { title: title.into(), range: (low, high), ticks, log: false }
    }

    /// A logarithmic axis with ticks at 1, 2, 5 of each decade: 1 alone over many decades, all figures within one.
    pub fn log(title: &str, values: impl IntoIterator<Item = f64>, label: impl Fn(f64) -> String) -> Self {
        // Further out, products of the ends would be 0 or infinite and the decades endless.
        let (low, high) = span(values.into_iter().filter(|v| (1e-100..1e100).contains(v)));
        let room = (high / low).powf(0.06).max(1.15);
        let (low, high) = (low / room, high * room);
        let steps: &[f64] = match high / low {
            ..6.0 => &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0],
            ..2e3 => &[1.0, 2.0, 5.0],
            _ => &[1.0],
        };
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
        let ticks = all.filter(|t| (low..=high).contains(t)).map(|t| (t, label(t))).collect();
        Self { title: title.into(), range: (low, high), ticks, log: true }
    }

    /// A logarithmic axis with ticks at the values themselves; of those that crowd, the first has a label.
    pub fn log_at(title: &str, values: impl IntoIterator<Item = f64>, label: impl Fn(f64) -> String) -> Self {
        let mut values: Vec<f64> = values.into_iter().filter(|v| *v > 0.0).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        let axis = Self::log(title, values.iter().copied(), |_| String::new());
        let room = (axis.range.1 / axis.range.0).powf(0.1);
        let mut last = 0.0;
        let mut tick = |value: f64| {
            let free = value >= last * room;
            last = if free { value } else { last };
            (value, if free { label(value) } else { String::new() })
        };
        Self { ticks: values.into_iter().map(&mut tick).collect(), ..axis }
    }

    /// A unit of room for each of `n` rows, downwards, without ticks: row i goes from i to i + 1.
    pub fn rows(n: usize) -> Self {
        Self { title: String::new(), range: (n as f64, 0.0), ticks: Vec::new(), log: false }
    }

    /// One unit of room for each name, downwards or to the right; position i is at i + 0.5.
    pub fn names(title: &str, names: impl IntoIterator<Item = String>, downwards: bool) -> Self {
        let ticks: Vec<Tick> = names.into_iter().enumerate().map(|(i, name)| (i as f64 + 0.5, name)).collect();
        let n = ticks.len() as f64;
        Self { title: title.into(), range: if downwards { (n, 0.0) } else { (0.0, n) }, ticks, log: false }
    }
}

fn span(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    let ends = (f64::INFINITY, f64::NEG_INFINITY);
    let (low, high) =
        values.into_iter().filter(|v| v.is_finite()).fold(ends, |(low, high), v| (low.min(v), high.max(v)));
    if low <= high { (low, high) } else { (1.0, 1.0) }
}

fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    decade * [1.0, 2.0, 5.0, 10.0].into_iter().find(|s| s * decade >= step * 0.999).unwrap_or(10.0)
}

/// Something drawn.
#[derive(Clone, Debug)]
pub enum Mark {
    /// A marker, with an interval in y.
    Point { x: f64, y: f64, interval: Option<(f64, f64)>, series: usize, text: String },
    /// A small translucent dot.
    Dot { x: f64, y: f64, ink: Ink, text: String },
    /// A line through points.
    Line { points: Vec<(f64, f64)>, ink: Ink, width: u32, dashed: bool },
    /// A filled rectangle between two corners.
    Area { from: (f64, f64), to: (f64, f64), ink: Ink, text: String },
    /// Words centred at a point.
    Label { x: f64, y: f64, words: String, ink: Ink },
    /// Words beside a point, moved up or down if they would cover others.
    Aside { x: f64, y: f64, words: String },
    /// Words at the left end of a row.
    Heading { y: f64, words: String },
}

/// A plot to draw.
#[derive(Clone, Debug)]
pub struct Plot {
    /// Unique in the page; letters, digits and hyphens.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// What a reader who does not see it should know.
    pub description: String,
    /// Height in CSS pixels where the plot is [`WIDTH`] wide.
    pub height: u32,
    /// Room left of the plot for tick labels and the axis title, in CSS pixels.
    pub left: u32,
    /// Horizontal axis.
    pub x: Axis,
    /// Vertical axis.
    pub y: Axis,
    /// Drawn in this order.
    pub marks: Vec<Mark>,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;

/// An axis as the plotting library wants it.
#[derive(Clone)]
struct Scale(Axis);

impl Ranged for Scale {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        let (low, high) = (self.0.at(self.0.range.0), self.0.at(self.0.range.1));
        let share = (self.0.at(*value) - low) / (high - low);
        // Far outside is still a coordinate that adds up without overflow.
        start + (share * f64::from(end - start)).clamp(-1e6, 1e6).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() { Vec::new() } else { self.0.ticks.iter().map(|t| t.0).collect() }
    }

    fn range(&self) -> Range<f64> {
        self.0.range.0..self.0.range.1
    }
}

impl Plot {
    /// The plot as an `<svg>` element.
    ///
    /// # Errors
    /// If the plotting library refuses the axes.
    pub fn svg(&self) -> Result<String, RenderError> {
        let mut drawn = String::new();
        let mut targets = String::new();
        {
            let size = (2 * WIDTH, 2 * self.height);
            let area = SVGBackend::with_string(&mut drawn, size).into_drawing_area();
            self.draw(&area, &mut targets).map_err(|e| RenderError::Plot(self.id.clone(), e))?;
            area.present().map_err(|e| RenderError::Plot(self.id.clone(), e.to_string()))?;
        }
        // The library's own root element gives way to one with a name and a description.
        let inner = drawn.split_once(">\n").map_or("", |(_, rest)| rest);
        let inner = inner.trim_end().strip_suffix("</svg>").unwrap_or(inner);
        let mut svg = String::new();
        let (w, h) = (2 * WIDTH, 2 * self.height);
        let id = &self.id;
        let _ = write!(
            svg,
            "<svg class=\"plot\" width=\"{}\" height=\"{}\" id=\"{id}\" role=\"img\" aria-labelledby=\"{id}-t {id}-d\" viewBox=\"0 0 {w} {h}\">\n\
             <title id=\"{id}-t\">{}</title>\n<desc id=\"{id}-d\">{}</desc>\n{}{targets}</svg>",
            WIDTH,
            self.height,
            escape(&self.title),
            escape(&self.description),
            themed(inner).replace(|c| steers(c) && c != '\n', "\u{fffd}")
        );
        Ok(svg)
    }

    fn draw(&self, area: &Area, targets: &mut String) -> Result<(), String> {
        let label = |a: &Axis, at: f64| {
            let tick = a.ticks.iter().find(|t| t.0 == at);
            tick.map(|t| t.1.clone()).unwrap_or_default()
        };
        let mut chart = ChartBuilder::on(area)
            .margin(12)
            .margin_right(28)
            .set_label_area_size(LabelAreaPosition::Left, 2 * self.left)
            .set_label_area_size(LabelAreaPosition::Bottom, 88)
            .build_cartesian_2d(Scale(self.x.clone()), Scale(self.y.clone()))
            .map_err(|e| e.to_string())?;
        let font = |size: u32, ink: Ink| ("sans-serif", size).into_font().color(&ink.color());
        chart
            .configure_mesh()
            .x_desc(&self.x.title)
            .y_desc(&self.y.title)
            .axis_desc_style(font(LETTERS, Ink::Text))
            .label_style(font(LETTERS, Ink::Text))
            .axis_style(Ink::Muted.color().stroke_width(2))
            .bold_line_style(Ink::Grid.color().stroke_width(1))
            .light_line_style(TRANSPARENT)
            .x_labels(self.x.ticks.len().max(1))
            .y_labels(self.y.ticks.len().max(1))
            .x_label_formatter(&|at| label(&self.x, *at))
            .y_label_formatter(&|at| label(&self.y, *at))
            .draw()
            .map_err(|e| e.to_string())?;
        for mark in &self.marks {
            self.mark(&mut chart, mark, targets).map_err(|e| e.to_string())?;
        }
        self.asides(area, &chart).map_err(|e| e.to_string())
    }

    /// Writes the words beside points, from the top down: right of their point, or left of it where the right is taken.
    fn asides(&self, area: &Area, chart: &Chart) -> Result<(), Box<dyn std::error::Error>> {
        let (mut points, mut asides) = (Vec::new(), Vec::new());
        for mark in &self.marks {
            match mark {
                Mark::Point { x, y, interval, .. } => {
                    let (low, high) = interval.unwrap_or((*y, *y));
                    let ((x, top), (_, bottom)) = (chart.backend_coord(&(*x, high)), chart.backend_coord(&(*x, low)));
                    points.push((x, top..=bottom));
                }
                Mark::Aside { x, y, words } => asides.push((chart.backend_coord(&(*x, *y)), words)),
                _ => {}
            }
        }
        asides.sort_unstable_by_key(|((x, y), _)| (*y, *x));
        let meet = |a: &Range<i32>, b: &Range<i32>| a.start < b.end && b.start < a.end;
        let (edge, bottom) = chart.backend_coord(&(self.x.range.0, self.y.range.0));
        let mut placed: Vec<(Range<i32>, i32, HPos, &String)> = Vec::new();
        for ((x, y), words) in asides {
            let width = (words.chars().count() as f64 * f64::from(LETTERS) * 0.45) as i32;
            let right = (x + 16..x + 16 + width, HPos::Left);
            let left = (x - 16 - width..x - 16, HPos::Right);
            let inside = |(across, _): &(Range<i32>, HPos)| across.end < 2 * WIDTH as i32;
            let free = |(across, _): &(Range<i32>, HPos)| {
                let covered = |(at, along): &&(i32, RangeInclusive<i32>)| {
                    across.contains(at) && along.start() - LINE / 2 < y && y < along.end() + LINE / 2
                };
                points.iter().find(covered).is_none()
            };
            let to_the_right = inside(&right) && (free(&right) || !free(&left) || left.0.start < edge);
            let (across, anchor) = if to_the_right { right } else { left };
            let y = placed.iter().filter(|p| meet(&p.0, &across)).map(|p| p.1 + LINE).fold(y, i32::max);
            placed.push((across, y, anchor, words));
        }
        // What was pushed below the axis moves up again, and what is above it with it.
        for i in (0..placed.len()).rev() {
            let below = placed[i + 1..].iter().filter(|p| meet(&p.0, &placed[i].0)).map(|p| p.1 - LINE);
            placed[i].1 = below.fold(placed[i].1.min(bottom - LINE / 2), i32::min);
        }
        for (across, y, anchor, words) in placed {
            let at = if matches!(anchor, HPos::Left) { across.start } else { across.end };
            let style = ("sans-serif", LETTERS).into_font().color(&Ink::Muted.color());
            area.draw(&Text::new(words.as_str(), (at, y), style.pos(Pos::new(anchor, VPos::Center))))?;
        }
        Ok(())
    }

    fn mark(&self, chart: &mut Chart, mark: &Mark, targets: &mut String) -> Result<(), Box<dyn std::error::Error>> {
        let words = |words: &str, x, y, ink: Ink, anchor| {
            let style = ("sans-serif", LETTERS).into_font().color(&ink.color()).pos(anchor);
            Text::new(words.to_string(), (x, y), style)
        };
        match mark {
            Mark::Point { x, y, interval, series, text } => {
                let color = Ink::Series(*series).color();
                if let Some((low, high)) = interval {
                    let bar = PathElement::new(vec![(*x, *low), (*x, *high)], color.stroke_width(3));
                    chart.draw_series([bar])?;
                }
                let outline: Vec<(i32, i32)> = match series % SHAPES {
                    0 => (0..16).map(|i| f64::from(i) * FRAC_PI_8).map(|a| polar(9.0, a)).collect(),
                    1 => vec![(-9, -9), (9, -9), (9, 9), (-9, 9)],
                    2 => vec![(0, -11), (11, 8), (-11, 8)],
                    _ => vec![(0, -12), (12, 0), (0, 12), (-12, 0)],
                };
                let shape = EmptyElement::at((*x, *y)) + Polygon::new(outline, color.filled());
                chart.draw_series([shape])?;
                let (px, py) = chart.backend_coord(&(*x, *y));
                target(targets, &format!("<circle cx=\"{px}\" cy=\"{py}\" r=\"18\""), text);
            }
            Mark::Dot { x, y, ink, text } => {
                chart.draw_series([Circle::new((*x, *y), 6, ink.color().mix(0.55).filled())])?;
                let (px, py) = chart.backend_coord(&(*x, *y));
                target(targets, &format!("<circle cx=\"{px}\" cy=\"{py}\" r=\"9\""), text);
            }
            Mark::Line { points, ink, width, dashed } => {
                let points = points.iter().map(|(x, y)| (*x, *y));
                let style = ink.color().stroke_width(*width);
                if *dashed {
                    chart.draw_series([DashedPathElement::new(points, 10, 8, style)])?;
                } else {
                    chart.draw_series([PathElement::new(points.collect::<Vec<_>>(), style)])?;
                }
            }
            Mark::Area { from, to, ink, text } => {
                let (a, b) = (*from, *to);
                chart.draw_series([Rectangle::new([a, b], ink.color().filled())])?;
                let ((ax, ay), (bx, by)) = (chart.backend_coord(&a), chart.backend_coord(&b));
                let (w, h) = ((ax - bx).abs(), (ay - by).abs());
                let rect = format!("<rect x=\"{}\" y=\"{}\" width=\"{w}\" height=\"{h}\"", ax.min(bx), ay.min(by));
                target(targets, &rect, text);
            }
            Mark::Label { x, y, words: text, ink } => {
                chart.draw_series([words(text, *x, *y, *ink, Pos::new(HPos::Center, VPos::Center))])?;
            }
            // Once all marks are drawn: see `asides`.
            Mark::Aside { .. } => {}
            Mark::Heading { y, words: text } => {
                let style = ("sans-serif", LETTERS).into_font().color(&Ink::Text.color());
                let style = style.pos(Pos::new(HPos::Left, VPos::Center));
                let heading = EmptyElement::at((self.x.range.0, *y)) + Text::new(text.clone(), (8, 0), style);
                chart.draw_series([heading])?;
            }
        }
        Ok(())
    }
}

fn polar(radius: f64, angle: f64) -> (i32, i32) {
    ((radius * angle.cos()).round() as i32, (radius * angle.sin()).round() as i32)
}

/// An invisible shape that carries a text.
fn target(targets: &mut String, shape: &str, text: &str) {
    if !text.is_empty() {
        let _ = writeln!(
            targets,
            "{shape} class=\"target\" fill=\"transparent\" pointer-events=\"all\"><title>{}</title></{}>",
            escape(text),
            &shape[1..].split(' ').next().unwrap_or("g")
        );
    }
}

/// Text for XML.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            steering if steers(steering) && c != '\n' => out.push(char::REPLACEMENT_CHARACTER),
            other => out.push(other),
        }
    }
    out
}

/// Stand-ins replaced by the variables they stand for. Only attribute values are looked at: a text may say `#010201`.
fn themed(svg: &str) -> String {
    let mut out = svg.to_string();
    let inks = [Ink::Text, Ink::Muted, Ink::Grid].into_iter().chain((0..SERIES).map(Ink::Series));
    for ink in inks {
        let RGBColor(r, g, b) = ink.color();
        out = out.replace(&format!("=\"#{r:02X}{g:02X}{b:02X}\""), &format!("=\"{}\"", ink.css()));
    }
    out
}

/// The marker of a series, for a legend in the page.
pub fn swatch(series: usize) -> String {
    swatch_of(
        series,
        match series % SHAPES {
            0 => "<circle cx=\"8\" cy=\"8\" r=\"5\"",
            1 => "<rect x=\"3\" y=\"3\" width=\"10\" height=\"10\"",
            2 => "<polygon points=\"8,2 14,13 2,13\"",
            _ => "<polygon points=\"8,1 15,8 8,15 1,8\"",
        },
    )
}

/// The same for a series of areas, which have no marker but their colour.
pub fn area_swatch(series: usize) -> String {
    swatch_of(series, "<rect x=\"2\" y=\"3\" width=\"12\" height=\"10\"")
}

fn swatch_of(series: usize, shape: &str) -> String {
    let css = Ink::Series(series).css();
    format!(
        "<svg class=\"swatch\" width=\"14\" height=\"14\" viewBox=\"0 0 16 16\" aria-hidden=\"true\">{shape} fill=\"{css}\"/></svg>"
    )
}
