//! Settings: where the data is, how tables are read, and with which credentials.

use std::collections::BTreeMap;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::types;

/// Settings of the catalog: data roots, tables, views and object stores.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where tables are discovered: folders, files, or URLs (`s3://bucket/prefix`, `gs://`, `az://container`,
    /// `https://host/t.parquet`). A file or a folder of files is a table, a folder of tables is a schema.
    pub data: Vec<String>,
    /// Tables that need more than discovery: options of CSV, explicit columns, a list of URLs. The key is `name` (schema
    /// `public`) or `schema.name`; a table here takes the place of a discovered one of the same name.
    pub tables: BTreeMap<String, TableConfig>,
    /// Views: `name` or `schema.name` to the SQL text of a query.
    pub views: BTreeMap<String, String>,
    /// Object stores with settings or credentials of their own, under a name of your choice. Locations without an entry
    /// use the usual environment variables (`AWS_*`, `GOOGLE_*`, `AZURE_*`).
    pub stores: BTreeMap<String, StoreConfig>,
    /// How long a listing of files may be reused. `0s`: every query lists anew and sees new, replaced and removed files at
    /// once. Raise it to some seconds when listing a bucket costs more than that is worth.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub list_ttl: Duration,
    /// Memory (bytes) for what is known about files: schemas, statistics, Parquet footers. Least recently used entries
    /// are dropped, and read again when asked for. Raise it when tables have many thousand files or columns.
    #[schemars(with = "String")]
    pub metadata_cache: ByteSize,
    /// Memory (bytes) for what is read from object stores before it is needed, such as `64MiB`: while one part of a file is
    /// decoded the next ones are on their way. One table has a quarter of it, and a query that reads it sets that aside.
    /// Unset = a 32nd of `engine.memory_limit`. `0B` reads nothing ahead. Raise it when stores are far away.
    #[schemars(with = "Option<String>")]
    pub prefetch_limit: Option<ByteSize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            stores: BTreeMap::new(),
            list_ttl: Duration::ZERO,
            metadata_cache: ByteSize::mib(128),
            prefetch_limit: None,
        }
    }
}

/// How one table is read. Everything that is not set is found out from names and contents of the files.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema, PartialEq, Hash)]
#[serde(default, deny_unknown_fields)]
pub struct TableConfig {
    /// Paths or URLs of files and folders; all their files together are the table. Over HTTP(S) each file is named, because
    /// a web server has no listing.
    pub location: Vec<String>,
    /// Which files of the folders belong to the table: a pattern with `*`, `?` and `**`, matched against the file name, or
    /// against the path below the folder when it contains a `/`. Unset: every file of the table's format.
    pub files: Option<String>,
    /// Format of the files. Unset: from the extension.
    pub format: Option<Format>,
    /// Compression of text files. Unset: from the extension (`.gz`, `.bz2`, `.xz`, `.zst`).
    pub compression: Option<Compression>,
    /// CSV: character between values. Unset: `,`, and tab for `.tsv`.
    pub delimiter: Option<char>,
    /// CSV: whether the first line names the columns. Unset: it does.
    pub header: Option<bool>,
    /// CSV: character around values. Unset: `"`.
    pub quote: Option<char>,
    /// CSV: character before a quote inside a quoted value. Unset: the quote is doubled.
    pub escape: Option<char>,
    /// CSV: lines that start with this character are skipped. Unset: none.
    pub comment: Option<char>,
    /// CSV: text that stands for NULL, besides the empty one.
    pub null: Option<String>,
    /// CSV: whether quoted values may contain line breaks. Such a file is read by one thread. Unset: found out from the
    /// beginning of the file; set it to `true` when a query says that a line break was found inside quotes later on.
    pub newlines_in_values: Option<bool>,
    /// Columns and their types, instead of those found in the files. Columns that a file does not have are NULL.
    pub columns: Vec<Column>,
    /// Columns from `key=value` folders and their types, instead of those guessed from the values.
    pub partition_columns: Vec<Column>,
    /// CSV and NDJSON: rows per file from which types are guessed. Raise it when a query fails on a later row that does not
    /// fit the guess, or set `columns`.
    pub infer_rows: usize,
}

impl Default for TableConfig {
    fn default() -> Self {
        Self {
            location: Vec::new(),
            files: None,
            format: None,
            compression: None,
            delimiter: None,
            header: None,
            quote: None,
            escape: None,
            comment: None,
            null: None,
            newlines_in_values: None,
            columns: Vec::new(),
            partition_columns: Vec::new(),
            infer_rows: 4096,
        }
    }
}

/// A column and its type.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// Name of the column, exactly as in the file.
    pub name: String,
    /// SQL type (`BIGINT`, `DECIMAL(10,2)`, `TIMESTAMP`) or Arrow type (`Int64`, `Utf8View`).
    #[serde(rename = "type")]
    pub data_type: String,
}

/// Format of a table's files.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Apache Parquet (`.parquet`, `.parq`).
    Parquet,
    /// Values separated by a character (`.csv`, `.tsv`).
    Csv,
    /// One JSON object per line (`.ndjson`, `.jsonl`, `.json`).
    Json,
    /// Arrow IPC, file or stream (`.arrow`, `.feather`, `.ipc`).
    Arrow,
    /// Apache Avro object containers (`.avro`).
    Avro,
}

/// Compression of a text file.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize, JsonSchema, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// Plain text.
    #[default]
    None,
    /// gzip (`.gz`).
    Gzip,
    /// bzip2 (`.bz2`).
    Bzip2,
    /// xz (`.xz`).
    Xz,
    /// Zstandard (`.zst`).
    Zstd,
}

/// Settings and credentials of one object store. What is not set is taken from the usual environment variables.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// The locations this entry is for: all that start with this URL, e.g. `s3://bucket`, `s3://bucket/team`, `https://host`.
    /// The longest match wins.
    pub url: String,
    /// Address of an S3-compatible, GCS-compatible or Azure-compatible server, e.g. `http://127.0.0.1:9000`.
    pub endpoint: Option<String>,
    /// S3: region of the bucket. Unset: `AWS_REGION`, else `us-east-1`.
    pub region: Option<String>,
    /// S3: id of the access key.
    pub access_key_id: Option<String>,
    /// S3: the secret access key.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub secret_access_key: Option<SecretString>,
    /// S3: session token of temporary credentials.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub session_token: Option<SecretString>,
    /// Azure: name of the storage account.
    pub account: Option<String>,
    /// Azure: access key of the storage account.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub key: Option<SecretString>,
    /// GCS: path of the JSON file of a service account.
    pub service_account_file: Option<String>,
    /// HTTP(S) and Azure: bearer token sent with each request.
    #[serde(skip_serializing)]
    #[schemars(with = "Option<String>", extend("x-secret" = true))]
    pub bearer_token: Option<SecretString>,
    /// Allow plain `http://` to this store. Only for servers on the same machine or a trusted network.
    pub allow_http: bool,
    /// S3: put the bucket into the host name (`bucket.host`) instead of the path.
    pub virtual_hosted_style: bool,
    /// Send no credentials; for public buckets.
    pub anonymous: bool,
    /// How long to wait for a connection.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub connect_timeout: Duration,
    /// How long one request may take. None asks for more than 8 MiB. Raise it for slow links.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub request_timeout: Duration,
    /// How many times a failed request is sent again. A store that stays away is reported after this.
    pub retries: usize,
    /// After how long no further retry is made.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "String")]
    pub retry_timeout: Duration,
    /// How many reads of this store run at the same time, and how many connections are kept open for them. Lower it when the
    /// store asks to slow down.
    pub connections: usize,
    /// After how long a read is sent a second time, when the first is not answered; the first answer counts. At most one read
    /// of 20 is sent twice. Unset = twice what nearly all of the last reads took. `0s` = never.
    #[serde(with = "humantime_serde")]
    #[schemars(with = "Option<String>")]
    pub hedge_after: Option<Duration>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            url: String::new(),
            endpoint: None,
            region: None,
            access_key_id: None,
            secret_access_key: None,
            session_token: None,
            account: None,
            key: None,
            service_account_file: None,
            bearer_token: None,
            allow_http: false,
            virtual_hosted_style: false,
            anonymous: false,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(15),
            retries: 3,
            retry_timeout: Duration::from_secs(20),
            connections: 32,
            hedge_after: None,
        }
    }
}

/// Of the memory of queries, what may be read ahead when the config does not say.
const PREFETCH_SHARE: u64 = 32;

impl Config {
    /// Bytes that may be read ahead, where queries have `memory`.
    pub fn prefetch_bytes(&self, memory: u64) -> u64 {
        self.prefetch_limit.map_or(memory / PREFETCH_SHARE, |limit| limit.0)
    }

    /// All that is wrong with the settings by themselves: key path below `catalog`, and what would be right. Whether
    /// locations exist is found out by [`Catalog::open`](crate::Catalog::open).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut problem = |key: String, text: &str| found.push((key, text.to_owned()));
        for (index, location) in self.data.iter().enumerate() {
            if location.trim().is_empty() {
                problem(format!("data[{index}]"), "is empty; give a path or a URL, or remove the entry");
            }
        }
        for (name, table) in &self.tables {
            if !is_table_name(name) {
                problem(format!("tables.{name}"), "is not a table name; use `name` or `schema.name`");
            }
            for (key, text) in table.problems() {
                problem(format!("tables.{name}.{key}"), &text);
            }
        }
        for (name, sql) in &self.views {
            if !is_table_name(name) {
                problem(format!("views.{name}"), "is not a view name; use `name` or `schema.name`");
            }
            if sql.trim().is_empty() {
                problem(format!("views.{name}"), "is empty; give the SQL text of a query");
            }
        }
        for (name, store) in &self.stores {
            match url::Url::parse(&store.url) {
                Ok(url) if crate::stores::is_store_scheme(url.scheme()) => {}
                _ => problem(
                    format!("stores.{name}.url"),
                    "is not the URL of a store; use s3://, gs://, az://, abfs://, http:// or https://",
                ),
            }
            if store.access_key_id.is_some() != store.secret_access_key.is_some() {
                problem(
                    format!("stores.{name}.secret_access_key"),
                    "access_key_id and secret_access_key belong together; set both or none",
                );
            }
            if store.connections == 0 {
                problem(format!("stores.{name}.connections"), "is 0; use 1 or more");
            }
            if store.endpoint.as_deref().is_some_and(|e| e.starts_with("http://")) && !store.allow_http {
                problem(format!("stores.{name}.endpoint"), "is plain http; use https, or set allow_http = true");
            }
        }
        found
    }
}

impl TableConfig {
    fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self.location.is_empty() {
            found.push(("location".to_owned(), "is missing; name the files or folders of the table".to_owned()));
        }
        let bytes =
            [("delimiter", self.delimiter), ("quote", self.quote), ("escape", self.escape), ("comment", self.comment)];
        for (key, value) in bytes {
            if value.is_some_and(|c| !c.is_ascii()) {
                found.push((key.to_owned(), "is not an ASCII character; use one, such as `;`".to_owned()));
            }
        }
        for (key, columns) in [("columns", &self.columns), ("partition_columns", &self.partition_columns)] {
            for (index, column) in columns.iter().enumerate() {
                if let Err(text) = types::parse(&column.data_type) {
                    found.push((format!("{key}[{index}].type"), text));
                }
                if columns[..index].iter().any(|other| other.name == column.name) {
                    found.push((format!("{key}[{index}].name"), "is there twice; remove one".to_owned()));
                }
            }
        }
        if self.infer_rows == 0 {
            found.push(("infer_rows".to_owned(), "is 0; use 1 or more".to_owned()));
        }
        found
    }
}

/// `name` or `schema.name`, both parts non-empty.
fn is_table_name(name: &str) -> bool {
    let (schema, table) = crate::split_name(name);
    !schema.is_empty() && !table.is_empty()
}
