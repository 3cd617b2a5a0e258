//! `weir lost`: what could not be stored, and what becomes of it.

pub mod folder;
mod restore;

#[cfg(test)]
mod fuzz;

use std::path::PathBuf;

use k8s_openapi::jiff::Timestamp;
use weir_fuse::origin::OriginError;

use crate::assembly;
use crate::cli::lost::{LostArgs, LostCommand, LostPlaceArgs, LostRestoreArgs, LostRmArgs};
use crate::config::mount::Environment;
use crate::config::size::Size;
use crate::config::{cache, s3};
use crate::exit::{Failure, Kind};
use crate::logging;
use folder::LostFile;
use restore::RestoreError;

/// Runs the command.
///
/// # Errors
/// What is wrong, with the file it is about.
pub fn run(args: &LostArgs) -> Result<(), Failure> {
    match &args.command {
        LostCommand::List(args) => {
            let files = all(&args.place)?;
            if args.json {
                let text = serde_json::to_string_pretty(&files)
                    .map_err(|e| Failure::new(Kind::Other, e.to_string()))?;
                println!("{text}");
            } else {
                print!("{}", table(&files));
            }
            Ok(())
        }
        LostCommand::Restore(args) => restore_all(args),
        LostCommand::Rm(args) => remove(args),
    }
}

fn all(place: &LostPlaceArgs) -> Result<Vec<LostFile>, Failure> {
    let dirs = cache::dirs(&place.cache_dir, &Environment::of_process())?;
    let mut files = Vec::new();
    for dir in dirs {
        let list = folder::list(&dir);
        files.extend(list.map_err(|error| {
            Failure::new(Kind::Cache, format!("{}: {error}", dir.join("lost").display()))
        })?);
    }
    Ok(files)
}

/// The files with these ids.
fn chosen(place: &LostPlaceArgs, ids: &[String]) -> Result<Vec<LostFile>, Failure> {
    let files = all(place)?;
    let one = |id: &String| {
        let mut named = files.iter().filter(|file| file.id == *id);
        match (named.next(), named.next()) {
            (Some(file), None) => Ok(file.clone()),
            (None, _) => {
                let text = format!("{id}: no such file is lost; `weir lost list` shows which are");
                Err(Failure::new(Kind::Usage, text))
            }
            (Some(one), Some(other)) => {
                let dirs: [&PathBuf; 2] = [&one.cache_dir, &other.cache_dir];
                let [one, other] = dirs.map(|dir| dir.display());
                let text = format!("{id} is in {one} and in {other}; give one --cache-dir");
                Err(Failure::new(Kind::Usage, text))
            }
        }
    };
    ids.iter().map(one).collect()
}

fn remove(args: &LostRmArgs) -> Result<(), Failure> {
    let files = if args.all { all(&args.place)? } else { chosen(&args.place, &args.ids)? };
    for file in &files {
        file.remove().map_err(|error| {
            Failure::new(Kind::Cache, format!("{}: {error}", file.path().display()))
        })?;
    }
    Ok(())
}

fn restore_all(args: &LostRestoreArgs) -> Result<(), Failure> {
    logging::start_plain(args.log_level, args.log_format);
    if args.to.is_some() && args.ids.len() > 1 {
        let text = "--to names one object, but several files are to be restored";
        return Err(Failure::new(Kind::Usage, text));
    }
    let files = chosen(&args.place, &args.ids)?;
    let runtime = assembly::runtime(0)?;
    let mut failed = None;
    for file in &files {
        match runtime.block_on(restore_one(file, args)) {
            Ok(place) => println!("{} is stored as {place}", file.id),
            // The others may have more luck.
            Err(failure) => {
                if let Some(earlier) = failed.replace(failure) {
                    earlier.report();
                }
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Stores one file and removes it here; says where it is.
async fn restore_one(file: &LostFile, args: &LostRestoreArgs) -> Result<String, Failure> {
    let (bucket, key) = match &args.to {
        Some(url) => destination(url)?,
        None if file.bucket.is_empty() || file.key.is_empty() => {
            let text = format!("{}: its key is not known; give --to s3://BUCKET/KEY", file.id);
            return Err(Failure::new(Kind::Usage, text));
        }
        None => (file.bucket.clone(), file.key.clone()),
    };
    let mut given = args.s3.clone();
    if args.to.is_none() && given.endpoint_url.is_none() {
        match file.endpoint.strip_prefix("aws:") {
            Some(region) => given.region = given.region.or_else(|| Some(region.to_owned())),
            None => given.endpoint_url = Some(file.endpoint.clone()),
        }
    }
    let settings = s3::s3_settings(bucket.clone(), &given)?;
    let explain = |error: &OriginError| {
        let failure = Failure::of_origin(error, &bucket, given.endpoint_url.as_deref());
        Failure::new(failure.kind, format!("{}: {}", file.id, failure.text))
    };
    let place = format!("s3://{bucket}/{key}");
    let origin = assembly::origin(settings, &assembly::metrics()?, None).await;
    let (origin, _) = origin.map_err(|e| explain(&e))?;
    let stored = restore::restore(&*origin, &file.path(), &key).await;
    stored.map_err(|error| match error {
        RestoreError::Origin(error) => explain(&error),
        RestoreError::Taken => {
            let text = format!("{}: {place}: {error}; give another place by --to", file.id);
            Failure::new(Kind::Bucket, text)
        }
        RestoreError::File(error) => {
            Failure::new(Kind::Cache, format!("{}: {error}", file.path().display()))
        }
    })?;
    file.remove().map_err(|error| {
        let path = file.path();
        let text = format!("stored as {place}, but {} stays: {error}", path.display());
        Failure::new(Kind::Cache, text)
    })?;
    Ok(place)
}

fn destination(url: &str) -> Result<(String, String), Failure> {
    let wrong = |what: &str| Failure::new(Kind::Usage, format!("--to {url}: {what}"));
    let rest = url.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
    match rest {
        Some((_, key)) if key.is_empty() || key.ends_with('/') => {
            Err(wrong("the key is missing: s3://BUCKET/KEY"))
        }
        Some((bucket, key)) if s3::is_bucket_name(bucket) => {
            Ok((bucket.to_owned(), key.to_owned()))
        }
        Some((bucket, _)) => Err(wrong(&format!("{bucket:?} is no bucket name"))),
        None => Err(wrong("the place is s3://BUCKET/KEY")),
    }
}

/// The files for people.
fn table(files: &[LostFile]) -> String {
    if files.is_empty() {
        return "nothing is lost\n".into();
    }
    let row = |file: &LostFile| {
        let time = i64::try_from(file.time_ms)
            .ok()
            .and_then(|ms| Timestamp::from_millisecond(ms - ms.rem_euclid(1000)).ok());
        let key = match (file.bucket.as_str(), file.key.as_str()) {
            (_, "") => "(unknown)".to_owned(),
            (bucket, key) => format!("s3://{}/{}", bucket.escape_debug(), key.escape_debug()),
        };
        [
            file.id.escape_debug().to_string(),
            Size(file.size).to_string(),
            time.map(|time| time.to_string()).unwrap_or_default(),
            key,
            file.cause.escape_debug().to_string(),
        ]
    };
    let head = ["ID", "SIZE", "TIME", "KEY", "CAUSE"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(head).chain(files.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<_> = (0..4).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(&widths) {
            out.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(row[4].trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(id: &str, key: &str) -> LostFile {
        LostFile {
            id: id.into(),
            cache_dir: "/cache".into(),
            endpoint: "http://s3".into(),
            bucket: "bucket".into(),
            key: key.into(),
            cause: "no space left".into(),
            size: 5 << 20,
            time_ms: 1_700_000_000_123,
        }
    }

    #[test]
    fn the_table_names_size_time_key_and_cause() {
        let text = table(&[file("00ab", "dir/k\n"), file("1", "")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[1],
            "00ab  5.0 MiB  2023-11-14T22:13:20Z  s3://bucket/dir/k\\n  no space left"
        );
        assert!(lines.len() == 3 && lines[2].contains("(unknown)"), "{text}");
        assert_eq!(table(&[]), "nothing is lost\n");
    }

    #[test]
    fn a_destination_is_a_bucket_and_a_key() {
        assert_eq!(destination("s3://bucket/a/b").unwrap(), ("bucket".into(), "a/b".into()));
        for (wrong, word) in [
            ("bucket/key", "s3://BUCKET/KEY"),
            ("s3://bucket", "s3://BUCKET/KEY"),
            ("s3://bucket/", "key is missing"),
            ("s3://bucket/dir/", "key is missing"),
            ("s3://b/k", "bucket name"),
        ] {
            let failure = destination(wrong).unwrap_err();
            assert!(failure.kind == Kind::Usage && failure.text.contains(word), "{}", failure.text);
        }
    }
}
