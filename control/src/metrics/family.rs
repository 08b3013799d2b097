//! Samples of one metric, as the encoder takes them.

use std::fmt::Display;

use fastpath::report::TurnTimes;
use prometheus::proto;

use super::table::{Kind, Metric};

/// A metric's samples.
#[derive(Debug)]
pub(super) struct Family {
    metric: &'static Metric,
    samples: Vec<proto::Metric>,
}

impl Family {
    /// Begins a metric without samples.
    pub(super) fn of(metric: &'static Metric) -> Self {
        Self { metric, samples: Vec::new() }
    }

    /// Makes a metric of one sample without labels.
    pub(super) fn single(metric: &'static Metric, value: impl Value) -> Self {
        let mut family = Self::of(metric);
        family.add(&[], value);
        family
    }

    /// Adds a sample; its labels are in the order of the metric's.
    pub(super) fn add(&mut self, labels: &[&dyn Display], value: impl Value) {
        let mut sample = self.labelled(labels);
        match self.metric.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value.number());
                sample.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value.number());
                sample.set_gauge(gauge);
            }
        }
        self.samples.push(sample);
    }

    /// Adds a sample of a histogram.
    pub(super) fn add_times(&mut self, labels: &[&dyn Display], times: &TurnTimes) {
        let mut histogram = proto::Histogram::default();
        let (mut counted, mut buckets) = (0, Vec::new());
        for (upper, count) in times.buckets() {
            counted += count;
            // The encoder adds the infinite bucket itself.
            if upper.is_finite() {
                let mut bucket = proto::Bucket::default();
                bucket.set_upper_bound(upper);
                bucket.set_cumulative_count(counted);
                buckets.push(bucket);
            }
        }
        histogram.set_bucket(buckets);
        histogram.set_sample_count(counted);
        histogram.set_sample_sum(times.sum().as_secs_f64());
        let mut sample = self.labelled(labels);
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    /// Returns the metric as the encoder takes it; none without samples.
    pub(super) fn into_proto(self) -> Option<proto::MetricFamily> {
        let Self { metric, samples } = self;
        if samples.is_empty() {
            return None;
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(metric.name.to_owned());
        family.set_help(metric.help.to_owned());
        family.set_field_type(match metric.kind {
            Kind::Counter => proto::MetricType::COUNTER,
            Kind::Gauge => proto::MetricType::GAUGE,
            Kind::Histogram => proto::MetricType::HISTOGRAM,
        });
        family.set_metric(samples);
        Some(family)
    }

    fn labelled(&self, values: &[&dyn Display]) -> proto::Metric {
        debug_assert_eq!(self.metric.labels.len(), values.len(), "{}", self.metric.name);
        let pair = |(name, value): (&&str, &&dyn Display)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_string());
            pair
        };
        proto::Metric::from_label(self.metric.labels.iter().zip(values).map(pair).collect())
    }
}

/// A number as the exposition has it.
pub(super) trait Value {
    /// Returns it; counts above 2^53 are rounded, as Prometheus does.
    fn number(self) -> f64;
}

impl Value for f64 {
    fn number(self) -> f64 {
        self
    }
}

impl Value for u32 {
    fn number(self) -> f64 {
        f64::from(self)
    }
}

impl Value for bool {
    fn number(self) -> f64 {
        f64::from(u8::from(self))
    }
}

impl Value for u64 {
    #[expect(clippy::cast_precision_loss, reason = "Prometheus keeps every number like this")]
    fn number(self) -> f64 {
        self as f64
    }
}

impl Value for usize {
    fn number(self) -> f64 {
        (self as u64).number()
    }
}
