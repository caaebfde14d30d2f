//! How metrics are written: as OpenMetrics where that is asked for, else in Prometheus' own older form.
//!
//! Sources: OpenMetrics 1.0; "Text-based format" in the documentation of Prometheus.

use std::fmt::Write as _;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// What an answer says that it is.
const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All metrics, and their content type, for a client that sent `accept`.
///
/// # Errors
/// Those of the encoder.
pub fn write(registry: &Registry, accept: &str) -> Result<(&'static str, String), std::fmt::Error> {
    let mut open = String::new();
    text::encode(&mut open, registry)?;
    if wants_open(accept) { Ok((OPEN, open)) } else { Ok((PLAIN, plain(&open))) }
}

/// Whether OpenMetrics are among what is accepted. Who accepts both, as Prometheus does, gets them.
fn wants_open(accept: &str) -> bool {
    accept.split(',').any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_open =
            parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        let is_refused = |part: &str| {
            part.strip_prefix("q=").is_some_and(|quality| quality.parse::<f64>().is_ok_and(|it| it <= 0.0))
        };
        is_open && !parts.any(is_refused)
    })
}

/// The same in the older form: a counter is called as its series, there are no units, and nothing marks the end.
fn plain(open: &str) -> String {
    let mut plain = String::with_capacity(open.len());
    // What is said of a family comes before its type, by which it has its name.
    let mut help = None;
    for line in open.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), text) => help = text,
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    kind => ("", kind),
                };
                let help = help.take().unwrap_or_default();
                // Memory takes what is written.
                let _ = write!(plain, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
            }
            (Some("#"), ..) => {}
            _ => {
                plain.push_str(line);
                plain.push('\n');
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_are_for_who_asks() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert!(wants_open(prometheus));
        for other in ["", "*/*", "text/plain;version=0.0.4", "application/openmetrics-text; q=0, */*"] {
            assert!(!wants_open(other), "{other}");
        }
    }

    #[test]
    fn the_older_form_names_counters_as_their_series() {
        let open = "# HELP a A b.\n# TYPE a counter\na_total{x=\"# y\"} 1\n# HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n\
                    # HELP c_seconds C.\n# TYPE c_seconds histogram\n# UNIT c_seconds seconds\nc_seconds_sum 0.0\n# EOF\n";
        let expected = "# HELP a_total A b.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n# HELP b_info B.\n\
                        # TYPE b_info gauge\nb_info{v=\"1\"} 1\n# HELP c_seconds C.\n# TYPE c_seconds histogram\nc_seconds_sum 0.0\n";
        assert_eq!(plain(open), expected);
    }
}
