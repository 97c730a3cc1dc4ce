//! The command line: commands, options, exit codes.
//!
//! - [`options`]: what can be written, and its help
//! - this file: what each command does
//!
//! Standard output carries what a command is for (rows, settings, the address); everything else goes to standard error.

mod options;

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use self::options::{Cli, Command, ConfigCommand, ConfigOptions, QueryOptions};
use crate::config::{self, Loaded, Problems};
use crate::signals::{Signals, until_signal};
use crate::{query, sample, serve};

/// What the process says to the shell; listed in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    Ok = 0,
    Failure = 1,
    /// clap ends with the same code on an option it does not know.
    Usage = 2,
    Killed = 3,
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// A failed command: what a person reads, and the exit code.
struct Failed(Exit, String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(Exit::Failure, with_causes(&error))
    }
}

fn config_problems(problems: Problems) -> Failed {
    Failed(Exit::Usage, problems.to_string())
}

/// The error and its causes on one line; a cause that its error quotes already is left out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let reason = error.to_string();
        if !text.contains(&reason) {
            text = format!("{text}: {reason}");
        }
        cause = error.source();
    }
    text
}

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let exit = run(Cli::parse()).unwrap_or_else(|Failed(exit, message)| {
        // Standard error may be closed; there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "updraft: {message}");
        exit
    });
    exit.into()
}

fn run(cli: Cli) -> Result<Exit, Failed> {
    match cli.command {
        Command::Serve(options) => {
            let loaded = load(options)?;
            serve_until_signal(loaded)
        }
        Command::Config { command } => configuration(command),
        Command::Sample { dir, scale, force } => {
            let mut total = 0;
            for table in sample::write(&dir, scale, force)? {
                let size = bytesize::ByteSize::b(table.bytes).to_string();
                say(&format!("{:<9} {:>12} rows {size:>10}  {}\n", table.table, table.rows, table.path.display()))?;
                total += table.bytes;
            }
            say(&format!("{} in all; serve it: updraft serve --data {}\n", bytesize::ByteSize::b(total), dir.display()))
        }
        Command::Query(options) => run_query(options),
        Command::HashPassword => {
            let password = read_secret()?;
            say(&format!("{}\n", updraft_auth::hash_password(&password)?))
        }
        Command::NewToken { name } => {
            let (token, hash) = updraft_auth::new_api_token(&name)?;
            // The token is for a person or a pipe, the settings for the file: the token can be cut off with `head -1`.
            say(&format!("{token}\n\n[auth.tokens.\"{name}\"]\nprincipal = \"{name}\"\nhash = \"{hash}\"\n"))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "updraft", &mut script);
            say(&String::from_utf8_lossy(&script))
        }
    }
}

fn configuration(command: ConfigCommand) -> Result<Exit, Failed> {
    match command {
        ConfigCommand::Check(options) => {
            load(options)?;
            say("the configuration is good\n")
        }
        ConfigCommand::Print(options) => say(&config::print(&load(options)?)),
        ConfigCommand::Reference => say(&config::reference()),
        ConfigCommand::Default => say(&config::default_toml()),
    }
}

fn load(options: ConfigOptions) -> Result<Loaded, Failed> {
    config::load(&options.into()).map_err(config_problems)
}

fn serve_until_signal(loaded: Loaded) -> Result<Exit, Failed> {
    crate::logs::init(&loaded.config.server);
    let runtime = serve::runtime(loaded.config.server.io_threads)?;
    let ended = runtime.block_on(async {
        let running = serve::start(loaded.config).await?;
        let signals = Signals::new()?;
        say_listening(&running)?;
        until_signal(running, signals).await
    });
    // Threads that block in the file system or in a query that was killed must not hold up the end.
    runtime.shutdown_background();
    match ended {
        Ok(ended) if ended.killed => Ok(Exit::Killed),
        Ok(_) => Ok(Exit::Ok),
        Err(serve::Error::Config(problems)) => Err(config_problems(problems)),
        Err(error) => Err(error.into()),
    }
}

fn say_listening(running: &serve::Running) -> Result<(), serve::Error> {
    let mut out = std::io::stdout().lock();
    // One line, and flushed: scripts wait for it. That nobody reads it is no reason not to serve.
    let _ = writeln!(out, "updraft listening on {}", running.uri());
    let _ = out.flush();
    Ok(())
}

fn run_query(options: QueryOptions) -> Result<Exit, Failed> {
    let (target, job) = options.into_query().map_err(|message| Failed(Exit::Usage, message))?;
    // One thread moves the bytes of one connection.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match runtime.block_on(query::run(&target, &job))? {
        query::End::Complete => Ok(Exit::Ok),
        query::End::Interrupted => {
            let _ = writeln!(std::io::stderr(), "updraft: cancelled");
            Ok(Exit::Interrupted)
        }
    }
}

/// Reads one line; the line break is no part of it.
fn read_secret() -> Result<String, Failed> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        let _ = write!(std::io::stderr(), "password (it will be shown; pipe it in to avoid that): ");
        let mut line = String::new();
        stdin.read_line(&mut line)?;
        return not_empty(line.trim_end_matches(['\r', '\n']));
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text)?;
    not_empty(text.trim_end_matches(['\r', '\n']))
}

fn not_empty(secret: &str) -> Result<String, Failed> {
    if secret.is_empty() {
        return Err(Failed(Exit::Usage, "the password is empty; write it on standard input".to_owned()));
    }
    Ok(secret.to_owned())
}

/// Writes to standard output. A reader that has gone (`updraft config reference | head`) is content.
fn say(text: &str) -> Result<Exit, Failed> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(Exit::Ok),
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
