//! The `.slt` files, each through two drivers that must give the same answers: the engine in this process, and
//! Flight SQL over a socket.
//!
//! `UPDRAFT_SLT_UPDATE=1` writes what the engine answers into the files, to be checked by hand. `UPDRAFT_SLT=joins`
//! runs the files with that in their name.
#![allow(clippy::unwrap_used)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::Schema;
use futures::TryStreamExt;
use sqllogictest::{AsyncDB, DBOutput, DefaultColumnType, Runner, strict_column_validator};
use tonic::transport::Channel;
use updraft_auth::Principal;
use updraft_engine::{Encoded, Engine, Part, Session, SessionId, Statement, Weight};
use updraft_server::Config;

use support::{Server, data, text};

/// What a driver says of a statement that fails: the same text over the wire and in the process.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

type Output = DBOutput<DefaultColumnType>;

fn output(schema: &Schema, batches: &[RecordBatch]) -> Output {
    if schema.fields().is_empty() {
        return DBOutput::StatementComplete(0);
    }
    DBOutput::Rows { types: text::column_types(schema), rows: text::rows(batches) }
}

/// The engine, asked as the front end asks it.
struct InProcess {
    engine: Arc<Engine>,
    session: Session,
}

struct Batch(RecordBatch);

impl Weight for Batch {
    fn weight(&self) -> usize {
        self.0.get_array_memory_size()
    }
}

impl InProcess {
    async fn query(&self, sql: &str) -> Result<Output, updraft_engine::Error> {
        // The session's settings are looked up with each statement, as for each call.
        let session = self.engine.session(self.session.id, &self.session.principal);
        let planned = self.engine.plan(&session, Statement::Sql(sql.into()), None).await?;
        let schema = Arc::clone(planned.schema());
        let stream = self.engine.run(&session, planned, Part::Whole, None, |batches| {
            Encoded::in_turn(batches.map_ok(Batch).map_err(updraft_engine::Error::from))
        })?;
        let batches: Vec<RecordBatch> = stream.map_ok(|Batch(batch)| batch).try_collect().await?;
        for batch in &batches {
            assert_eq!(batch.schema_ref(), &schema, "the plan announced another schema");
        }
        Ok(output(&schema, &batches))
    }
}

#[async_trait::async_trait]
impl AsyncDB for InProcess {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<Output, Failed> {
        self.query(sql).await.map_err(|error| Failed(error.to_string()))
    }

    async fn shutdown(&mut self) {
        self.engine.close_session(&self.session);
    }
}

/// arrow-flight's client, on a connection of its own.
struct OverFlight {
    client: FlightSqlServiceClient<Channel>,
}

impl OverFlight {
    async fn query(&mut self, sql: &str) -> Result<Output, Failed> {
        let failed = |error: FlightError| match error {
            FlightError::Tonic(status) => Failed(status.message().to_owned()),
            other => Failed(other.to_string()),
        };
        let info = self.client.execute(sql.to_owned(), None).await.map_err(failed)?;
        let announced = info.clone().try_decode_schema().unwrap();
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let stream = self.client.do_get(ticket).await.map_err(failed)?;
        let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(failed)?;
        for batch in &batches {
            assert_eq!(batch.schema_ref().fields(), announced.fields(), "FlightInfo announced another schema");
        }
        Ok(output(&announced, &batches))
    }
}

#[async_trait::async_trait]
impl AsyncDB for OverFlight {
    type Error = Failed;
    type ColumnType = DefaultColumnType;

    async fn run(&mut self, sql: &str) -> Result<Output, Failed> {
        self.query(sql).await
    }

    async fn shutdown(&mut self) {}
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("slt");
    let wanted = std::env::var("UPDRAFT_SLT").unwrap_or_default();
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "slt"))
        .filter(|path| path.to_str().unwrap().contains(&wanted))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no .slt file has {wanted:?} in its name");
    files
}

/// What is set before the files run.
type Set = fn(&mut Config);

/// With tables read from their files, with the cache of hot tables, and with the smallest budget there is. A statement
/// that does not apply says so by that label: `skipif hot`.
const WAYS: [(&str, Set); 3] = [
    ("cold", |config| config.hot.memory_limit = Some("0B".parse().unwrap())),
    ("hot", |_| {}),
    ("little", |config| {
        config.hot.memory_limit = Some("0B".parse().unwrap());
        config.engine.memory_limit = Some("16MiB".parse().unwrap());
    }),
];

#[test]
fn same_files_same_answers() {
    support::run(async {
        let mut failures = Vec::new();
        for (label, change) in WAYS {
            failures.extend(check(label, change).await);
        }
        assert!(failures.is_empty(), "{} failures\n{}", failures.len(), failures.join("\n\n"));
    });
}

async fn check(label: &str, change: fn(&mut Config)) -> Vec<String> {
    let server = Server::start(data::folder(), |config| {
        config.catalog.views = data::VIEWS.iter().map(|(name, sql)| ((*name).to_owned(), (*sql).to_owned())).collect();
        change(config);
    })
    .await;
    let mut failures = Vec::new();
    for file in files() {
        let mut in_process = Runner::new(|| async {
            let id = SessionId(rand_id());
            let session = server.running.engine().session(id, &Principal::anonymous());
            Ok(InProcess { engine: Arc::clone(server.running.engine()), session })
        });
        in_process.with_column_validator(strict_column_validator);
        if std::env::var_os("UPDRAFT_SLT_UPDATE").is_some() {
            let update = in_process.update_test_file(
                &file,
                " ",
                sqllogictest::default_validator,
                sqllogictest::default_normalizer,
                strict_column_validator,
            );
            update.await.unwrap();
            continue;
        }
        let mut over_flight = Runner::new(|| async { Ok(OverFlight { client: server.client().await }) });
        over_flight.with_column_validator(strict_column_validator);
        in_process.add_label(label);
        over_flight.add_label(label);
        let name = format!("{} {label}", file.file_name().unwrap().to_str().unwrap());
        if let Err(error) = in_process.run_file_async(&file).await {
            failures.push(format!("{name}, in process: {}", error.display(false)));
        }
        if let Err(error) = over_flight.run_file_async(&file).await {
            failures.push(format!("{name}, over Flight: {}", error.display(false)));
        }
    }
    assert_eq!(server.running.engine().running(), 0);
    assert_eq!(server.running.engine().memory_reserved(), 0);
    server.running.stop().await.unwrap();
    failures
}

fn rand_id() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let mut id = [0; 16];
    id[8..].copy_from_slice(&NEXT.fetch_add(1, Ordering::Relaxed).to_be_bytes());
    id
}
