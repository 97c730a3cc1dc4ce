//! Many clients, each with a connection of its own, that ask one small query after the other.
//!
//! Each query is a GetFlightInfo and the DoGet of its endpoints, read to the end and decoded; an answer with another number of
//! rows than it should have counts as an error. What came of it is one JSON object on standard output.

use std::error::Error;
use std::io::Write;
use std::time::{Duration, Instant};

use arrow_flight::error::FlightError;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{FlightClient, FlightDescriptor};
use clap::{Parser, ValueEnum};
use futures::TryStreamExt;
use futures::future::try_join_all;
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Endpoint;

/// A client that was refused waits so long, so that it measures the server and not its refusals.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(10);

/// Asks small queries by many clients and says how long they took.
#[derive(Parser)]
struct Load {
    /// The server, such as `grpc://127.0.0.1:32010`.
    uri: String,
    /// What a descriptor holds.
    #[arg(long, value_enum, default_value = "flight-sql")]
    speaks: Dialect,
    /// Clients at once.
    #[arg(long)]
    clients: usize,
    /// How long they ask, the first second of which is not counted.
    #[arg(long)]
    seconds: f64,
    /// A query and the number of its rows: `1=SELECT 1`. Clients go through all of these in turn, each from another on.
    #[arg(long = "ask", value_parser = asked, required = true)]
    asks: Vec<Ask>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Dialect {
    /// The command of Flight SQL.
    FlightSql,
    /// The text of the query.
    Flight,
}

#[derive(Clone)]
struct Ask {
    rows: usize,
    sql: String,
}

fn asked(text: &str) -> Result<Ask, String> {
    let (rows, sql) = text.split_once('=').ok_or("ROWS=SQL")?;
    Ok(Ask { rows: rows.parse().map_err(|_| "ROWS is a number")?, sql: sql.to_owned() })
}

impl Dialect {
    fn descriptor(self, sql: &str) -> FlightDescriptor {
        FlightDescriptor::new_cmd(match self {
            Self::FlightSql => {
                CommandStatementQuery { query: sql.to_owned(), transaction_id: None }.as_any().encode_to_vec()
            }
            Self::Flight => sql.into(),
        })
    }
}

/// What one client saw of its counted queries.
#[derive(Default)]
struct Seen {
    /// Microseconds, with the index of the query.
    taken: Vec<(usize, u32)>,
    errors: u64,
    first_error: Option<String>,
}

/// The rows of one answer.
async fn ask(client: &mut FlightClient, descriptor: FlightDescriptor) -> Result<usize, FlightError> {
    let mut rows = 0;
    for endpoint in client.get_flight_info(descriptor).await?.endpoint {
        let ticket = endpoint.ticket.ok_or_else(|| FlightError::protocol("an endpoint without a ticket"))?;
        let mut answer = client.do_get(ticket).await?;
        while let Some(batch) = answer.try_next().await? {
            rows += batch.num_rows();
        }
    }
    Ok(rows)
}

/// Asks from now until `end`, and counts from `begin` on.
async fn client(mut client: FlightClient, load: &Load, number: usize, begin: Instant, end: Instant) -> Seen {
    let mut seen = Seen::default();
    let turns = (0..load.asks.len()).cycle().skip(number % load.asks.len());
    for (at, wanted) in turns.map(|at| (at, &load.asks[at])) {
        let start = Instant::now();
        if start >= end {
            break;
        }
        let answer = ask(&mut client, load.speaks.descriptor(&wanted.sql)).await;
        let error = match answer {
            Ok(rows) if rows == wanted.rows => None,
            Ok(rows) => Some(format!("{rows} rows of {}", wanted.sql)),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = error {
            seen.errors += 1;
            seen.first_error.get_or_insert(error);
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        } else if start >= begin {
            seen.taken.push((at, u32::try_from(start.elapsed().as_micros()).unwrap_or(u32::MAX)));
        }
    }
    seen
}

/// Percentiles of sorted microseconds.
fn spread(mut taken: Vec<u32>) -> Value {
    taken.sort_unstable();
    let share = |share: f64| taken.get(((share * taken.len() as f64).ceil() as usize).saturating_sub(1));
    json!({ "n": taken.len(), "p50_us": share(0.5), "p99_us": share(0.99), "max_us": taken.last() })
}

fn result(load: &Load, seen: Vec<Seen>, seconds: f64) -> Value {
    let taken = |of: Option<usize>| {
        seen.iter()
            .flat_map(|seen| &seen.taken)
            .filter(|(at, _)| of.is_none_or(|of| of == *at))
            .map(|(_, us)| *us)
            .collect()
    };
    let all = spread(taken(None));
    let each: Vec<Value> = (0..load.asks.len()).map(|at| spread(taken(Some(at)))).collect();
    json!({
        "per_second": (all["n"].as_f64().unwrap_or_default() / seconds).round(),
        "all": all,
        "each": each,
        "errors": seen.iter().map(|seen| seen.errors).sum::<u64>(),
        "first_error": seen.iter().find_map(|seen| seen.first_error.clone()),
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let load = Load::parse();
    let endpoint = Endpoint::new(load.uri.replacen("grpc://", "http://", 1))?.tcp_nodelay(true);
    let clients =
        try_join_all((0..load.clients).map(|_| async { endpoint.connect().await.map(FlightClient::new) })).await?;
    let start = Instant::now();
    let warm = Duration::from_secs_f64(1f64.min(load.seconds / 2.0));
    let (begin, end) = (start + warm, start + Duration::from_secs_f64(load.seconds));
    let load = std::sync::Arc::new(load);
    let tasks = clients.into_iter().enumerate().map(|(number, connected)| {
        let load = load.clone();
        tokio::spawn(async move { client(connected, &load, number, begin, end).await })
    });
    let seen = try_join_all(tasks.collect::<Vec<_>>()).await?;
    writeln!(std::io::stdout(), "{}", result(&load, seen, (end - begin).as_secs_f64()))?;
    Ok(())
}
