//! What can be written on the command line, and its help.

use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::config::Sources;
use crate::query::output::Format;
use crate::query::{Job, Target};

const EXIT_CODES: &str = "\
Exit codes:
  0    done; for `serve`: told to end, and every query had ended
  1    failed
  2    the command line or the configuration is wrong
  3    `serve` was told to end and cancelled queries that still ran after server.drain_grace
  130  interrupted with Ctrl-C

Start here:
  updraft sample --scale 0.1 /tmp/tpch
  updraft serve --data /tmp/tpch
  updraft query 'SELECT count(*) FROM lineitem'";

/// An Arrow Flight SQL server for folders and buckets of Parquet, CSV, JSON, Arrow and Avro files.
#[derive(Debug, Parser)]
#[command(name = "updraft", version, about, after_help = EXIT_CODES, arg_required_else_help = true, max_term_width = 120)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Serve tables to Flight SQL clients
    ///
    /// Prints `updraft listening on grpc://ADDRESS` when it is ready. SIGTERM or Ctrl-C drains: new queries are refused,
    /// running ones may end within server.drain_grace; a second signal ends at once. SIGHUP reads TLS certificates anew.
    #[command(after_help = "Examples:
  updraft serve --data ./files
  updraft serve --data s3://bucket/prefix --listen 127.0.0.1:0 --set engine.memory_limit=4GiB
  UPDRAFT__ENGINE__MEMORY_LIMIT=4GiB updraft serve --config updraft.toml")]
    Serve(ConfigOptions),
    /// Check, show or document the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Write TPC-H sample data: eight tables as Parquet files
    #[command(after_help = "Examples:
  updraft sample /tmp/tpch                about 30 MB
  updraft sample --scale 10 /data/tpch    about 3 GB")]
    Sample {
        /// Folder for the files; it is made, and must be empty
        dir: PathBuf,
        /// Size: 1 is about 1 GB of CSV, or 6 million rows in lineitem
        #[arg(long, default_value_t = 0.1)]
        scale: f64,
        /// Write into a folder that is not empty, over files of the same names
        #[arg(long)]
        force: bool,
    },
    /// Run a statement on a server and write its rows to standard output
    ///
    /// Rows are written as they arrive, so that a result may be larger than memory. Ctrl-C cancels the query on the server.
    #[command(after_help = "Examples:
  updraft query 'SELECT * FROM t LIMIT 10'
  updraft query --format parquet --output t.parquet 'SELECT * FROM t'
  updraft query --format json - < report.sql | jq .total
  UPDRAFT_PASSWORD=... updraft query --uri grpc+tls://db.example.com:32010 --ca ca.pem --user ann 'SELECT 1'")]
    Query(QueryOptions),
    /// Hash the password on standard input, for auth.users.NAME.password_hash
    #[command(
        visible_alias = "password",
        after_help = "Example:
  printf %s \"$PASSWORD\" | updraft hash-password"
    )]
    HashPassword,
    /// Make an API token; prints it, and the settings that let it in
    #[command(
        visible_alias = "token",
        after_help = "The token is shown once: only its hash is kept. The settings go into the configuration file."
    )]
    NewToken {
        /// Name of the token, which logs show
        name: String,
    },
    /// Print a completion script
    #[command(after_help = "Example:
  updraft completions bash > ~/.local/share/bash-completion/completions/updraft")]
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Read the configuration as `serve` would, and name every problem
    Check(ConfigOptions),
    /// Show every setting, its value and where it came from; secrets are masked
    Print(ConfigOptions),
    /// Document every setting, in Markdown
    Reference,
    /// Print a file with every setting at its default, commented out
    Default,
}

#[derive(Debug, Args)]
pub(super) struct ConfigOptions {
    /// Configuration file, in TOML
    #[arg(long, short, value_name = "FILE", env = "UPDRAFT_CONFIG")]
    config: Option<PathBuf>,
    /// A setting, over those of the file and the environment; repeatable
    #[arg(long, short, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Folder, file or URL with tables, beside those that are configured; repeatable
    #[arg(long, short, value_name = "DIR")]
    data: Vec<String>,
    /// Address and port of the Flight SQL endpoint; port 0 takes a free one
    #[arg(long, short, value_name = "ADDRESS")]
    listen: Option<String>,
}

impl From<ConfigOptions> for Sources {
    fn from(options: ConfigOptions) -> Self {
        Self {
            // An empty variable is a variable that a script did not fill in.
            file: options.config.filter(|path| !path.as_os_str().is_empty()),
            set: options.set,
            data: options.data,
            listen: options.listen,
            ..Self::from_process()
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct QueryOptions {
    /// The statement; `-` reads it from standard input
    sql: String,
    /// The server: grpc://HOST:PORT, or grpc+tls://HOST:PORT
    #[arg(long, short, default_value = "grpc://127.0.0.1:32010", env = "UPDRAFT_URI")]
    uri: String,
    /// Log in as this user, rather than with a token; the password is read from --password-file or UPDRAFT_PASSWORD
    #[arg(long)]
    user: Option<String>,
    /// File that holds the password; a line break at its end is ignored
    #[arg(long, value_name = "FILE", requires = "user")]
    password_file: Option<PathBuf>,
    /// API token; give it in the environment, where other users of the machine do not see it
    #[arg(long, env = "UPDRAFT_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Certificates (PEM) that may have signed the server's, instead of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// How rows are written
    #[arg(long, short, value_enum, default_value = "table")]
    format: Format,
    /// Write to this file instead of standard output
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The most rows that --format table shows
    #[arg(long, default_value_t = 1000)]
    max_rows: usize,
}

impl QueryOptions {
    /// Reads what the options refer to: the statement, the password.
    pub(super) fn into_query(self) -> Result<(Target, Job), String> {
        let sql = match self.sql.as_str() {
            "-" => {
                let mut sql = String::new();
                std::io::stdin()
                    .read_to_string(&mut sql)
                    .map_err(|error| format!("read the statement from standard input: {error}"))?;
                sql
            }
            _ => self.sql,
        };
        if sql.trim().is_empty() {
            return Err("the statement is empty".to_owned());
        }
        let login = match self.user {
            Some(user) => Some((user, password(self.password_file.as_deref())?)),
            None => None,
        };
        // An exported but empty variable is no token; and who names a user means it, whatever is exported.
        let token = self.token.filter(|token| !token.is_empty() && login.is_none());
        let target = Target { uri: self.uri, login, token, ca: self.ca };
        let job = Job { sql, format: self.format, output: self.output, table_rows_max: self.max_rows };
        Ok((target, job))
    }
}

fn password(file: Option<&Path>) -> Result<String, String> {
    match file {
        Some(path) => std::fs::read_to_string(path)
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
            .map_err(|error| format!("read password file {}: {error}", path.display())),
        None => std::env::var("UPDRAFT_PASSWORD")
            .map_err(|_| "a password is missing: give --password-file FILE or UPDRAFT_PASSWORD".to_owned()),
    }
}
