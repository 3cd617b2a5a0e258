//! Tests through real mounts, on real S3 servers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "these are tests")]

mod access;
mod adoption;
mod away;
mod bad_input;
mod cache;
mod chart;
mod churn;
mod commands;
mod csi;
mod custody;
mod demo;
mod disk;
mod disks;
mod drive;
mod expired;
mod feed;
mod feed_from;
mod hostile;
mod kernel;
mod killed;
mod kills;
mod metadata;
mod model;
mod neighbours;
mod orderly;
mod orders;
mod ports;
mod promises;
mod reading;
mod region;
mod rights;
mod sanity;
mod servers;
mod silence;
mod spare;
mod storms;
mod topology;
mod vast;
mod wire;
mod writing;

/// Makes one test for each kind of server.
macro_rules! on_each_server {
    ($($(#[$meta:meta])* fn $name:ident($bucket:ident: Bucket) $body:block)+) => {
        $(
            $(#[$meta])*
            mod $name {
                #[allow(unused_imports, reason = "not every test uses all")]
                use super::*;

                fn check($bucket: weir_tests::bucket::Bucket) $body

                #[test]
                fn minio() {
                    check(weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Minio));
                }

                #[test]
                fn versitygw() {
                    check(weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Versitygw));
                }

                #[test]
                #[cfg(feature = "named-server")]
                fn named() {
                    check(weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Named));
                }

                #[test]
                fn embedded() {
                    check(weir_tests::bucket::Bucket::new(weir_tests::bucket::Server::Embedded));
                }
            }
        )+
    };
}
use on_each_server;
