//! Log lines on standard error: text for people, JSON for collectors.

use std::io::IsTerminal;

use tracing_subscriber::filter::{EnvFilter, ParseError};

use crate::config::{LogFormat, ServerConfig};

/// Starts logging for this process. A second call in the same process changes nothing.
pub fn init(config: &ServerConfig) {
    // Problems of the level are found when the configuration is loaded; one that was built by hand gets the default.
    let filter = filter(&config.log_level).unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // An error here means that a subscriber is set already, by an earlier call or by a test.
    let _ = match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
}

/// Reads a level with exceptions per module, such as `info,updraft_catalog=debug`.
///
/// # Errors
/// A directive that cannot be read. A lone word that is no level would be taken for a module's name by the parser of
/// directives, which would silence the log, so it is refused here.
pub fn filter(directives: &str) -> Result<EnvFilter, DirectiveError> {
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let directives: Vec<_> = directives.split(',').map(str::trim).collect();
    for directive in &directives {
        let level = directive.rsplit_once('=').map_or(*directive, |(_, level)| level);
        if !LEVELS.contains(&level.to_lowercase().as_str()) {
            return Err(DirectiveError::Level(level.to_owned()));
        }
    }
    EnvFilter::builder().parse(directives.join(",")).map_err(DirectiveError::Directive)
}

/// Why a log level cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectiveError {
    /// A word stands where a level must.
    #[error("`{0}` is no log level")]
    Level(String),
    /// The directive's module part cannot be read.
    #[error("a log directive cannot be read: {0}")]
    Directive(#[source] ParseError),
}

#[cfg(test)]
mod tests {
    use super::filter;

    #[test]
    fn levels_and_modules_are_read_and_typos_refused() {
        for good in ["info", "INFO", "warn,updraft_engine=debug", "info, updraft_catalog=trace", "off"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "inof", "info,updraft_engine", "info,updraft_engine=loud", "info,,debug"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
