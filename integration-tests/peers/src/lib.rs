//! What Updraft is measured against, and the load that measures it: programs for `integration-tests/bench`, nothing else.
//!
//! - `stock_flight`: tables in memory behind arrow-flight and tonic as they come
//! - `plain_sql`: DataFusion behind the crate `datafusion-flight-sql-server` as it comes
//! - `load`: many clients that ask small queries, or hold connections open
//!
//! A server says `listening on ADDRESS` on standard output when it can be asked.

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use tokio::net::TcpListener;

/// The tables of a folder, sorted by name: those in a Parquet file of their own, and those in a folder of such files.
///
/// # Errors
/// If the folder cannot be read.
pub fn tables(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let paths = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
    let named = paths.into_iter().filter_map(|path| Some((path.file_stem()?.to_str()?.to_owned(), path)));
    let mut tables: Vec<_> = named.collect();
    tables.sort();
    Ok(tables)
}

/// A port of this machine's loopback, announced on standard output.
///
/// # Errors
/// If there is no free port.
pub async fn listen() -> io::Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
    let mut out = io::stdout();
    writeln!(out, "listening on grpc://{}", listener.local_addr()?)?;
    out.flush()?;
    Ok(listener)
}
