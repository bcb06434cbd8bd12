//! Figures as text, the same in every report.

use crate::stats::{Estimate, LEVEL};

/// `value` with three significant digits, and never more than three decimals.
pub fn figure(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        v if v >= 99.95 => 0,
        v if v >= 9.995 => 1,
        v if v >= 0.9995 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// A time with its unit.
pub fn seconds(value: f64) -> String {
    let (factor, unit) = unit_of(value);
    format!("{} {unit}", figure(value * factor))
}

/// An energy with its unit.
pub fn joules(value: f64) -> String {
    let (factor, unit) = unit_of(value);
    format!("{} {}", figure(value * factor), unit.replace('s', "J"))
}

fn unit_of(seconds: f64) -> (f64, &'static str) {
    match seconds.abs() {
        s if s >= 0.9995 => (1.0, "s"),
        s if s >= 0.9995e-3 => (1e3, "ms"),
        s if s >= 0.9995e-6 => (1e6, "µs"),
        _ => (1e9, "ns"),
    }
}

/// The interval of a time in the unit of the time itself, and its level if that is not [`LEVEL`].
pub fn seconds_interval(estimate: &Estimate) -> Option<String> {
    let (factor, _) = unit_of(estimate.value);
    interval(&estimate.scaled(factor))
}

/// The interval, and its level if that is not [`LEVEL`].
pub fn interval(estimate: &Estimate) -> Option<String> {
    interval_of(estimate, figure)
}

/// The interval of a ratio, with two decimals as the ratio itself.
pub fn ratio_interval(estimate: &Estimate) -> Option<String> {
    interval_of(estimate, |value| format!("{value:.2}"))
}

/// The interval, its ends as `show` writes them, and its level if that is not [`LEVEL`].
pub fn interval_of(estimate: &Estimate, show: fn(f64) -> String) -> Option<String> {
    let i = estimate.interval?;
    let level = if i.level < LEVEL { format!(" {:.0}%", (100.0 * i.level).floor()) } else { String::new() };
    Some(format!("[{}, {}]{level}", show(i.low), show(i.high)))
}

/// A ratio, such as `2.31x`.
pub fn ratio(value: f64) -> String {
    format!("{value:.2}x")
}

/// A share of 1 in percent.
pub fn percent(value: f64) -> String {
    // Adding 0 makes a negative zero positive.
    let value = (1000.0 * value).round() / 10.0 + 0.0;
    if value.abs() < 9.95 { format!("{value:.1}%") } else { format!("{value:.0}%") }
}

/// A p-value.
pub fn p(value: f64) -> String {
    if value < 0.001 { "<0.001".into() } else { format!("{value:.3}") }
}

/// A relative change: a percentage, or a factor if it more than doubles.
pub fn change(value: f64) -> String {
    if value <= 1.0 { percent(value) } else { format!("{}x", figure(value + 1.0)) }
}

/// Bytes in binary units.
pub fn bytes(value: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (value as f64, 0);
    while value >= 1023.5 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{value} B") } else { format!("{} {}", figure(value), units[unit]) }
}

/// Floating-point operations.
pub fn flops(value: u64) -> String {
    let units = ["", "K", "M", "G", "T", "P", "E"];
    let (mut value, mut unit) = (value as f64, 0);
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    format!("{} {}FLOP", figure(value), units[unit])
}

/// What stands for an unknown figure.
pub const UNKNOWN: &str = "-";

/// A figure, or [`UNKNOWN`].
pub fn or_unknown(text: Option<String>) -> String {
    text.unwrap_or_else(|| UNKNOWN.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Interval;

    #[test]
    fn figures_keep_three_digits_across_unit_borders() {
        assert_eq!(
            [0.4744, 0.99949, 0.9996, 9.996, 99.96, 1234.5].map(seconds),
            ["474 ms", "999 ms", "1.00 s", "10.0 s", "100 s", "1234 s"]
        );
        assert_eq!([4.2e-3, 4.2e-6, 4.2e-9].map(seconds), ["4.20 ms", "4.20 µs", "4.20 ns"]);
        assert_eq!([0, 1023, 1024, 24 << 30].map(bytes), ["0 B", "1023 B", "1.00 KiB", "24.0 GiB"]);
        assert_eq!([999, 7_690_000_000_000].map(flops), ["999 FLOP", "7.69 TFLOP"]);
        assert_eq!([0.0123, 0.87, -0.0001].map(percent), ["1.2%", "87%", "0.0%"]);
        assert_eq!([0.063, 1.0, 62.8].map(change), ["6.3%", "100%", "63.8x"]);
    }

    #[test]
    fn intervals_share_the_unit_of_their_figure_and_tell_a_low_level() {
        let of =
            |level| Estimate { value: 0.999, interval: Some(Interval { low: 0.99, high: 1.01, level }), samples: 3 };
        assert_eq!(seconds_interval(&of(0.95)).unwrap(), "[990, 1010]");
        assert_eq!(interval(&of(0.75)).unwrap(), "[0.990, 1.01] 75%");
        assert_eq!(interval(&Estimate { interval: None, ..of(0.95) }), None);
    }
}
