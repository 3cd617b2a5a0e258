//! What a tenant whose origin is hostile costs another tenant of the same node.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use weir_tests::bucket::{Bucket, Server};
use weir_tests::csi_node::{CsiNode, TestVolume};
use weir_tests::hostile::{self, Answer, Line, Question};
use weir_tests::random_bytes;
use weir_tests::storm::{Fault, Storm};

use crate::report::{LIMIT, Report, Work};

const MEDIAN: Work =
    Work::new("64 KiB cold read beside a tenant whose origin is silent, median", "ms")
        .beside("(alone)");
const P99: Work =
    Work { name: "64 KiB cold read beside a tenant whose origin is silent, P99", ..MEDIAN };
const ENDLESS_MEDIAN: Work =
    Work { name: "the same beside one whose origin sends without end, median", ..MEDIAN };
const ENDLESS_P99: Work =
    Work { name: "the same beside one whose origin sends without end, P99", ..MEDIAN };
const LINE_MEDIAN: Work =
    Work { name: "the same, without end over a line of 1 Gbit/s, median", ..MEDIAN };
const LINE_P99: Work =
    Work { name: "the same, without end over a line of 1 Gbit/s, P99", ..MEDIAN };
/// What reads are called for.
pub(crate) const NAME: &str = "64 KiB cold read beside a tenant";

/// Files of the hostile tenant, each read by a thread.
const READERS: usize = 32;
/// What each of them waits between two reads, whatever came of the first.
const PAUSE: Duration = Duration::from_millis(2);
/// Bytes between two cold reads, so that none is brought by the one before.
const STRIDE: u64 = 512 << 10;
const SIZE: u64 = 512 << 20;

/// Runs all of it, so many rounds.
pub(crate) fn run(rounds: usize, report: &mut Report) {
    for _ in 0..rounds {
        round(report);
    }
}

fn round(report: &mut Report) {
    let bucket = Bucket::new(Server::Minio);
    let model = random_bytes(1, usize::try_from(SIZE).unwrap_or_default());
    for name in ["alone", "silent", "endless", "line"] {
        bucket.put(name, model.clone());
    }
    for n in 0..READERS {
        bucket.put(&format!("bad-{n:02}"), vec![0; 8 << 20]);
    }
    let node = CsiNode::new(&bucket);
    let target = node.publish(&TestVolume::new(&bucket, "honest")).unwrap();
    // Somebody else is there in any case: who is alone has all of the node.
    let storm = Storm::new(&bucket.url);
    let silent = TestVolume::new(&bucket, "silent").attribute("endpointUrl", &storm.url());
    let sent = Arc::new(AtomicUsize::new(0));
    let sends = |name: &str, line| {
        let url = endless(line, sent.clone());
        let volume = TestVolume::new(&bucket, name).attribute("endpointUrl", &url);
        node.publish(&volume).unwrap()
    };
    let silent = node.publish(&silent).unwrap();
    // What the server and the kernel do for it takes of the same processors as Weir; a line bounds
    // that, as one does where there is a distance.
    let gigabit = sends("line", Some(Line::new(125e6)));
    let endless = sends("endless", None);

    let (median, p99) = cold_reads(&target.join("alone"));
    for work in [MEDIAN, ENDLESS_MEDIAN, LINE_MEDIAN] {
        report.add(work, LIMIT, median);
    }
    for work in [P99, ENDLESS_P99, LINE_P99] {
        report.add(work, LIMIT, p99);
    }
    storm.rage(|asked| {
        // Files are found; their bytes never come.
        let is_body = asked.method == "GET" && asked.path.contains("bad-");
        (is_body || asked.path.contains("bad/")).then_some(Fault::Stall)
    });
    let (median, p99) = beside(&silent, || storm.calm(), || cold_reads(&target.join("silent")));
    report.add(MEDIAN, "Weir", median);
    report.add(P99, "Weir", p99);
    let (median, p99) = beside(&gigabit, || (), || cold_reads(&target.join("line")));
    report.add(LINE_MEDIAN, "Weir", median);
    report.add(LINE_P99, "Weir", p99);
    let (median, p99) = beside(&endless, || (), || cold_reads(&target.join("endless")));
    report.add(ENDLESS_MEDIAN, "Weir", median);
    report.add(ENDLESS_P99, "Weir", p99);
    // Each reader of either had at least one answer without an end.
    assert!(sent.load(Ordering::Relaxed) >= 2 * READERS, "the origin is not hostile");
}

/// Measures while the files of a hostile tenant are read and its directories listed again and again.
fn beside<T>(volume: &Path, calm: impl FnOnce(), measure: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for n in 0..READERS {
            let (over, path) = (&over, volume.join(format!("bad-{n:02}")));
            scope.spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                let mut at = 0_u64;
                while !over.load(Ordering::Relaxed) {
                    // What comes of it is of no interest.
                    let _ = File::open(&path).and_then(|file| {
                        let size = file.metadata()?.len().max(1);
                        file.read_at(&mut buffer, at % size)
                    });
                    let _ = fs::metadata(volume.join(format!("bad/{n}/{at}")));
                    at += 65 << 20;
                    // What a pod's own processes take of the processors is not the node's to bound.
                    std::thread::sleep(PAUSE);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        let measured = measure();
        over.store(true, Ordering::Relaxed);
        calm();
        measured
    })
}

/// Median and P99 of reads at places that nobody read before, in milliseconds.
fn cold_reads(path: &Path) -> (f64, f64) {
    let file = File::open(path).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    let mut places: Vec<u64> = (0..SIZE / STRIDE).map(|n| n * STRIDE).collect();
    places.shuffle(&mut rand::rng());
    let mut buffer = vec![0; 64 << 10];
    let timed = |at: u64| {
        let start = Instant::now();
        file.read_exact_at(&mut buffer, at).unwrap();
        start.elapsed().as_secs_f64() * 1000.0
    };
    let mut times: Vec<f64> = places.into_iter().map(timed).collect();
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[times.len() * 99 / 100])
}

/// An endpoint whose bodies have no end, nor the listing of `bad/`; under each other name lies a TiB.
fn endless(line: Option<Arc<Line>>, sent: Arc<AtomicUsize>) -> String {
    const TIB: u64 = 1 << 40;
    let begin = "<ListBucketResult><IsTruncated>false</IsTruncated>";
    let object = |n| {
        let of = "<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;t&quot;</ETag>";
        format!("<Contents><Key>bad-{n:02}</Key>{of}<Size>{TIB}</Size></Contents>")
    };
    let objects: String = (0..READERS).map(object).collect();
    let bad = "<CommonPrefixes><Prefix>bad/</Prefix></CommonPrefixes>";
    let end = "</ListBucketResult>";
    let (page, none) = (format!("{begin}{objects}{bad}{end}"), format!("{begin}{end}"));
    let over = move |answer: Answer| {
        sent.fetch_add(1, Ordering::Relaxed);
        match &line {
            Some(line) => answer.over(line.clone()),
            None => answer,
        }
    };
    hostile::start(move |question: &Question| -> Answer {
        if question.target.contains("list-type=2") {
            return match question.target.contains("bad%2F") {
                true => over(hostile::endless(
                    200,
                    "Content-Type: application/xml\r\n",
                    b"<a>",
                    b"<b/>",
                )),
                false => {
                    let asked =
                        question.target.split(['?', '&']).any(|field| field == "max-keys=1");
                    let page = if asked { &none } else { &page };
                    hostile::answer("Content-Type: application/xml\r\n", page.as_bytes())
                }
            };
        }
        match question.range {
            Some((from, to)) => {
                let headers = format!("ETag: \"t\"\r\nContent-Range: bytes {from}-{to}/{TIB}\r\n");
                over(hostile::endless(206, &headers, b"", b"endless "))
            }
            None => hostile::answer(&format!("ETag: \"t\"\r\nContent-Length: {TIB}\r\n"), b""),
        }
    })
}
