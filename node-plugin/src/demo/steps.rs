//! The steps of the demo, each checked, each timed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use weir_fuse::blocking::beside;
use weir_fuse::origin::{Condition, Origin, PartKind, UploadBody, WriteIntent};

use super::figures::{Figure, Unit, table};
use super::input::{self, InputFile};
use super::model;
use super::progress::Progress;
use super::stage::Stage;
use crate::cli::DemoArgs;
use crate::config::size::Size;
use crate::exit::{Failure, Kind};

/// Threads that read small files.
const READERS: usize = 8;
/// Rounds of each timed read.
const ROUNDS: usize = 3;
const MODEL: &str = "model.safetensors";
/// Size of the file that is written through the mount.
const WRITTEN: u64 = 64 << 20;
/// Size of the parts of the model's upload.
const PART: u64 = 16 << 20;

fn failed(what: &str) -> impl Fn(std::io::Error) -> Failure {
    move |error| Failure::new(Kind::Other, format!("{what}: {error}"))
}

/// Runs blocking work in a thread of its own, so that Ctrl-C is heard meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    beside(|_| work())
        .await
        .unwrap_or_else(|e| Err(Failure::new(Kind::Other, format!("a step broke off: {e}"))))
}

struct Input {
    assets: Arc<Vec<InputFile>>,
    model: InputFile,
    layers: usize,
}

/// All steps, then the table.
pub(super) async fn all(stage: &mut Stage, args: &DemoArgs) -> Result<(), Failure> {
    println!("Weir demo on {}", stage.server_name());
    let input = make_input(stage, args).await?;
    upload(stage, &input).await?;
    let mut figures = Vec::new();

    let up = stage.mount().await?;
    let mountpoint = stage.mountpoint();
    let start = Instant::now();
    let listing = mountpoint.clone();
    blocking(move || fs::read_dir(listing).map(Iterator::count).map_err(failed("first listing")))
        .await?;
    let first_listing = (0, up + start.elapsed());
    figures.push(figure("mount until first listing", Unit::Time, first_listing, None));

    walks(stage, &mut figures).await?;
    reads(stage, &input, &mut figures).await?;
    load_model(stage, &input, &mut figures).await?;
    write_through(stage, &mut figures).await?;
    restart(stage, &input).await?;

    println!("{}", table(&figures));
    match stage.status() {
        Some(node) if node.mounts.iter().any(|m| m.session.passthrough) => {
            println!("Cached files are read by the kernel itself (FUSE passthrough).");
        }
        Some(_) => println!(
            "No passthrough here (it needs Linux 6.9 and CAP_SYS_ADMIN): cached files are read \
             through the daemon."
        ),
        None => {}
    }
    if args.keep {
        println!("\n{} stays mounted on {}.", stage.source(), mountpoint.display());
        println!("Look around from another terminal; Ctrl-C here ends it and removes everything.");
        std::future::pending::<()>().await;
    }
    Ok(())
}

fn figure(
    what: &'static str,
    unit: Unit,
    weir: (u64, Duration),
    raw: Option<(u64, Duration)>,
) -> Figure {
    Figure { what, unit, weir, raw }
}

async fn make_input(stage: &Stage, args: &DemoArgs) -> Result<Input, Failure> {
    let (root, size) = (stage.path("input"), args.model_size.0);
    blocking(move || {
        let assets = input::make_assets(&root).map_err(failed("making assets"))?;
        let _progress = Progress::wait("making a safetensors model");
        let path = root.join(MODEL);
        let layers = model::make(&path, size)?;
        let (size, crc) = input::sum_file(&path, |_| ()).map_err(failed("reading the model"))?;
        let model = InputFile { name: MODEL.to_owned(), size, crc };
        Ok(Input { assets: Arc::new(assets), model, layers })
    })
    .await
}

/// Puts the input into the bucket, past the mount.
async fn upload(stage: &Stage, input: &Input) -> Result<(), Failure> {
    let total = input.model.size + input.assets.iter().map(|f| f.size).sum::<u64>();
    let progress = Progress::bytes("uploading it to the bucket", total);
    let puts = input.assets.iter().map(|file| {
        let (origin, path) = (stage.origin.clone(), stage.path("input").join(&file.name));
        let (key, size) = (format!("{}{}", stage.prefix, file.name), file.size);
        async move {
            let body = fs::read(path).map_err(failed("reading the input"))?;
            let body = UploadBody::of(body);
            origin.put(&key, body, &intent()).await.map(|_| size).map_err(of_origin(&key))
        }
    });
    let puts: Vec<_> = puts.collect();
    let mut puts = stream::iter(puts).buffer_unordered(READERS);
    while let Some(done) = puts.next().await {
        progress.add(done?);
    }
    let key = format!("{}{MODEL}", stage.prefix);
    upload_parts(
        &*stage.origin,
        &key,
        &stage.path("input").join(MODEL),
        input.model.size,
        &progress,
    )
    .await
}

fn intent() -> WriteIntent {
    WriteIntent { condition: Condition::Always, writer: "weir-demo".to_owned() }
}

fn of_origin(key: &str) -> impl Fn(weir_fuse::origin::OriginError) -> Failure {
    move |error| Failure::new(Kind::Endpoint, format!("{key}: {error}"))
}

async fn upload_parts(
    origin: &dyn Origin,
    key: &str,
    path: &Path,
    size: u64,
    progress: &Progress,
) -> Result<(), Failure> {
    let id =
        origin.create_upload(key, "weir-demo", PartKind::Sent).await.map_err(of_origin(key))?;
    let file = fs::File::open(path).map_err(failed("reading the model"))?;
    let mut parts = Vec::new();
    for (number, offset) in (1..).zip((0..size).step_by(PART as usize)) {
        let mut bytes = vec![0; PART.min(size - offset) as usize];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, offset)
            .map_err(failed("reading the model"))?;
        let len = bytes.len() as u64;
        let body = UploadBody::of(bytes);
        parts.push(origin.upload_part(key, &id, number, body).await.map_err(of_origin(key))?);
        progress.add(len);
    }
    origin.complete_upload(key, &id, &parts, &intent()).await.map_err(of_origin(key))?;
    Ok(())
}

async fn walks(stage: &Stage, figures: &mut Vec<Figure>) -> Result<(), Failure> {
    let (mounted, raw) = (stage.mountpoint(), stage.path("input"));
    let walked = blocking(move || {
        let _progress = Progress::wait("walking the tree");
        let walk = |root: &Path| {
            let start = Instant::now();
            let files = input::walk(root).map_err(failed("walking"))?;
            Ok::<_, Failure>((files, start.elapsed()))
        };
        let first = walk(&mounted)?;
        let again = walk(&mounted)?;
        drop_page_cache();
        let raw_first = walk(&raw)?;
        let raw_again = walk(&raw)?;
        if first.0 != raw_first.0 {
            let text = format!("the mount shows {} files of {}", first.0, raw_first.0);
            return Err(Failure::new(Kind::Other, text));
        }
        Ok([(first, raw_first), (again, raw_again)])
    });
    let [first, again] = walked.await?;
    figures.push(figure("walk and stat, first (from S3)", Unit::Files, first.0, Some(first.1)));
    figures.push(figure("walk and stat, again", Unit::Files, again.0, Some(again.1)));
    Ok(())
}

/// Cold from S3, again from NVMe with the page cache dropped, again warm; the raw files likewise.
async fn reads(stage: &Stage, input: &Input, figures: &mut Vec<Figure>) -> Result<(), Failure> {
    let (mounted, raw) = (stage.mountpoint(), stage.path("input"));
    let small = |label, root: &PathBuf, drop| read_all(label, root.clone(), &input.assets, drop);
    let big = |label, root: &PathBuf, drop| read_one(label, root.clone(), &input.model, drop);
    let cold = big("reading the model, cold", &mounted, false).await?;
    let small_cold = small("reading the assets, cold", &mounted, false).await?;
    settle(stage).await;
    let mut dropped_note = None;
    if !blocking(|| Ok(drop_page_cache())).await? {
        dropped_note = Some("the page cache cannot be dropped here: the next figures are warm");
    }
    if let Some(note) = dropped_note {
        println!("{note}");
    }
    // What a disk gives varies from read to read: medians of rounds that take turns.
    let mut rounds = [const { Vec::new() }; 6];
    for _ in 0..ROUNDS {
        rounds[0].push(big("reading the model from NVMe", &mounted, true).await?);
        rounds[1].push(big("  warm", &mounted, false).await?);
        rounds[2].push(big("  the raw file from NVMe", &raw, true).await?);
        rounds[3].push(big("  warm", &raw, false).await?);
        rounds[4].push(small("reading the assets from NVMe", &mounted, true).await?);
        rounds[5].push(small("  the raw files", &raw, true).await?);
    }
    let [nvme, warm, raw_nvme, raw_warm, small_nvme, raw_small] = rounds.map(median);
    figures.push(figure("model, first read (from S3)", Unit::Bytes, cold, None));
    figures.push(figure("model, from NVMe", Unit::Bytes, nvme, Some(raw_nvme)));
    figures.push(figure("model, warm", Unit::Bytes, warm, Some(raw_warm)));
    figures.push(figure("2,400 assets, first read (from S3)", Unit::Files, small_cold, None));
    figures.push(figure("2,400 assets, from NVMe", Unit::Files, small_nvme, Some(raw_small)));
    Ok(())
}

fn median(mut rounds: Vec<(u64, Duration)>) -> (u64, Duration) {
    rounds.sort_by_key(|(_, time)| *time);
    rounds[rounds.len() / 2]
}

/// Waits until what was fetched is on the disk.
async fn settle(stage: &Stage) {
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let Some(node) = stage.status() else { return };
        if node.cache.used_bytes >= node.counters.fetched_bytes {
            return;
        }
    }
}

async fn read_one(
    label: &'static str,
    root: PathBuf,
    file: &InputFile,
    drop_first: bool,
) -> Result<(u64, Duration), Failure> {
    let file = file.clone();
    blocking(move || {
        if drop_first {
            drop_page_cache();
        }
        let progress = Progress::bytes(label, file.size);
        let start = Instant::now();
        let sum = input::sum_file(&root.join(&file.name), |read| progress.add(read));
        let elapsed = start.elapsed();
        check(&file, sum.map_err(failed(&file.name))?)?;
        Ok((file.size, elapsed))
    })
    .await
}

async fn read_all(
    label: &'static str,
    root: PathBuf,
    files: &Arc<Vec<InputFile>>,
    drop_first: bool,
) -> Result<(u64, Duration), Failure> {
    let files = files.clone();
    blocking(move || {
        if drop_first {
            drop_page_cache();
        }
        let progress = Progress::files(label, files.len() as u64);
        let start = Instant::now();
        let next = AtomicUsize::new(0);
        let reader = || {
            while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                let sum = input::sum_file(&root.join(&file.name), |_| ());
                check(file, sum.map_err(failed(&file.name))?)?;
                progress.add(1);
            }
            Ok::<(), Failure>(())
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(reader)).collect();
            readers.into_iter().try_for_each(|reader| {
                let broke = |_| Err(Failure::new(Kind::Other, "a reader broke off"));
                reader.join().unwrap_or_else(broke)
            })
        })?;
        Ok((files.len() as u64, start.elapsed()))
    })
    .await
}

fn check(file: &InputFile, (size, crc): (u64, u32)) -> Result<(), Failure> {
    if (size, crc) == (file.size, file.crc) {
        return Ok(());
    }
    Err(Failure::new(Kind::Other, format!("{} has wrong bytes", file.name)))
}

async fn load_model(
    stage: &Stage,
    input: &Input,
    figures: &mut Vec<Figure>,
) -> Result<(), Failure> {
    let layers = input.layers;
    let mut times = Vec::new();
    for root in [stage.mountpoint(), stage.path("input")] {
        let loaded = blocking(move || {
            drop_page_cache();
            let _progress = Progress::wait("loading the model through mmap");
            let start = Instant::now();
            let bytes = model::load(&root.join(MODEL), layers)?;
            Ok((bytes, start.elapsed()))
        });
        times.push(loaded.await?);
    }
    let what = "safetensors by mmap, every byte";
    figures.push(figure(what, Unit::Bytes, times[0], Some(times[1])));
    Ok(())
}

/// Writes a file through the mount and looks, the moment close has returned, at what S3 holds.
async fn write_through(stage: &Stage, figures: &mut Vec<Figure>) -> Result<(), Failure> {
    let (source, target) =
        (stage.path("input/written.bin"), stage.mountpoint().join("written.bin"));
    let (crc, elapsed) = blocking(move || {
        let crc = input::make_random(&source, WRITTEN).map_err(failed("making a file"))?;
        let _progress = Progress::wait("writing a file through to S3");
        let start = Instant::now();
        // std's copy may share blocks between file systems; this one writes.
        let mut from = fs::File::open(&source).map_err(failed("reading"))?;
        let mut to = fs::File::create(&target).map_err(failed("creating on the mount"))?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = std::io::Read::read(&mut from, &mut buffer).map_err(failed("reading"))?;
            if read == 0 {
                break;
            }
            std::io::Write::write_all(&mut to, &buffer[..read]).map_err(failed("writing"))?;
        }
        // What close could not store shows in what is found at S3.
        drop(to);
        Ok((crc, start.elapsed()))
    })
    .await?;
    let key = format!("{}written.bin", stage.prefix);
    let info = stage.origin.head(&key).await.map_err(of_origin(&key))?;
    let version = info.version().ok_or_else(|| Failure::new(Kind::Endpoint, "no ETag"))?;
    let body = stage.origin.get(&key, &version, 0..info.size).await.map_err(of_origin(&key))?;
    let mut pieces = body.pieces;
    let mut found = 0;
    while let Some(piece) = pieces.next().await {
        found = crc32c::crc32c_append(found, &piece.map_err(of_origin(&key))?);
    }
    let written = InputFile { name: "written.bin at S3".into(), size: WRITTEN, crc };
    check(&written, (info.size, found))?;
    println!(
        "When close returned, S3 held all {} of the file, with this ETag: {}",
        Size(WRITTEN),
        version.etag
    );
    figures.push(figure("write, until S3 holds it", Unit::Bytes, (WRITTEN, elapsed), None));
    Ok(())
}

async fn restart(stage: &mut Stage, input: &Input) -> Result<(), Failure> {
    {
        let _progress = Progress::wait("restarting the mount");
        stage.unmount().await;
        stage.mount().await?;
    }
    let root = stage.mountpoint();
    read_one("reading the model after the restart", root.clone(), &input.model, true).await?;
    read_all("reading the assets after the restart", root, &input.assets, false).await?;
    let node = stage.status();
    let fetched = node.map(|node| node.counters.fetched_bytes);
    match fetched {
        Some(0) => println!("After a restart all of it came from the cache: 0 bytes fetched."),
        Some(bytes) => {
            let text = format!("after the restart {} were fetched again", Size(bytes));
            return Err(Failure::new(Kind::Other, text));
        }
        None => println!("The restarted mount does not tell how much it fetched."),
    }
    Ok(())
}

/// Makes the next read come from the disk; says whether that worked.
fn drop_page_cache() -> bool {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1").is_ok()
}
