//! Metrics whose series are all there from the start.
//!
//! Prometheus sees that a counter has grown only if it has seen it before: one that comes into being with the first failure tells of
//! no failure. So every value of a label is written down, and a label whose values somebody else chooses cannot be made.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;

/// Names and values of labels.
pub type Pairs = &'static [(&'static str, &'static str)];

/// What a counter is about.
pub trait Labels: Copy + PartialEq + fmt::Debug + Send + Sync + 'static {
    /// All that it can be about, and the labels of each.
    const ALL: &'static [(Self, Pairs)];
}

/// A counter for each of the [`Labels`]. Clones count together.
#[derive(Debug)]
pub struct Counts<L: Labels>(Arc<[(L, Counter)]>);

impl<L: Labels> Default for Counts<L> {
    fn default() -> Self {
        Self(L::ALL.iter().map(|(about, _)| (*about, Counter::default())).collect())
    }
}

impl<L: Labels> Clone for Counts<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Labels> Counts<L> {
    /// The counter itself, for who counts often.
    pub fn counter(&self, about: L) -> Counter {
        let found = self.0.iter().find(|(known, _)| *known == about);
        found.map(|(_, counter)| counter.clone()).unwrap_or_default()
    }

    /// Counts one.
    pub fn inc(&self, about: L) {
        self.counter(about).inc();
    }

    /// How many there were.
    pub fn get(&self, about: L) -> u64 {
        self.counter(about).get()
    }

    /// Writes all of them, with `more` labels before their own.
    ///
    /// # Errors
    /// Those of the writer.
    pub fn encode_with(
        &self,
        encoder: &mut MetricEncoder<'_>,
        more: Option<(&'static str, &str)>,
    ) -> fmt::Result {
        for ((_, counter), (_, own)) in self.0.iter().zip(L::ALL) {
            let labels: Vec<(&str, &str)> = more.into_iter().chain(own.iter().copied()).collect();
            counter.encode(encoder.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Time for each of the [`Labels`], which adds up. Clones count together.
#[derive(Debug)]
pub struct Seconds<L: Labels>(Arc<[(L, Counter<f64, AtomicU64>)]>);

impl<L: Labels> Default for Seconds<L> {
    fn default() -> Self {
        Self(L::ALL.iter().map(|(about, _)| (*about, Counter::default())).collect())
    }
}

impl<L: Labels> Clone for Seconds<L> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<L: Labels> Seconds<L> {
    /// Adds what something took.
    pub fn add(&self, about: L, took: Duration) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == about) {
            counter.inc_by(took.as_secs_f64());
        }
    }
}

impl<L: Labels> EncodeMetric for Seconds<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for ((_, counter), (_, labels)) in self.0.iter().zip(L::ALL) {
            counter.encode(encoder.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl<L: Labels> EncodeMetric for Counts<L> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.encode_with(&mut encoder, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

/// Gauges that are looked up when somebody asks for them.
pub struct Looked(Box<Look>);

type Look = dyn Fn() -> Vec<(Pairs, f64)> + Send + Sync;

impl Looked {
    /// Gauges with labels. *Caller:* `look` does not block, and always gives the same labels.
    pub fn all(look: impl Fn() -> Vec<(Pairs, f64)> + Send + Sync + 'static) -> Self {
        Self(Box::new(look))
    }

    /// One gauge, without. *Caller:* `look` does not block.
    pub fn one(look: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self(Box::new(move || vec![(&[], look())]))
    }
}

impl fmt::Debug for Looked {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Looked")
    }
}

impl EncodeMetric for Looked {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, value) in (self.0)() {
            match labels {
                [] => encoder.encode_gauge(&value)?,
                labels => encoder.encode_family(&labels)?.encode_gauge(&value)?,
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;

    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Ending {
        Good,
        Bad,
    }

    impl Labels for Ending {
        const ALL: &'static [(Self, Pairs)] =
            &[(Self::Good, &[("result", "ok")]), (Self::Bad, &[("result", "error")])];
    }

    #[test]
    fn all_series_are_there_before_anything_has_happened() {
        let (counts, mut registry) = (Counts::<Ending>::default(), Registry::default());
        registry.register("ends", "Ends", counts.clone());
        let seconds = Seconds::<Ending>::default();
        registry.register("took_seconds", "Took", seconds.clone());
        registry.register("one", "One", Looked::one(|| 0.5));
        registry.register("some", "Some", Looked::all(|| vec![(&[("kind", "a")], 3.0)]));
        counts.inc(Ending::Bad);
        seconds.add(Ending::Good, Duration::from_millis(1500));
        seconds.add(Ending::Good, Duration::from_millis(250));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("memory");
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(
            series,
            [
                "ends_total{result=\"ok\"} 0",
                "ends_total{result=\"error\"} 1",
                "took_seconds_total{result=\"ok\"} 1.75",
                "took_seconds_total{result=\"error\"} 0.0",
                "one 0.5",
                "some{kind=\"a\"} 3.0"
            ]
        );
        assert_eq!((counts.get(Ending::Good), counts.get(Ending::Bad)), (0, 1));
    }
}
