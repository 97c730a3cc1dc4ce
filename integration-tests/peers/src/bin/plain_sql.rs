//! DataFusion behind the crate `datafusion-flight-sql-server` as it comes, its tables in memory: `plain_sql FOLDER`.

use std::error::Error;
use std::path::PathBuf;

use datafusion::prelude::{ParquetReadOptions, SessionContext};
use datafusion_flight_sql_server::service::FlightSqlService;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("plain_sql FOLDER")?.into();
    let context = SessionContext::new();
    for (name, path) in updraft_peers::tables(&folder)? {
        context.register_parquet("file", path.to_string_lossy(), ParquetReadOptions::default()).await?;
        context.sql(&format!("CREATE TABLE {name} AS SELECT * FROM file")).await?.collect().await?;
        context.deregister_table("file")?;
    }
    let listener = updraft_peers::listen().await?.into_std()?;
    FlightSqlService::new(context.state()).serve_with_listener(listener).await
}
