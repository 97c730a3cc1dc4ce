//! Locations: what a configured path or URL points at, and the store that answers for it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::client::SpawnedReqwestConnector;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::http::HttpBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, HeaderMap, HeaderValue, ObjectStore, RetryConfig};
use parking_lot::Mutex;
use secrecy::ExposeSecret;
use tokio::runtime::Handle;
use url::Url;

use crate::config::StoreConfig;
use crate::error::Error;
use crate::requests::{Requests, StoreFigures};

/// One configured location, opened. Files are named by their path below it.
#[derive(Debug)]
pub(crate) struct Root {
    /// Unique within the catalog; part of the identity of its files.
    pub(crate) id: u32,
    /// As configured; for messages.
    pub(crate) location: String,
    pub(crate) backend: Backend,
}

/// Who answers for a location.
#[derive(Debug)]
pub(crate) enum Backend {
    /// A folder or file of this machine, absolute.
    Local {
        path: PathBuf,
        /// The file system does not say what the kernel holds of a file, as those of other machines do not.
        mute: AtomicBool,
    },
    /// Objects below a prefix.
    Remote {
        store: Arc<dyn ObjectStore>,
        prefix: Path,
        /// Shared by all locations of one bucket.
        requests: Arc<Requests>,
        /// Whether the store can list: a plain web server can not.
        lists: bool,
    },
}

impl Root {
    /// Where the file or folder `rel` is, for messages.
    pub(crate) fn display(&self, rel: &str) -> String {
        if rel.is_empty() { self.location.clone() } else { format!("{}/{rel}", self.location.trim_end_matches('/')) }
    }

    /// Last part of the location: the name of a root that is a table itself.
    pub(crate) fn name(&self) -> &str {
        let trimmed = self.location.trim_end_matches('/');
        trimmed.rsplit('/').next().unwrap_or(trimmed)
    }
}

/// Schemes of the stores that can be reached.
pub(crate) fn is_store_scheme(scheme: &str) -> bool {
    matches!(scheme, "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" | "http" | "https")
}

/// Opens locations. Those of one bucket share a client, and with it its connections.
#[derive(Debug)]
pub(crate) struct Stores {
    configs: BTreeMap<String, StoreConfig>,
    io: Handle,
    opened: Mutex<Opened>,
}

/// A bucket or web server, and what is asked of it.
type Client = (Arc<dyn ObjectStore>, Arc<Requests>);

#[derive(Debug, Default)]
struct Opened {
    /// Clients by bucket URL and entry of the settings.
    clients: BTreeMap<(String, Option<String>), Client>,
    roots: BTreeMap<String, Arc<Root>>,
}

impl Stores {
    pub(crate) fn new(configs: BTreeMap<String, StoreConfig>, io: Handle) -> Self {
        Self { configs, io, opened: Mutex::default() }
    }

    /// What was asked of each bucket, by its URL.
    pub(crate) fn figures(&self) -> Vec<(String, StoreFigures)> {
        let opened = self.opened.lock();
        opened.clients.iter().map(|((bucket, _), (_, requests))| (bucket.clone(), requests.figures())).collect()
    }

    /// The root for a path or URL. Nothing is asked of the store yet.
    pub(crate) fn root(&self, location: &str) -> Result<Arc<Root>, Error> {
        let mut opened = self.opened.lock();
        if let Some(root) = opened.roots.get(location) {
            return Ok(root.clone());
        }
        let backend = self.backend(location, &mut opened)?;
        let id = u32::try_from(opened.roots.len()).map_err(|_| wrong(location, "too many locations"))?;
        let root = Arc::new(Root { id, location: location.to_owned(), backend });
        opened.roots.insert(location.to_owned(), root.clone());
        Ok(root)
    }

    fn backend(&self, location: &str, opened: &mut Opened) -> Result<Backend, Error> {
        if !location.contains("://") {
            let path = std::path::absolute(location).map_err(|e| wrong(location, &format!("is not a path: {e}")))?;
            return Ok(Backend::Local { path, mute: AtomicBool::new(false) });
        }
        let url = Url::parse(location).map_err(|e| wrong(location, &format!("is not a URL: {e}")))?;
        if url.scheme() == "file" {
            let path = url.to_file_path().map_err(|()| wrong(location, "is not a path of this machine"))?;
            return Ok(Backend::Local { path, mute: AtomicBool::new(false) });
        }
        if !is_store_scheme(url.scheme()) {
            return Err(wrong(
                location,
                "has an unknown scheme; use a path, or file://, s3://, gs://, az://, abfs://, http:// or https://",
            ));
        }
        if !url.username().is_empty() && url.scheme() != "abfss" && url.scheme() != "abfs" || url.password().is_some() {
            return Err(wrong("(hidden)", "holds a credential; put it into a section catalog.stores.<name>"));
        }
        let prefix = Path::from_url_path(url.path()).map_err(|e| wrong(location, &format!("has a bad path: {e}")))?;
        let config = self
            .configs
            .iter()
            .filter(|(_, store)| is_below(location, &store.url))
            .max_by_key(|(_, store)| store.url.len());
        let lists = !matches!(url.scheme(), "http" | "https");
        let bucket = url[..url::Position::BeforePath].to_owned();
        let key = (bucket.clone(), config.map(|(name, _)| name.clone()));
        let (store, requests) = match opened.clients.get(&key) {
            Some(client) => client.clone(),
            None => {
                let default = StoreConfig::default();
                let config = config.map_or(&default, |(_, store)| store);
                let store = client(&url, &bucket, config, &self.io)
                    .map_err(|e| wrong(location, &format!("can not be used: {e}")))?;
                let requests = Arc::new(Requests::new(config.connections, config.hedge_after));
                opened.clients.insert(key, (store.clone(), requests.clone()));
                (store, requests)
            }
        };
        Ok(Backend::Remote { store, prefix, requests, lists })
    }
}

/// Whether `location` is `base` or below it: `s3://bucket-2` is not below `s3://bucket`.
fn is_below(location: &str, base: &str) -> bool {
    let base = base.trim_end_matches('/');
    location.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn wrong(location: &str, problem: &str) -> Error {
    Error::Location { location: location.to_owned(), problem: problem.to_owned() }
}

/// The client of one bucket. Its requests run on the I/O runtime, whoever asks, so that a query that keeps the CPU runtime
/// busy does not starve the network.
fn client(url: &Url, bucket: &str, config: &StoreConfig, io: &Handle) -> object_store::Result<Arc<dyn ObjectStore>> {
    let connector = SpawnedReqwestConnector::new(io.clone());
    let retry =
        RetryConfig { max_retries: config.retries, retry_timeout: config.retry_timeout, ..RetryConfig::default() };
    let mut options = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(config.connect_timeout)
        .with_pool_max_idle_per_host(config.connections)
        .with_timeout(config.request_timeout);
    Ok(match url.scheme() {
        "s3" | "s3a" => {
            let mut builder = AmazonS3Builder::from_env()
                .with_url(bucket)
                .with_virtual_hosted_style_request(config.virtual_hosted_style)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(connector);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint);
            }
            if let Some(region) = &config.region {
                builder = builder.with_region(region);
            }
            if let (Some(id), Some(secret)) = (&config.access_key_id, &config.secret_access_key) {
                builder = builder.with_access_key_id(id).with_secret_access_key(secret.expose_secret());
            }
            if let Some(token) = &config.session_token {
                builder = builder.with_token(token.expose_secret());
            }
            if config.anonymous {
                builder = builder.with_skip_signature(true);
            }
            Arc::new(builder.build()?)
        }
        "gs" => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_url(bucket)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(connector);
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_base_url(endpoint);
            }
            if let Some(file) = &config.service_account_file {
                builder = builder.with_service_account_path(file);
            }
            if config.anonymous {
                builder = builder.with_skip_signature(true);
            }
            Arc::new(builder.build()?)
        }
        "http" | "https" => {
            if let Some(token) = &config.bearer_token {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose_secret())).map_err(|_| {
                    object_store::Error::Generic { store: "HTTP", source: "bearer_token is not a header value".into() }
                })?;
                value.set_sensitive(true);
                let mut headers = HeaderMap::new();
                headers.insert("authorization", value);
                options = options.with_default_headers(headers);
            }
            // The scheme is written out in the location, which is word enough for a plain web server.
            let options = options.with_allow_http(true);
            let builder = HttpBuilder::new().with_url(bucket).with_client_options(options).with_retry(retry);
            Arc::new(builder.with_http_connector(connector).build()?)
        }
        _ => {
            let mut builder = MicrosoftAzureBuilder::from_env()
                .with_url(bucket)
                .with_client_options(options)
                .with_retry(retry)
                .with_http_connector(connector);
            if let Some(account) = &config.account {
                builder = builder.with_account(account);
            }
            if let Some(key) = &config.key {
                builder = builder.with_access_key(key.expose_secret());
            }
            if let Some(token) = &config.bearer_token {
                builder = builder.with_bearer_token_authorization(token.expose_secret());
            }
            if let Some(endpoint) = &config.endpoint {
                builder = builder.with_endpoint(endpoint.clone());
            }
            if config.anonymous {
                builder = builder.with_skip_signature(true);
            }
            Arc::new(builder.build()?)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_store_wins_and_bucket_names_are_whole() {
        assert!(is_below("s3://bucket/a", "s3://bucket"));
        assert!(is_below("s3://bucket", "s3://bucket/"));
        assert!(!is_below("s3://bucket-2/a", "s3://bucket"));
    }

    #[tokio::test]
    async fn credentials_in_a_location_are_refused_and_not_repeated() {
        let stores = Stores::new(BTreeMap::new(), Handle::current());
        for location in ["https://user:canary@host/a.csv", "s3://canary:x@bucket/a", "ftp://host/a"] {
            let error = stores.root(location).expect_err(location).to_string();
            assert!(!error.contains("canary"), "{error}");
        }
    }
}
