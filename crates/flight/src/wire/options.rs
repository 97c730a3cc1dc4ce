//! What a client asked the wire to look like.
//!
//! The three settings come as session options or request headers, live in the session, and travel in tickets as text, so
//! that every endpoint of a query is encoded alike, whoever redeems it.

use std::fmt;
use std::str::FromStr;

/// The settings a client may send, with the documentation that is shown to it.
pub(crate) const SETTINGS: &[(&str, &str)] = &[
    (
        "wire_types",
        "Arrow types this client can take: `compatible` (default, every client reads it), `bi` (compatible, and unsigned \
         integers and intervals turned into types BI tools know), `native` (as the engine has them), or a comma list of \
         views, dictionaries, large, float16, decimal32_64, run_end, list_views.",
    ),
    (
        "wire_compression",
        "Compression of record batch bodies: none (default), lz4 or zstd. The JDBC driver reads none of them.",
    ),
    (
        "endpoints",
        "Endpoints of a result, 1 (default) to 64. Clients may read several at once, or one after the other; only one keeps the \
         order of rows for all clients. Each is read once, and what nobody opens for half a minute after others were \
         read is given up. One that is open is to be read on within engine.idle_stream_timeout, as any result is.",
    ),
];

/// Most endpoints a client may ask for: beyond it a result is split finer than any client reads in parallel.
pub(crate) const ENDPOINTS_MAX: u32 = 64;

/// How a client wants its results: types, compression, number of endpoints. `Display` and `FromStr` round-trip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WireOptions {
    /// Which Arrow types the client can take.
    pub types: WireTypes,
    /// Compression of record batch bodies; `None` leaves them as they are.
    pub compression: Option<Compression>,
    /// Endpoints per result, 1 to 64.
    pub endpoints: u32,
}

/// Codecs of the Arrow IPC format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// LZ4 frames: fast, for networks of up to about 10 Gbit/s.
    Lz4,
    /// Zstandard at its default level: for slow networks.
    Zstd,
}

/// What is done with unsigned integers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unsigned {
    /// Sent as they are.
    #[default]
    Native,
    /// Sent as the next wider signed type; 64 bits as `Decimal128(20, 0)`. Month-day-nano intervals are sent as text.
    Widened,
}

/// Arrow types a client can take beyond those that every client reads. The default is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WireTypes {
    /// `Utf8View` and `BinaryView`; otherwise `Utf8` and `Binary`.
    pub views: bool,
    /// Dictionaries; otherwise plain values.
    pub dictionaries: bool,
    /// Types with 64-bit offsets; otherwise those with 32-bit offsets.
    pub large: bool,
    /// `Float16`; otherwise `Float32`.
    pub float16: bool,
    /// `Decimal32` and `Decimal64`; otherwise `Decimal128`.
    pub decimal32_64: bool,
    /// Run-end encoding; otherwise plain values.
    pub run_end: bool,
    /// `ListView` and `LargeListView`; otherwise lists.
    pub list_views: bool,
    /// Unsigned integers.
    pub unsigned: Unsigned,
}

impl WireTypes {
    /// Everything as the engine has it.
    pub const NATIVE: Self = Self {
        views: true,
        dictionaries: true,
        large: true,
        float16: true,
        decimal32_64: true,
        run_end: true,
        list_views: true,
        unsigned: Unsigned::Native,
    };

    /// The flags with their names, in the order they are written.
    fn flags(&mut self) -> [(&'static str, &mut bool); 7] {
        [
            ("views", &mut self.views),
            ("dictionaries", &mut self.dictionaries),
            ("large", &mut self.large),
            ("float16", &mut self.float16),
            ("decimal32_64", &mut self.decimal32_64),
            ("run_end", &mut self.run_end),
            ("list_views", &mut self.list_views),
        ]
    }
}

impl Default for WireOptions {
    fn default() -> Self {
        Self { types: WireTypes::default(), compression: None, endpoints: 1 }
    }
}

impl WireOptions {
    /// Reads settings from `(key, value)` pairs; a later pair wins. Fails with a sentence for the client that names the
    /// key, the value and what is allowed.
    pub fn parse<K: AsRef<str>, V: AsRef<str>>(pairs: impl IntoIterator<Item = (K, V)>) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in pairs {
            options.set(key.as_ref(), value.as_ref())?;
        }
        Ok(options)
    }

    /// Sets one of [`SETTINGS`]. Fails as [`WireOptions::parse`] does and leaves the options as they were.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let value = value.trim();
        match key {
            "wire_types" => self.types = value.parse()?,
            "wire_compression" => {
                self.compression = match value {
                    "none" => None,
                    "lz4" => Some(Compression::Lz4),
                    "zstd" => Some(Compression::Zstd),
                    _ => return Err(bad(key, value, "none, lz4, zstd")),
                }
            }
            "endpoints" => {
                self.endpoints = value
                    .parse()
                    .ok()
                    .filter(|n| (1..=ENDPOINTS_MAX).contains(n))
                    .ok_or_else(|| bad(key, value, "a whole number from 1 to 64"))?;
            }
            _ => {
                let keys: Vec<_> = SETTINGS.iter().map(|(key, _)| *key).collect();
                return Err(format!("unknown wire setting {key:?}; allowed: {}", keys.join(", ")));
            }
        }
        Ok(())
    }

    /// The value of one of [`SETTINGS`] as text; `None` for any other key.
    pub fn get(&self, key: &str) -> Option<String> {
        match key {
            "wire_types" => Some(self.types.to_string()),
            "wire_compression" => Some(
                match self.compression {
                    None => "none",
                    Some(Compression::Lz4) => "lz4",
                    Some(Compression::Zstd) => "zstd",
                }
                .to_owned(),
            ),
            "endpoints" => Some(self.endpoints.to_string()),
            _ => None,
        }
    }
}

fn bad(key: &str, value: &str, allowed: &str) -> String {
    format!("{key} cannot be {value:?}; allowed: {allowed}")
}

/// `key=value` pairs joined by `;`, only those that differ from the default; the default is the empty string.
impl fmt::Display for WireOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let default = Self::default();
        let mut separator = "";
        for (key, _) in SETTINGS {
            if let Some(value) = self.get(key).filter(|value| default.get(key).as_ref() != Some(value)) {
                write!(f, "{separator}{key}={value}")?;
                separator = ";";
            }
        }
        Ok(())
    }
}

impl FromStr for WireOptions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut options = Self::default();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or_else(|| format!("{pair:?} is not key=value"))?;
            options.set(key, value)?;
        }
        Ok(options)
    }
}

impl fmt::Display for WireTypes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NATIVE {
            return f.write_str("native");
        }
        let mut types = *self;
        let mut names: Vec<&str> = types.flags().into_iter().filter(|(_, on)| **on).map(|(name, _)| name).collect();
        if self.unsigned == Unsigned::Widened {
            names.insert(0, "bi");
        }
        if names.is_empty() {
            names.push("compatible");
        }
        f.write_str(&names.join(","))
    }
}

impl FromStr for WireTypes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "compatible" => return Ok(Self::default()),
            "native" => return Ok(Self::NATIVE),
            _ => {}
        }
        let mut types = Self::default();
        for word in text.split(',').map(str::trim) {
            if word == "bi" {
                types.unsigned = Unsigned::Widened;
            } else if let Some((_, flag)) = types.flags().into_iter().find(|(name, _)| *name == word) {
                *flag = true;
            } else {
                let names = types.flags().map(|(name, _)| name).join(", ");
                return Err(bad("wire_types", text, &format!("compatible, bi, native, or a comma list of {names}")));
            }
        }
        Ok(types)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_round_trip_through_text() {
        for text in [
            "",
            "wire_types=native",
            "wire_types=bi",
            "wire_types=bi,views",
            "wire_types=views,decimal32_64,list_views;wire_compression=zstd;endpoints=64",
            "wire_compression=lz4",
            "endpoints=2",
        ] {
            let options: WireOptions = text.parse().expect(text);
            assert_eq!(options.to_string(), text);
        }
    }

    #[test]
    fn every_flag_is_parsed_and_all_of_them_are_native() {
        let all = "views,dictionaries,large,float16,decimal32_64,run_end,list_views";
        assert_eq!(all.parse::<WireTypes>(), Ok(WireTypes::NATIVE));
        assert_eq!("compatible".parse::<WireTypes>(), Ok(WireTypes::default()));
    }

    #[test]
    fn a_bad_setting_names_key_value_and_what_is_allowed() {
        let check = |key: &str, value: &str, expected: &str| {
            assert_eq!(WireOptions::parse([(key, value)]).expect_err(value), expected);
        };
        check("endpoints", "0", "endpoints cannot be \"0\"; allowed: a whole number from 1 to 64");
        check("endpoints", "65", "endpoints cannot be \"65\"; allowed: a whole number from 1 to 64");
        check("wire_compression", "gzip", "wire_compression cannot be \"gzip\"; allowed: none, lz4, zstd");
        check(
            "wire_types",
            "views,big",
            "wire_types cannot be \"views,big\"; allowed: compatible, bi, native, or a comma list of views, \
             dictionaries, large, float16, decimal32_64, run_end, list_views",
        );
        check("wire", "x", "unknown wire setting \"wire\"; allowed: wire_types, wire_compression, endpoints");
        assert!("endpoints".parse::<WireOptions>().is_err());
    }

    #[test]
    fn a_later_pair_wins_and_a_failed_set_changes_nothing() {
        let mut options = WireOptions::parse([("endpoints", "2"), ("endpoints", " 3 ")]).expect("valid");
        assert!(options.set("endpoints", "many").is_err());
        assert_eq!(options.endpoints, 3);
    }
}
