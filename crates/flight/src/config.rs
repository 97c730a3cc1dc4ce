//! What an operator can set about the wire.

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::transport::{Limits, Tls};

/// Settings of the Flight SQL front end.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// TLS. Off unless a certificate and a key are given.
    pub tls: Tls,
    /// Limits of connections, streams and messages.
    pub limits: Limits,
    /// Lets the server listen beyond this machine without TLS or without login. It takes the words
    /// `anyone on this network may read the data`, so that nobody does it by mistake.
    pub allow_insecure: Option<String>,
    /// The most that is put in one message of a result, but for a row that is wider, and a dictionary, which go in one
    /// whatever their size. Clients refuse messages above their own limit: 4 MiB for Go's
    /// database/sql and Rust, 16 MiB for ADBC. Large ones cost the server a little less for each row; a client takes
    /// more rows a second in messages that stay in its processor's cache.
    #[schemars(with = "String")]
    pub message_size: ByteSize,
    /// The most bytes of parameters one bind may upload.
    #[schemars(with = "String")]
    pub upload_limit: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tls: Tls::default(),
            limits: Limits::default(),
            allow_insecure: None,
            message_size: ByteSize::mib(1),
            upload_limit: ByteSize::mib(64),
        }
    }
}

impl Config {
    /// All that is wrong with these values, as (key, what is wrong and what would be right).
    pub fn problems(&self) -> Vec<(String, String)> {
        let nested = |section: &str, problems: Vec<(String, String)>| {
            problems.into_iter().map(|(key, text)| (format!("{section}.{key}"), text)).collect::<Vec<_>>()
        };
        let mut problems = nested("tls", self.tls.problems());
        problems.extend(nested("limits", self.limits.problems()));
        for (key, size, least, most) in [
            ("message_size", self.message_size, ByteSize::kib(16), ByteSize::mib(64)),
            ("upload_limit", self.upload_limit, ByteSize::kib(1), ByteSize::gib(1)),
        ] {
            if !(least..=most).contains(&size) {
                problems.push((key.to_owned(), format!("is {size}; give a size from {least} to {most}")));
            }
        }
        problems
    }
}
