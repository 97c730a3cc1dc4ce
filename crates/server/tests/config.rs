//! The configuration as an operator meets it: precedence, problems, what is printed, and the files in `config/`.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect, expect_file};
use updraft_server::config::{Sources, default_toml, load, print, reference};

/// Sources with a file of this text, these variables and these `--set`. The file is called `updraft.toml` in messages.
struct Case {
    dir: tempfile::TempDir,
    sources: Sources,
}

fn case(file: &str, env: &[(&str, &str)], set: &[&str]) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("updraft.toml");
    std::fs::write(&path, file).unwrap();
    let sources = Sources {
        file: Some(path),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        set: set.iter().map(|&assignment| assignment.to_owned()).collect(),
        ..Sources::default()
    };
    Case { dir, sources }
}

impl Case {
    /// The printed lines whose key contains `filter`, or the problems.
    fn check(&self, filter: &str, expected: Expect) {
        let text = match load(&self.sources) {
            Ok(loaded) => {
                print(&loaded).lines().filter(|line| line.contains(filter)).fold(String::new(), |text, line| {
                    let (value, origin) = line.rsplit_once("  # ").unwrap();
                    text + value.trim_end() + "  # " + origin + "\n"
                })
            }
            Err(problems) => format!("{problems}\n"),
        };
        expected.assert_eq(&text.replace(&format!("{}/", self.dir.path().display()), ""));
    }
}

#[test]
fn later_layers_win() {
    let file = "[server]\nlog_level = \"warn\"\n\n[engine]\nbatch_size = 1000\nmemory_limit = \"1GiB\"\n";
    let env = [
        ("UPDRAFT__ENGINE__BATCH_SIZE", "2000"),
        ("UPDRAFT__ENGINE__MEMORY_LIMIT", "2GiB"),
        ("UPDRAFT_CONFIG", "ignored"),
    ];
    case(file, &env, &["engine.memory_limit=512MiB"]).check(
        "engine.memory_limit",
        expect![[r#"
        engine.memory_limit = "512MiB"  # --set
    "#]],
    );
    case(file, &env, &[]).check(
        "engine.batch_size",
        expect![[r#"
        engine.batch_size = 2000  # UPDRAFT__ENGINE__BATCH_SIZE
    "#]],
    );
    case(file, &[], &[]).check(
        "engine.batch_size",
        expect![[r#"
        engine.batch_size = 1000  # updraft.toml:5
    "#]],
    );
    case(file, &[], &["server.log_level=info", "server.log_level=debug"]).check(
        "server.log_level",
        expect![[r#"
        server.log_level = "debug"  # --set
    "#]],
    );
    case("", &[], &[]).check(
        "server.drain_grace",
        expect![[r#"
        server.drain_grace = "30s"  # default
    "#]],
    );
}

#[test]
fn values_take_the_type_of_their_setting() {
    let set = ["engine.batch_size=4_096", "server.io_threads=3", "server.log_level=info"];
    case("", &[], &set).check(
        "server.io_threads",
        expect![[r#"
        server.io_threads = 3  # --set
    "#]],
    );
    case("", &[], &set).check(
        "engine.batch_size",
        expect![[r#"
        engine.batch_size = 4096  # --set
    "#]],
    );
    // An empty value unsets what is optional.
    case("", &[("UPDRAFT__SERVER__IO_THREADS", "")], &[]).check(
        "server.io_threads",
        expect![[r#"
        server.io_threads = ""  # UPDRAFT__SERVER__IO_THREADS
    "#]],
    );
    case("", &[], &["catalog.data=a, b"]).check(
        "catalog.data",
        expect![[r#"
        catalog.data = ["a", "b"]  # --set
    "#]],
    );
    case("", &[], &[r#"catalog.data=["a,b", "c"]"#]).check(
        "catalog.data",
        expect![[r#"
        catalog.data = ["a,b", "c"]  # --set
    "#]],
    );
}

#[test]
fn all_problems_are_reported_at_once() {
    let file = "[server]\ndrain_grace = \"soon\"\nlog_format = \"jsn\"\nlisten = 5\n\n[engine]\nmemory_limt = \"1GiB\"\n\n[egine]\nbatch_size = 1\n";
    let env = [("UPDRAFT__ENGINE__BATCHSIZE", "5"), ("UPDRAFT__SERVER__LOG_LEVEL", "loud")];
    let set = ["engine.batch_size=many", "drain_grace=5s", "no value", "a..b=1", "server.listen[0]=x"];
    case(file, &env, &set).check("", expect![[r#"
        the configuration has 12 problems:
          --set: `a..b` is not a key path; write keys between dots, such as `engine.memory_limit`
          --set: `no value` has no `=`; write it as `engine.memory_limit=2GiB`
          drain_grace (--set): unknown key; did you mean `server.drain_grace`?
          egine (updraft.toml:10): unknown key; did you mean `engine`?
          engine.batch_size (--set): this is the string "many"; a whole number is expected
          engine.batchsize (UPDRAFT__ENGINE__BATCHSIZE): unknown key; did you mean UPDRAFT__ENGINE__BATCH_SIZE?
          engine.memory_limt (updraft.toml:7): unknown key; did you mean `engine.memory_limit`?
          server.drain_grace (updraft.toml:2): invalid value: string "soon", expected a duration
          server.listen (updraft.toml:4): invalid type: integer `5`, expected socket address
          server.listen[0] (--set): an item of a list cannot be set alone; set the whole list
          server.log_format (updraft.toml:3): `jsn` is none of `text`, `json`; did you mean `json`?
          server.log_level (UPDRAFT__SERVER__LOG_LEVEL): `loud` is no log level; use a level such as `info`, or `info,updraft_engine=debug`
    "#]]);
}

#[test]
fn a_broken_file_names_the_line_and_the_rest_is_checked() {
    case("[server]\nlog_level = \n\n[engine]\nbatch_sze = 5\n", &[], &[]).check("", expect![[r#"
        the configuration has 3 problems:
          updraft.toml:2: string values must be quoted, expected literal string
          engine.batch_sze (updraft.toml:5): unknown key; did you mean `engine.batch_size`?
          server.log_level (updraft.toml:2): `` is no log level; use a level such as `info`, or `info,updraft_engine=debug`
    "#]]);
    let missing = Sources { file: Some(PathBuf::from("/nonexistent/updraft.toml")), ..Sources::default() };
    expect![[r#"
        the configuration has a problem:
          /nonexistent/updraft.toml: cannot be read: No such file or directory (os error 2)"#]]
    .assert_eq(&load(&missing).unwrap_err().to_string());
}

#[test]
fn references_are_resolved_and_missing_ones_are_problems() {
    let file = "[server]\nlog_level = \"${env:LEVEL}\"\nio_threads = \"${env:THREADS}\"\n";
    let env = [("LEVEL", "debug"), ("THREADS", "3")];
    // What is printed is the reference; what it refers to may be a secret.
    let referring = case(file, &env, &[]);
    referring.check(
        "server.log_level",
        expect![[r#"
        server.log_level = "${env:LEVEL}"  # updraft.toml:2
    "#]],
    );
    let loaded = load(&referring.sources).unwrap();
    assert_eq!(loaded.config.server.log_level, "debug");
    assert_eq!(loaded.config.server.io_threads.map(usize::from), Some(3));
    case(file, &env[..1], &["server.log_level=${file:/nonexistent/level}"]).check(
        "",
        expect![[r#"
        the configuration has 3 problems:
          server.io_threads (updraft.toml:3): environment variable THREADS is not set
          server.io_threads (updraft.toml:3): this is the string "${env:THREADS}"; a whole number is expected
          server.log_level (--set): cannot read file /nonexistent/level: No such file or directory (os error 2)
    "#]],
    );
}

#[test]
fn data_flags_add_to_the_data_of_other_layers() {
    let mut case = case("[catalog]\ndata = [\"from-file\"]\n", &[], &[]);
    case.sources.data = vec!["from-flag".to_owned()];
    case.sources.listen = Some("127.0.0.1:0".to_owned());
    case.check(
        "catalog.data",
        expect![[r#"
        catalog.data = ["from-file", "from-flag"]  # updraft.toml:2
    "#]],
    );
    case.check(
        "server.listen",
        expect![[r#"
        server.listen = "127.0.0.1:0"  # --listen
    "#]],
    );
}

#[test]
fn options_of_datafusion_are_passed_on_or_refused() {
    let file =
        "[engine.datafusion]\noptimizer.prefer_hash_join = false\n\"execution.parquet.max_in_list_size\" = 100\n";
    let env = [("UPDRAFT__ENGINE__DATAFUSION__EXECUTION__PARQUET__PUSHDOWN_FILTERS", "true")];
    case(file, &env, &["engine.datafusion.execution.coalesce_batches=false"]).check("datafusion", expect![[r#"
        engine.datafusion.execution.coalesce_batches = "false"  # --set
        engine.datafusion.execution.parquet.pushdown_filters = "true"  # UPDRAFT__ENGINE__DATAFUSION__EXECUTION__PARQUET__PUSHDOWN_FILTERS
        engine.datafusion."execution.parquet.max_in_list_size" = 100  # updraft.toml:3
        engine.datafusion.optimizer.prefer_hash_join = false  # updraft.toml:2
    "#]]);
    let file = "[engine.datafusion]\nruntime.memory_limit = \"1T\"\n\"execution.parquet.prunin\" = true\n";
    let set = ["engine.datafusion.execution.coalesce_batches=maybe", "engine.query_spill_limit=1TiB"];
    let env = [("UPDRAFT__ENGINE__DATAFUSION__EXECUTION__BATCH_SIZE", "1")];
    case(file, &env, &set).check("", expect![[r#"
        the configuration has 5 problems:
          engine.datafusion."execution.parquet.prunin" (updraft.toml:3): is no option of DataFusion; did you mean `engine.datafusion.execution.parquet.pruning`?
          engine.datafusion.execution.batch_size (UPDRAFT__ENGINE__DATAFUSION__EXECUTION__BATCH_SIZE): is not passed on to DataFusion: sessions can change it; set `engine.batch_size`
          engine.datafusion.execution.coalesce_batches (--set): cannot be `maybe`: provided string was not `true` or `false`
          engine.datafusion.runtime.memory_limit (updraft.toml:2): is not passed on to DataFusion: memory is shared by all queries; set `engine.memory_limit`
          engine.query_spill_limit (--set): is more than spill_limit (100.0 GiB); give at most that
    "#]]);
}

fn config_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config")
}

#[test]
fn config_reference_is_current() {
    expect_file![config_dir().join("reference.md")].assert_eq(&reference());
}

#[test]
fn config_default_is_current_and_says_what_is_the_default() {
    expect_file![config_dir().join("default.toml")].assert_eq(&default_toml());

    // Every line `#key = value`, taken at its word, loads, and is what an empty file is.
    let all: String = default_toml()
        .lines()
        .map(|line| {
            let setting =
                line.strip_prefix('#').filter(|rest| rest.starts_with(|first: char| first.is_ascii_lowercase()));
            setting.unwrap_or(line).to_owned() + "\n"
        })
        .collect();
    let loaded = load(&case(&all, &[], &[]).sources).unwrap();
    let empty = load(&case("", &[], &[]).sources).unwrap();
    assert_eq!(serde_json::to_value(loaded.config).unwrap(), serde_json::to_value(empty.config).unwrap());
}

#[test]
fn config_profiles_load() {
    for profile in ["small", "medium", "large"] {
        let file = config_dir().join(format!("{profile}.toml"));
        let sources = Sources { file: Some(file), ..Sources::default() };
        let loaded = load(&sources).unwrap_or_else(|problems| panic!("{profile}: {problems}"));
        assert!(print(&loaded).contains("engine.memory_limit"), "{profile}");
    }
}
