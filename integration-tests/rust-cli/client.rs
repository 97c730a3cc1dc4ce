//! arrow-flight's `FlightSqlServiceClient` against running servers: one check per feature of docs/clients.md, all of them run, the
//! outcome written to `UPDRAFT_RESULTS`. Where the servers are comes in by environment variables (integration-tests/python/suites.py).

#![allow(clippy::print_stderr)]

use std::error::Error;
use std::fmt::Write as _;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_flight::FlightInfo;
use arrow_flight::client::FlightClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandGetCrossReference, CommandGetDbSchemas, CommandGetExportedKeys, CommandGetImportedKeys,
    CommandGetPrimaryKeys, CommandGetTables, CommandGetXdbcTypeInfo,
};
use arrow_flight::{CancelFlightInfoRequest, CancelStatus};
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::arrow::util::display::{ArrayFormatter, FormatOptions};
use futures::TryStreamExt;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

type Outcome = Result<(), Box<dyn Error>>;
type Client = FlightSqlServiceClient<Channel>;
type Check = fn() -> Pin<Box<dyn Future<Output = Outcome>>>;

/// Runs for minutes unless it is stopped.
const LONG_ROWS: &str = "SELECT a.id * b.id AS v FROM big AS a CROSS JOIN big AS b";

macro_rules! checks {
    ($($feature:literal => $check:ident),* $(,)?) => {
        &[$(($feature, (|| Box::pin($check()) as Pin<Box<dyn Future<Output = Outcome>>>) as Check)),*]
    };
}

const CHECKS: &[(&str, Check)] = checks! {
    "connect" => statements,
    "statements" => statements,
    "prepared" => prepared,
    "parameters" => parameters,
    "many-rows-bound" => several_rows,
    "types" => types,
    "rare-types" => rare_types,
    "empty" => empty,
    "wide" => wide,
    "million" => million,
    "tpch" => tpch,
    "metadata" => metadata,
    "info" => info,
    "keys-and-types" => keys_and_types,
    "cancel" => cancel,
    "timeout" => timeout,
    "errors" => errors,
    "refusals" => refusals,
    "password" => password,
    "token" => token,
    "refused" => refused,
    "tls" => tls,
    "mtls" => mutual_tls,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = env("RESULTS")?;
    let (mut rows, mut failed) = (String::new(), 0);
    for (feature, check) in CHECKS {
        let outcome = check().await;
        if let Err(error) = &outcome {
            eprintln!("rust client, {feature}: {error}");
            failed += 1;
        }
        let (separator, status) =
            (if rows.is_empty() { "" } else { ",\n" }, if outcome.is_ok() { "pass" } else { "fail" });
        write!(
            rows,
            r#"{separator}{{"client": "Rust client", "feature": "{feature}", "status": "{status}", "note": ""}}"#
        )?;
    }
    std::fs::write(path, format!("[{rows}]\n"))?;
    if failed > 0 { Err(format!("{failed} checks failed").into()) } else { Ok(()) }
}

fn env(name: &str) -> Result<String, String> {
    let name = format!("UPDRAFT_{name}");
    std::env::var(&name).map_err(|_| format!("{name} is not set; run integration-tests/test.sh clients-rust"))
}

fn endpoint(scheme: &str, port: &str) -> Result<Endpoint, Box<dyn Error>> {
    Ok(Endpoint::from_shared(format!("{scheme}://{}:{}", env("HOST")?, env(port)?))?)
}

async fn connect() -> Result<Client, Box<dyn Error>> {
    Ok(Client::new(endpoint("http", "PORT")?.connect().await?))
}

/// All endpoints of an answer, and the schema that was announced.
async fn fetch(client: &mut Client, info: FlightInfo) -> Result<(SchemaRef, Vec<RecordBatch>), Box<dyn Error>> {
    let announced = Arc::new(info.clone().try_decode_schema()?);
    let mut batches = Vec::new();
    for endpoint in info.endpoint {
        let mut stream = client.do_get(endpoint.ticket.ok_or("endpoint without ticket")?).await?;
        while let Some(batch) = stream.try_next().await? {
            batches.push(batch);
        }
        let sent = stream.schema().ok_or("no schema in the stream")?;
        same("schema of the stream", sent.as_ref(), announced.as_ref())?;
    }
    Ok((announced, batches))
}

async fn query(client: &mut Client, sql: &str) -> Result<(SchemaRef, Vec<RecordBatch>), Box<dyn Error>> {
    let info = client.execute(sql.into(), None).await?;
    fetch(client, info).await
}

/// Rows as plain text; NULL is `\N`.
fn cells(batches: &[RecordBatch]) -> Result<Vec<Vec<String>>, Box<dyn Error>> {
    let options = FormatOptions::default().with_null("\\N");
    let mut rows = Vec::new();
    for batch in batches {
        let columns =
            batch.columns().iter().map(|c| ArrayFormatter::try_new(c, &options)).collect::<Result<Vec<_>, _>>()?;
        for row in 0..batch.num_rows() {
            rows.push(columns.iter().map(|c| c.value(row).try_to_string()).collect::<Result<Vec<_>, _>>()?);
        }
    }
    Ok(rows)
}

async fn text(client: &mut Client, sql: &str) -> Result<String, Box<dyn Error>> {
    let (_, batches) = query(client, sql).await?;
    Ok(cells(&batches)?.iter().map(|row| row.join(",")).collect::<Vec<_>>().join(";"))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, want: T) -> Outcome {
    if got == want { Ok(()) } else { Err(format!("{what}: got {got:?}, want {want:?}").into()) }
}

fn count(batches: &[RecordBatch]) -> usize {
    batches.iter().map(RecordBatch::num_rows).sum()
}

async fn statements() -> Outcome {
    let client = &mut connect().await?;
    for (sql, want) in [
        ("SELECT 1", "1"),
        ("SELECT a, b FROM t ORDER BY a NULLS LAST", "1,x;2,\\N;\\N,z"),
        ("SELECT x FROM nested.inner", "1"),
        ("SELECT count(*) FROM big", "1000000"),
    ] {
        same(sql, text(client, sql).await?.as_str(), want)?;
    }
    Ok(())
}

async fn prepared() -> Outcome {
    let client = &mut connect().await?;
    let mut statement = client.prepare("SELECT count(*) AS n FROM t".into(), None).await?;
    same("columns", statement.dataset_schema()?.fields().len(), 1)?;
    for _ in 0..3 {
        let info = statement.execute().await?;
        let (_, batches) = fetch(client, info).await?;
        same("rows", cells(&batches)?, vec![vec!["3".to_string()]])?;
    }
    Ok(statement.close().await?)
}

async fn bound(sql: &str, columns: Vec<(&str, ArrayRef)>) -> Result<Vec<RecordBatch>, Box<dyn Error>> {
    let client = &mut connect().await?;
    let mut statement = client.prepare(sql.into(), None).await?;
    same("parameters", statement.parameter_schema()?.fields().len(), columns.len())?;
    statement.set_parameters(RecordBatch::try_from_iter(columns)?)?;
    let info = statement.execute().await?;
    let (_, batches) = fetch(client, info).await?;
    statement.close().await?;
    Ok(batches)
}

async fn parameters() -> Outcome {
    let number = || Arc::new(Int64Array::from(vec![1])) as ArrayRef;
    let word = Arc::new(StringArray::from(vec!["x"])) as ArrayRef;
    for sql in ["SELECT b FROM t WHERE a = $1", "SELECT b FROM t WHERE a = ?", "SELECT b FROM t WHERE a = :n"] {
        same(sql, cells(&bound(sql, vec![("1", number())]).await?)?, vec![vec!["x".to_string()]])?;
    }
    let both = bound("SELECT a FROM t WHERE a = ? AND b = ?", vec![("1", number()), ("2", word)]).await?;
    same("two parameters", cells(&both)?, vec![vec!["1".to_string()]])
}

async fn several_rows() -> Outcome {
    let numbers = Arc::new(Int64Array::from(vec![1, 2, 9])) as ArrayRef;
    same("rows", count(&bound("SELECT a FROM t WHERE a = ?", vec![("1", numbers)]).await?), 2)
}

async fn nulls_last(table: &str) -> Result<Vec<Vec<String>>, Box<dyn Error>> {
    let (_, batches) = query(&mut connect().await?, &format!("SELECT * FROM {table} ORDER BY id")).await?;
    let rows = cells(&batches)?;
    same("rows", rows.len(), 4)?;
    same("NULLs", rows[3][1..].iter().filter(|cell| *cell != "\\N").count(), 0)?;
    Ok(rows)
}

async fn types() -> Outcome {
    let rows = nulls_last("types").await?;
    same("decimal", rows[1][8].as_str(), "-0.01")?;
    same("text", rows[1][10].as_str(), "zażółć 🎈")
}

async fn rare_types() -> Outcome {
    nulls_last("rare").await?;
    nulls_last("ipc_types").await.map(drop)
}

async fn empty() -> Outcome {
    let (schema, batches) = query(&mut connect().await?, "SELECT * FROM empty").await?;
    same("rows", count(&batches), 0)?;
    same("columns", schema.fields().len(), 19)
}

async fn wide() -> Outcome {
    let (schema, _) = query(&mut connect().await?, "SELECT * FROM wide").await?;
    same("columns", schema.fields().len(), 1000)
}

async fn million() -> Outcome {
    let (_, batches) = query(&mut connect().await?, "SELECT id, name FROM big").await?;
    same("rows", count(&batches), 1_000_000)
}

async fn tpch() -> Outcome {
    let client = &mut connect().await?;
    for number in 1..=22 {
        let sql = std::fs::read_to_string(format!("{}/q{number:02}.sql", env("TPCH")?))?;
        let answer = std::fs::read_to_string(format!("{}/q{number:02}.tsv", env("ANSWERS")?))?;
        let mut want: Vec<Vec<String>> =
            answer.lines().map(|line| line.split('\t').map(str::to_owned).collect()).collect();
        let (_, batches) = query(client, &sql).await?;
        let mut got = cells(&batches)?;
        same(&format!("q{number:02}, rows"), got.len(), want.len())?;
        // In any order: numbers are rounded in the key, so that both sides sort alike.
        let key = |row: &Vec<String>| {
            row.iter().map(|c| c.parse::<f64>().map_or_else(|_| c.clone(), |n| format!("{n:.2}"))).collect::<Vec<_>>()
        };
        got.sort_by_key(key);
        want.sort_by_key(key);
        for (g, w) in got.iter().flatten().zip(want.iter().flatten()) {
            let near = match (g.parse::<f64>(), w.parse::<f64>()) {
                (Ok(g), Ok(w)) => (g - w).abs() <= (w.abs() * 1e-6).max(1e-4),
                _ => g == w,
            };
            if !near {
                return Err(format!("q{number:02}: {g}, DuckDB has {w}").into());
            }
        }
    }
    Ok(())
}

async fn metadata() -> Outcome {
    let client = &mut connect().await?;
    let catalogs = client.get_catalogs().await?;
    let catalog = cells(&fetch(client, catalogs).await?.1)?[0][0].clone();
    let request =
        CommandGetDbSchemas { catalog: Some(catalog.clone()), db_schema_filter_pattern: Some("nest%".into()) };
    let schemas = client.get_db_schemas(request).await?;
    same("schemas", count(&fetch(client, schemas).await?.1), 1)?;
    let request = CommandGetTables {
        catalog: Some(catalog),
        table_name_filter_pattern: Some("t".into()),
        include_schema: true,
        ..CommandGetTables::default()
    };
    let tables = client.get_tables(request).await?;
    same("tables", count(&fetch(client, tables).await?.1), 1)?;
    let types = client.get_table_types().await?;
    same("table types", count(&fetch(client, types).await?.1) >= 2, true)
}

async fn info() -> Outcome {
    let client = &mut connect().await?;
    let all = client.get_sql_info(Vec::new()).await?;
    same("complete", count(&fetch(client, all).await?.1) > 70, true)
}

async fn keys_and_types() -> Outcome {
    let client = &mut connect().await?;
    let table = "t".to_string();
    let infos = [
        client.get_primary_keys(CommandGetPrimaryKeys { table: table.clone(), ..Default::default() }).await?,
        client.get_exported_keys(CommandGetExportedKeys { table: table.clone(), ..Default::default() }).await?,
        client.get_imported_keys(CommandGetImportedKeys { table: table.clone(), ..Default::default() }).await?,
        client
            .get_cross_reference(CommandGetCrossReference {
                pk_table: table.clone(),
                fk_table: table,
                ..Default::default()
            })
            .await?,
    ];
    for info in infos {
        same("keys", count(&fetch(client, info).await?.1), 0)?;
    }
    let types = client.get_xdbc_type_info(CommandGetXdbcTypeInfo { data_type: None }).await?;
    same("types", count(&fetch(client, types).await?.1) >= 10, true)
}

async fn cancel() -> Outcome {
    let channel = endpoint("http", "PORT")?.connect().await?;
    let client = &mut Client::new(channel.clone());
    let info = client.execute(LONG_ROWS.into(), None).await?;
    let ticket = info.endpoint[0].ticket.clone().ok_or("no ticket")?;
    let mut stream = client.do_get(ticket).await?;
    stream.try_next().await?;
    let reply = FlightClient::new(channel).cancel_flight_info(CancelFlightInfoRequest::new(info)).await?;
    let status = CancelStatus::try_from(reply.status)?;
    same("status", matches!(status, CancelStatus::Cancelled | CancelStatus::Cancelling), true)?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(10) {
        if stream.try_next().await.is_err() {
            return Ok(());
        }
    }
    Err("rows keep coming after the query was cancelled".into())
}

async fn timeout() -> Outcome {
    let client = &mut connect().await?;
    // tonic's own timeout ends with the headers of the answer; the header of gRPC holds for the whole call.
    client.set_header("grpc-timeout", "1S");
    let begin = Instant::now();
    let sql = LONG_ROWS.replace("a.id * b.id AS v", "sum((a.id * b.id) % 7) AS v");
    let outcome = tokio::time::timeout(Duration::from_secs(20), query(client, &sql)).await;
    let error = outcome?.err().ok_or("no error")?.to_string();
    same(&format!("{error}, in time"), begin.elapsed() < Duration::from_secs(10), true)
}

async fn errors() -> Outcome {
    let client = &mut connect().await?;
    for (sql, says) in
        [("SELECT * FROM", "expected"), ("SELECT * FROM nowhere", "nowhere"), ("SELECT nothing FROM t", "nothing")]
    {
        let error = client.execute(sql.into(), None).await.err().ok_or("no error")?.to_string();
        same(&format!("{error} says {says}"), error.to_lowercase().contains(says), true)?;
    }
    same("the connection goes on", text(client, "SELECT 1").await?.as_str(), "1")
}

async fn refusals() -> Outcome {
    let client = &mut connect().await?;
    same("update", client.execute_update("DELETE FROM t".into(), None).await.is_err(), true)?;
    same("transaction", client.begin_transaction().await.is_err(), true)
}

async fn password() -> Outcome {
    let client = &mut Client::new(endpoint("http", "LOGIN_PORT")?.connect().await?);
    client.handshake(&env("USER")?, &env("PASSWORD")?).await?;
    same("answer", text(client, "SELECT 1").await?.as_str(), "1")
}

async fn token() -> Outcome {
    let client = &mut Client::new(endpoint("http", "LOGIN_PORT")?.connect().await?);
    client.set_token(env("TOKEN")?);
    same("answer", text(client, "SELECT 1").await?.as_str(), "1")
}

async fn refused() -> Outcome {
    let client = &mut Client::new(endpoint("http", "LOGIN_PORT")?.connect().await?);
    same("password", client.handshake(&env("USER")?, "wrong").await.is_err(), true)?;
    client.set_token("wrong".into());
    same("token", client.execute("SELECT 1".into(), None).await.is_err(), true)
}

fn trust() -> Result<ClientTlsConfig, Box<dyn Error>> {
    let ca = Certificate::from_pem(std::fs::read(env("CA")?)?);
    Ok(ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost"))
}

async fn tls() -> Outcome {
    let client = &mut Client::new(endpoint("https", "TLS_PORT")?.tls_config(trust()?)?.connect().await?);
    client.handshake(&env("USER")?, &env("PASSWORD")?).await?;
    same("answer", text(client, "SELECT 1").await?.as_str(), "1")
}

async fn mutual_tls() -> Outcome {
    let identity = Identity::from_pem(std::fs::read(env("CERT")?)?, std::fs::read(env("KEY")?)?);
    let channel = endpoint("https", "MTLS_PORT")?.tls_config(trust()?.identity(identity))?.connect().await?;
    same("answer", text(&mut Client::new(channel), "SELECT 1").await?.as_str(), "1")
}
