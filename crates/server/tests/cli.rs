//! The binary as scripts use it: what it prints, where, and its exit codes.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use expect_test::expect;

fn updraft(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_updraft"));
    command.args(args);
    // Settings of whoever runs the tests are not part of them.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("UPDRAFT_")) {
        command.env_remove(name);
    }
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    outcome(updraft(args).stdin(Stdio::null()).output().unwrap())
}

fn run_with_input(args: &[&str], input: &str) -> (Option<i32>, String, String) {
    let piped = updraft(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = piped.unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    outcome(child.wait_with_output().unwrap())
}

fn outcome(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn exit_codes_are_as_documented() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let nobody = "grpc://127.0.0.1:1";
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--help"], 0, ""),
        (&["query", "--help"], 0, ""),
        (&[], 2, "Usage"),
        (&["srve"], 2, "serve"),
        (&["config", "check"], 0, ""),
        (&["config", "check", "--set", "engine.memory_limt=1GiB"], 2, "did you mean `engine.memory_limit`?"),
        (&["config", "check", "--config", "/nonexistent.toml"], 2, "/nonexistent.toml: cannot be read"),
        (&["serve", "--set", "server.log_level=loud"], 2, "`loud` is no log level"),
        (&["serve", "--set", "engine.memory_limit=15MiB"], 2, "the smallest that works is 16.0 MiB"),
        (&["serve", "--listen", &taken], 1, "server.listen"),
        (
            &["serve", "--listen", "127.0.0.1:0", "--set", &format!("server.admin_listen={taken}")],
            1,
            "server.admin_listen",
        ),
        (&["serve", "--listen", "0.0.0.0:0"], 2, "server.listen"),
        (&["query", "--uri", nobody, "SELECT 1"], 1, "is `updraft serve` running there?"),
        (&["query", "--uri", "localhost", "SELECT 1"], 1, "is not an address"),
        (&["query", "--uri", nobody, " "], 2, "the statement is empty"),
        (&["query", "--uri", nobody, "--user", "ann", "SELECT 1"], 2, "a password is missing"),
        (&["sample", "--scale", "0", "/nonexistent"], 1, "scale 0 is out of range"),
        (&["new-token", "no/slash"], 1, "name"),
    ];
    for (args, code, message) in cases {
        let (exit, _, stderr) = run(args);
        assert_eq!(exit, Some(*code), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
    }
}

#[test]
fn every_shell_completes() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (exit, script, _) = run(&["completions", shell]);
        assert_eq!(exit, Some(0), "{shell}");
        assert!(script.contains("hash-password") && script.contains("sample"), "{shell}");
    }
}

#[test]
fn credentials_are_made_for_the_configuration() {
    let (exit, hash, _) = run_with_input(&["hash-password"], "hunter2\n");
    assert_eq!(exit, Some(0));
    let assignment = format!("auth.users.ann.password_hash={}", hash.trim());
    let (exit, printed, stderr) = run(&["config", "print", "--set", &assignment]);
    assert_eq!(exit, Some(0), "{stderr}");
    let user = printed.lines().find(|line| line.contains("ann")).unwrap();
    assert!(user.starts_with("auth.users.ann.password_hash = \"***\" "), "{user}");
    assert!(!printed.contains("argon2"), "{printed}");
    assert_eq!(run_with_input(&["hash-password"], "\n").0, Some(2));

    let (exit, made, _) = run(&["new-token", "etl"]);
    assert_eq!(exit, Some(0));
    let (token, settings) = made.split_once("\n\n").unwrap();
    assert!(token.starts_with("updraft_etl_"), "{token}");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("updraft.toml");
    std::fs::write(&file, settings).unwrap();
    let (exit, _, stderr) = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(exit, Some(0), "{stderr}");
}

/// `updraft serve` on a free port, ended with the test.
struct Server {
    child: Child,
    uri: String,
}

impl Server {
    fn start(args: &[&str]) -> Self {
        let all = [&["serve", "--listen", "127.0.0.1:0"], args].concat();
        let mut child = updraft(&all).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let Some(uri) = line.trim().strip_prefix("updraft listening on ") else {
            let mut stderr = String::new();
            child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{line:?} {stderr}");
        };
        Self { uri: uri.to_owned(), child }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// The exit code, when it comes within `limit`.
    fn exit(&mut self, limit: Duration) -> Option<i32> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It has ended already when the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn serves_a_folder_answers_in_every_format_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("tpch");
    let data = data.to_str().unwrap();
    let (exit, _, stderr) = run(&["sample", "--scale", "0.001", data]);
    assert_eq!(exit, Some(0), "{stderr}");
    let mut server =
        Server::start(&["--data", data, "--set", "engine.memory_limit=512MiB", "--set", "engine.target_partitions=2"]);

    let sql = "SELECT r_regionkey, r_name FROM region ORDER BY 1 LIMIT 2";
    let query = |args: &[&str]| run(&[&["query", "--uri", server.uri.as_str()], args].concat());
    let (exit, table, stderr) = query(&[sql]);
    assert_eq!((exit, stderr.as_str()), (Some(0), ""));
    expect![[r#"
        +-------------+---------+
        | r_regionkey | r_name  |
        +-------------+---------+
        | 0           | AFRICA  |
        | 1           | AMERICA |
        +-------------+---------+
        (2 rows)
    "#]]
    .assert_eq(&table);
    assert_eq!(query(&["--format", "csv", sql]).1, "r_regionkey,r_name\n0,AFRICA\n1,AMERICA\n");
    let json = "{\"r_regionkey\":0,\"r_name\":\"AFRICA\"}\n{\"r_regionkey\":1,\"r_name\":\"AMERICA\"}\n";
    assert_eq!(query(&["--format", "json", sql]).1, json);
    let file = dir.path().join("out");
    for (format, magic) in [("parquet", &b"PAR1"[..]), ("arrow", &[0xff; 4])] {
        let (exit, stdout, stderr) =
            query(&["--format", format, "--output", file.to_str().unwrap(), "SELECT * FROM lineitem"]);
        assert_eq!((exit, stdout.as_str(), stderr.as_str()), (Some(0), "", ""));
        assert!(std::fs::read(&file).unwrap().starts_with(magic), "{format}");
    }
    let (exit, rows, _) = run_with_input(
        &["query", "--uri", &server.uri, "--format", "csv", "-"],
        "SELECT count(*) AS n FROM lineitem\n",
    );
    assert_eq!((exit, rows.as_str()), (Some(0), "n\n6005\n"));
    let (exit, stdout, stderr) = query(&["SELECT * FROM regoin"]);
    assert_eq!((exit, stdout.as_str()), (Some(1), ""));
    assert!(stderr.contains("regoin"), "{stderr}");

    server.signal("TERM");
    assert_eq!(server.exit(Duration::from_secs(5)), Some(0));
}

/// Runs until it is cancelled, and returns no row before.
const ENDLESS: &str = "SELECT count(*) FROM range(1000000000) a, range(1000000) b WHERE a.value + b.value = -1";

#[test]
fn a_query_that_outlives_the_grace_is_cut_off() {
    let mut server = Server::start(&["--set", "server.drain_grace=300ms"]);
    let query = updraft(&["query", "--uri", &server.uri, ENDLESS]).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let query = query.unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    server.signal("TERM");
    assert_eq!(server.exit(Duration::from_secs(15)), Some(3));
    let (exit, _, stderr) = outcome(query.wait_with_output().unwrap());
    assert_eq!(exit, Some(1), "{stderr}");
}

#[test]
fn ctrl_c_cancels_at_the_server() {
    let mut server = Server::start(&[]);
    let mut query = updraft(&["query", "--uri", &server.uri, ENDLESS]).stderr(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(Command::new("kill").args(["-s", "INT", &query.id().to_string()]).status().unwrap().success());
    assert_eq!(query.wait().unwrap().code(), Some(130));
    // Nothing runs any more, so that the server ends at once and cleanly.
    server.signal("TERM");
    assert_eq!(server.exit(Duration::from_secs(5)), Some(0));
}
