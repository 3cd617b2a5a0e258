//! What is counted, under the names that dashboards use.

use std::time::{Duration, Instant};

use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Counters and gauges of one engine.
pub struct Metrics {
    registry: Registry,
    /// Opens served from the cache.
    pub cache_hits: IntCounter,
    /// Opens that had to wait for the origin.
    pub cache_misses: IntCounter,
    /// Versions evicted.
    pub cache_evictions: IntCounter,
    /// Bytes held by the cache.
    pub cache_bytes: IntGauge,
    /// Whether a disk of the cache fails, by directory.
    pub cache_disk_failing: IntGaugeVec,
    /// Bytes of blocks whose checksum did not match.
    pub cache_damaged_bytes: IntCounter,
    /// Bytes fetched that were not kept: no room, or a failing disk.
    pub cache_bypassed_bytes: IntCounter,
    /// Bytes that the daemon gave to readers out of memory.
    pub served_memory_bytes: IntCounter,
    /// The same, off the cache's disk.
    pub served_disk_bytes: IntCounter,
    /// Bytes that opens found in the cache.
    pub saved_bytes: IntCounter,
    /// Bytes fetched for readers, wherever they came from.
    pub fetched_bytes: IntCounter,
    /// Bytes of objects that the origin has given: those of questions and of second GETs, too.
    pub origin_fetched_bytes: IntCounter,
    /// Bytes stored at the origin.
    pub stored_bytes: IntCounter,
    /// Of these, bytes that the endpoint copied from the version before.
    pub copied_bytes: IntCounter,
    /// Second GETs for late ranges.
    pub hedges: IntCounter,
    /// Bytes fetched from regions.
    pub region_fetched_bytes: IntCounter,
    /// GETs to regions, by what came of them.
    pub region_requests: IntCounterVec,
    /// Objects of which regions gave other bytes than their tags say.
    pub region_wrong_objects: IntCounter,
    /// Large objects that regions were asked whether they have, by what came of it.
    pub region_prefetches: IntCounterVec,
    /// Keys that regions were told to forget, by what came of it.
    pub region_evictions: IntCounterVec,
    /// Keys that they are to be told to forget.
    pub region_evictions_pending: IntGauge,
    /// Regions that are left alone since they fail.
    pub regions_shut: IntGauge,
    /// Whether a relay of changes is heard.
    pub feed_lives: IntGauge,
    /// Messages of the feed.
    pub feed_messages: IntCounter,
    /// Objects of which the feed said something.
    pub feed_marks: IntCounter,
    /// Messages of a store that were to be published, by what came of them.
    pub feed_relayed: IntCounterVec,
    /// When something may have been missed, by why.
    pub feed_lapses: IntCounterVec,
    /// How long a change may go unseen, by what is mounted.
    pub staleness_bound: GaugeVec,
    /// Keys that no file system can show, by reason.
    pub hidden_keys: IntCounterVec,
    /// Opens by the mode in which they are served.
    pub opens: IntCounterVec,
    /// Uploads under way.
    pub uploads: IntGauge,
    /// Files whose last bytes could not be stored after their last close.
    pub lost_closes: IntCounter,
    /// Events that the API server was spared.
    pub events_dropped: IntCounter,
    fuse_seconds: HistogramVec,
    s3_seconds: HistogramVec,
    csi_seconds: HistogramVec,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// What prometheus reports for names that clash; these do not.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| {
            let metric = IntCounter::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauge = |name: &str, help: &str| {
            let metric = IntGauge::new(name, help)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let counters = |name: &str, help: &str, label: &str| {
            let metric = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let metric = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let histogram = |name: &str, help: &str, labels: &[&str]| {
            let buckets = prometheus::exponential_buckets(0.000_02, 3.0, 14)?;
            let metric =
                HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
            registry.register(Box::new(metric.clone()))?;
            Ok::<_, prometheus::Error>(metric)
        };
        let served = counters(
            "weir_served_bytes_total",
            "Bytes that the daemon gave to readers, by where they were; the kernel reads others itself.",
            "source",
        )?;
        Ok(Self {
            served_memory_bytes: served.with_label_values(&["memory"]),
            served_disk_bytes: served.with_label_values(&["disk"]),
            cache_hits: counter("weir_cache_hits_total", "Opens served from the node cache.")?,
            cache_misses: counter("weir_cache_misses_total", "Opens that waited for the origin.")?,
            cache_evictions: counter("weir_cache_evictions_total", "Versions evicted.")?,
            cache_bytes: gauge("weir_cache_bytes", "Bytes held by the node cache.")?,
            cache_disk_failing: gauges(
                "weir_cache_disk_failing",
                "1 while the disk with this directory fails.",
                "dir",
            )?,
            cache_damaged_bytes: counter(
                "weir_cache_damaged_bytes_total",
                "Bytes dropped because their checksum did not match.",
            )?,
            cache_bypassed_bytes: counter(
                "weir_cache_bypassed_bytes_total",
                "Bytes fetched and not kept, for want of room or a failing disk.",
            )?,
            saved_bytes: counter(
                "weir_cache_saved_bytes_total",
                "Bytes that opens found in the node cache instead of the origin.",
            )?,
            fetched_bytes: counter(
                "weir_s3_fetched_bytes_total",
                "Bytes fetched for readers, from the origin or a region.",
            )?,
            origin_fetched_bytes: counter(
                "weir_origin_fetched_bytes_total",
                "Bytes of objects that the origin gave, for questions and second GETs, too.",
            )?,
            stored_bytes: counter("weir_s3_stored_bytes_total", "Bytes stored.")?,
            copied_bytes: counter(
                "weir_s3_copied_bytes_total",
                "Stored bytes that the endpoint copied from the version before.",
            )?,
            hedges: counter("weir_s3_hedged_requests_total", "Second GETs for late ranges.")?,
            region_fetched_bytes: counter(
                "weir_region_fetched_bytes_total",
                "Bytes fetched from a region in place of the origin.",
            )?,
            region_requests: counters(
                "weir_region_requests_total",
                "GETs to a region by outcome; all but those given were left to the origin.",
                "outcome",
            )?,
            region_wrong_objects: counter(
                "weir_region_wrong_objects_total",
                "Objects of which a region gave bytes that are not what the object's tag says.",
            )?,
            region_prefetches: counters(
                "weir_region_prefetches_total",
                "Large objects that a region was asked for, by outcome: it had them, or fetched them.",
                "outcome",
            )?,
            region_evictions: counters(
                "weir_region_evictions_total",
                "Keys that a region was told to forget, by outcome: forgotten, failed (to be told \
                 again) or dropped, since too many waited.",
                "outcome",
            )?,
            region_evictions_pending: gauge(
                "weir_region_evictions_pending",
                "Keys that a region is to be told to forget.",
            )?,
            regions_shut: gauge("weir_regions_shut", "Regions left alone while they fail.")?,
            feed_lives: gauge("weir_feed_lives", "1 while a relay of changes is heard.")?,
            feed_messages: counter("weir_feed_messages_total", "Messages of the feed.")?,
            feed_marks: counter(
                "weir_feed_marks_total",
                "Objects of which the feed said that they were changed.",
            )?,
            feed_relayed: counters(
                "weir_feed_relayed_messages_total",
                "Messages of a store by outcome; those that are not published come again.",
                "outcome",
            )?,
            feed_lapses: counters(
                "weir_feed_lapses_total",
                "Times at which something of the feed may have been missed, by why.",
                "reason",
            )?,
            staleness_bound: {
                let help = "Seconds that a change may go unseen at the most, by what is mounted.";
                let opts = Opts::new("weir_staleness_bound_seconds", help);
                let metric = GaugeVec::new(opts, &["source"])?;
                registry.register(Box::new(metric.clone()))?;
                metric
            },
            hidden_keys: counters(
                "weir_hidden_keys_total",
                "Keys met in listings that no file system can show.",
                "reason",
            )?,
            opens: counters("weir_fuse_opens_total", "Opens by how they are served.", "mode")?,
            uploads: gauge("weir_uploads_in_flight", "Files being uploaded.")?,
            lost_closes: counter(
                "weir_failed_releases_total",
                "Files whose last bytes could not be stored after their last close.",
            )?,
            events_dropped: counter(
                "weir_kubernetes_events_dropped_total",
                "Events that were not written, since there were too many.",
            )?,
            fuse_seconds: histogram(
                "weir_fuse_request_duration_seconds",
                "FUSE requests by operation.",
                &["op"],
            )?,
            s3_seconds: histogram(
                "weir_s3_request_duration_seconds",
                "S3 requests by operation and outcome.",
                &["op", "status"],
            )?,
            csi_seconds: histogram(
                "csi_operations_seconds",
                "CSI calls by method and gRPC code.",
                &["method_name", "grpc_status_code"],
            )?,
            registry,
        })
    }

    /// Notes a FUSE request begun at `start`.
    pub fn fuse(&self, op: &str, start: Instant) {
        self.fuse_seconds.with_label_values(&[op]).observe(start.elapsed().as_secs_f64());
    }

    /// Notes an S3 request.
    pub fn s3(&self, op: &str, status: &str, elapsed: Duration) {
        self.s3_seconds.with_label_values(&[op, status]).observe(elapsed.as_secs_f64());
    }

    /// Notes a CSI call.
    pub fn csi(&self, method: &str, code: &str, elapsed: Duration) {
        self.csi_seconds.with_label_values(&[method, code]).observe(elapsed.as_secs_f64());
    }

    /// All of it in Prometheus text form.
    pub fn text(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }
}
