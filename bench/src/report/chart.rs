use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;

use super::scale::{Scale, short};
use super::{Chart, Series};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 380;
const BAR_HEIGHT: u32 = 30;
const LETTER_WIDTH: f64 = 8.0;
const FONT: (&str, i32) = ("sans-serif", 17);

/// Stand-ins for the page's colours of axes and grid; `page.rs` names them in its style sheet.
const INK: RGBColor = RGBColor(1, 2, 3);
const GRID: RGBColor = RGBColor(4, 5, 6);

/// Told apart on light and on dark, also by the colour-blind.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0x1f, 0x83, 0xc4),
    RGBColor(0xd9, 0x63, 0x14),
    RGBColor(0x10, 0x9e, 0x77),
    RGBColor(0xc9, 0x6f, 0xa3),
    RGBColor(0xc9, 0x92, 0x10),
    RGBColor(0x8a, 0x74, 0xd1),
    RGBColor(0x56, 0xa9, 0xc9),
    RGBColor(0x85, 0x8b, 0x93),
];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Plot<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<Scale, Scale>>;

/// Draws a chart without its title and legend, as an SVG element.
pub(super) fn draw(chart: &Chart) -> Result<String> {
    let mut svg = String::new();
    match &chart.series {
        Series::Lines(lines) => {
            let area = SVGBackend::with_string(&mut svg, (WIDTH, HEIGHT)).into_drawing_area();
            draw_lines(&area, chart, lines).map_err(|error| anyhow!("{}: {error}", chart.title))?;
        }
        Series::Bars { bars, .. } => {
            let rows = u32::try_from(bars.len())?;
            let size = (WIDTH, BAR_HEIGHT * rows.max(1) + 70);
            let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
            draw_bars(&area, chart, bars).map_err(|error| anyhow!("{}: {error}", chart.title))?;
        }
    }
    Ok(svg)
}

/// Returns the colour of a line or part, by its number, in the words of style sheets.
pub(super) fn colour_name(index: usize) -> String {
    let RGBColor(red, green, blue) = colour(index);
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn colour(index: usize) -> RGBColor {
    COLOURS[index % COLOURS.len()]
}

fn draw_lines(area: &Area, chart: &Chart, lines: &[(String, Vec<(f64, f64)>)]) -> Result<()> {
    let points = || lines.iter().flat_map(|(_, points)| points);
    let x = Scale::fit(points().map(|point| point.0), chart.x.is_logarithmic);
    let y = Scale::fit(points().map(|point| point.1), chart.y.is_logarithmic).starting_at_zero();
    let mut plot = plan(area, x, y, 68)?;
    plot.configure_mesh()
        .x_desc(&chart.x.label)
        .y_desc(&chart.y.label)
        .axis_style(INK)
        .bold_line_style(GRID)
        .max_light_lines(0)
        .label_style(FONT)
        .axis_desc_style(FONT)
        .draw()
        .map_err(drawing)?;
    for (index, (_, points)) in lines.iter().enumerate() {
        let has_place = |(x, y): &&(f64, f64)| {
            (*x > 0.0 || !chart.x.is_logarithmic) && (*y > 0.0 || !chart.y.is_logarithmic)
        };
        let points = || points.iter().filter(has_place).copied();
        plot.draw_series(LineSeries::new(points(), colour(index).stroke_width(2))).map_err(drawing)?;
        let dots = points().map(|point| Circle::new(point, 4, colour(index).filled()));
        plot.draw_series(dots).map_err(drawing)?;
    }
    area.present().map_err(drawing)
}

/// Draws bars from the left, the first one on top, with their sums at their ends.
fn draw_bars(area: &Area, chart: &Chart, bars: &[(String, Vec<f64>)]) -> Result<()> {
    let sums = bars.iter().map(|(_, parts)| parts.iter().sum::<f64>());
    let x = Scale::fit(sums, chart.y.is_logarithmic).starting_at_zero().with_room();
    let y = Scale::rows(bars.iter().map(|(name, _)| name.clone()));
    let longest = bars.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let start = x.start();
    let mut plot = plan(area, x, y, pixels(longest))?;
    plot.configure_mesh()
        .x_desc(&chart.y.label)
        .axis_style(INK)
        .bold_line_style(GRID)
        .max_light_lines(0)
        .disable_y_mesh()
        .label_style(FONT)
        .axis_desc_style(FONT)
        .draw()
        .map_err(drawing)?;
    for ((_, parts), row) in bars.iter().rev().zip(0_u32..) {
        let row = f64::from(row);
        let (mut sum, mut left) = (0.0, start);
        for (index, part) in parts.iter().enumerate() {
            sum += part;
            let right = sum.max(left);
            let bar = Rectangle::new([(left, row + 0.2), (right, row + 0.8)], colour(index).filled());
            plot.draw_series([bar]).map_err(drawing)?;
            left = right;
        }
        let text = Text::new(format!("\u{2002}{}", short(sum)), (left, row + 0.72), FONT);
        plot.draw_series([text]).map_err(drawing)?;
    }
    area.present().map_err(drawing)
}

/// Lays out axes; names on the second one take `margin` pixels.
fn plan<'a, 'b>(area: &Area<'b>, x: Scale, y: Scale, margin: u32) -> Result<Plot<'a, 'b>> {
    ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(50)
        .y_label_area_size(margin)
        .build_cartesian_2d(x, y)
        .map_err(drawing)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a name fits on a page")]
#[expect(clippy::cast_precision_loss, reason = "a name fits on a page")]
fn pixels(letters: usize) -> u32 {
    (letters.min(60) as f64 * LETTER_WIDTH) as u32 + 16
}

fn drawing(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("it cannot be drawn: {error}")
}
