//! The crates' picture in ARCHITECTURE.md, held to: who may use whom, and what may be in the build at all.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

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
