//! Pictures: the latencies of each policy, and who got how much of the calls when.

use std::error::Error;
use std::path::PathBuf;

use epaint_default_fonts::UBUNTU_LIGHT;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::register_font;

use super::arguments::{Kind, Plot, openable};
use super::outcome::{CURVE, Figure, Figures};
use super::runs::Results;

/// So that it looks the same on machines without fonts.
const FONT: &str = "sans-serif";
const WIDTH: u32 = 1_500;
const CURVES: u32 = 620;
/// Beside the curves, what they mean.
const NAMES: u32 = 430;
const PANEL: u32 = 300;
/// The quantiles that have a name on the axis.
const LABELLED: [f64; 9] = [0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999];
const PANELS_IN_A_ROW: usize = 3;
/// Of more servers than this the least, the middle and the greatest share are drawn.
const SERVERS_DRAWN: usize = 20;

/// Twelve colours that can be told apart; beyond them, and beyond again, they come back thinner.
const COLOURS: [RGBColor; 12] = [
    RGBColor(0x1f, 0x77, 0xb4),
    RGBColor(0xff, 0x7f, 0x0e),
    RGBColor(0x2c, 0xa0, 0x2c),
    RGBColor(0xd6, 0x27, 0x28),
    RGBColor(0x94, 0x67, 0xbd),
    RGBColor(0x8c, 0x56, 0x4b),
    RGBColor(0xe3, 0x77, 0xc2),
    RGBColor(0x50, 0x50, 0x50),
    RGBColor(0xbc, 0xbd, 0x22),
    RGBColor(0x17, 0xbe, 0xcf),
    RGBColor(0x00, 0x3f, 0x8c),
    RGBColor(0x8c, 0xc6, 0x3f),
];

fn style(number: usize) -> ShapeStyle {
    let width = if number < COLOURS.len() { 3 } else { 1 };
    COLOURS[number % COLOURS.len()].stroke_width(width)
}

/// Draws one picture for each scenario. The files written.
///
/// # Errors
///
/// When a file cannot be written.
pub fn draw(plot: &Plot, all: &[Results]) -> Result<Vec<PathBuf>, String> {
    register_font(FONT, FontStyle::Normal, UBUNTU_LIGHT)
        .map_err(|_| "--plot: the font is damaged".to_owned())?;
    let mut written = Vec::new();
    for results in all {
        let path = plot.at(&results.scenario.name, all.len());
        let size = (WIDTH, height(results));
        let failed = match plot.kind {
            Kind::Svg => {
                picture(SVGBackend::new(&path, size).into_drawing_area(), results).is_err()
            }
            Kind::Png => {
                picture(BitMapBackend::new(&path, size).into_drawing_area(), results).is_err()
            }
        };
        if failed {
            // The backend's words are for those who debug it; the system's are plain.
            openable(&path)?;
            let path = path.display();
            return Err(format!("--plot {path}: it cannot be written in full"));
        }
        written.push(path);
    }
    Ok(written)
}

fn height(results: &Results) -> u32 {
    CURVES + 60 + PANEL * results.rows.len().div_ceil(PANELS_IN_A_ROW) as u32
}

type Drawn<'a> = Result<(), Box<dyn Error + 'a>>;

fn picture<'a, B: DrawingBackend + 'a>(
    area: DrawingArea<B, Shift>,
    results: &Results,
) -> Drawn<'a> {
    area.fill(&WHITE)?;
    let (above, below) = area.split_vertically(CURVES);
    let (left, right) = above.split_horizontally(WIDTH - NAMES);
    curves(&left, results)?;
    names(&right, results)?;
    let (heading, panels) = below.split_vertically(60);
    key(&heading, results)?;
    let rows = results.rows.len().div_ceil(PANELS_IN_A_ROW);
    let panels = panels.split_evenly((rows, PANELS_IN_A_ROW));
    // One scale for all: they are there to be compared.
    let all = results
        .rows
        .iter()
        .flat_map(|(_, f)| f.shares.iter().flatten());
    let most = all.copied().fold(0.0, f64::max) * 100.0 * 1.1 + 0.001;
    for (panel, (name, figures)) in panels.iter().zip(&results.rows) {
        shares(panel, name, figures, most)?;
    }
    area.present()?;
    Ok(())
}

/// Latency over the quantiles, a curve for each policy.
fn curves<'a, B: DrawingBackend + 'a>(
    area: &DrawingArea<B, Shift>,
    results: &Results,
) -> Drawn<'a> {
    let all = || {
        results
            .rows
            .iter()
            .flat_map(|(_, f)| f.curve.iter().copied())
    };
    let least = all().fold(f64::INFINITY, f64::min).max(0.001) * 0.8;
    let most = all().fold(0.0, f64::max).max(least) * 1.3;
    let scenario = &results.scenario;
    let title = format!("{}: {}", scenario.name, scenario.about);
    let quantiles = LABELLED.map(place);
    let (first, last) = (place(CURVE[0]), place(CURVE[CURVE.len() - 1]));
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, 30))
        .margin(16)
        .x_label_area_size(56)
        .y_label_area_size(90)
        .margin_right(32)
        .build_cartesian_2d(
            (first..last)
                .log_scale()
                .with_key_points(quantiles.to_vec()),
            (least..most)
                .log_scale()
                .with_key_points(ticks(least, most)),
        )?;
    chart
        .configure_mesh()
        .x_label_formatter(&|at| quantile_name(*at))
        .y_label_formatter(&|millis| match *millis {
            ..1.0 => format!("{millis:.2}"),
            _ => format!("{millis:.0}"),
        })
        .x_desc("part of the calls that took no longer; log scale of 1 / (1 - part)")
        .y_desc("latency in ms; log scale")
        .label_style((FONT, 20))
        .axis_desc_style((FONT, 22))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.15))
        .draw()?;
    for (number, (_, figures)) in results.rows.iter().enumerate() {
        let points = CURVE.iter().zip(&figures.curve);
        let points = points.map(|(&quantile, &millis)| (place(quantile), millis.max(least)));
        chart.draw_series(LineSeries::new(points, style(number)))?;
    }
    Ok(())
}

/// Which curve is whose.
fn names<'a, B: DrawingBackend + 'a>(area: &DrawingArea<B, Shift>, results: &Results) -> Drawn<'a> {
    let rows = results.rows.len() as i32;
    let step = (500 / rows.max(1)).min(34);
    let text = (FONT, 20).into_font().color(&BLACK);
    for (number, (name, figures)) in results.rows.iter().enumerate() {
        let y = 70 + step * number as i32;
        let p99 = figures.get(Figure::P99).unwrap_or(0.0);
        let label = format!("{name}, p99 {} ms", millis_name(p99));
        area.draw(&PathElement::new(
            [(0, y + 10), (26, y + 10)],
            style(number),
        ))?;
        area.draw(&Text::new(label, (34, y), text.clone()))?;
    }
    Ok(())
}

/// Where a quantile is: one in so many calls takes longer.
fn place(quantile: f64) -> f64 {
    1.0 / (1.0 - quantile)
}

fn quantile_name(at: f64) -> String {
    let text = format!("p{:.1}", 100.0 - 100.0 / at);
    text.strip_suffix(".0").unwrap_or(&text).to_owned()
}

/// 1, 2 and 5 of each decade in the range, and its ends where there are hardly any.
fn ticks(least: f64, most: f64) -> Vec<f64> {
    let decades = least.log10().floor() as i32..=most.log10().ceil() as i32;
    let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|n| n * 10_f64.powi(decade)));
    let ticks: Vec<f64> = ticks.filter(|tick| (least..=most).contains(tick)).collect();
    match ticks.len() {
        0 | 1 => vec![least, most],
        _ => ticks,
    }
}

fn millis_name(millis: f64) -> String {
    match millis {
        ..1.0 => format!("{millis:.2}"),
        ..100.0 => format!("{millis:.1}"),
        _ => format!("{millis:.0}"),
    }
}

/// What the lines of the panels mean.
fn lines(servers: usize) -> Vec<String> {
    match servers {
        ..=SERVERS_DRAWN => (0..servers).map(|server| server.to_string()).collect(),
        _ => ["least", "median", "greatest"].map(str::to_owned).into(),
    }
}

fn key<'a, B: DrawingBackend + 'a>(area: &DrawingArea<B, Shift>, results: &Results) -> Drawn<'a> {
    let servers = results.rows.first().map_or(0, |(_, f)| servers(f));
    let text = (FONT, 22).into_font().color(&BLACK);
    area.draw(&Text::new(
        "picks in % by server, over the run:",
        (24, 20),
        text.clone(),
    ))?;
    for (number, word) in lines(servers).into_iter().enumerate() {
        let step = if servers <= SERVERS_DRAWN { 54 } else { 130 };
        let x = 400 + step * number as i32;
        area.draw(&PathElement::new([(x, 31), (x + 20, 31)], style(number)))?;
        area.draw(&Text::new(word, (x + 25, 20), text.clone()))?;
    }
    Ok(())
}

fn servers(figures: &Figures) -> usize {
    figures.shares.first().map_or(0, Vec::len)
}

/// The shares of one policy over time.
fn shares<'a, B: DrawingBackend + 'a>(
    area: &DrawingArea<B, Shift>,
    name: &str,
    figures: &Figures,
    most: f64,
) -> Drawn<'a> {
    let lasted = figures.lasted.max(0.001);
    let mut chart = ChartBuilder::on(area)
        .caption(name, (FONT, 24))
        .margin(12)
        .x_label_area_size(30)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..lasted, 0.0..most)?;
    chart
        .configure_mesh()
        .x_labels(6)
        .y_labels(5)
        .x_label_formatter(&|seconds| format!("{seconds} s"))
        .y_label_formatter(&|share| match most {
            ..2.0 => format!("{share:.2}"),
            ..10.0 => format!("{share:.1}"),
            _ => format!("{share:.0}"),
        })
        .label_style((FONT, 17))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    let servers = servers(figures);
    for number in 0..lines(servers).len() {
        let periods = figures.shares.iter().enumerate();
        let points = periods.map(|(period, shares)| {
            let middle = (period as f64 + 0.5) / figures.shares.len() as f64;
            let share = match servers {
                ..=SERVERS_DRAWN => shares[number],
                _ => ranked(shares, number),
            };
            (middle * lasted, share * 100.0)
        });
        chart.draw_series(LineSeries::new(points, style(number).stroke_width(2)))?;
    }
    Ok(())
}

/// The least, the median or the greatest.
fn ranked(shares: &[f64], which: usize) -> f64 {
    let mut sorted = shares.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted[which * (sorted.len() - 1) / 2]
}
