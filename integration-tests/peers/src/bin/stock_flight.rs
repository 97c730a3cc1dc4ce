//! Tables in memory behind arrow-flight and tonic as they come: `stock_flight FOLDER`.
//!
//! A statement is not SQL but a [`Wanted`] as JSON; each of its parts is an endpoint.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::path::PathBuf;

use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_server::{FlightService, FlightServiceServer};
use arrow_flight::sql::server::FlightSqlService;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt, SqlInfo, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use futures::{StreamExt, TryStreamExt, stream};
use prost::Message;
use serde::{Deserialize, Serialize};
use tonic::transport::server::{Server, TcpIncoming};
use tonic::{Request, Response, Status};

/// As tables are held. Larger than any batch that is asked for.
const ROWS_PER_BATCH: usize = 65_536;

/// What a client asks for, and what a ticket says.
#[derive(Clone, Serialize, Deserialize)]
struct Wanted {
    table: String,
    /// All columns unless given.
    columns: Option<Vec<String>>,
    batch_rows: usize,
    /// Endpoints that share the batches.
    parts: usize,
    #[serde(default)]
    part: usize,
}

struct Stock {
    tables: HashMap<String, Vec<RecordBatch>>,
}

impl Stock {
    /// The chosen columns of one part, not yet cut, and their schema.
    fn batches(&self, wanted: &Wanted) -> Result<(SchemaRef, Vec<RecordBatch>), Status> {
        let batches = self.tables.get(&wanted.table).ok_or_else(|| Status::not_found(wanted.table.clone()))?;
        let chosen = |batch: &RecordBatch| {
            let Some(names) = &wanted.columns else { return Ok(batch.clone()) };
            let schema = batch.schema();
            batch.project(&names.iter().map(|name| schema.index_of(name)).collect::<Result<Vec<_>, _>>()?)
        };
        let all = batches
            .iter()
            .map(chosen)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let schema = all.first().ok_or_else(|| Status::not_found("no rows"))?.schema();
        Ok((schema, all.into_iter().skip(wanted.part).step_by(wanted.parts.max(1)).collect()))
    }
}

#[tonic::async_trait]
impl FlightSqlService for Stock {
    type FlightService = Self;

    async fn get_flight_info_statement(
        &self,
        query: CommandStatementQuery,
        request: Request<FlightDescriptor>,
    ) -> Result<Response<FlightInfo>, Status> {
        let wanted: Wanted = read(query.query.as_bytes())?;
        let (schema, _) = self.batches(&wanted)?;
        let info = FlightInfo::new().try_with_schema(&schema).map_err(|error| Status::internal(error.to_string()))?;
        let info = (0..wanted.parts).fold(info.with_descriptor(request.into_inner()), |info, part| {
            let handle = serde_json::to_vec(&Wanted { part, ..wanted.clone() }).expect("plain fields are JSON");
            let ticket = TicketStatementQuery { statement_handle: handle.into() };
            info.with_endpoint(FlightEndpoint::new().with_ticket(Ticket::new(ticket.as_any().encode_to_vec())))
        });
        Ok(Response::new(info))
    }

    async fn do_get_statement(
        &self,
        ticket: TicketStatementQuery,
        _: Request<Ticket>,
    ) -> Result<Response<<Self as FlightService>::DoGetStream>, Status> {
        let wanted: Wanted = read(&ticket.statement_handle)?;
        let (schema, batches) = self.batches(&wanted)?;
        let rows = wanted.batch_rows;
        let cut = move |batch: RecordBatch| {
            (0..batch.num_rows()).step_by(rows).map(move |at| batch.slice(at, rows.min(batch.num_rows() - at)))
        };
        let batches = stream::iter(batches.into_iter().flat_map(cut).map(Ok::<_, FlightError>));
        let encoded = FlightDataEncoderBuilder::new().with_schema(schema).build(batches);
        Ok(Response::new(encoded.map_err(Status::from).boxed()))
    }

    async fn register_sql_info(&self, _: i32, _: &SqlInfo) {}
}

fn read(text: &[u8]) -> Result<Wanted, Status> {
    serde_json::from_slice(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("stock_flight FOLDER")?.into();
    let mut tables = HashMap::new();
    for (name, path) in updraft_peers::tables(&folder)? {
        let reader =
            ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?.with_batch_size(ROWS_PER_BATCH).build()?;
        tables.insert(name, reader.collect::<Result<Vec<_>, _>>()?);
    }
    let incoming = TcpIncoming::from(updraft_peers::listen().await?).with_nodelay(Some(true));
    Server::builder().add_service(FlightServiceServer::new(Stock { tables })).serve_with_incoming(incoming).await?;
    Ok(())
}
