//! The crates' picture in ARCHITECTURE.md, held to: who may use whom, and what may be in the build at all.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use cargo_metadata::{DependencyKind, MetadataCommand};
use expect_test::expect;

#[test]
fn crates_use_what_the_picture_says_and_nothing_points_up() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.toml");
    let metadata = MetadataCommand::new().manifest_path(manifest).no_deps().exec().unwrap();
    let ours: BTreeSet<&str> = metadata.packages.iter().map(|package| package.name.as_str()).collect();
    let mut graph: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in &metadata.packages {
        // Tests may look at anything; what is built for tests only is not part of the picture.
        let used = package.dependencies.iter().filter(|dependency| dependency.kind != DependencyKind::Development);
        let used = used.map(|dependency| dependency.name.as_str()).filter(|name| ours.contains(name));
        graph.insert(&package.name, used.collect());
    }
    let picture: String = graph
        .iter()
        .map(|(name, used)| {
            let used: Vec<&str> = used.iter().map(|name| name.trim_start_matches("updraft-")).collect();
            format!("{} -> {}\n", name.trim_start_matches("updraft-"), used.join(", "))
        })
        .collect();
    // An arrow more, or less, changes ARCHITECTURE.md too.
    expect![[r#"
        integration-tests -> 
        auth -> proto
        catalog -> hot
        engine -> auth, catalog, hot
        flight -> auth, engine, proto
        hot -> 
        proto -> 
        server -> auth, catalog, engine, flight, hot
    "#]]
    .assert_eq(&picture);
}

/// Names and versions in the lock file.
fn locked() -> BTreeMap<String, Vec<String>> {
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock")).unwrap();
    let mut packages: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let value =
        |line: &str, key: &str| line.strip_prefix(key)?.strip_prefix(" = \"")?.strip_suffix('"').map(str::to_owned);
    let mut name = String::new();
    for line in lock.lines() {
        if let Some(found) = value(line, "name") {
            name = found;
        } else if let Some(version) = value(line, "version") {
            packages.entry(name.clone()).or_default().push(version);
        }
    }
    packages
}

#[test]
fn what_moves_together_is_there_once() {
    let locked = locked();
    // Two versions of one of these mean two kinds of batch, plan, status or store that do not fit each other.
    for name in ["datafusion", "arrow", "arrow-flight", "parquet", "object_store", "tonic", "prost", "rustls"] {
        assert_eq!(locked[name].len(), 1, "{name} {:?}", locked[name]);
    }
}

/// The release that semver has compatible, such as 0.22 or 3.
fn release(version: &str) -> String {
    let numbers: Vec<&str> = version.split('.').collect();
    if numbers[0] == "0" { numbers[..2].join(".") } else { numbers[0].to_owned() }
}

fn project(name: &str) -> &str {
    if name.starts_with("datafusion-") { "datafusion" } else { name }
}

/// Crates that the server contains in more than one release, with those who want each.
fn twice() -> String {
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--duplicates", "--depth", "1", "--prefix", "depth", "--no-dedupe", "--locked"])
        .args([
            "--edges",
            "normal,no-proc-macro",
            "--package",
            "updraft-server",
            "--target",
            "x86_64-unknown-linux-gnu",
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    // A paragraph for each release: itself, then a line for each crate that wants it.
    let paragraphs = tree.split("\n\n").map(|paragraph| {
        let mut lines = paragraph.lines().map(|line| line[1..].split(' '));
        let mut own = lines.next().unwrap();
        let (name, version) = (own.next().unwrap(), own.next().unwrap());
        let by: BTreeSet<&str> = lines.map(|mut line| project(line.next().unwrap())).collect();
        let by: Vec<&str> = by.into_iter().collect();
        format!("{name} {} <- {}\n", release(&version[1..]), by.join(", "))
    });
    paragraphs.collect()
}

#[test]
fn what_is_there_twice_is_what_others_want_so() {
    // A line less is welcome. One more is a crate compiled and shipped once more: find a release that fits the rest.
    expect![[r#"
        base64 0.22 <- object_store, pbjson, reqwest, tonic, updraft-auth, updraft-flight
        base64 0.23 <- arrow-cast, arrow-flight, datafusion, hyper-util, parquet
        blake2 0.10 <- datafusion
        blake2 0.11 <- argon2
        block-buffer 0.10 <- digest
        block-buffer 0.12 <- digest
        crypto-common 0.1 <- digest
        crypto-common 0.2 <- digest
        digest 0.10 <- blake2, md-5
        digest 0.11 <- blake2, md-5, sha2
        foldhash 0.1 <- hashbrown
        foldhash 0.2 <- datafusion, hashbrown, serde_json
        getrandom 0.2 <- ring
        getrandom 0.3 <- ahash, rand_core
        getrandom 0.4 <- password-hash, phc, rand, tempfile, uuid
        hashbrown 0.14 <- dashmap
        hashbrown 0.15 <- petgraph
        hashbrown 0.16 <- regress
        hashbrown 0.17 <- arrow-array, datafusion, indexmap, parquet
        itertools 0.14 <- object_store
        itertools 0.15 <- datafusion
        md-5 0.10 <- object_store
        md-5 0.11 <- datafusion
        num-bigint 0.4 <- bigdecimal, der-parser
        num-bigint 0.5 <- arrow-buffer, parquet
        rand 0.9 <- arrow-avro, datafusion
        rand 0.10 <- object_store
        rand_core 0.9 <- rand, rand_chacha
        rand_core 0.10 <- chacha20, getrandom, rand
        zstd 0.13 <- arrow-avro, arrow-ipc, datafusion, parquet
        zstd 0.14 <- compression-codecs, tonic
        zstd-safe 7 <- zstd
        zstd-safe 8 <- compression-codecs, zstd
    "#]]
    .assert_eq(&twice());
}

#[test]
fn there_is_one_tls_stack() {
    let locked = locked();
    // rustls with ring; a second stack would be a second set of ciphers, bugs and build tools.
    assert!(locked.contains_key("ring"));
    for name in ["openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "boring", "boring-sys"] {
        assert!(
            !locked.contains_key(name),
            "{name} is in the lock file; find who wants it with `cargo tree -i {name}`"
        );
    }
}

/// What a manifest says of the build of a release.
fn release_profile(manifest: &str) -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != "[profile.release]");
    let lines = lines.take_while(|line| !line.starts_with('[') || line.starts_with("[profile.release"));
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn those_measured_against_are_built_as_the_server_is() {
    let server = release_profile("../Cargo.toml");
    assert!(server.len() > 2);
    assert_eq!(release_profile("peers/Cargo.toml"), server);
}
