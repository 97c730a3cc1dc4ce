//! Queries: statements, Substrait plans and prepared statements, from FlightInfo to the last batch.

use std::sync::Arc;

use arrow_flight::sql::{ProstMessageExt, TicketStatementQuery};
use arrow_flight::{FlightDescriptor, FlightEndpoint, FlightInfo, Ticket};
use bytes::Bytes;
use datafusion::arrow::datatypes::{Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderName, HeaderValue};
use prost::Message as _;
use tonic::Status;
use updraft_engine::{Encoded, Error, Part, Planned, PreparedHandle, QueryId, Report, Statement, Unencoded, Weight};
use updraft_proto::v1;
use updraft_proto::v1::ticket::Statement as Kept;

use crate::answer::Answer;
use crate::call::Call;
use crate::server::Server;
use crate::status::{answer_failed, status};
use crate::ticket;
use crate::transport::Patience;
use crate::wire::{
    Encoder, Gathered, Message, WireError, WireOptions, schema_bytes, wire_schema, with_column_metadata,
};

/// Rows and bytes of a result are not known before it ran.
const UNKNOWN: i64 = -1;

/// What is in a message that is compressed: four of them are encoded side by side within `engine.stream_buffer` as it is.
const COMPRESSED_MAX: usize = 256 << 10;

/// What the statement may take in all tickets of one answer: it is in each, and many clients take messages of 4 MiB at most.
const TICKETS_BYTES: usize = 1 << 20;

/// What to run.
pub(crate) enum Runnable {
    Statement(Statement),
    Prepared(PreparedHandle),
}

/// The schema of `planned` as the client sees it, in FlightInfo and on the stream.
pub(crate) fn announced(schema: &Schema, wire: &WireOptions) -> SchemaRef {
    let schema = wire_schema(schema, wire);
    Arc::new(with_column_metadata(&schema, None, None, None))
}

/// Plans, and says how to fetch the result. Nothing runs.
///
/// # Errors
/// The engine's.
pub(crate) async fn info(
    server: &Server,
    call: &Call,
    runnable: Runnable,
    descriptor: FlightDescriptor,
) -> Result<FlightInfo, Status> {
    let (planned, statement) = plan(server, call, runnable).await?;
    let schema = announced(planned.schema(), &call.wire);
    let bytes = statement.as_ref().map_or(0, Kept::encoded_len);
    let parts_max = (TICKETS_BYTES / bytes.max(1)).clamp(1, call.wire.endpoints as usize);
    let parts = server.engine.split(&planned, parts_max).await.map_err(status)?;
    let whole = v1::Ticket {
        query: planned.id().as_bytes().to_vec(),
        principal: planned.principal().name().to_owned(),
        statement,
        snapshots: planned.snapshots(),
        schema: fingerprint(&schema),
        settings: planned.settings().fingerprint(),
        wire: call.wire.to_string(),
        ..v1::Ticket::default()
    };
    let ttl = server.engine.ticket_ttl();
    let expected = expected(&planned);
    let endpoint = |ticket: v1::Ticket| FlightEndpoint {
        ticket: Some(query_ticket(ticket::seal(&server.sealer, ticket, ttl))),
        // Empty: fetch it where you asked. Every client understands that.
        location: Vec::new(),
        // A part is fetched once; the whole may be fetched again until then.
        expiration_time: (parts == 1).then(|| ticket::expiry(ttl)),
        app_metadata: expected.clone(),
    };
    let endpoint = if parts == 1 {
        vec![endpoint(whole)]
    } else {
        let part = |part| v1::Ticket { part, parts: parts as u32, ..whole.clone() };
        (0..parts as u32).map(|index| endpoint(part(index))).collect()
    };
    Ok(FlightInfo {
        schema: schema_bytes(&schema).map_err(answer_failed)?,
        flight_descriptor: Some(descriptor),
        endpoint,
        total_records: UNKNOWN,
        total_bytes: UNKNOWN,
        ordered: parts == 1,
        app_metadata: Bytes::from(planned.id().to_string()),
    })
}

/// The schema alone.
///
/// # Errors
/// The engine's.
pub(crate) async fn schema(server: &Server, call: &Call, runnable: Runnable) -> Result<SchemaRef, Status> {
    let (planned, _) = plan(server, call, runnable).await?;
    Ok(announced(planned.schema(), &call.wire))
}

/// Runs what a ticket of [`info`] names.
///
/// # Errors
/// As `ticket::open`; FAILED_PRECONDITION when the query would not give what was announced.
pub(crate) async fn fetch(server: &Server, call: &Call, sealed: &[u8]) -> Result<Answer, Status> {
    let ticket = ticket::open(&server.sealer, sealed, &call.session.principal)?;
    let damaged = || Status::invalid_argument("the ticket is damaged");
    let wire: WireOptions = ticket.wire.parse().map_err(|_| damaged())?;
    let id = QueryId::from_bytes(&ticket.query).ok_or_else(damaged)?;
    let statement = match ticket.statement {
        Some(Kept::Sql(sql)) => Some(Statement::Sql(sql.into())),
        Some(Kept::Substrait(plan)) => Some(Statement::Substrait(plan.into())),
        // What is bound is on the server only, in the planned query.
        Some(Kept::Prepared(_)) | None => None,
    };
    let planned = server.engine.replan(id, &call.session, statement, call.deadline).await.map_err(status)?;
    let schema = announced(planned.schema(), &wire);
    // Only a query that was planned again can differ: the one that is kept is the one that was announced.
    if planned.snapshots() != ticket.snapshots || fingerprint(&schema) != ticket.schema {
        return Err(status(Error::Stale("a table changed since this query was planned; run it again".to_owned())));
    }
    let part = if ticket.parts == 0 { Part::Whole } else { Part::One { index: ticket.part } };
    stream(server, call, planned, schema, &wire, part).await
}

/// Plans and runs at once, for clients that put a command into a ticket.
///
/// # Errors
/// The engine's.
pub(crate) async fn run(server: &Server, call: &Call, runnable: Runnable) -> Result<Answer, Status> {
    let (planned, _) = plan(server, call, runnable).await?;
    let schema = announced(planned.schema(), &call.wire);
    stream(server, call, planned, schema, &call.wire, Part::Whole).await
}

async fn plan(server: &Server, call: &Call, runnable: Runnable) -> Result<(Arc<Planned>, Option<Kept>), Status> {
    let engine = &server.engine;
    match runnable {
        Runnable::Statement(statement) => {
            let kept = match &statement {
                Statement::Sql(sql) => Kept::Sql(sql.to_string()),
                Statement::Substrait(plan) => Kept::Substrait(plan.to_vec()),
            };
            let planned = engine.plan(&call.session, statement, call.deadline).await.map_err(status)?;
            Ok((planned, Some(kept)))
        }
        Runnable::Prepared(handle) => {
            let prepared = engine.prepared(handle, &call.session).map_err(status)?;
            let planned = engine.plan_prepared(&call.session, prepared, call.deadline).await.map_err(status)?;
            Ok((planned, Some(Kept::Prepared(handle.as_bytes().to_vec()))))
        }
    }
}

async fn stream(
    server: &Server,
    call: &Call,
    planned: Arc<Planned>,
    schema: SchemaRef,
    wire: &WireOptions,
    part: Part,
) -> Result<Answer, Status> {
    let message_size = match wire.compression {
        Some(_) => server.message_size.min(COMPRESSED_MAX),
        None => server.message_size,
    };
    let encoder = Encoder::new(schema, wire, message_size).map_err(|error| status(failed(error)))?;
    let rows_max = planned.settings().batch_size;
    let results = server
        .engine
        .run(&call.session, planned, part, call.deadline, move |batches| encoded(encoder, batches, rows_max))
        .map_err(status)?
        .begun()
        .await;
    let (usage, patience) = (results.usage(), Patience::after(results.idle_timeout()));
    let answer = Answer::new(results.map_err(status)).with_patience(patience);
    Ok(answer.followed_by(move || resources(&usage.report())))
}

/// Messages of `batches`, the schema first. Runs on the CPU runtime.
fn encoded(encoder: Encoder, batches: SendableRecordBatchStream, rows_max: usize) -> Encoded<Message> {
    let schema = encoder.schema();
    let encoder = Arc::new(encoder);
    let cutter = Arc::clone(&encoder);
    let pieces = Gathered::new(batches, encoder.wire_schema(), rows_max).map(move |batch| {
        let pieces = cutter.cut(&batch?).map_err(failed)?;
        Ok::<_, Error>(stream::iter(pieces.into_iter().map(Ok)))
    });
    let pieces = pieces.try_flatten();
    if encoder.goes_side_by_side() {
        let parts = pieces.map_ok(move |piece| {
            let encoder = Arc::clone(&encoder);
            Unencoded::new(piece.bytes, move || {
                let messages = encoder.piece(&piece).map_err(failed)?;
                Ok(messages.into_iter().next().expect("a piece without dictionaries is one message"))
            })
        });
        let schema = Unencoded::new(schema.weight(), || Ok(schema));
        return Encoded::side_by_side(stream::iter([Ok(schema)]).chain(parts));
    }
    let messages = pieces.and_then(move |piece| {
        let messages = encoder.piece(&piece).map_err(failed);
        std::future::ready(messages.map(|messages| stream::iter(messages.into_iter().map(Ok))))
    });
    Encoded::in_turn(stream::iter([Ok(schema)]).chain(messages.try_flatten()))
}

fn failed(error: WireError) -> Error {
    match error {
        WireError::Convert { source } | WireError::Encode { source } => DataFusionError::from(source).into(),
    }
}

/// What is known of a query before it runs, as JSON. What it used follows its result.
fn expected(planned: &Planned) -> Bytes {
    let (bytes, rows) = planned.scan_size();
    let rows = rows.map_or_else(|| "null".to_owned(), |rows| rows.to_string());
    let plan_ms = planned.plan_time().as_secs_f64() * 1e3;
    format!(r#"{{"scan_bytes":{bytes},"scan_rows":{rows},"plan_ms":{plan_ms:.3}}}"#).into()
}

/// What a query used, as `x-updraft-<name>`, with `-` where names have `_`.
fn resources(report: &Report) -> HeaderMap {
    let fields = report.fields().map(|(name, value)| {
        let name = format!("x-updraft-{}", name.replace('_', "-"));
        (
            HeaderName::try_from(name).expect("names are ASCII"),
            HeaderValue::try_from(value).expect("values are numbers and words"),
        )
    });
    HeaderMap::from_iter(fields)
}

pub(crate) fn query_ticket(sealed: Vec<u8>) -> Ticket {
    let message = TicketStatementQuery { statement_handle: sealed.into() };
    Ticket::new(message.as_any().encode_to_vec())
}

fn fingerprint(schema: &Schema) -> u64 {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    schema.hash(&mut hasher);
    hasher.finish()
}
