//! `updraft query`: one statement, its rows on standard output.
//!
//! - this file: connect, run, stream, cancel
//! - [`output`]: rows as a table, CSV, JSON, Arrow or Parquet
//! - [`progress`]: the line on standard error
//!
//! Rows are written as they arrive. Never: a result held in memory, but for the first rows of a table.

pub mod output;
mod progress;

use std::path::PathBuf;
use std::time::Duration;

use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::{Action, CancelFlightInfoRequest, FlightInfo, Ticket};
use datafusion::arrow::error::ArrowError;
use futures::{StreamExt, TryStreamExt};
use prost::Message;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{IntoRequest, Request};

use self::output::{Format, Output};
use self::progress::Progress;

/// How long a server may take to accept a connection, and to confirm a cancellation.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where to connect, and as whom.
#[derive(Debug, Clone)]
pub struct Target {
    /// `grpc://host:port`, or `grpc+tls://host:port`.
    pub uri: String,
    /// User and password for Basic login.
    pub login: Option<(String, String)>,
    /// A bearer token, instead of a login.
    pub token: Option<String>,
    /// A file of certificates, in PEM, that may have signed the server's. None: those of the system.
    pub ca: Option<PathBuf>,
}

/// What to run and how to write its rows.
#[derive(Debug, Clone)]
pub struct Job {
    /// The statement.
    pub sql: String,
    /// How rows are written.
    pub format: Format,
    /// A file for the rows; standard output when there is none.
    pub output: Option<PathBuf>,
    /// A table shows at most this many rows.
    pub table_rows_max: usize,
}

/// How a query ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// All rows are written, or the reader of the output has gone and wants no more.
    Complete,
    /// Ctrl-C; the server was asked to cancel.
    Interrupted,
}

/// Why a query failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address cannot be read.
    #[error("`{0}` is not an address; write it as `grpc://127.0.0.1:32010` or `grpc+tls://host:32010`")]
    Uri(String),
    /// The file with certificates cannot be read.
    #[error("read certificates {path}: {source}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// Nobody answers there, or TLS fails.
    #[error("connect to {uri}: {reason}; hint: is `updraft serve` running there?")]
    Connect {
        /// The address.
        uri: String,
        /// The innermost reason.
        reason: String,
    },
    /// The server refused or failed; its message says why.
    #[error("{code}: {message}")]
    Server {
        /// Name of the gRPC code.
        code: String,
        /// What the server says.
        message: String,
    },
    /// The server sent something that is no answer to a query.
    #[error("the server's answer cannot be used: {0}")]
    Answer(String),
    /// Rows cannot be written.
    #[error("write the result: {0}")]
    Write(#[source] ArrowError),
    /// The format is binary and would go to a terminal.
    #[error("{0} is binary and would garble the terminal; hint: --output FILE, or pipe it into a program")]
    Terminal(&'static str),
}

impl From<tonic::Status> for Error {
    fn from(status: tonic::Status) -> Self {
        Self::Server { code: format!("{:?}", status.code()), message: status.message().to_owned() }
    }
}

impl From<FlightError> for Error {
    fn from(error: FlightError) -> Self {
        match error {
            FlightError::Tonic(status) => (*status).into(),
            FlightError::Arrow(ArrowError::IpcError(message)) => Self::Answer(message),
            other => Self::Answer(other.to_string()),
        }
    }
}

type Client = FlightSqlServiceClient<Channel>;

/// Runs `job` at `target`. Ends early, and cancels the query at the server, on Ctrl-C.
///
/// # Errors
/// Everything between the address and the disk, see [`Error`].
pub async fn run(target: &Target, job: &Job) -> Result<End, Error> {
    let mut output = Output::open(job)?;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    // While it connects and plans there is nothing at the server that outlives the connection.
    let (mut client, info) = tokio::select! {
        planned = plan(target, &job.sql) => planned?,
        _ = &mut interrupt => return Ok(End::Interrupted),
    };
    let fetched = tokio::select! {
        fetched = fetch(&mut client, &info, &mut output) => Some(fetched),
        _ = &mut interrupt => None,
    };
    match fetched {
        Some(Ok(())) => {}
        // `updraft query ... | head`: the reader has seen enough. Dropping the stream has cancelled the query.
        Some(Err(Error::Write(error))) if is_broken_pipe(&error) => return Ok(End::Complete),
        Some(Err(error)) => return Err(error),
        None => {
            cancel(&mut client, info).await;
            return Ok(End::Interrupted);
        }
    }
    match output.finish() {
        Err(error) if is_broken_pipe(&error) => Ok(End::Complete),
        finished => finished.map(|()| End::Complete).map_err(Error::Write),
    }
}

async fn plan(target: &Target, sql: &str) -> Result<(Client, FlightInfo), Error> {
    let channel = connect(target).await?;
    // Batches may be larger than the 4 MiB that a client takes by default.
    let inner = FlightServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut client = FlightSqlServiceClient::new_from_inner(inner);
    if let Some(token) = &target.token {
        client.set_token(token.clone());
    } else if let Some((user, password)) = &target.login {
        client.handshake(user, password).await?;
    }
    let info = client.execute(sql.to_owned(), None).await?;
    Ok((client, info))
}

async fn connect(target: &Target) -> Result<Channel, Error> {
    let uri = &target.uri;
    let (scheme, address) = uri.split_once("://").ok_or_else(|| Error::Uri(uri.clone()))?;
    let tls = match scheme {
        "grpc" | "grpc+tcp" | "http" => false,
        "grpc+tls" | "grpcs" | "https" => true,
        _ => return Err(Error::Uri(uri.clone())),
    };
    let http = format!("{}://{address}", if tls { "https" } else { "http" });
    let mut endpoint =
        Endpoint::from_shared(http).map_err(|_| Error::Uri(uri.clone()))?.connect_timeout(CONNECT_TIMEOUT);
    let failed = |error: tonic::transport::Error| Error::Connect { uri: uri.clone(), reason: innermost(&error) };
    if tls {
        let mut config = ClientTlsConfig::new();
        if target.ca.is_none() {
            config = config.with_native_roots();
        }
        if let Some(path) = &target.ca {
            let pem = std::fs::read(path).map_err(|source| Error::Certificates { path: path.clone(), source })?;
            config = config.ca_certificate(Certificate::from_pem(pem));
        }
        endpoint = endpoint.tls_config(config).map_err(failed)?;
    }
    endpoint.connect().await.map_err(failed)
}

/// The wrappers of an error of the transport say no more than "transport error"; the last cause is the reason.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn fetch(client: &mut Client, info: &FlightInfo, output: &mut Output) -> Result<(), Error> {
    let mut progress = Progress::new(output.is_terminal());
    for endpoint in &info.endpoint {
        // Locations, when there are any, name this server: it answers every ticket itself.
        let ticket = endpoint.ticket.clone().ok_or_else(|| Error::Answer("an endpoint has no ticket".to_owned()))?;
        let mut rows = rows(client, ticket, &progress).await?;
        while let Some(batch) = rows.try_next().await? {
            progress.add_rows(batch.num_rows());
            if !output.write(&batch).map_err(Error::Write)? {
                return Ok(());
            }
        }
        if let Some(schema) = rows.schema() {
            output.begin(schema).map_err(Error::Write)?;
        }
    }
    Ok(())
}

/// The rows behind a ticket. The SQL client's own `do_get` hides the messages, whose sizes the progress line shows.
async fn rows(client: &mut Client, ticket: Ticket, progress: &Progress) -> Result<FlightRecordBatchStream, Error> {
    let mut request: Request<Ticket> = ticket.into_request();
    if let Some(token) = client.token() {
        let bearer = format!("Bearer {token}")
            .parse()
            .map_err(|_| Error::Answer("the token cannot stand in a header".to_owned()))?;
        request.metadata_mut().insert("authorization", bearer);
    }
    let messages = client.inner_mut().do_get(request).await?.into_inner();
    let bytes = progress.bytes();
    let counted = messages.map(move |message| {
        let message = message.map_err(FlightError::from)?;
        bytes.add(message.data_header.len() + message.data_body.len());
        Ok(message)
    });
    Ok(FlightRecordBatchStream::new_from_flight_data(counted))
}

/// Asks the server to cancel. It does so too when the connection ends, so a failure here is no news.
async fn cancel(client: &mut Client, info: FlightInfo) {
    let body = CancelFlightInfoRequest { info: Some(info) }.encode_to_vec();
    let cancelled = async {
        let mut results = client.do_action(Action::new("CancelFlightInfo", body)).await?;
        results.message().await.map_err(FlightError::from)
    };
    let _ = tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await;
}

fn is_broken_pipe(error: &ArrowError) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return true;
        }
        cause = error.source();
    }
    // The encoders of some formats keep the text of the system's error, not the error.
    matches!(error, ArrowError::IoError(_, source) if source.kind() == std::io::ErrorKind::BrokenPipe)
        || error.to_string().contains("Broken pipe")
}
